"""Passphrases of encrypted volumes: from a key manager by castellan's own API, and from a lab's file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fakes.key_manager import MemoryKeys
from tether.adapters.cinder.model import Encryption
from tether.adapters.host.model import Keys
from tether.adapters.key_manager import FileVolumeKeys, ManagedVolumeKeys
from tether.errors import ConfigError, NotFound, UncertainError

FIXED = "00000000-0000-0000-0000-000000000000"
KEY = bytes(range(32))


def of(key_id: str) -> Encryption:
    return Encryption("luks2", key_id)


@pytest.fixture
def managed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    monkeypatch.setattr(MemoryKeys, "keys", {FIXED: KEY})
    config = tmp_path / "castellan.conf"
    config.write_text("[key_manager]\nbackend = tests.fakes.key_manager.MemoryKeys\nauth_type = token\ntoken = t\n")
    return ManagedVolumeKeys(str(config))


@pytest.fixture
def filed(tmp_path: Path) -> Keys:
    path = tmp_path / "volume-keys"
    path.write_text(f"# the lab's\n\nother {'ff' * 16}\n{FIXED} {KEY.hex().upper()}\n")
    return FileVolumeKeys(str(path))


@pytest.mark.parametrize("kind", ["managed", "filed"])
def test_a_passphrase_is_the_key_in_hexadecimal_as_nova_opens_volumes(
    kind: str, request: pytest.FixtureRequest
) -> None:
    keys: Keys = request.getfixturevalue(kind)
    assert keys.passphrase(of(FIXED)).open() == KEY.hex()


@pytest.mark.parametrize("kind", ["managed", "filed"])
def test_a_key_that_is_not_there_is_not_found(kind: str, request: pytest.FixtureRequest) -> None:
    keys: Keys = request.getfixturevalue(kind)
    with pytest.raises(NotFound, match="has no key none") as caught:
        keys.passphrase(of("none"))
    assert caught.value.hint


def test_a_key_manager_that_fails_is_no_answer_and_its_words_are_not_repeated(
    managed: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("token t")

    monkeypatch.setattr(MemoryKeys, "get", refuse)
    with pytest.raises(UncertainError, match="RuntimeError") as caught:
        managed.passphrase(of(FIXED))
    assert "token" not in str(caught.value)
    assert caught.value.hint


def test_settings_that_cannot_be_used_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be set up") as caught:
        ManagedVolumeKeys(str(tmp_path / "none.conf")).passphrase(of(FIXED))
    assert "castellan_config" in caught.value.hint


def test_without_castellan_it_says_what_to_install(managed: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "castellan", None)
    with pytest.raises(ConfigError, match=f"encrypted with key {FIXED}, and castellan is not installed") as caught:
        managed.passphrase(of(FIXED))
    assert "tether[castellan]" in caught.value.hint


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: FileNotFoundError") as caught:
        FileVolumeKeys(str(tmp_path / "none")).passphrase(of(FIXED))
    assert "volume_key_file" in caught.value.hint


@pytest.mark.parametrize("line", ["justaword", "id nothex", "id abc", "id  00 11"])
def test_a_line_that_is_no_key_is_said_without_what_it_holds(tmp_path: Path, line: str) -> None:
    path = tmp_path / "volume-keys"
    path.write_text(f"one {'00' * 32}\n{line}\n")
    with pytest.raises(ConfigError, match=r"line 2 of .*is no volume key") as caught:
        FileVolumeKeys(str(path)).passphrase(of(FIXED))
    assert line not in str(caught.value)
