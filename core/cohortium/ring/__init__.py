"""Exact sums of integers modulo a power of two."""
