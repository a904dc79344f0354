"""The integration tier's fixtures: worlds for the command line."""

from tests.crash.world import sim, template

__all__ = ["sim", "template"]
