"""LUKS that QEMU opens by itself: what the guest writes is on the storage, and not in the clear."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live.commands import DONE, ROLLED_BACK
from tests.live.conftest import Live
from tests.live.test_attach import GUEST, SECTORS
from tests.live.world.cinder_part import FIXED_KEY

NewVolume = Callable[..., str]
ID, KEY = FIXED_KEY
HEADER = 4096  # sectors of a LUKS1 header


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Any]:
    """The settings that say where the volume's key is."""
    file = tmp_path / "volume-keys"
    file.write_text(f"{ID} {KEY}\n")
    return {"secrets__volume_keys": "file", "secrets__volume_key_file": file}


def format_volume(live: Live, volume_id: str) -> None:
    """Write a LUKS1 header, which Cinder leaves to whoever has the device."""
    words = ["cryptsetup", "--batch-mode", "luksFormat", "--type", "luks1", "--pbkdf-force-iterations", "1000"]
    file = str(live.backing_file(volume_id))
    subprocess.run([*words, "--key-file=-", file], check=True, capture_output=True, input=KEY.encode())


@pytest.mark.proves("iscsi-qemu", "encryption")
def test_qemu_opens_the_volume_and_nothing_is_written_in_the_clear(
    live: Live, new_volume: NewVolume, keys: dict[str, Any], tmp_path: Path
) -> None:
    volume_id = new_volume("luks")
    format_volume(live, volume_id)
    before = live.judge.snapshot()
    done = live.tether("attach", volume_id, GUEST, **keys)
    assert done.code == DONE, done.err
    console = live.consoles[GUEST]
    disk = console.wait_for_disk(volume_id)
    assert disk.sectors == SECTORS - HEADER
    text = f"a secret {uuid.uuid4()}"
    console.run(f"printf '{text}' | dd of=/dev/{disk.name} conv=fsync")
    assert text.encode() not in live.backing_file(volume_id).read_bytes()[: 8 << 20]
    done = live.tether("detach", volume_id, GUEST, **keys)
    assert done.code == DONE, done.err
    live.assert_books(before)

    wrong = tmp_path / "wrong-keys"
    wrong.write_text(f"{ID} {'11' * 32}\n")
    refused = live.tether("attach", volume_id, GUEST, **{**keys, "secrets__volume_key_file": wrong})
    assert refused.code == ROLLED_BACK, refused.err
    live.assert_books(before)

    done = live.tether("attach", volume_id, GUEST, **keys)
    assert done.code == DONE, done.err
    name = console.wait_for_disk(volume_id).name
    assert text in console.run(f"dd if=/dev/{name} bs=512 count=1 2>/dev/null")
    done = live.tether("detach", volume_id, GUEST, **keys)
    assert done.code == DONE, done.err
    live.assert_books(before)


@pytest.mark.parametrize(
    ("type", "said"), [("luks", "Volume is not in LUKS format"), ("luks2", "opens only LUKS version 1")]
)
def test_what_qemu_cannot_open_leaves_nothing(
    live: Live, new_volume: NewVolume, keys: dict[str, Any], type: str, said: str
) -> None:
    """A volume without a header (QEMU formats none), and one of LUKS version 2."""
    volume_id = new_volume(type)
    before = live.judge.snapshot()
    refused = live.tether("attach", volume_id, GUEST, **keys)
    assert refused.code == ROLLED_BACK, refused.err
    assert said in refused.err
    assert "data_path = host" in refused.last_line
    live.assert_books(before)
