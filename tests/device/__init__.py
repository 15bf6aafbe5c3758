"""Checks and measurements on a graphics card."""
