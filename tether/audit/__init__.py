"""Reads the five books about a volume and a server."""
