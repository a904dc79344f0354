"""LUKS headers by the real cryptsetup, on plain files, which needs no device-mapper."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tether.adapters.host import crypt
from tether.adapters.host.model import Header
from tether.errors import FinalError, UncertainError

VOLUME = "11111111-1111-4111-8111-111111111111"
PASSPHRASE = "correct horse battery staple"
SIZE = 32 * 1024 * 1024
LOOKED_AT = 16 * 1024 * 1024


def cryptsetup(*words: str, passphrase: str = PASSPHRASE) -> int:
    return subprocess.run(
        ["cryptsetup", *words], input=passphrase, text=True, check=False, capture_output=True
    ).returncode


def format_device(path: Path, provider: str = "luks", cipher: str = "aes-xts-plain64", key_size: int = 256) -> None:
    crypt.format_device(VOLUME, str(path), provider=provider, cipher=cipher, key_size=key_size, passphrase=PASSPHRASE)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "device"
    with path.open("wb") as handle:
        handle.truncate(SIZE)
    return path


def put(path: Path, at: int, what: bytes) -> None:
    with path.open("r+b") as handle:
        handle.seek(at)
        handle.write(what)


@pytest.mark.parametrize(("at", "found"), [(0, Header.OTHER), (LOOKED_AT - 1, Header.OTHER), (LOOKED_AT, Header.BLANK)])
def test_blank_is_what_was_read_as_zeros(device: Path, at: int, found: Header) -> None:
    assert crypt.read_header(VOLUME, str(device)) is Header.BLANK
    put(device, at, b"x")
    assert crypt.read_header(VOLUME, str(device)) is found


@pytest.mark.parametrize("how", ["gone", "a folder", "too short"])
def test_what_cannot_be_read_is_nothing_at_all(device: Path, how: str) -> None:
    if how == "too short":
        device.write_bytes(bytes(LOOKED_AT - 1))
    else:
        device.unlink()
    if how == "a folder":
        device.mkdir()
    for call in (lambda: crypt.read_header(VOLUME, str(device)), lambda: format_device(device)):
        with pytest.raises(UncertainError, match="cannot be read") as caught:
            call()
        assert VOLUME in caught.value.message
        assert caught.value.hint


@pytest.mark.parametrize(("provider", "version"), [("luks", 1), ("luks2", 2)])
def test_a_format_can_be_opened_and_is_never_repeated(device: Path, provider: str, version: int) -> None:
    format_device(device, provider)
    assert crypt.read_header(VOLUME, str(device)) is Header.LUKS
    assert cryptsetup("isLuks", "--type", f"luks{version}", str(device)) == 0
    assert cryptsetup("open", "--test-passphrase", "--key-file=-", str(device)) == 0
    assert cryptsetup("open", "--test-passphrase", "--key-file=-", str(device), passphrase="wrong") == 2
    before = device.read_bytes()
    with pytest.raises(FinalError, match="it is luks"):
        format_device(device, provider)
    assert device.read_bytes() == before
    bare = VOLUME.replace("-", "")
    assert crypt.is_over(VOLUME, str(device), f"CRYPT-LUKS{version}-{bare}-tether-{VOLUME}")
    assert not crypt.is_over(VOLUME, str(device), f"CRYPT-LUKS{version}-{bare[::-1]}-tether-{VOLUME}")
    assert cryptsetup("luksKillSlot", "--batch-mode", str(device), "0") == 0
    assert crypt.read_header(VOLUME, str(device)) is Header.HALF
    assert crypt.read_header(VOLUME.replace("1", "2"), str(device)) is Header.LUKS


def test_a_header_cut_off_is_not_blank(device: Path) -> None:
    put(device, 0, b"LUKS\xba\xbe")
    assert crypt.read_header(VOLUME, str(device)) is Header.OTHER


@pytest.mark.parametrize(("cipher", "key_size"), [("nonsense-xts-plain64", 256), ("aes-xts-plain64", 100)])
def test_a_cipher_that_this_host_lacks_is_final_and_writes_nothing(device: Path, cipher: str, key_size: int) -> None:
    with pytest.raises(FinalError, match=cipher) as caught:
        format_device(device, cipher=cipher, key_size=key_size)
    assert VOLUME in caught.value.message
    assert "volume type" in caught.value.hint
    assert crypt.read_header(VOLUME, str(device)) is Header.BLANK


@pytest.mark.parametrize("verb", [crypt.format_device, crypt.open_mapping])
def test_an_unknown_provider_is_final(device: Path, verb: object) -> None:
    with pytest.raises(FinalError, match="'loop-aes' is not known") as caught:
        verb(VOLUME, str(device), provider="loop-aes", cipher="", key_size=0, passphrase=PASSPHRASE)  # type: ignore[operator]
    assert "luks2" in caught.value.hint


def test_what_has_no_header_is_not_opened(device: Path) -> None:
    with pytest.raises(FinalError, match="no LUKS header"):
        crypt.open_mapping(VOLUME, str(device), provider="luks", cipher="", key_size=0, passphrase=PASSPHRASE)
