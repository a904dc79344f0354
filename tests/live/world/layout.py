"""Where a world keeps its things, and what it remembers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[3]
GUESTS = ("guest1", "guest2")
STOPPED = "stopped1"
PROJECT = "0123456789abcdef0123456789abcdef"
INITIATOR = "iqn.2024-01.org.tether.live:host"
LONGEST_DIRECTORY = 80  # a socket's path has at most 107 bytes, and QEMU's and tgt's lie below


class WorldError(Exception):
    """The world cannot be started, read or ended; the message says what to do."""


def cache_directory() -> Path:
    """Return where downloads and built images are kept between worlds."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tether"


@contextlib.contextmanager
def cache_lock() -> Iterator[None]:
    """Let one world at a time install packages and fill the cache."""
    cache_directory().mkdir(parents=True, exist_ok=True)
    with locked(cache_directory()):
        yield


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory's lock."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@dataclass(frozen=True)
class World:
    """One world's directory, and every path and address that follows from it."""

    directory: Path

    @classmethod
    def of_environment(cls) -> World:
        """Return the world that TETHER_LIVE_DIR names, or the checkout's own."""
        directory = Path(os.environ.get("TETHER_LIVE_DIR") or CHECKOUT / ".live").absolute()
        if len(str(directory)) > LONGEST_DIRECTORY:
            raise WorldError(
                f"{directory} is too long a path for the sockets below it: set TETHER_LIVE_DIR to one of at most"
                f" {LONGEST_DIRECTORY} bytes"
            )
        return cls(directory)

    # what is remembered
    @property
    def memory_file(self) -> Path:
        return self.directory / "world.json"

    @cached_property
    def memory(self) -> dict[str, Any]:
        """What ``bin/live up`` chose: ports and timeouts.

        Raises:
            WorldError: there is no world here.
        """
        try:
            return json.loads(self.memory_file.read_text())  # type: ignore[no-any-return]
        except FileNotFoundError as error:
            raise WorldError(f"there is no live world in {self.directory}: run bin/live up") from error

    def exists(self) -> bool:
        """Tell whether a world was started here and not ended since."""
        return self.memory_file.exists()

    def remember(self) -> None:
        """Choose what is not chosen yet, and write it down."""
        memory = dict(self.memory) if self.exists() else {}
        for name in ("api_port", "iscsi_port"):
            if name not in memory:
                memory[name] = free_port()
        timeout = os.environ.get("LIVE_RPC_TIMEOUT")
        memory["rpc_response_timeout"] = int(timeout) if timeout else memory.get("rpc_response_timeout", 10)
        write(self.memory_file, json.dumps(memory, indent=2) + "\n")
        self.__dict__.pop("memory", None)

    # addresses
    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.memory['api_port']}/v3"

    @property
    def libvirt_uri(self) -> str:
        return f"qemu+unix:///system?socket={self.libvirt}/run/libvirt-sock"

    # places
    @property
    def libvirt(self) -> Path:
        return self.directory / "libvirt"

    @property
    def cinder(self) -> Path:
        return self.directory / "cinder"

    @property
    def cinder_database(self) -> Path:
        return self.cinder / "cinder.sqlite"

    @property
    def volumes(self) -> Path:
        """The backing files: one per volume, named as Cinder names the volume."""
        return self.directory / "volumes"

    @property
    def faults(self) -> Path:
        """Files that make Cinder's driver fail or wait: see driver/tether_live.py."""
        return self.directory / "faults"

    @property
    def tgt_socket(self) -> Path:
        return self.directory / "tgt"

    @property
    def config_file(self) -> Path:
        return self.directory / "tether.conf"

    @property
    def ledger(self) -> Path:
        return self.directory / "tether.sqlite"

    @property
    def logs(self) -> Path:
        return self.directory / "log"

    def console_socket(self, guest: str) -> Path:
        return self.directory / f"{guest}.sock"

    def console_log(self, guest: str) -> Path:
        return self.logs / f"{guest}.console"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every process of this world."""
        return os.environ | {"TETHER_LIVE_DIR": str(self.directory), "TGT_IPC_SOCKET": str(self.tgt_socket)}

    @property
    def mark(self) -> str:
        """What the environment of this world's processes has, and nobody else's."""
        return f"TETHER_LIVE_DIR={self.directory}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let one ``up`` or ``down`` at a time work on this directory, which it makes."""
        while True:
            self.directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                # `down` removes the directory under its lock: what was waited for may be gone
                if self.directory.exists() and os.path.samestat(os.fstat(handle), self.directory.stat()):
                    yield
                    return
            finally:
                os.close(handle)


def write(path: Path, text: str) -> bool:
    """Replace a file at once by ``text``, private to root; tell whether that changed it."""
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)
    return True


def free_port() -> int:
    """Return a loopback port that nobody listens on, below those that the kernel hands out by itself."""
    while True:
        port = random.randint(18000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
