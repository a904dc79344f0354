"""The host: what connects a volume to this machine (os-brick, in a helper process of its own)."""
