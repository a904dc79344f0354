"""What tether relies upon of Cinder: one suite, run on the embedded Cinder and on a real one.

Every test takes the fixtures

* ``cinder``: a ``Cinder`` whose requests carry a service token (or its lab equivalent);
* ``plain_cinder``: one without, for the same project;
* ``new_volume``: ``new_volume(name="", multiattach=False, encrypted=False, limited=False, readonly=None,
  status="available")`` makes a volume of 1 GiB and returns its id; ``readonly`` is ``os-update_readonly_flag``,
  ``status`` is ``os-reset_status``, ``encrypted`` is LUKS, opened in the front end, ``limited`` is of a type with QoS
  specs;
* ``limit_type``: ``limit_type(volume_id, specs)`` gives that type these front-end QoS specs and no other;
* ``fault``: a context manager ``fault(volume_id, step, what)`` in which the backend fails at a step of the driver
  (``initialize_connection``, ``terminate_connection``, ``remove_export``). ``what`` is ``fail`` (it raises), or
  ``late``: the answer is the 500 of an RPC that timed out, and the call is carried out after it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.contract.cinder_attachments import AttachmentsContract
from tests.contract.cinder_extend import ExtendContract
from tests.contract.cinder_faults import FaultsContract
from tests.contract.cinder_legacy import LegacyContract
from tests.contract.cinder_qos import QosContract
from tests.contract.cinder_words import CONNECTOR, NewVolume, connected, uuid
from tether.adapters.cinder import client, wire
from tether.adapters.cinder.model import Cinder
from tether.errors import NotFound, UsageError


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

    def test_the_lists_of_the_project(self, cinder: Cinder, new_volume: NewVolume) -> None:
        bare, held, reserved = (new_volume(name=f"listed-{uuid()}") for _ in range(3))
        owner = uuid()
        attachment = connected(cinder, held, owner=owner)
        waiting = cinder.create_attachment(reserved, owner="", mode="rw")
        volumes = {item.volume.id: item for item in cinder.list_volumes()}
        for volume in (bare, held, reserved):
            assert volumes[volume].volume == cinder.show_volume(volume)
            assert datetime.fromisoformat(volumes[volume].updated_at)
        assert (volumes[bare].hosts, volumes[reserved].hosts) == ({}, {})
        assert volumes[held].hosts == {attachment: CONNECTOR["host"]}
        rows = {row.id: row for row in cinder.list_project_attachments()}
        for row in (attachment, waiting):
            assert rows[row] == cinder.show_attachment(row)
        assert (rows[attachment].owner, rows[attachment].status) == (owner, "attached")
        assert rows[attachment].connection is not None
        assert rows[waiting].connection is None

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_lists_are_read_page_by_page(
        self, cinder: Cinder, new_volume: NewVolume, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        for _ in range(3):
            cinder.create_attachment(new_volume(), owner="", mode="rw")
        whole = (
            [item.volume.id for item in cinder.list_volumes()],
            [row.id for row in cinder.list_project_attachments()],
        )
        assert [len(found) >= 3 for found in whole] == [True, True]
        monkeypatch.setattr(client, "PAGE", size)
        paged = (
            [item.volume.id for item in cinder.list_volumes()],
            [row.id for row in cinder.list_project_attachments()],
        )
        assert paged == whole

    def test_a_list_begins_anew_where_its_place_is_gone(
        self, cinder: Cinder, new_volume: NewVolume, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = [cinder.create_attachment(new_volume(), owner="", mode="rw") for _ in range(3)]
        monkeypatch.setattr(client, "PAGE", 1)
        read, seen = wire.attachment, []

        def attachment(body: Any) -> Any:
            found = read(body)
            if found.id in rows and not seen:  # the first of ours is deleted once it has been read
                seen.append(found.id)
                cinder.delete_attachment(found.id)
            return found

        monkeypatch.setattr(wire, "attachment", attachment)
        found = {row.id for row in cinder.list_project_attachments()}
        assert seen
        assert found & set(rows) == set(rows) - set(seen)

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


class CinderContract(AttachmentsContract, ExtendContract, LegacyContract, FaultsContract, QosContract, LookupContract):
    """All of it."""
