"""Federations, adversaries and environments that several tests use."""
