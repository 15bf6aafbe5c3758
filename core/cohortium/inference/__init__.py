"""Use and export of a trained model."""
