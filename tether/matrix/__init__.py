"""The fault matrix: breaks every point of every flow in every way, recovers, and has an independent judge look."""
