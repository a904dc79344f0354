"""Cinder's contract: the attachments dialect. See ``cinder_contract``."""

from __future__ import annotations

import pytest

from tests.contract.cinder_words import CONNECTOR, OTHER_CONNECTOR, NewVolume, connected, rows, status, uuid
from tether.adapters.cinder.model import Cinder
from tether.errors import FinalError, NotFound, UncertainError


class AttachmentsContract:
    """The attachments dialect (3.27; os-complete 3.44)."""

    def test_states_from_available_to_available(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume, owner = new_volume(), uuid()
        assert status(cinder, volume) == "available"
        assert cinder.list_attachments(volume) == []

        attachment = cinder.create_attachment(volume, owner=owner, mode="rw")
        row = cinder.show_attachment(attachment)
        assert status(cinder, volume) == "reserved"
        assert (row.id, row.volume_id, row.status, row.owner) == (attachment, volume, "reserved", owner)
        assert (row.mode, row.attached_at, row.connection) == ("rw", "", None)

        connection = cinder.update_attachment(attachment, CONNECTOR)
        row = cinder.show_attachment(attachment)
        assert connection.protocol == "iscsi"
        assert connection.data.open()["target_iqn"]
        # The answer of update says "reserved" with no attached_at: only show is true.
        assert (row.status, row.owner, row.mode) == ("attaching", owner, "rw")
        assert row.attached_at
        assert row.connection == connection
        assert status(cinder, volume) == "attaching"
        assert cinder.show_volume(volume).attached_to == ()

        cinder.complete_attachment(attachment)
        assert cinder.show_attachment(attachment).status == "attached"
        assert status(cinder, volume) == "in-use"
        assert cinder.show_volume(volume).attached_to == ((owner, attachment),)

        cinder.delete_attachment(attachment)
        assert status(cinder, volume) == "available"
        assert cinder.list_attachments(volume) == []
        with pytest.raises(NotFound):
            cinder.show_attachment(attachment)

    def test_a_list_shows_every_row_without_connections(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume, other, owner = new_volume(), new_volume(), uuid()
        attachment = connected(cinder, volume, owner=owner)
        elsewhere = cinder.create_attachment(other, owner="", mode="rw")

        (row,) = cinder.list_attachments(volume)
        assert (row.id, row.volume_id, row.status, row.owner) == (attachment, volume, "attached", owner)
        assert row.connection is None
        (row,) = cinder.list_attachments(other)
        assert (row.id, row.status, row.owner) == (elsewhere, "reserved", "")

    def test_the_connection_holds_what_a_host_needs(self, cinder: Cinder, new_volume: NewVolume) -> None:
        attachment = cinder.create_attachment(new_volume(), owner="", mode="rw")
        connection = cinder.update_attachment(attachment, CONNECTOR)
        data = connection.data.open()
        assert {"target_portal", "target_iqn", "target_lun", "access_mode"} <= set(data)
        assert "driver_volume_type" not in data
        assert (connection.access_mode, connection.encrypted, dict(connection.qos_specs)) == ("rw", False, {})
        assert connection.auth == ("auth_password" in data)

    def test_a_second_reserve_is_refused(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        first = cinder.create_attachment(volume, owner=uuid(), mode="rw")
        for owner in (uuid(), ""):
            with pytest.raises(FinalError):
                cinder.create_attachment(volume, owner=owner, mode="rw")
        assert rows(cinder, volume) == [(first, "reserved")]

    def test_the_same_owner_gets_a_second_row(self, cinder: Cinder, new_volume: NewVolume) -> None:
        """POST is not idempotent: after a lost answer the rows must be listed before another POST."""
        volume, owner = new_volume(), uuid()
        first = cinder.create_attachment(volume, owner=owner, mode="rw")
        second = cinder.create_attachment(volume, owner=owner, mode="rw")
        assert first != second
        assert {row.owner for row in cinder.list_attachments(volume)} == {owner}
        assert rows(cinder, volume) == sorted([(first, "reserved"), (second, "reserved")])

    def test_the_same_owner_is_refused_while_attaching(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume, owner = new_volume(), uuid()
        cinder.update_attachment(cinder.create_attachment(volume, owner=owner, mode="rw"), CONNECTOR)
        with pytest.raises(FinalError):
            cinder.create_attachment(volume, owner=owner, mode="rw")

    def test_a_second_connector_is_refused(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume, owner = new_volume(), uuid()
        first = cinder.create_attachment(volume, owner=owner, mode="rw")
        second = cinder.create_attachment(volume, owner=owner, mode="rw")
        cinder.update_attachment(first, CONNECTOR)
        for connector in (CONNECTOR, OTHER_CONNECTOR):
            with pytest.raises(FinalError, match="duplicate connectors"):
                cinder.update_attachment(second, connector)
        assert rows(cinder, volume) == sorted([(first, "attaching"), (second, "reserved")])

    def test_update_may_be_repeated(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        attachment = cinder.create_attachment(volume, owner=uuid(), mode="rw")
        first = cinder.update_attachment(attachment, CONNECTOR)
        assert cinder.update_attachment(attachment, CONNECTOR) == first
        assert rows(cinder, volume) == [(attachment, "attaching")]

    def test_update_of_an_attached_row_needs_complete_again(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        attachment = connected(cinder, volume)
        cinder.update_attachment(attachment, CONNECTOR)
        assert cinder.show_attachment(attachment).status == "attaching"
        assert status(cinder, volume) == "attaching"
        cinder.complete_attachment(attachment)
        assert status(cinder, volume) == "in-use"

    def test_update_with_an_unusable_connector_changes_nothing(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        attachment = cinder.create_attachment(volume, owner=uuid(), mode="rw")
        lame = {key: value for key, value in CONNECTOR.items() if key != "initiator"}
        with pytest.raises(FinalError, match="initiator"):
            cinder.update_attachment(attachment, lame)
        with pytest.raises(FinalError):
            cinder.update_attachment(attachment, {})
        assert rows(cinder, volume) == [(attachment, "reserved")]
        assert cinder.update_attachment(attachment, CONNECTOR).protocol == "iscsi"

    def test_complete_is_a_blind_write(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        attachment = cinder.create_attachment(volume, owner="", mode="rw")
        cinder.complete_attachment(attachment)
        row = cinder.show_attachment(attachment)
        assert (row.status, row.connection) == ("attached", None)
        assert status(cinder, volume) == "in-use"
        cinder.complete_attachment(attachment)
        assert rows(cinder, volume) == [(attachment, "attached")]

    def test_delete_twice_is_not_found(self, cinder: Cinder, new_volume: NewVolume) -> None:
        attachment = connected(cinder, new_volume(), owner=uuid())
        cinder.delete_attachment(attachment)
        with pytest.raises(NotFound):
            cinder.delete_attachment(attachment)

    def test_delete_of_an_attaching_row(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        attachment = cinder.create_attachment(volume, owner=uuid(), mode="rw")
        cinder.update_attachment(attachment, CONNECTOR)
        cinder.delete_attachment(attachment)
        assert (status(cinder, volume), rows(cinder, volume)) == ("available", [])

    def test_delete_of_one_of_two_rows_leaves_the_other(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume, owner = new_volume(), uuid()
        first = connected(cinder, volume, owner=owner)
        second = cinder.create_attachment(volume, owner=owner, mode="rw")
        assert status(cinder, volume) == "in-use"  # the same owner's second row does not change it
        cinder.delete_attachment(second)
        assert (status(cinder, volume), rows(cinder, volume)) == ("in-use", [(first, "attached")])

    def test_a_live_migration_has_two_connections_of_one_owner(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume, owner = new_volume(), uuid()
        first = connected(cinder, volume, owner=owner)
        for stranger in (uuid(), ""):
            with pytest.raises(FinalError):
                cinder.create_attachment(volume, owner=stranger, mode="rw", connector=OTHER_CONNECTOR)
        second = cinder.create_attachment(volume, owner=owner, mode="rw", connector=OTHER_CONNECTOR)
        assert rows(cinder, volume) == sorted([(first, "attached"), (second, "attaching")])
        assert None not in [cinder.show_attachment(each).connection for each in (first, second)]
        cinder.complete_attachment(second)
        assert (status(cinder, volume), rows(cinder, volume)) == (
            "in-use",
            sorted([(first, "attached"), (second, "attached")]),
        )
        cinder.delete_attachment(first)
        assert (status(cinder, volume), rows(cinder, volume)) == ("in-use", [(second, "attached")])
        assert cinder.show_attachment(second).connection is not None
        cinder.delete_attachment(second)
        assert (status(cinder, volume), rows(cinder, volume)) == ("available", [])

    def test_delete_of_a_reserved_row_needs_no_token(self, plain_cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        attachment = plain_cinder.create_attachment(volume, owner=uuid(), mode="rw")
        plain_cinder.delete_attachment(attachment)
        assert (status(plain_cinder, volume), rows(plain_cinder, volume)) == ("available", [])

    def test_delete_without_an_owner_needs_no_token(self, plain_cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        plain_cinder.delete_attachment(connected(plain_cinder, volume))
        assert status(plain_cinder, volume) == "available"

    def test_delete_with_an_owner_needs_the_token(
        self, cinder: Cinder, plain_cinder: Cinder, new_volume: NewVolume
    ) -> None:
        """CVE-2023-2088: 409 where Nova says that the server has it, 500 where no Nova can be asked."""
        volume = new_volume()
        attachment = connected(plain_cinder, volume, owner=uuid())
        with pytest.raises((FinalError, UncertainError)) as caught:
            plain_cinder.delete_attachment(attachment)
        assert "service token" in caught.value.hint
        assert rows(cinder, volume) == [(attachment, "attached")]
        assert status(cinder, volume) == "in-use"
        cinder.delete_attachment(attachment)
        assert status(cinder, volume) == "available"

    def test_an_owner_must_be_a_uuid(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume()
        with pytest.raises(FinalError):
            cinder.create_attachment(volume, owner="vm-1", mode="rw")
        assert rows(cinder, volume) == []

    def test_a_volume_in_error_is_refused(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume(status="error")
        with pytest.raises(FinalError, match="error"):
            cinder.create_attachment(volume, owner=uuid(), mode="rw")
        assert (status(cinder, volume), rows(cinder, volume)) == ("error", [])

    def test_multiattach(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume(multiattach=True)
        assert cinder.show_volume(volume).multiattach
        first = cinder.create_attachment(volume, owner=uuid(), mode="rw")
        with pytest.raises(FinalError):  # busy: another attach is in flight
            cinder.create_attachment(volume, owner=uuid(), mode="rw")
        cinder.update_attachment(first, CONNECTOR)
        with pytest.raises(FinalError):
            cinder.create_attachment(volume, owner=uuid(), mode="rw")
        cinder.complete_attachment(first)

        second = cinder.create_attachment(volume, owner=uuid(), mode="rw")
        assert status(cinder, volume) == "reserved"
        cinder.delete_attachment(second)
        assert status(cinder, volume) == "in-use"
        second = cinder.create_attachment(volume, owner=uuid(), mode="rw")
        cinder.update_attachment(second, OTHER_CONNECTOR)
        assert status(cinder, volume) == "attaching"
        cinder.complete_attachment(second)
        assert rows(cinder, volume) == sorted([(first, "attached"), (second, "attached")])
        assert {attachment for _, attachment in cinder.show_volume(volume).attached_to} == {first, second}

        cinder.delete_attachment(first)
        assert (status(cinder, volume), rows(cinder, volume)) == ("in-use", [(second, "attached")])
        cinder.delete_attachment(second)
        assert status(cinder, volume) == "available"

    def test_read_only_asked_for_is_in_the_row_alone(self, cinder: Cinder, new_volume: NewVolume) -> None:
        attachment = cinder.create_attachment(new_volume(), owner="", mode="ro")
        connection = cinder.update_attachment(attachment, CONNECTOR)
        assert cinder.show_attachment(attachment).mode == "ro"
        assert connection.access_mode == "rw"

    def test_a_read_only_volume(self, cinder: Cinder, new_volume: NewVolume) -> None:
        volume = new_volume(readonly=True)
        assert cinder.show_volume(volume).readonly
        attachment = cinder.create_attachment(volume, owner="", mode="rw")
        connection = cinder.update_attachment(attachment, CONNECTOR)
        assert (cinder.show_attachment(attachment).mode, connection.access_mode) == ("ro", "ro")

    def test_readonly_false_is_taken_for_true_in_the_row(self, cinder: Cinder, new_volume: NewVolume) -> None:
        """Cinder tests the text for truth: attach_mode says ro, and the export is rw all the same."""
        volume = new_volume(readonly=False)
        found = cinder.show_volume(volume)
        assert (found.metadata["readonly"], found.readonly) == ("False", False)
        attachment = cinder.create_attachment(volume, owner="", mode="rw")
        connection = cinder.update_attachment(attachment, CONNECTOR)
        assert (cinder.show_attachment(attachment).mode, connection.access_mode) == ("ro", "rw")
