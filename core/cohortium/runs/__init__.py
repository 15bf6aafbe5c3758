"""One run from its preparation to its result, and the directory that keeps it."""
