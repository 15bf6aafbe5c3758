"""A site's server, configuration and policy, and the study lead's side."""
