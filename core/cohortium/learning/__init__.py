"""Building blocks for trainers and models."""
