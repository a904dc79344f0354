"""The judge of the embedded world, as the fault matrix has it."""

from tether.matrix.judge import diff, snapshot

__all__ = ["diff", "snapshot"]
