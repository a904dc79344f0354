"""Cinder's contract: what is left after an answer that proves nothing. See ``cinder_contract``."""

from __future__ import annotations

import pytest

from tests.contract.cinder_words import CONNECTOR, Fault, NewVolume, connected, eventually, rows, status, uuid
from tether.adapters.cinder.model import Cinder
from tether.errors import FinalError, UncertainError


class FaultsContract:
    """A 5xx answer proves nothing, unless it passes on that the backend has failed to export."""

    def test_a_failed_update_leaves_a_reserved_row(self, cinder: Cinder, new_volume: NewVolume, fault: Fault) -> None:
        volume = new_volume()
        attachment = cinder.create_attachment(volume, owner=uuid(), mode="rw")
        with fault(volume, "initialize_connection", "fail"), pytest.raises(FinalError):
            cinder.update_attachment(attachment, CONNECTOR)
        row = cinder.show_attachment(attachment)
        assert (status(cinder, volume), row.status, row.connection) == ("reserved", "reserved", None)
        assert cinder.update_attachment(attachment, CONNECTOR).protocol == "iscsi"

    def test_a_late_update_loses_the_connection(self, cinder: Cinder, new_volume: NewVolume, fault: Fault) -> None:
        volume = new_volume()
        attachment = cinder.create_attachment(volume, owner=uuid(), mode="rw")
        with fault(volume, "initialize_connection", "late"), pytest.raises(UncertainError):
            cinder.update_attachment(attachment, CONNECTOR)
        assert eventually(lambda: cinder.show_attachment(attachment).status == "attaching")
        assert cinder.show_attachment(attachment).connection is None
        connection = cinder.update_attachment(attachment, CONNECTOR)
        assert cinder.show_attachment(attachment).connection == connection

    def test_a_failed_delete_changes_nothing(self, cinder: Cinder, new_volume: NewVolume, fault: Fault) -> None:
        volume = new_volume()
        attachment = connected(cinder, volume, owner=uuid())
        with fault(volume, "terminate_connection", "fail"), pytest.raises(UncertainError):
            cinder.delete_attachment(attachment)
        assert (status(cinder, volume), rows(cinder, volume)) == ("in-use", [(attachment, "attached")])
        cinder.delete_attachment(attachment)
        assert status(cinder, volume) == "available"

    def test_a_late_delete_keeps_the_row(self, cinder: Cinder, new_volume: NewVolume, fault: Fault) -> None:
        volume = new_volume()
        attachment = connected(cinder, volume, owner=uuid())
        with fault(volume, "terminate_connection", "late"), pytest.raises(UncertainError):
            cinder.delete_attachment(attachment)
        assert rows(cinder, volume) == [(attachment, "attached")]
        cinder.delete_attachment(attachment)
        assert (status(cinder, volume), rows(cinder, volume)) == ("available", [])

    def test_a_delete_hides_a_failed_unexport(self, cinder: Cinder, new_volume: NewVolume, fault: Fault) -> None:
        volume = new_volume()
        attachment = connected(cinder, volume, owner=uuid())
        with fault(volume, "remove_export", "fail"):
            cinder.delete_attachment(attachment)
        assert (status(cinder, volume), rows(cinder, volume)) == ("available", [])

    def test_a_failed_initialize_leaves_the_reservation(
        self, cinder: Cinder, new_volume: NewVolume, fault: Fault
    ) -> None:
        volume = new_volume()
        cinder.reserve(volume)
        with fault(volume, "initialize_connection", "fail"), pytest.raises(FinalError):
            cinder.initialize_connection(volume, CONNECTOR)
        assert status(cinder, volume) == "attaching"
        cinder.unreserve(volume)
        assert status(cinder, volume) == "available"

    def test_a_failed_terminate_may_be_repeated(self, cinder: Cinder, new_volume: NewVolume, fault: Fault) -> None:
        volume = new_volume()
        cinder.reserve(volume)
        cinder.initialize_connection(volume, CONNECTOR)
        with fault(volume, "terminate_connection", "fail"), pytest.raises(UncertainError):
            cinder.terminate_connection(volume, CONNECTOR)
        assert status(cinder, volume) == "attaching"
        cinder.terminate_connection(volume, CONNECTOR)
        assert status(cinder, volume) == "available"

    def test_a_failed_legacy_detach(self, cinder: Cinder, new_volume: NewVolume, fault: Fault) -> None:
        volume = new_volume()
        cinder.reserve(volume)
        cinder.attach(volume, owner=uuid(), mountpoint="/dev/vdb", mode="rw")
        (row,) = cinder.list_attachments(volume)
        cinder.begin_detaching(volume)
        with fault(volume, "remove_export", "fail"), pytest.raises(UncertainError):
            cinder.detach(volume, row.id)
        assert (status(cinder, volume), rows(cinder, volume)) == ("detaching", [(row.id, "attached")])
        cinder.detach(volume, row.id)
        assert (status(cinder, volume), rows(cinder, volume)) == ("available", [])
