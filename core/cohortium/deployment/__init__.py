"""A site's server, its configuration and its policy, and the study lead's side."""
