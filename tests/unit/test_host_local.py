"""What the helper does to the host: failures, users of a device, residue and dm-crypt, over a pretend host."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.host import PASSPHRASE, PASSWORD, PretendHost
from tether.adapters.cinder.model import Connection, Encryption
from tether.adapters.host.brick import BrickHost
from tether.adapters.host.links import Links
from tether.adapters.host.model import Header
from tether.errors import FinalError, UncertainError
from tether.sealed import Sealed

LUKS = Encryption(provider="luks", key_id="k", cipher="aes-xts-plain64", key_size=256)


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendHost:
    return PretendHost(tmp_path, monkeypatch)


# errors


def test_a_failed_connect_that_left_nothing_is_final(pretend: PretendHost) -> None:
    pretend.behave(connect=["fail"])
    volume_id, connection = pretend.exported()
    with pytest.raises(FinalError, match="VolumeDeviceNotFound") as caught:
        pretend.host().connect(volume_id, connection)
    assert PASSWORD not in caught.value.message
    assert "***" in caught.value.message


def test_a_failed_connect_is_cleaned_up_before_it_is_final(pretend: PretendHost) -> None:
    pretend.behave(connect=["fail-after"])
    volume_id, connection = pretend.exported()
    with pytest.raises(FinalError):
        pretend.host().connect(volume_id, connection)
    assert any(line.startswith("disconnect") for line in pretend.calls())
    assert pretend.host().residue(volume_id, connection) == []


@pytest.mark.parametrize("how", ["nothing", "fail"])
def test_a_failed_connect_that_cannot_be_cleaned_up_is_uncertain(how: str, pretend: PretendHost) -> None:
    pretend.behave(connect=["fail-after"], disconnect=[how])
    volume_id, connection = pretend.exported()
    with pytest.raises(UncertainError, match="VolumeDeviceNotFound"):
        pretend.host().connect(volume_id, connection)
    assert pretend.host().residue(volume_id, connection)


def test_a_second_connect_that_fails_does_not_tear_down_the_first(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    device = pretend.host().connect(volume_id, connection)
    pretend.behave(connect=["fail"])
    with pytest.raises(UncertainError):
        pretend.host().connect(volume_id, connection)
    assert pretend.host().find(volume_id) == device
    assert not any(line.startswith("disconnect") for line in pretend.calls())


def test_a_disconnect_that_leaves_something_is_uncertain_and_keeps_the_link(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    device = pretend.host().connect(volume_id, connection)
    pretend.behave(disconnect=["nothing"])
    with pytest.raises(UncertainError, match="session"):
        pretend.host().disconnect(volume_id, connection)
    assert pretend.host().find(volume_id) == device


def test_a_disconnect_that_fails_is_uncertain(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    pretend.host().connect(volume_id, connection)
    pretend.behave(disconnect=["fail"])
    with pytest.raises(UncertainError, match="VolumeDeviceNotFound"):
        pretend.host().disconnect(volume_id, connection)


def test_what_a_forced_disconnect_leaves_is_uncertain_with_what_failed(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    device = pretend.host().connect(volume_id, connection)
    pretend.behave(disconnect=["fail"])
    with pytest.raises(UncertainError, match=r"this is left: session .*; disconnecting .* VolumeDeviceNotFound"):
        pretend.host().disconnect(volume_id, connection, force=True)
    assert pretend.host().find(volume_id) == device


def test_without_sysfs_nothing_is_said(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    host = BrickHost(pretend.settings, replace(pretend.places, sys=str(pretend.root / "not-mounted")))
    for call in (
        lambda: host.residue(volume_id, connection),
        lambda: host.find(volume_id),
        lambda: host.encryption_open(volume_id),
    ):
        with pytest.raises(UncertainError, match="cannot be read"):
            call()


@pytest.mark.parametrize("protocol", ["smbfs", "rbd", "storpool"])
def test_a_protocol_whose_absence_cannot_be_proven_is_refused(protocol: str, pretend: PretendHost) -> None:
    """The attach is then undone, so a disconnect has nothing to do; but a link would say that it has been connected."""
    connection = Connection(protocol=protocol, data=Sealed({}))
    host = pretend.host()
    with pytest.raises(FinalError, match=f"v1 is reached by {protocol}"):
        host.connect("v1", connection)
    host.disconnect("v1", connection)
    assert host.residue("v1", connection) == []
    Links(pretend.settings.run_dir).point("v1", "/dev/sda")
    for call in (host.disconnect, host.residue):
        with pytest.raises(FinalError, match=f"v1 is reached by {protocol}"):
            call("v1", connection)
    assert pretend.calls() == []


# what uses the device


def test_a_device_that_a_process_has_open_is_not_disconnected(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    host = BrickHost(pretend.settings, replace(pretend.places, proc="/proc"))
    path = host.connect(volume_id, connection).path
    with Path(path).open():
        found = host.find(volume_id)
        assert found is not None
        assert found.open_count == 1
        for force in (False, True):
            with pytest.raises(FinalError, match=f"process {os.getpid()}"):
                host.disconnect(volume_id, connection, force=force)
    host.disconnect(volume_id, connection)
    assert host.residue(volume_id, connection) == []


def test_a_foreign_map_over_the_device_counts_as_a_user(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    host = pretend.host()
    disk = Path(host.connect(volume_id, connection).path).name
    foreign = pretend.root / "sys/class/block" / disk / "holders/dm-7"
    foreign.write_text("")
    with pytest.raises(FinalError, match="dm-7"):
        host.disconnect(volume_id, connection)
    found = host.find(volume_id)
    assert found is not None
    assert found.open_count == 1


def test_a_mounted_device_counts_as_in_use(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    host = pretend.host()
    disk = Path(host.connect(volume_id, connection).path).name
    (pretend.root / "sys/class/block" / disk / "dev").write_text("8:0\n")
    (pretend.root / "proc/self").mkdir()
    (pretend.root / "proc/self/mountinfo").write_text("36 35 8:0 / /mnt rw - ext4 /dev/sda rw\n")
    with pytest.raises(FinalError, match="mount /mnt"):
        host.disconnect(volume_id, connection)


# identities and residue


def test_paths_of_two_volumes_are_told(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported(wwids=["naa.6001405a", "naa.6001405b"])
    device = pretend.host(volume_use_multipath=True).connect(volume_id, connection)
    assert device.identities_differ
    assert device.identity == ""


def test_a_map_that_lost_its_paths_is_residue(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    host = pretend.host(volume_use_multipath=True)
    identity = host.connect(volume_id, connection).identity
    for path in (pretend.root / "sys/class/block").glob("sd*"):
        subprocess.run(["rm", "-r", path], check=True)
    for path in (pretend.root / "sys/class/block/dm-0/slaves").iterdir():
        path.unlink()
    subprocess.run(["rm", "-r", pretend.root / "sys/class/iscsi_session", pretend.root / "etc/iscsi/nodes"], check=True)
    left = host.residue(volume_id, connection)
    assert [line for line in left if line.startswith("multipath map")]
    assert identity


def test_a_session_that_another_volume_is_on_is_not_residue(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    host = pretend.host()
    host.connect(volume_id, connection)
    session = next((pretend.root / "sys/class/iscsi_session").iterdir())
    (session / "device/target1:0:0/1:0:0:2/block/sdz").mkdir(parents=True)
    subprocess.run(["rm", "-r", session / "device/target1:0:0/1:0:0:1"], check=True)
    (pretend.root / "run/volumes" / volume_id).unlink()
    assert host.residue(volume_id, connection) == []
    subprocess.run(["rm", "-r", session / "device/target1:0:0/1:0:0:2"], check=True)
    assert len(host.residue(volume_id, connection)) == 2  # session and node record are nobody's now


def test_a_link_to_nothing_is_found_as_residue_only(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    (pretend.root / "run/volumes").mkdir(parents=True)
    (pretend.root / "run/volumes" / volume_id).symlink_to("/dev/not-there")
    assert pretend.host().find(volume_id) is None
    assert pretend.host().residue(volume_id, connection) == [f"link {pretend.root}/run/volumes/{volume_id}"]
    pretend.host().disconnect(volume_id, connection)
    assert pretend.host().residue(volume_id, connection) == []


def test_qemu_may_pass_through_the_folder_of_links(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    link = Path(pretend.host().connect(volume_id, connection).link)
    assert link.is_symlink()
    assert link.parent.stat().st_mode & 0o777 == 0o711


# dm-crypt


def test_a_format_says_in_the_header_whose_it_is(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported(passphrase=None)
    pretend.host().connect(volume_id, connection)
    pretend.host().format_encryption(volume_id, LUKS, Sealed(PASSPHRASE))
    formats = [line for line in pretend.calls() if "luksFormat" in line]
    assert len(formats) == 1
    assert f"--type luks1 --key-file=- --uuid {volume_id} --cipher aes-xts-plain64 --key-size 256" in formats[0]


@pytest.mark.parametrize("ours", [True, False])
def test_a_header_without_a_key_is_half_a_header_only_if_it_names_the_volume(ours: bool, pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported(passphrase=None)
    disk = Path(pretend.host().connect(volume_id, connection).path).name
    header = {"uuid": volume_id if ours else "another", "key": None}
    (pretend.root / "headers" / disk).write_text(json.dumps(header))
    assert pretend.host().read_header(volume_id) is (Header.HALF if ours else Header.LUKS)
    with pytest.raises(FinalError, match="it is half" if ours else "No usable keyslot"):
        pretend.host().open_encryption(volume_id, LUKS, Sealed(PASSPHRASE))
    assert not [line for line in pretend.calls() if "luksFormat" in line]


def test_a_device_that_something_uses_is_not_formatted(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported(passphrase=None)
    disk = Path(pretend.host().connect(volume_id, connection).path).name
    (pretend.root / "sys/class/block" / disk / "holders/dm-7").write_text("")
    with pytest.raises(FinalError, match="not formatted: its device is open: device dm-7"):
        pretend.host().format_encryption(volume_id, LUKS, Sealed(PASSPHRASE))
    assert not [line for line in pretend.calls() if "luksFormat" in line]


def test_a_device_that_cannot_be_read_whole_is_not_formatted(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported(passphrase=None)
    path = Path(pretend.host().connect(volume_id, connection).path)
    with path.open("r+b") as device:
        device.truncate(16 * 1024 * 1024 - 1)
    for call in (pretend.host().format_encryption, pretend.host().open_encryption):
        with pytest.raises(UncertainError, match="cannot be read"):
            call(volume_id, LUKS, Sealed(PASSPHRASE))
    assert not [line for line in pretend.calls() if "cryptsetup" in line]


def test_a_mapping_that_another_header_opened_is_refused(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    disk = Path(pretend.host().connect(volume_id, connection).path).name
    pretend.host().open_encryption(volume_id, LUKS, Sealed(PASSPHRASE))
    (pretend.root / "headers" / disk).write_text(json.dumps({"uuid": "another", "key": PASSPHRASE}))
    with pytest.raises(FinalError, match="not over the device"):
        pretend.host().open_encryption(volume_id, LUKS, Sealed(PASSPHRASE))


def test_a_refusal_that_left_the_mapping_open_is_uncertain(pretend: PretendHost) -> None:
    pretend.behave(open=["fail-after"])
    volume_id, connection = pretend.exported()
    pretend.host().connect(volume_id, connection)
    with pytest.raises(UncertainError, match="encryption"):
        pretend.host().open_encryption(volume_id, LUKS, Sealed(PASSPHRASE))
    assert pretend.host().encryption_open(volume_id)


def test_a_mapping_over_another_device_is_refused(pretend: PretendHost) -> None:
    volume_id, connection = pretend.exported()
    pretend.host().connect(volume_id, connection)
    pretend.host().open_encryption(volume_id, LUKS, Sealed(PASSPHRASE))
    (pretend.root / "run/volumes" / volume_id).unlink()
    other = pretend.root / "sys/class/block/sdx"
    other.mkdir()
    (pretend.root / "dev/sdx").write_text("")
    (pretend.root / "run/volumes" / volume_id).symlink_to(pretend.root / "dev/sdx")
    with pytest.raises(FinalError, match="not over the device"):
        pretend.host().open_encryption(volume_id, LUKS, Sealed(PASSPHRASE))


def test_encryption_by_the_backend_is_not_ours_to_open(pretend: PretendHost) -> None:
    with pytest.raises(FinalError, match="backend"):
        pretend.host().open_encryption("v1", replace(LUKS, control_location="back-end"), Sealed(PASSPHRASE))
