"""Cinder's contract: extending a volume. See ``cinder_contract``."""

from __future__ import annotations

import pytest

from tests.contract.cinder_words import NewVolume, connected, eventually, rows, status
from tether.adapters.cinder.model import Cinder
from tether.errors import FinalError, NotFound


def ended(cinder: Cinder, volume: str) -> bool:
    """Return True once the volume is as large as asked for, and nothing is under way."""
    return eventually(lambda: status(cinder, volume) != "extending")


class ExtendContract:
    """os-extend, of a volume that is attached and of one that is not."""

    def test_an_attached_volume_grows_and_stays_attached(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        attachment = connected(cinder, volume)
        before = cinder.show_attachment(attachment)
        cinder.extend(volume, 2)
        assert ended(cinder, volume)
        found = cinder.show_volume(volume)
        assert (found.size, found.status) == (2, "in-use")
        assert rows(cinder, volume) == [(attachment, "attached")]
        assert cinder.show_attachment(attachment) == before

    def test_an_available_volume_grows(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        cinder.extend(volume, 2)
        assert ended(cinder, volume)
        found = cinder.show_volume(volume)
        assert (found.size, found.status) == (2, "available")

    @pytest.mark.parametrize("size", [1, 2])
    def test_no_smaller_and_no_equal_size(self, cinder: Cinder, new_volume: NewVolume, size: int) -> None:
        volume = new_volume()
        connected(cinder, volume)
        cinder.extend(volume, 2)
        assert ended(cinder, volume)
        with pytest.raises(FinalError):
            cinder.extend(volume, size)
        found = cinder.show_volume(volume)
        assert (found.size, found.status) == (2, "in-use")

    def test_a_volume_in_another_status_is_refused(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume(status="error")
        with pytest.raises(FinalError):
            cinder.extend(volume, 2)
        assert (status(cinder, volume), cinder.show_volume(volume).size) == ("error", 1)

    def test_an_unknown_volume_is_not_found(self, cinder: Cinder) -> None:
        with pytest.raises(NotFound):
            cinder.extend("99999999-9999-4999-8999-999999999999", 2)
