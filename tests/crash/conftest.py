"""The crash tier's fixtures."""

from tests.crash.world import sim, template

__all__ = ["sim", "template"]
