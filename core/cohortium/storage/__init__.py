"""Durable files: written whole, appended to, or refused before any work."""
