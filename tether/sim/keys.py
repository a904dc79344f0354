"""The embedded world's key manager."""

from __future__ import annotations

from tether.adapters.cinder.model import Encryption
from tether.errors import NotFound
from tether.sealed import Sealed
from tether.sim.store import Store


class SimKeys:
    """The simulated key manager: the ``keys`` of the book ``cinder``, key id -> passphrase.

    Args:
        store: the world's books.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def passphrase(self, encryption: Encryption) -> Sealed[str]:
        known = self._store.read("cinder").get("keys", {})
        if encryption.key_id not in known:
            raise NotFound(
                f"the key manager has no key {encryption.key_id}",
                resource=f"key {encryption.key_id}",
                hint="check the volume's encryption: openstack volume show",
            )
        return Sealed(str(known[encryption.key_id]))
