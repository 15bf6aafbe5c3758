"""Images, labels, splits and scores."""
