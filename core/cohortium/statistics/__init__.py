"""Statistics that sites release as noised sums: scores of a model, and facts about images."""
