"""One run from its preparation to its result, and its directory."""
