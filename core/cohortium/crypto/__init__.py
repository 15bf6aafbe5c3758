"""Randomness of a party and of a simulation, and signing keys."""
