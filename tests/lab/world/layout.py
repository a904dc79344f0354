"""Where a lab keeps its things."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.live.world.layout import CHECKOUT, WorldError, locked, write

ENGINES = ("uml", "tcg", "kvm")
#: Where the lab sees the checkout; what runs inside is this very checkout.
MOUNT_POINT = "/mnt/checkout"
LONGEST_DIRECTORY = 75  # a socket's path has at most 107 bytes, and ssh's and the kernel's lie below it


def cache_directory() -> Path:
    """Return where images and downloads are kept between labs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tether-lab"


@contextlib.contextmanager
def cache_lock() -> Iterator[None]:
    """Let one build at a time fill the cache."""
    cache_directory().mkdir(parents=True, exist_ok=True)
    with locked(cache_directory()):
        yield


@dataclass(frozen=True)
class Image:
    """What a lab boots from; never written to after it was built."""

    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root.ext4"

    @property
    def kernel(self) -> Path:
        """Debian's kernel, for QEMU."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"

    @property
    def user_mode_kernel(self) -> Path:
        """The kernel that is a program."""
        return self.directory / "linux.uml"

    @property
    def preload(self) -> Path:
        """What is preloaded into it."""
        return self.directory / "wide_registers.so"

    @property
    def key(self) -> Path:
        """The ssh key that the lab lets in."""
        return self.directory / "key"


@dataclass(frozen=True)
class Lab:
    """One lab's directory, and every path that follows from it."""

    directory: Path

    @classmethod
    def of_environment(cls, name: str) -> Lab:
        """Return the lab of this name in TETHER_LAB_DIR, or in the checkout.

        Raises:
            WorldError: the name or the path cannot be used.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,15}", name):
            raise WorldError(f"{name!r} is no name for a lab: up to 16 small letters, digits and dashes")
        given = os.environ.get("TETHER_LAB_DIR") or os.environ.get("LAB_DIR") or CHECKOUT / ".lab"
        directory = Path(given).absolute() / name
        if len(str(directory)) > LONGEST_DIRECTORY:
            raise WorldError(
                f"{directory} is too long a path for the sockets below it: set TETHER_LAB_DIR to one of at most"
                f" {LONGEST_DIRECTORY - len(name) - 1} bytes"
            )
        return cls(directory)

    @property
    def name(self) -> str:
        return self.directory.name

    # what is remembered
    @property
    def memory_file(self) -> Path:
        return self.directory / "lab.json"

    @cached_property
    def memory(self) -> dict[str, Any]:
        """What ``bin/lab up`` chose: engine, image, memory, port.

        Raises:
            WorldError: there is no lab here.
        """
        try:
            return json.loads(self.memory_file.read_text())  # type: ignore[no-any-return]
        except FileNotFoundError as error:
            raise WorldError(f"there is no lab {self.name} in {self.directory.parent}: run bin/lab up") from error

    def remember(self, memory: dict[str, Any]) -> None:
        """Write down what was chosen."""
        write(self.memory_file, json.dumps(memory, indent=2) + "\n")
        self.__dict__.pop("memory", None)

    def exists(self) -> bool:
        """Tell whether a lab was started here and not ended since."""
        return self.memory_file.exists()

    @property
    def image(self) -> Image:
        return Image(Path(self.memory["image"]))

    # places
    @property
    def logs(self) -> Path:
        return self.directory

    @property
    def console(self) -> Path:
        """What the lab's kernel and systemd print."""
        return self.directory / "console.log"

    @property
    def root_overlay(self) -> Path:
        """What the lab has written to its root disk."""
        return self.directory / "root.overlay"

    @property
    def data_disk(self) -> Path:
        """The disk behind the volume group."""
        return self.directory / "data.img"

    @property
    def ssh_config(self) -> Path:
        return self.directory / "ssh_config"

    @property
    def control_socket(self) -> Path:
        """Of the one ssh connection that every command goes through."""
        return self.directory / "ssh.sock"

    @property
    def mark(self) -> str:
        """What the environment of this lab's processes has, and nobody else's."""
        return f"TETHER_LAB={self.directory}"

    @property
    def environment(self) -> dict[str, str]:
        name, _, value = self.mark.partition("=")
        return os.environ | {name: value}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let one ``up`` or ``down`` at a time work on this lab."""
        beside = self.directory.with_name(f".{self.name}")  # ``down`` removes the lab's own
        beside.mkdir(parents=True, exist_ok=True)
        with locked(beside):
            yield
