"""Guarantees, mechanisms and the accounting of their privacy loss."""
