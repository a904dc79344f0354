"""The embedded world's memory: JSON books in one directory, which outlive a killed process.

Layout of a world's directory::

    cinder.json    volumes, attachments, encryption keys, and what Cinder has still to finish
    host.json      the simulated machine: identity, devices, links, dm-crypt
    headers.json   what hosts have written onto encrypted volumes
    guests/UUID/   persistent.xml, live.xml (only while it runs), state.json; guests/secrets.json
    script.json    scripted failures that have not been used up
    tether.sqlite  tether's own database, unless --database says otherwise
    keys           the keys that its secrets are sealed with, unless key_file says otherwise

Of a host beside another, ``cinder.json``, ``headers.json``, ``tether.sqlite`` and ``keys`` are links to the other's.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tether.errors import ConfigError


class Store:
    """One world's directory.

    Args:
        directory: the world's directory; it must exist.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def change(self, book: str) -> Iterator[dict[str, Any]]:
        """Lock one book, yield its content, and save it whole unless the block raises.

        The file is replaced in one step, so a process killed anywhere leaves the book as it was before or
        as it is after.
        """
        with self._locked(book):
            content = self._load(book)
            yield content
            write_whole(self._path(book), json.dumps(content, indent=1, sort_keys=True))

    def read(self, book: str) -> dict[str, Any]:
        """Return a book's content."""
        with self._locked(book):
            return self._load(book)

    def _path(self, book: str) -> Path:
        """Return the book's file: of a book that two hosts share, the one that both lead to."""
        return (self.directory / f"{book}.json").resolve()

    def _load(self, book: str) -> dict[str, Any]:
        path = self._path(book)
        try:
            return dict(json.loads(path.read_text())) if path.exists() else {}
        except ValueError as error:
            raise ConfigError(
                f"the embedded world's {path} is damaged: {error}", hint="delete the world, and make a new one"
            ) from error

    @contextmanager
    def _locked(self, book: str) -> Iterator[None]:
        try:
            handle = self._path(book).with_name(f".{book}.lock").open("w")
        except OSError as error:
            raise ConfigError(
                f"the embedded world in {self.directory} cannot be used: {error.strerror}",
                hint="it must be this user's own",
            ) from error
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)
