"""Cinder, simulated: the real wire format over a book of the world.

* :class:`~tether.sim.cinder.app.CinderApp`: the API as a WSGI app.
* :class:`~tether.sim.cinder.transport.SimTransport`: the same in this process, with scripted failures.
* :func:`~tether.sim.cinder.seed.seed_cinder`, :func:`~tether.sim.cinder.seed.add_volume`: volumes to begin with.

It behaves as Cinder 29 was seen to behave, its bugs and traps included: stale bodies, blind writes, a second
row for the same instance, the text "False" that reads as true, and calls that end after their answer.
"""

from tether.sim.cinder.app import CinderApp
from tether.sim.cinder.seed import add_volume, seed_cinder
from tether.sim.cinder.transport import SimTransport

__all__ = ["CinderApp", "SimTransport", "add_volume", "seed_cinder"]
