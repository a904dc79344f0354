"""Cinder's contract: the legacy dialect. See ``cinder_contract``."""

from __future__ import annotations

import pytest

from tests.contract.cinder_words import CONNECTOR, NewVolume, connected, rows, status, uuid
from tether.adapters.cinder.model import Cinder
from tether.errors import FinalError


class LegacyContract:
    """The legacy dialect: os-reserve, os-initialize_connection, os-attach."""

    def test_legacy_states_from_available_to_available(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume, owner = new_volume(), uuid()
        cinder.reserve(volume)
        assert (status(cinder, volume), rows(cinder, volume)) == ("attaching", [])

        connection = cinder.initialize_connection(volume, CONNECTOR)
        assert connection.protocol == "iscsi"
        assert (status(cinder, volume), rows(cinder, volume)) == ("attaching", [])

        cinder.attach(volume, owner=owner, mountpoint="/dev/vdb", mode="rw")
        (row,) = cinder.list_attachments(volume)
        assert (status(cinder, volume), row.status, row.owner) == ("in-use", "attached", owner)
        shown = cinder.show_attachment(row.id)
        assert (shown.mode, shown.connection) == ("rw", None)
        found = cinder.show_volume(volume)
        assert found.attached_to == ((owner, row.id),)
        assert (found.metadata["readonly"], found.metadata["attached_mode"]) == ("False", "rw")

        cinder.begin_detaching(volume)
        assert (status(cinder, volume), rows(cinder, volume)) == ("detaching", [(row.id, "attached")])
        cinder.terminate_connection(volume, CONNECTOR)
        assert (status(cinder, volume), rows(cinder, volume)) == ("detaching", [(row.id, "attached")])
        cinder.detach(volume, row.id)
        assert (status(cinder, volume), rows(cinder, volume)) == ("available", [])
        assert cinder.show_volume(volume).metadata["readonly"] == "False"  # it stays: known residue

    def test_reserve_again_is_refused(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        cinder.reserve(volume)
        with pytest.raises(FinalError):
            cinder.reserve(volume)
        assert status(cinder, volume) == "attaching"

    def test_unreserve_never_fails(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        cinder.unreserve(volume)
        assert status(cinder, volume) == "available"
        cinder.reserve(volume)
        cinder.unreserve(volume)
        assert status(cinder, volume) == "available"
        cinder.unreserve(volume)
        assert status(cinder, volume) == "available"

    def test_unreserve_also_hits_the_other_dialect(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        attachment = cinder.create_attachment(volume, owner="", mode="rw")
        cinder.unreserve(volume)
        assert status(cinder, volume) == "reserved"
        cinder.update_attachment(attachment, CONNECTOR)
        cinder.unreserve(volume)
        assert (status(cinder, volume), rows(cinder, volume)) == ("in-use", [(attachment, "attaching")])

    def test_initialize_may_be_repeated(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        cinder.reserve(volume)
        assert cinder.initialize_connection(volume, CONNECTOR) == cinder.initialize_connection(volume, CONNECTOR)

    def test_initialize_gives_what_update_gives(self, cinder: Cinder, new_volume: NewVolume) -> None:
        legacy = cinder.initialize_connection(new_volume(), CONNECTOR)
        attachment = cinder.create_attachment(new_volume(), owner="", mode="rw")
        modern = cinder.update_attachment(attachment, CONNECTOR)
        assert set(legacy.data.open()) == set(modern.data.open())
        assert (legacy.protocol, legacy.access_mode, legacy.auth) == (modern.protocol, modern.access_mode, modern.auth)

    def test_terminate_unreserves_and_may_be_repeated(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        cinder.reserve(volume)
        cinder.initialize_connection(volume, CONNECTOR)
        cinder.terminate_connection(volume, CONNECTOR)
        assert status(cinder, volume) == "available"
        cinder.terminate_connection(volume, CONNECTOR)
        assert status(cinder, volume) == "available"

    def test_attach_twice_is_one_row(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume, owner = new_volume(), uuid()
        cinder.reserve(volume)
        cinder.attach(volume, owner=owner, mountpoint="/dev/vdb", mode="rw")
        before = rows(cinder, volume)
        cinder.attach(volume, owner=owner, mountpoint="/dev/vdb", mode="rw")
        assert rows(cinder, volume) == before
        assert len(before) == 1

    def test_attach_of_another_owner_is_refused(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        cinder.reserve(volume)
        cinder.attach(volume, owner=uuid(), mountpoint="/dev/vdb", mode="rw")
        before = rows(cinder, volume)
        with pytest.raises(FinalError):
            cinder.attach(volume, owner=uuid(), mountpoint="/dev/vdb", mode="rw")
        assert rows(cinder, volume) == before

    def test_begin_detaching_needs_in_use(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        with pytest.raises(FinalError):
            cinder.begin_detaching(volume)
        connected(cinder, volume)
        cinder.begin_detaching(volume)
        with pytest.raises(FinalError):
            cinder.begin_detaching(volume)
        assert status(cinder, volume) == "detaching"

    def test_roll_detaching_never_fails(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        cinder.roll_detaching(volume)
        assert status(cinder, volume) == "available"
        attachment = connected(cinder, volume)
        cinder.begin_detaching(volume)
        for _ in range(2):
            cinder.roll_detaching(volume)
            assert (status(cinder, volume), rows(cinder, volume)) == ("in-use", [(attachment, "attached")])

    def test_delete_of_an_attachment_being_detached(self, cinder: Cinder, new_volume: NewVolume) -> None:
        """What a detach does in the attachments dialect: begin-detaching, then the attachment is deleted."""
        volume = new_volume()
        attachment = connected(cinder, volume, owner=uuid())
        cinder.begin_detaching(volume)
        cinder.delete_attachment(attachment)
        assert (status(cinder, volume), rows(cinder, volume)) == ("available", [])

    def test_detach_may_be_repeated_with_the_token(
        self, cinder: Cinder, plain_cinder: Cinder, new_volume: NewVolume
    ) -> None:
        volume = new_volume()
        cinder.attach(volume, owner=uuid(), mountpoint="/dev/vdb", mode="rw")
        (row,) = cinder.list_attachments(volume)
        plain_cinder.detach(volume, row.id)  # legacy rows hold no connection_info: no token needed
        assert status(cinder, volume) == "available"
        cinder.detach(volume, row.id)
        with pytest.raises(FinalError) as caught:
            plain_cinder.detach(volume, row.id)
        assert "service token" in caught.value.hint
        assert status(cinder, volume) == "available"

    def test_a_read_only_volume_refuses_a_legacy_rw_attach(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume(readonly=True)
        cinder.reserve(volume)
        assert cinder.initialize_connection(volume, CONNECTOR).access_mode == "ro"
        with pytest.raises(FinalError):
            cinder.attach(volume, owner=uuid(), mountpoint="/dev/vdb", mode="rw")
        assert (status(cinder, volume), rows(cinder, volume)) == ("attaching", [])
        cinder.attach(volume, owner=uuid(), mountpoint="/dev/vdb", mode="ro")
        assert cinder.show_volume(volume).metadata["attached_mode"] == "ro"

    def test_a_legacy_attach_spoils_the_mode_of_later_attachments(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        cinder.attach(volume, owner=uuid(), mountpoint="/dev/vdb", mode="rw")
        (row,) = cinder.list_attachments(volume)
        cinder.detach(volume, row.id)
        attachment = cinder.create_attachment(volume, owner="", mode="rw")
        assert cinder.show_attachment(attachment).mode == "ro"
        assert cinder.show_volume(volume).readonly is False
