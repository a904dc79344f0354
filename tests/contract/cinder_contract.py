"""What tether relies upon of Cinder: one suite, run on the embedded Cinder and on a real one.

Every test takes the fixtures

* ``cinder``: a ``Cinder`` whose requests carry a service token (or its lab equivalent);
* ``plain_cinder``: one without, for the same project;
* ``new_volume``: ``new_volume(name="", multiattach=False, encrypted=False, readonly=None, status="available")``
  makes a volume of 1 GiB and returns its id; ``readonly`` is ``os-update_readonly_flag``, ``status`` is
  ``os-reset_status``, ``encrypted`` is LUKS, opened in the front end.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest

from tether.adapters.cinder.model import Cinder
from tether.errors import FinalError, NotFound, UncertainError, UsageError

NewVolume = Callable[..., str]

CONNECTOR = {
    "initiator": "iqn.1993-08.org.debian:01:contract-a",
    "ip": "127.0.0.1",
    "host": "contract-a",
    "multipath": False,
    "platform": "x86_64",
    "os_type": "linux",
    "do_local_attach": False,
}
OTHER_CONNECTOR = {**CONNECTOR, "initiator": "iqn.1993-08.org.debian:01:contract-b", "host": "contract-b"}


def uuid() -> str:
    return str(uuid4())


def status(cinder: Cinder, volume_id: str) -> str:
    return cinder.show_volume(volume_id).status


def rows(cinder: Cinder, volume_id: str) -> list[tuple[str, str]]:
    """Return (attachment id, status), sorted."""
    return sorted((row.id, row.status) for row in cinder.list_attachments(volume_id))


def connected(cinder: Cinder, volume_id: str, *, owner: str = "", mode: str = "rw") -> str:
    """Take an attachment as far as *attached*; return its id."""
    attachment = cinder.create_attachment(volume_id, owner=owner, mode=mode)
    cinder.update_attachment(attachment, CONNECTOR)
    cinder.complete_attachment(attachment)
    return attachment


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


class LegacyContract:
    """The legacy dialect: os-reserve, os-initialize_connection, os-attach."""

    def test_states_from_available_to_available(self, cinder: Cinder, new_volume: NewVolume) -> None:
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

    def test_a_read_only_volume(self, cinder: Cinder, new_volume: NewVolume) -> None:
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


class LookupContract:
    """Reads, and what is not there."""

    def test_identity(self, cinder: Cinder, plain_cinder: Cinder) -> None:
        identity = cinder.identity()
        assert identity.endpoint.endswith("/v3")
        assert identity.speaks("3.44")
        assert identity.project_id not in ("", identity.endpoint)
        assert (identity.service_token, plain_cinder.identity().service_token) == (True, False)
        assert plain_cinder.identity().project_id == identity.project_id

    def test_find_volume_by_id_and_by_name(self, cinder: Cinder, new_volume: NewVolume) -> None:
        name = f"disk of {uuid()}"
        volume = new_volume(name=name)
        by_id, by_name = cinder.find_volume(volume), cinder.find_volume(name)
        assert by_id == by_name
        assert (by_id.id, by_id.name, by_id.size, by_id.status) == (volume, name, 1, "available")
        assert by_id.project_id == cinder.identity().project_id

    def test_a_name_that_looks_like_an_id(self, cinder: Cinder, new_volume: NewVolume) -> None:
        name = uuid()
        assert cinder.find_volume(new_volume(name=name)).name == name
        assert cinder.find_volume(name).name == name

    def test_an_ambiguous_name_is_a_usage_error_with_the_ids(self, cinder: Cinder, new_volume: NewVolume) -> None:
        name = f"twin-{uuid()}"
        first, second = new_volume(name=name), new_volume(name=name)
        with pytest.raises(UsageError) as caught:
            cinder.find_volume(name)
        assert first in caught.value.message
        assert second in caught.value.message

    def test_a_part_of_a_name_finds_nothing(self, cinder: Cinder, new_volume: NewVolume) -> None:
        name = f"whole-{uuid()}"
        new_volume(name=name)
        with pytest.raises(NotFound):
            cinder.find_volume(name[:-1])

    def test_unknown_volume(self, cinder: Cinder) -> None:
        unknown = uuid()
        assert cinder.list_attachments(unknown) == []
        for call in (
            lambda: cinder.find_volume(unknown),
            lambda: cinder.find_volume("no-such-volume"),
            lambda: cinder.show_volume(unknown),
            lambda: cinder.show_encryption(unknown),
            lambda: cinder.create_attachment(unknown, owner="", mode="rw"),
            lambda: cinder.reserve(unknown),
            lambda: cinder.unreserve(unknown),
            lambda: cinder.initialize_connection(unknown, CONNECTOR),
            lambda: cinder.terminate_connection(unknown, CONNECTOR),
            lambda: cinder.attach(unknown, owner=uuid(), mountpoint="/dev/vdb", mode="rw"),
            lambda: cinder.detach(unknown, uuid()),
            lambda: cinder.begin_detaching(unknown),
            lambda: cinder.roll_detaching(unknown),
        ):
            with pytest.raises(NotFound):
                call()

    @pytest.mark.parametrize("unknown", [uuid(), "no-uuid"], ids=["uuid", "no-uuid"])
    def test_unknown_attachment(self, cinder: Cinder, unknown: str) -> None:
        for call in (
            lambda: cinder.show_attachment(unknown),
            lambda: cinder.update_attachment(unknown, CONNECTOR),
            lambda: cinder.complete_attachment(unknown),
            lambda: cinder.delete_attachment(unknown),
        ):
            with pytest.raises(NotFound):
                call()

    def test_encryption(self, cinder: Cinder, new_volume: NewVolume) -> None:
        plain, encrypted = new_volume(), new_volume(encrypted=True)
        assert cinder.show_encryption(plain) is None
        assert cinder.show_volume(encrypted).encrypted
        found = cinder.show_encryption(encrypted)
        assert found is not None
        assert (found.provider, found.cipher, found.key_size) == ("luks", "aes-xts-plain64", 256)
        assert found.control_location == "front-end"
        attachment = cinder.create_attachment(encrypted, owner="", mode="rw")
        assert cinder.update_attachment(attachment, CONNECTOR).encrypted
