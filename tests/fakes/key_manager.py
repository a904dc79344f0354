"""A key manager in this process, for castellan's own API: its keys are the test's, and it is asked like any other."""

from __future__ import annotations

from typing import Any, ClassVar

from castellan.common import exception
from castellan.common.objects.symmetric_key import SymmetricKey


class MemoryKeys:
    """What castellan needs of a backend to read keys; ``keys`` is by id."""

    keys: ClassVar[dict[str, bytes]] = {}

    def __init__(self, configuration: Any) -> None:
        self._conf = configuration

    def get(self, context: Any, managed_object_id: str, metadata_only: bool = False) -> SymmetricKey:
        assert context is not None, "castellan wants a credential"
        if managed_object_id not in self.keys:
            raise exception.ManagedObjectNotFoundError(uuid=managed_object_id)
        key = self.keys[managed_object_id]
        return SymmetricKey("AES", 8 * len(key), key)
