"""Privacy spending of a site over all of its runs."""
