"""The graph flows, and the registry that builds them."""
