"""Keys of a key manager, by castellan's own API over a backend in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.key_manager import MemoryKeys
from tests.integration.books import Books
from tests.integration.test_vault import PASSWORD, put, readable, stored
from tether.errors import ConfigError, UsageError
from tether.persistence.keys import KeyRing, key_source
from tether.persistence.vault import Vault
from tether.settings import Settings


@pytest.fixture
def managed(books: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Vault]:
    """Open the vault with keys of a key manager, by castellan's own API."""
    monkeypatch.setattr(MemoryKeys, "keys", {"one": b"1" * 32, "two": b"2" * 32, "short": b"3" * 16})
    config = tmp_path / "castellan.conf"
    config.write_text("[key_manager]\nbackend = tests.fakes.key_manager.MemoryKeys\nauth_type = token\ntoken = t\n")
    settings = Settings(key_source="castellan", castellan_config=str(config))
    return lambda ids: Vault(books.database, KeyRing(key_source(settings.but(castellan_key_id=ids))))


def test_the_key_may_be_a_key_managers(books: Books, managed: Callable[[str], Vault]) -> None:
    managed("one").ready()
    put(books, managed("one"), "j", PASSWORD)
    assert readable(books, managed("one")) == {"j": PASSWORD}
    with pytest.raises(ConfigError, match="no key in the key manager") as caught:
        managed("two").ready()
    assert "castellan_key_id" in caught.value.hint


def test_rotation_with_a_key_manager_takes_the_key_that_is_named_first(
    books: Books, managed: Callable[[str], Vault]
) -> None:
    managed("one").ready()
    put(books, managed("one"), "j", PASSWORD)
    with pytest.raises(UsageError, match="already") as caught:
        managed("one").rotate()
    assert "castellan_key_id" in caught.value.hint
    done = managed("two, one").rotate()
    assert (done.resumed, done.renewed) == (False, 1)
    assert readable(books, managed("two")) == {"j": PASSWORD}
    assert managed("two").fits()


@pytest.mark.parametrize(
    ("ids", "message"), [("", "no key is named"), ("none", "does not give key none"), ("short", "256 bits")]
)
def test_a_key_manager_without_the_key_is_said(
    books: Books, managed: Callable[[str], Vault], ids: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        managed(ids).ready()
    assert caught.value.hint
    assert stored(books) == {}


def test_castellans_settings_that_cannot_be_used_are_said(books: Books, tmp_path: Path) -> None:
    settings = Settings(key_source="castellan", castellan_key_id="one", castellan_config=str(tmp_path / "none.conf"))
    with pytest.raises(ConfigError, match="cannot be set up") as caught:
        Vault(books.database, KeyRing(key_source(settings))).ready()
    assert "castellan_config" in caught.value.hint


def test_without_castellan_it_says_what_to_install(
    books: Books, managed: Callable[[str], Vault], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "castellan", None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        managed("one").ready()
    assert "tether[castellan]" in caught.value.hint
