"""What the embedded world's machine does with its book: logins, devices, dm-crypt, and who has a device open."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tether.adapters.host import wwid
from tether.adapters.host.model import Device, Header
from tether.errors import FinalError, UncertainError
from tether.sim import exports
from tether.sim.disks import check_luks, derived_identity, free_path, grow, header, text_or_empty
from tether.sim.store import Store

GIB = 1024**3

Book = dict[str, Any]


def mapping_name(volume_id: str) -> str:
    """Return the name of the volume's dm-crypt mapping."""
    return f"tether-{volume_id}"


class Machine:
    """The effects of the verbs, each on a book that its caller has opened.

    Args:
        store: the world's books, of which Cinder's is read.
        run_dir: where tether's links would be.
    """

    def __init__(self, store: Store, run_dir: Path) -> None:
        self._store = store
        self._run_dir = run_dir

    def log_in(
        self, book: Book, volume_id: str, iqn: str, portals: list[str], login: tuple[object, object] | None
    ) -> None:
        cinder = self._store.read("cinder")
        exported, export = exports.export(cinder, iqn)
        resource = f"volume {volume_id}"
        if not exported:
            raise FinalError(
                f"volume {volume_id} cannot be connected: target not found: {iqn}",
                resource=resource,
                hint="check that Cinder still exports the volume: openstack volume attachment list",
            )
        if login is not None and login != exports.login_of(export):
            raise FinalError(
                f"volume {volume_id} cannot be connected: login to {iqn} failed: authorization failure",
                resource=resource,
                hint="detach and attach again: Cinder makes new CHAP credentials with each export",
            )
        volume = cinder["volumes"][exported]
        device = book["devices"].get(volume_id) or {"path": free_path(book), "open_count": 0}
        device.update(
            size=volume.get("device_size", volume["size"] * GIB),
            identity=wwid.normalise(volume.get("identity") or volume.get("wwn") or derived_identity(exported)),
            identities_differ=bool(volume.get("identities_differ", False)),
            iqn=iqn,
            sessions=[f"{portal} {iqn}" for portal in portals],
        )
        book["devices"][volume_id] = device
        crypt = book["crypt"].get(volume_id)
        book["links"][volume_id] = f"/dev/mapper/{crypt['name']}" if crypt else device["path"]

    def log_out(self, book: Book, volume_id: str) -> None:
        self._refuse_in_use(book, volume_id)
        for part in ("devices", "links", "sessions", "maps"):
            book.get(part, {}).pop(volume_id, None)

    def log_out_unflushed(self, book: Book, volume_id: str, *, force: bool) -> list[str]:
        """Log out from a device that cannot be flushed, if that is forced; return what was passed over."""
        self._refuse_in_use(book, volume_id)
        device = book["devices"].get(volume_id)
        failed = [f"flushing {device['path']} failed: Input/output error"] if device else []
        if failed and not force:
            raise UncertainError(
                f"volume {volume_id} is not disconnected: {failed[0]}",
                resource=f"volume {volume_id}",
                hint="check the paths to the storage (multipath -ll, lsblk)",
            )
        self.log_out(book, volume_id)
        return failed

    def _refuse_in_use(self, book: Book, volume_id: str) -> None:
        if volume_id in book["crypt"]:
            raise FinalError(
                f"volume {volume_id} cannot be disconnected: dm-crypt {mapping_name(volume_id)} is open on it",
                resource=f"volume {volume_id}",
                hint=f"close it first: cryptsetup close {mapping_name(volume_id)}",
            )
        if volume_id in book["devices"] and self.open_count(book, volume_id):
            raise FinalError(
                f"volume {volume_id} cannot be disconnected: its device is open",
                resource=f"volume {volume_id}",
                hint="detach the disk from the guest first",
            )

    def extend(self, book: Book, volume_id: str) -> None:
        volume = self._store.read("cinder")["volumes"][volume_id]
        self.connected(book, volume_id, "it cannot be extended here")
        grow(book, volume_id, volume.get("device_size", volume["size"] * GIB))

    def resize_crypt(self, book: Book, volume_id: str) -> None:
        if volume_id not in book["crypt"]:
            raise FinalError(
                f"dm-crypt {mapping_name(volume_id)} of volume {volume_id} is not open, so it cannot be resized",
                resource=f"volume {volume_id}",
                hint=f"see: tether explain {volume_id}",
            )
        book["crypt"][volume_id].pop("size", None)

    def header(self, book: Book, volume_id: str) -> Header:
        self.connected(book, volume_id, "its header cannot be read")
        written = self._store.read("headers").get(volume_id, "")
        return header(book, volume_id, self._store.read("cinder")["volumes"].get(volume_id, {}), written)

    def write_header(self, volume_id: str, what: Header) -> None:
        with self._store.change("headers") as written:
            written[volume_id] = what

    def connected(self, book: Book, volume_id: str, so: str) -> None:
        if volume_id not in book["devices"]:
            raise FinalError(
                f"volume {volume_id} is not connected, so {so}",
                resource=f"volume {volume_id}",
                hint="connect it first: the job that attaches it does",
            )

    def open_crypt(self, book: Book, volume_id: str) -> None:
        self.connected(book, volume_id, "its encryption cannot be opened")
        check_luks(volume_id, self.header(book, volume_id))
        name = mapping_name(volume_id)
        book["crypt"][volume_id] = {"name": name, "uuid": f"CRYPT-LUKS1-{volume_id.replace('-', '')}-{name}"}
        book["links"][volume_id] = f"/dev/mapper/{name}"

    def close_crypt(self, book: Book, volume_id: str) -> None:
        if volume_id in book["crypt"] and self.open_count(book, volume_id):
            raise FinalError(
                f"dm-crypt {mapping_name(volume_id)} of volume {volume_id} is in use",
                resource=f"volume {volume_id}",
                hint="detach the disk from the guest first",
            )
        book["crypt"].pop(volume_id, None)
        if device := book["devices"].get(volume_id):
            book["links"][volume_id] = device["path"]

    def present(self, book: Book, volume_id: str) -> Device:
        device = book["devices"].get(volume_id)
        if device is None:
            raise UncertainError(
                f"the device of volume {volume_id} has gone away",
                resource=f"volume {volume_id}",
                hint="look at the host's sessions",
            )
        return Device(
            link=self.link(volume_id),
            path=book["links"].get(volume_id, device["path"]),
            kind="block",
            size=device["size"],
            identity=device["identity"],
            identities_differ=device["identities_differ"],
            open_count=self.open_count(book, volume_id),
        )

    def open_count(self, book: Book, volume_id: str) -> int:
        """Return how many hold the device open: running guests of this world, and whoever a test adds."""
        device = book["devices"].get(volume_id, {})
        paths = [self.link(volume_id), *([device["path"]] if device else [])]
        opened = re.compile(f"[\"']({'|'.join(map(re.escape, paths))})[\"']")
        running = (self._store.directory / "guests").glob("*/live.xml")
        return int(device.get("open_count", 0)) + sum(bool(opened.search(text_or_empty(path))) for path in running)

    def link(self, volume_id: str) -> str:
        return str(self._run_dir / "volumes" / volume_id)
