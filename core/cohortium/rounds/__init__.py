"""State machines of the coordinator and the sites, and one round."""
