"""Stands in for the library ``nvmet`` (of nvmetcli), which Cinder's NVMe target driver needs and no package index has.

The part of it that ``cinder/privsep/targets/nvmet.py`` uses, over the kernel's configfs
(``drivers/nvme/target/configfs.c``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

CONFIGFS = Path("/sys/kernel/config/nvmet")
OnError = Callable[[str], None]


class CFSNotFound(Exception):
    """There is no such object in the kernel."""


class nvme:  # noqa: N801 - the library's module
    """Where Cinder looks for the exception."""

    CFSNotFound = CFSNotFound


class _Node:
    """A directory of configfs: an object of the kernel's."""

    def __init__(self, path: Path, mode: str) -> None:
        self._directory = path
        if mode == "create":
            path.mkdir()
        elif not path.is_dir():
            raise CFSNotFound(str(path))

    @property
    def path(self) -> str:
        """Where it is, as the library gives it."""
        return str(self._directory)

    def get_attr(self, group: str, name: str) -> str:
        """Return an attribute's value."""
        return (self._directory / f"{group}_{name}").read_text().strip()

    def set_attrs(self, group: str, values: Mapping[str, object]) -> None:
        """Set attributes."""
        for name, value in values.items():
            (self._directory / f"{group}_{name}").write_text(str(value))

    def delete(self) -> None:
        """Remove it from the kernel."""
        self._directory.rmdir()


class Root(_Node):
    """The target of this host."""

    def __init__(self) -> None:
        super().__init__(CONFIGFS, "lookup")

    @property
    def subsystems(self) -> Iterator[Subsystem]:
        """All of them."""
        return (Subsystem(each.name) for each in (self._directory / "subsystems").iterdir())


class Subsystem(_Node):
    """What a host connects to: one or more namespaces under a name, its NQN."""

    def __init__(self, nqn: str, mode: str = "lookup") -> None:
        self.nqn = nqn
        super().__init__(CONFIGFS / "subsystems" / nqn, mode)

    @classmethod
    def setup(cls, section: Mapping[str, Any], err_func: OnError) -> None:
        """Make one with its namespaces."""
        made = Subsystem(section["nqn"], "create")
        made.set_attrs("attr", section["attr"])
        for each in section["namespaces"]:
            Namespace.setup(made, each, err_func)

    def delete(self) -> None:
        """Remove it with its namespaces."""
        for each in list((self._directory / "namespaces").iterdir()):
            Namespace(self, int(each.name)).delete()
        super().delete()


class Namespace(_Node):
    """A block device, as a host sees it."""

    MAX_NSID = 8192

    def __init__(self, subsystem: Subsystem, nsid: int, mode: str = "lookup") -> None:
        self.subsystem = subsystem
        self.nsid = int(nsid)
        super().__init__(Path(subsystem.path) / "namespaces" / str(nsid), mode)

    @classmethod
    def setup(cls, subsystem: Subsystem, section: Mapping[str, Any], err_func: OnError) -> None:
        """Make one, and let it be seen."""
        made = Namespace(subsystem, section["nsid"], "create")
        made.set_attrs("device", section["device"])
        (made._directory / "enable").write_text(str(section["enable"]))


class Port(_Node):
    """An address that subsystems are reached at."""

    def __init__(self, portid: int | str, mode: str = "lookup") -> None:
        self.portid = int(portid)
        super().__init__(CONFIGFS / "ports" / str(portid), mode)

    @classmethod
    def setup(cls, section: Mapping[str, Any], err_func: OnError) -> None:
        """Make one, with its subsystems."""
        made = Port(section["portid"], "create")
        made.set_attrs("addr", section["addr"])
        for nqn in section["subsystems"]:
            made.add_subsystem(nqn)

    @property
    def subsystems(self) -> list[str]:
        """The NQNs of those that are reached here."""
        return [each.name for each in (self._directory / "subsystems").iterdir()]

    def add_subsystem(self, nqn: str) -> None:
        """Let a subsystem be reached here."""
        (self._directory / "subsystems" / nqn).symlink_to(CONFIGFS / "subsystems" / nqn)

    def remove_subsystem(self, nqn: str) -> None:
        """Let it be reached here no longer."""
        (self._directory / "subsystems" / nqn).unlink()


class Host(_Node):
    """Not used by Cinder."""


class Referral(_Node):
    """Not used by Cinder."""


class ANAGroup(_Node):
    """Not used by Cinder."""
