"""The embedded world: the same protocols over files in one directory."""
