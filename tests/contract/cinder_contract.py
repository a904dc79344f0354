"""What tether relies upon of Cinder: one suite, run on the embedded Cinder and on a real one.

Every test takes the fixtures

* ``cinder``: a ``Cinder`` whose requests carry a service token (or its lab equivalent);
* ``plain_cinder``: one without, for the same project;
* ``new_volume``: ``new_volume(name="", multiattach=False, encrypted=False, readonly=None, status="available")``
  makes a volume of 1 GiB and returns its id; ``readonly`` is ``os-update_readonly_flag``, ``status`` is
  ``os-reset_status``, ``encrypted`` is LUKS, opened in the front end;
* ``fault``: a context manager ``fault(volume_id, step, what)`` in which the backend fails at a step of the driver
  (``initialize_connection``, ``terminate_connection``, ``remove_export``). ``what`` is ``fail`` (it raises), or
  ``late``: the answer is the 500 of an RPC that timed out, and the call is carried out after it.
"""

from __future__ import annotations

import pytest

from tests.contract.cinder_attachments import AttachmentsContract
from tests.contract.cinder_faults import FaultsContract
from tests.contract.cinder_legacy import LegacyContract
from tests.contract.cinder_words import CONNECTOR, NewVolume, uuid
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


class CinderContract(AttachmentsContract, LegacyContract, FaultsContract, LookupContract):
    """All of it."""
