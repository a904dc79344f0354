"""LUKS by dm-crypt on a whole host: formatted once, opened after that, and never in the clear on the storage."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.lab.conftest import LabHost
from tests.lab.test_chain import PLACE, SECTORS
from tests.live.commands import DONE, KILLED, ROLLED_BACK
from tests.live.world.cinder_part import FIXED_KEY
from tests.report import counted
from tether.matrix.live_judge import diff

#: Sectors of the header at least; where the data begins follows the device's optimal transfer size.
HEADERS = {"luks": 4096, "luks2": 32768}
#: The one that CI runs comes first.
CASES = [("luks2", True), ("luks", False), ("luks2", False), ("luks", True)]
WRONG_KEYS = "/run/wrong-volume-keys"
ID, KEY = FIXED_KEY


def path(volume_id: str) -> str:
    """Return the volume's own logical volume; LIO writes below its cache, so it is to be read directly."""
    return f"/dev/cinder-volumes/volume-{volume_id}"


def holds(lab: LabHost, volume_id: str, text: str, *, skip: int = 0) -> bool:
    """Return True if the logical volume has a text in the 32 MiB from a sector on."""
    read = f"dd if={path(volume_id)} bs=1M count=32 skip={512 * skip} iflag=direct,skip_bytes status=none"
    return lab.run(f"{read} | grep -aFc {text} || true").strip() != "0"


def format_half(lab: LabHost, volume_id: str, provider: str) -> None:
    """Do what a format leaves that is killed: nothing, or a header that has no key yet."""
    kind = {"luks": "luks1"}.get(provider, provider)
    words = f"cryptsetup --batch-mode luksFormat --type {kind} --uuid {volume_id} --key-file=-"
    lab.run(f"printf {KEY} | timeout -s KILL 1.5 {words} /run/tether/volumes/{volume_id} || true")


@pytest.mark.proves("iscsi", "encryption", "multipath")
@pytest.mark.parametrize(("provider", "multipath"), CASES[: counted(1, 4)])
def test_an_encrypted_volume_is_formatted_once_and_keeps_what_the_guest_wrote(
    lab: LabHost, new_volume: Callable[..., str], provider: str, multipath: bool
) -> None:
    volume_id = new_volume(provider)
    before = lab.books()
    settings = {"host__volume_use_multipath": multipath}

    killed = lab.tether("--fault", "commit.header.format.after=kill", "attach", volume_id, lab.guest, **settings)
    assert killed.code == KILLED, killed.err
    format_half(lab, volume_id, provider)
    resumed = lab.tether("job", "resume", "--last", **settings)
    assert resumed.code == DONE, resumed.err

    disk = lab.wait_for_disk(volume_id)
    offset = int(
        lab.run(f"dmsetup table tether-{volume_id}").split()[7]
    )  # start, length, "crypt", cipher, key, IV, device
    assert HEADERS[provider] <= offset < 2 * HEADERS[provider]
    assert disk.sectors == SECTORS - offset
    assert holds(lab, volume_id, volume_id)
    mark = uuid.uuid4().hex
    lab.write(disk, mark, PLACE)
    assert not holds(lab, volume_id, mark, skip=PLACE)
    assert lab.tether("detach", volume_id, lab.guest, **settings).code == DONE
    assert diff(before, lab.books()) == []

    lab.run(f"echo {ID} {'11' * 32} > {WRONG_KEYS}")
    wrong = lab.tether("attach", volume_id, lab.guest, secrets__volume_key_file=WRONG_KEYS, **settings)
    assert wrong.code == ROLLED_BACK, wrong.err
    assert "the passphrase does not open it" in wrong.err
    assert diff(before, lab.books()) == []

    again = lab.tether("attach", volume_id, lab.guest, **settings)
    assert again.code == DONE, again.err
    disk = lab.wait_for_disk(volume_id)
    assert lab.read(disk, PLACE) == mark
    assert lab.tether("detach", volume_id, lab.guest, **settings).code == DONE
    assert diff(before, lab.books()) == []
