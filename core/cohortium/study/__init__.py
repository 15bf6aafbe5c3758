"""A study as a value and as TOML."""
