"""What every host adapter must do, whatever is behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from tether.adapters.cinder.model import Connection, Encryption
from tether.adapters.host.model import Header, Host, as_json, from_json, survey_as_json, survey_from_json
from tether.errors import FinalError, UncertainError
from tether.sealed import Sealed

Exported = Callable[[], tuple[str, Connection]]
Unexport = Callable[[str], None]
Grow = Callable[[str, int], None]
NoFlush = Callable[[], None]

LUKS = Encryption(provider="luks", key_id="key-1", cipher="aes-xts-plain64", key_size=256)
PASSPHRASE: Sealed[str] = Sealed("correct horse battery staple")
GIB = 1024**3


class HostContract:
    """Subclasses bring the fixtures ``host``, ``exported`` (makes and exports a volume of 1 GiB whose LUKS
    passphrase is PASSPHRASE), ``blank`` (one without a header), ``unexport``, ``grow`` (gives the backend's volume
    a size in bytes), and ``no_flush`` (from now on no device of this host can be flushed: its storage is gone)."""

    def test_identity_is_stable_and_complete(self, host: Host) -> None:
        identity = host.identity()
        assert identity == host.identity()
        assert identity.name
        assert identity.machine_id
        assert identity.boot_id

    def test_connector_names_this_host(self, host: Host) -> None:
        connector = host.connector()
        assert connector["host"] == host.identity().name
        assert connector["initiator"] == host.identity().initiator
        assert connector["ip"]
        assert isinstance(connector["multipath"], bool)
        json.dumps(dict(connector))

    def test_nothing_is_found_before_connect(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        assert host.find(volume_id) is None
        assert host.residue(volume_id, connection) == []

    def test_connect_gives_the_device_and_the_link(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        device = host.connect(volume_id, connection)
        assert device.link.endswith(f"/volumes/{volume_id}")
        assert device.path.startswith("/")
        assert device.size == GIB
        assert device.open_count == 0
        assert not device.identities_differ
        assert host.find(volume_id) == device
        assert from_json(json.loads(json.dumps(as_json(device)))) == device

    def test_a_survey_has_what_is_held_and_nothing_once_it_is_let_go(self, host: Host, exported: Exported) -> None:
        assert host.survey().holdings == ()
        volume_id, connection = exported()
        device = host.connect(volume_id, connection)
        survey = host.survey()
        assert survey.sees_devices
        assert dict(survey.devices) == {volume_id: device}
        held = {(item.kind, item.volume_id) for item in survey.holdings if item.kind != "map"}
        assert held == {("link", volume_id), ("device", volume_id), ("session", volume_id)}
        assert {item.target for item in survey.holdings if item.kind == "session"} == {
            connection.data.open()["target_iqn"]
        }
        host.open_encryption(volume_id, LUKS, PASSPHRASE)
        assert [item.volume_id for item in host.survey().holdings if item.kind == "crypt"] == [volume_id]
        assert survey_from_json(json.loads(json.dumps(survey_as_json(survey)))) == survey
        host.close_encryption(volume_id)
        host.disconnect(volume_id, connection)
        assert (host.survey().holdings, dict(host.survey().devices)) == ((), {})

    def test_connect_again_is_harmless(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        assert host.connect(volume_id, connection) == host.connect(volume_id, connection)

    def test_residue_names_what_is_connected(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        device = host.connect(volume_id, connection)
        left = "\n".join(host.residue(volume_id, connection))
        assert device.link in left
        assert "session" in left

    def test_a_device_is_known_by_where_its_connection_leads(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        other_id, other = exported()
        assert host.device_at(volume_id, "/dev/null", connection) is None
        device = host.connect(volume_id, connection)
        host.connect(other_id, other)
        for path in (device.path, device.link):
            assert host.device_at(volume_id, path, connection) == device
        assert host.device_at(other_id, device.path, other) is None

    def test_the_link_alone_comes_and_goes(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        device = host.connect(volume_id, connection)
        for _ in range(2):
            host.unlink(volume_id)
            assert host.find(volume_id) is None
        assert host.device_at(volume_id, device.link, connection) is None
        assert host.device_at(volume_id, device.path, connection) == device
        for _ in range(2):
            assert host.link(volume_id, device.path) == device
        assert host.find(volume_id) == device
        host.disconnect(volume_id, connection)
        assert host.residue(volume_id, connection) == []

    def test_the_link_leads_through_dm_crypt(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        plain = host.connect(volume_id, connection)
        opened = host.open_encryption(volume_id, LUKS, PASSPHRASE)
        found = host.device_at(volume_id, opened.path, connection)
        assert found is not None
        assert found.path == plain.path
        host.unlink(volume_id)
        assert host.link(volume_id, plain.path).path == opened.path
        host.close_encryption(volume_id)
        host.disconnect(volume_id, connection)

    def test_disconnect_leaves_nothing(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        host.connect(volume_id, connection)
        host.disconnect(volume_id, connection)
        assert host.find(volume_id) is None
        assert host.residue(volume_id, connection) == []

    def test_disconnect_is_repeatable(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        host.disconnect(volume_id, connection)
        host.connect(volume_id, connection)
        host.disconnect(volume_id, connection)
        host.disconnect(volume_id, connection)
        assert host.residue(volume_id, connection) == []

    def test_disconnect_works_after_the_export_is_gone(
        self, host: Host, exported: Exported, unexport: Unexport
    ) -> None:
        volume_id, connection = exported()
        host.connect(volume_id, connection)
        unexport(volume_id)
        host.disconnect(volume_id, connection)
        assert host.residue(volume_id, connection) == []

    def test_what_cannot_be_flushed_stays_unless_it_is_forced(
        self, host: Host, exported: Exported, no_flush: NoFlush
    ) -> None:
        volume_id, connection = exported()
        other_id, other = exported()
        device, kept = host.connect(volume_id, connection), host.connect(other_id, other)
        no_flush()
        for _ in range(2):
            with pytest.raises(UncertainError) as caught:
                host.disconnect(volume_id, connection)
            assert volume_id in caught.value.message
            assert host.find(volume_id) == device
        (failed,) = host.disconnect(volume_id, connection, force=True)
        assert "Input/output error" in failed
        assert host.residue(volume_id, connection) == []
        assert host.find(other_id) == kept
        assert host.disconnect(volume_id, connection, force=True) == []

    def test_force_passes_nothing_over_where_all_is_well(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        host.connect(volume_id, connection)
        assert host.disconnect(volume_id, connection) == []
        host.connect(volume_id, connection)
        assert host.disconnect(volume_id, connection, force=True) == []
        assert host.residue(volume_id, connection) == []

    def test_two_volumes_do_not_touch_each_other(self, host: Host, exported: Exported) -> None:
        first, first_connection = exported()
        second, second_connection = exported()
        kept = host.connect(first, first_connection)
        other = host.connect(second, second_connection)
        assert kept.path != other.path
        assert kept.identity != other.identity
        host.disconnect(second, second_connection)
        assert host.find(first) == kept
        assert host.residue(second, second_connection) == []

    def test_connect_to_no_target_is_final_and_leaves_nothing(
        self, host: Host, exported: Exported, unexport: Unexport
    ) -> None:
        volume_id, connection = exported()
        unexport(volume_id)
        with pytest.raises(FinalError) as caught:
            host.connect(volume_id, connection)
        assert volume_id in caught.value.message
        assert caught.value.hint
        assert host.residue(volume_id, connection) == []

    def test_rbd_is_refused(self, host: Host, exported: Exported) -> None:
        volume_id, _ = exported()
        with pytest.raises(FinalError, match="rbd"):
            host.connect(volume_id, Connection(protocol="rbd", data=Sealed({"name": "volumes/x"})))

    def test_expected_identity_is_empty_where_the_data_name_none(self, host: Host, exported: Exported) -> None:
        _, connection = exported()
        assert host.expected_identity(connection) == ""

    def test_expected_identity_is_in_the_devices_form(self, host: Host, exported: Exported) -> None:
        _, connection = exported()
        data = {**connection.data.open(), "wwn": "36001405AAAABBBBCCCCDDDDEEEEFFFF0"}
        named = Connection(protocol="iscsi", data=Sealed(data))
        assert host.expected_identity(named) == "6001405aaaabbbbccccddddeeeeffff0"

    @pytest.mark.proves("iscsi", "encryption")
    def test_encryption_opens_and_closes(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        plain = host.connect(volume_id, connection)
        assert not host.encryption_open(volume_id)
        opened = host.open_encryption(volume_id, LUKS, PASSPHRASE)
        assert opened.link == plain.link
        assert opened.path.endswith(f"/mapper/tether-{volume_id}")
        assert host.encryption_open(volume_id)
        assert any("dm-crypt" in line for line in host.residue(volume_id, connection))
        host.close_encryption(volume_id)
        assert not host.encryption_open(volume_id)
        assert host.find(volume_id) == plain

    def test_encryption_is_repeatable(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        host.connect(volume_id, connection)
        opened = host.open_encryption(volume_id, LUKS, PASSPHRASE)
        assert host.open_encryption(volume_id, LUKS, PASSPHRASE) == opened
        host.close_encryption(volume_id)
        host.close_encryption(volume_id)
        assert not host.encryption_open(volume_id)

    def test_open_encryption_keeps_size_and_identity_of_the_volume(self, host: Host, exported: Exported) -> None:
        """A check of the device must give the same answer when a resumed job runs it again."""
        volume_id, connection = exported()
        plain = host.connect(volume_id, connection)
        opened = host.open_encryption(volume_id, LUKS, PASSPHRASE)
        assert (opened.size, opened.identity, opened.open_count) == (plain.size, plain.identity, 0)

    def test_connect_again_keeps_the_link_on_the_open_mapping(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        host.connect(volume_id, connection)
        opened = host.open_encryption(volume_id, LUKS, PASSPHRASE)
        assert host.connect(volume_id, connection) == opened

    def test_a_device_grows_when_it_is_extended(self, host: Host, exported: Exported, grow: Grow) -> None:
        volume_id, connection = exported()
        before = host.connect(volume_id, connection)
        assert host.usable_size(volume_id) == GIB
        grow(volume_id, 3 * GIB)
        for _ in range(2):
            device = host.extend(volume_id, connection)
            assert device == replace(before, size=3 * GIB)
            assert (host.find(volume_id), host.usable_size(volume_id)) == (device, 3 * GIB)

    def test_dm_crypt_grows_with_its_device_when_it_is_asked_to(
        self, host: Host, exported: Exported, grow: Grow
    ) -> None:
        volume_id, connection = exported()
        host.connect(volume_id, connection)
        host.open_encryption(volume_id, LUKS, PASSPHRASE)
        before = host.usable_size(volume_id)
        assert GIB - 64 * 1024**2 < before < GIB
        grow(volume_id, 2 * GIB)
        assert host.extend(volume_id, connection).size == 2 * GIB
        assert host.usable_size(volume_id) == before
        for _ in range(2):
            host.resize_encryption(volume_id, PASSPHRASE)
            assert host.usable_size(volume_id) == before + GIB
        host.close_encryption(volume_id)
        assert host.usable_size(volume_id) == 2 * GIB

    def test_what_is_not_connected_is_not_extended(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        with pytest.raises(FinalError, match=volume_id):
            host.extend(volume_id, connection)
        with pytest.raises(FinalError, match=volume_id):
            host.usable_size(volume_id)
        host.connect(volume_id, connection)
        with pytest.raises(FinalError, match="dm-crypt"):
            host.resize_encryption(volume_id, PASSPHRASE)

    def test_a_header_is_told_and_never_overwritten(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        host.connect(volume_id, connection)
        assert host.read_header(volume_id) is Header.LUKS
        for _ in range(2):
            with pytest.raises(FinalError, match=volume_id):
                host.format_encryption(volume_id, LUKS, Sealed("another passphrase"))
        opened = host.open_encryption(volume_id, LUKS, PASSPHRASE)
        with pytest.raises(FinalError, match=volume_id):
            host.format_encryption(volume_id, LUKS, PASSPHRASE)
        assert host.open_encryption(volume_id, LUKS, PASSPHRASE) == opened

    def test_what_has_no_header_is_formatted_only_when_told(self, host: Host, blank: Exported) -> None:
        volume_id, connection = blank()
        plain = host.connect(volume_id, connection)
        assert host.read_header(volume_id) is Header.BLANK
        with pytest.raises(FinalError, match="no LUKS header") as caught:
            host.open_encryption(volume_id, LUKS, PASSPHRASE)
        assert caught.value.hint
        assert not host.encryption_open(volume_id)
        assert host.read_header(volume_id) is Header.BLANK
        host.format_encryption(volume_id, LUKS, PASSPHRASE)
        assert host.read_header(volume_id) is Header.LUKS
        assert host.find(volume_id) == plain
        assert host.open_encryption(volume_id, LUKS, PASSPHRASE).path.endswith(f"/mapper/tether-{volume_id}")
        host.close_encryption(volume_id)
        host.disconnect(volume_id, connection)
        assert host.residue(volume_id, connection) == []

    def test_nothing_is_read_or_formatted_that_is_not_connected(self, host: Host, blank: Exported) -> None:
        volume_id, connection = blank()
        with pytest.raises(FinalError, match="not connected"):
            host.read_header(volume_id)
        with pytest.raises(FinalError, match="not connected"):
            host.format_encryption(volume_id, LUKS, PASSPHRASE)
        host.connect(volume_id, connection)
        assert host.read_header(volume_id) is Header.BLANK

    def test_wrong_passphrase_is_final(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        plain = host.connect(volume_id, connection)
        with pytest.raises(FinalError) as caught:
            host.open_encryption(volume_id, LUKS, Sealed("not the passphrase"))
        assert "not the passphrase" not in repr(caught.value.args)
        assert not host.encryption_open(volume_id)
        assert host.find(volume_id) == plain

    def test_encryption_needs_the_connected_volume(self, host: Host, exported: Exported) -> None:
        volume_id, _ = exported()
        with pytest.raises(FinalError, match=volume_id):
            host.open_encryption(volume_id, LUKS, PASSPHRASE)

    def test_disconnect_is_refused_while_dm_crypt_is_open(self, host: Host, exported: Exported) -> None:
        volume_id, connection = exported()
        host.connect(volume_id, connection)
        opened = host.open_encryption(volume_id, LUKS, PASSPHRASE)
        for force in (False, True):
            with pytest.raises(FinalError, match="dm-crypt"):
                host.disconnect(volume_id, connection, force=force)
            assert host.find(volume_id) == opened
