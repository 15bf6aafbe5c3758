"""Discovery of plugins, and the construction of parts from names and tables."""
