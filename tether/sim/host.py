"""The embedded world's machine: the host protocol over one book.

The book ``host``::

    identity   name, machine_id, boot_id, initiator, nqn, ip, and manual_scan, false where a test says so
    devices    volume id -> path, size, identity, identities_differ, open_count, iqn, sessions
    links      volume id -> what tether's link points to
    crypt      volume id -> name, uuid, cipher of the open dm-crypt mapping; size while it is behind its device
    sessions   volume id -> sessions without a device: what a kill inside os-brick leaves, put there by a test
    maps       volume id -> the name of a multipath map, put there by a test
    pending    calls that were answered with a time-out and are carried out at `due`

The book ``headers``, which is the volumes' own: volume id -> what a host has written onto it: `luks`, or `half` of it.

Of the book ``cinder`` it reads ``exports`` (volume id -> target_iqn, auth_username, auth_password), ``keys``
and of ``volumes`` the size in GiB, ``wwn`` or ``identity`` (what the disk reports), and what a test may add:
``device_size`` in bytes (a wrong device), ``identities_differ`` and ``content``: what the volume holds until this host
writes a header: ``blank``, ``luks`` (of a volume that does not say), ``half``, ``other`` or ``unreadable``.

Nothing is made outside the world's directory, and no link or device file exists; the paths are those that
a real host would have.
"""

from __future__ import annotations

import logging
import os
import signal
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tether.adapters.cinder.model import Connection, Connector, Encryption
from tether.adapters.host import fabrics, wwid
from tether.adapters.host.model import Device, Header, Holding, HostIdentity, HostSurvey
from tether.clock import Clock, SystemClock
from tether.errors import FinalError, UncertainError
from tether.sealed import Sealed
from tether.sim import exports, script
from tether.sim.disks import usable
from tether.sim.machine import Book, Machine
from tether.sim.store import Store

LOG = logging.getLogger(__name__)

BOOK = "host"
_NAMESPACE = uuid.UUID("5b6c2a0e-70f6-4e9b-9a59-6a1b7f5d2c11")


def seed_host(store: Store, *, name: str = "sim-host") -> None:
    """Write the machine's identity into a new world; a world that has one keeps it.

    Args:
        name: the host's name; machine id, boot id, initiator and NQN are derived from it, so that two
            worlds made alike are alike.
    """
    with store.change(BOOK) as book:
        if "identity" in book:
            return
        seed = uuid.uuid5(_NAMESPACE, name)
        book["identity"] = {
            "name": name,
            "machine_id": seed.hex,
            "boot_id": str(uuid.uuid5(seed, "boot")),
            "initiator": f"iqn.1993-08.org.debian:01:{seed.hex[:12]}",
            "nqn": f"nqn.2014-08.org.nvmexpress:uuid:{seed}",
            "ip": "127.0.0.1",
        }
        book.update(devices={}, links={}, crypt={}, pending=[])


class SimHost:
    """The simulated machine.

    Args:
        store: the world's books; :func:`seed_host` must have been run on them.
        clock: what late calls are timed by.
        run_dir: the setting; only the name of a place here. Default: in the world's directory.
    """

    def __init__(self, store: Store, clock: Clock | None = None, run_dir: str = "") -> None:
        self._store = store
        self._machine = Machine(store, Path(run_dir or store.directory / "run"))
        self._clock = clock or SystemClock()

    def identity(self) -> HostIdentity:
        known = self._read()["identity"]
        return HostIdentity(**{key: known[key] for key in ("name", "machine_id", "boot_id", "initiator", "nqn")})

    def connector(self) -> Connector:
        known = self._read()["identity"]
        system = str(uuid.UUID(known["machine_id"]))
        return {
            "platform": "x86_64",
            "os_type": "linux",
            "host": known["name"],
            "ip": known["ip"],
            "initiator": known["initiator"],
            "multipath": False,
            "enforce_multipath": False,
            "do_local_attach": False,
            "uuid": system,
            "system uuid": system,
            "nqn": known["nqn"],
        }

    def scans_manually(self) -> bool:
        return bool(self._read()["identity"].get("manual_scan", True))

    def connect(self, volume_id: str, connection: Connection) -> Device:
        data = connection.data.open()
        if refusal := fabrics.refusal(connection.protocol, data):
            raise FinalError(
                f"volume {volume_id} {refusal}",
                resource=f"volume {volume_id}",
                hint="use a volume type of another backend; rbd volumes are network disks",
            )
        iqn = str(data.get("target_iqn", ""))
        login = exports.login_of(data)
        portals = data.get("target_portals") or [data.get("target_portal", "")]

        def effect(book: Book) -> None:
            self._machine.log_in(book, volume_id, iqn, [str(portal) for portal in portals], login)

        # The credentials are judged now: they are never written down for later.
        refused = login != exports.login_of(exports.export(self._store.read("cinder"), iqn)[1])
        pending = None if refused else {"verb": "connect", "volume_id": volume_id, "iqn": iqn, "portals": portals}
        self._perform("host.connect", volume_id, pending, effect)
        return self._machine.present(self._read(), volume_id)

    def find(self, volume_id: str) -> Device | None:
        self._perform("host.find", volume_id, None, lambda _: None)
        book = self._read()
        if volume_id not in book["links"] or volume_id not in book["devices"]:
            return None
        return self._machine.present(book, volume_id)

    def device_at(self, volume_id: str, path: str, connection: Connection) -> Device | None:
        self._perform("host.device_at", volume_id, None, lambda _: None)
        book = self._read()
        device = book["devices"].get(volume_id)
        if device is None or device["iqn"] != connection.data.open().get("target_iqn"):
            return None
        target = book["links"].get(volume_id, "") if path == self._machine.link(volume_id) else path
        crypt = book["crypt"].get(volume_id)
        if target not in {device["path"], f"/dev/mapper/{crypt['name']}" if crypt else device["path"]}:
            return None
        return replace(self._machine.present(book, volume_id), path=device["path"])

    def link(self, volume_id: str, path: str) -> Device:
        def effect(book: Book) -> None:
            crypt = book["crypt"].get(volume_id)
            book["links"][volume_id] = f"/dev/mapper/{crypt['name']}" if crypt else path

        self._perform("host.link", volume_id, None, effect)
        return self._machine.present(self._read(), volume_id)

    def unlink(self, volume_id: str) -> None:
        def effect(book: Book) -> None:
            book["links"].pop(volume_id, None)

        self._perform("host.unlink", volume_id, None, effect)

    def disconnect(
        self, volume_id: str, connection: Connection, others: Collection[str] = (), *, force: bool = False
    ) -> list[str]:
        failed: list[str] = []

        def unflushed(book: Book) -> None:
            failed.extend(self._machine.log_out_unflushed(book, volume_id, force=force))

        pending = {"verb": "disconnect", "volume_id": volume_id}
        self._perform(
            "host.disconnect",
            volume_id,
            pending,
            lambda book: self._machine.log_out(book, volume_id),
            instead={"no-flush": unflushed},
        )
        return failed

    def residue(self, volume_id: str, connection: Connection) -> list[str]:
        book = self._read()
        left: list[str] = []
        if device := book["devices"].get(volume_id):
            left += [f"session {session}" for session in device["sessions"]]
            left += [f"node record {session}" for session in device["sessions"]]
            left.append(f"disk {device['path']}")
        left += [f"session {session}" for session in book.get("sessions", {}).get(volume_id, [])]
        if name := book.get("maps", {}).get(volume_id):
            left.append(f"multipath map {name}")
        if crypt := book["crypt"].get(volume_id):
            left.append(f"dm-crypt {crypt['name']}")
        if volume_id in book["links"]:
            left.append(f"link {self._machine.link(volume_id)}")
        return left

    def survey(self) -> HostSurvey:
        found: list[HostSurvey] = []

        def look(book: Book) -> None:
            holdings = [Holding("link", self._machine.link(volume_id), volume_id) for volume_id in book["links"]]
            for volume_id, device in book["devices"].items():
                identity = device["identity"]
                in_use = self._machine.open_count(book, volume_id) > 0
                holdings.append(Holding("device", device["path"], volume_id, device["iqn"], identity, in_use))
                holdings += [Holding("session", name, volume_id, device["iqn"]) for name in device["sessions"]]
            for volume_id, names in book.get("sessions", {}).items():
                holdings += [Holding("session", name, volume_id, name.rpartition(" ")[2]) for name in names]
            holdings += [Holding("map", name, volume_id) for volume_id, name in book.get("maps", {}).items()]
            holdings += [Holding("crypt", item["name"], volume_id) for volume_id, item in book["crypt"].items()]
            linked = {
                volume_id: self._machine.present(book, volume_id)
                for volume_id in book["devices"].keys() & book["links"]
            }
            found.append(HostSurvey(tuple(holdings), linked))

        self._perform("host.survey", "", None, look)
        return found[0]

    def expected_identity(self, connection: Connection) -> str:
        return wwid.named_by(connection.protocol, connection.data.open())

    def expected_paths(self, connection: Connection) -> int:
        return 1

    def extend(self, volume_id: str, connection: Connection) -> Device:
        pending = {"verb": "extend", "volume_id": volume_id}
        self._perform("host.extend", volume_id, pending, lambda book: self._machine.extend(book, volume_id))
        return self._machine.present(self._read(), volume_id)

    def usable_size(self, volume_id: str) -> int:
        book = self._read()
        self._machine.connected(book, volume_id, "it has no size here")
        return usable(book, volume_id)

    def resize_encryption(self, volume_id: str, passphrase: Sealed[str]) -> None:
        pending = {"verb": "resize_encryption", "volume_id": volume_id}
        self._perform(
            "host.resize_encryption", volume_id, pending, lambda book: self._machine.resize_crypt(book, volume_id)
        )

    def read_header(self, volume_id: str) -> Header:
        found: list[Header] = []
        self._perform(
            "host.read_header", volume_id, None, lambda book: found.append(self._machine.header(book, volume_id))
        )
        return found[0]

    def format_encryption(self, volume_id: str, encryption: Encryption, passphrase: Sealed[str]) -> None:
        def effect(book: Book) -> None:
            if volume_id in book["crypt"] or self._machine.header(book, volume_id) is Header.LUKS:
                raise FinalError(
                    f"volume {volume_id} is not formatted: it is LUKS already",
                    resource=f"volume {volume_id}",
                    hint="attach it as it is",
                )
            self._machine.write_header(volume_id, Header.LUKS)

        def half(_book: Book) -> None:
            self._machine.write_header(volume_id, Header.HALF)

        pending = {"verb": "format_encryption", "volume_id": volume_id}
        self._perform("host.format_encryption", volume_id, pending, effect, cut_off=half)

    def open_encryption(self, volume_id: str, encryption: Encryption, passphrase: Sealed[str]) -> Device:
        known = self._store.read("cinder").get("keys", {}).get(encryption.key_id)

        def effect(book: Book) -> None:
            if known is None or passphrase.open() != known:
                raise FinalError(
                    f"the passphrase does not open volume {volume_id}",
                    resource=f"volume {volume_id}",
                    hint=f"check the key {encryption.key_id} in the key manager",
                )
            self._machine.open_crypt(book, volume_id)

        # The passphrase is judged now: it is never written down for later.
        pending = {"verb": "open_encryption", "volume_id": volume_id} if passphrase.open() == known else None
        self._perform("host.open_encryption", volume_id, pending, effect)
        return self._machine.present(self._read(), volume_id)

    def encryption_open(self, volume_id: str) -> bool:
        return volume_id in self._read()["crypt"]

    def close_encryption(self, volume_id: str) -> None:
        pending = {"verb": "close_encryption", "volume_id": volume_id}
        self._perform(
            "host.close_encryption", volume_id, pending, lambda book: self._machine.close_crypt(book, volume_id)
        )

    def _perform(
        self,
        call: str,
        volume_id: str,
        pending: dict[str, Any] | None,
        effect: Callable[[Book], None],
        *,
        cut_off: Callable[[Book], None] | None = None,
        instead: Mapping[str, Callable[[Book], None]] | None = None,
    ) -> None:
        """Carry out one verb as one locked change, or fail as the script says.

        Args:
            pending: what a late call leaves in the book, without secrets; None if it will have no effect.
            cut_off: what is there if the helper is killed amid its work; by default all of it.
            instead: by scripted action, the effect that it has in place of the usual one.
        """
        scripted = script.take(self._store, call)
        action = scripted.action if scripted else ""
        LOG.info("%s volume %s: %s", call, volume_id, action or "as asked")
        if scripted and action == "slow":
            self._clock.wait(scripted.seconds)
        if action == "fail":
            raise FinalError(
                f"{_subject(call, volume_id)} failed",
                resource=f"volume {volume_id}" if volume_id else "",
                hint="this failure was scripted",
            )
        if scripted and action == "late" and pending is not None:
            with self._open() as book:
                book["pending"].append({**pending, "due": self._clock.time() + scripted.seconds})
        if scripted and action in ("timeout", "late"):
            scripted.sent()
            raise _no_answer(call, volume_id)
        if action == "not-done":
            return
        if action == "kill-helper":
            self._lose_helper(lambda: self._change(cut_off or effect))
            raise _no_answer(call, volume_id)
        try:
            self._change((instead or {}).get(action, effect))
        except FinalError:
            if action != "lost-reply":
                raise
        if action == "lost-reply":
            raise _no_answer(call, volume_id)

    def _change(self, effect: Callable[[Book], None]) -> None:
        with self._open() as book:
            effect(book)

    def _lose_helper(self, work: Callable[[], None]) -> None:
        """Let a process of its own do the work, as os-brick's helper does, which is killed before it can answer."""
        pid = os.fork()
        if pid == 0:
            try:
                work()
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)

    @contextmanager
    def _open(self) -> Iterator[Book]:
        """Change the book; what has come due is carried out first."""
        with self._store.change(BOOK) as book:
            self._carry_out_due(book)
            yield book

    def _read(self) -> Book:
        book = self._store.read(BOOK)
        if any(item["due"] <= self._clock.time() for item in book["pending"]):
            with self._open() as changed:
                return changed
        return book

    def _carry_out_due(self, book: Book) -> None:
        now = self._clock.time()
        due = sorted((item for item in book["pending"] if item["due"] <= now), key=lambda item: float(item["due"]))
        book["pending"] = [item for item in book["pending"] if item["due"] > now]
        for item in due:
            volume_id = item["volume_id"]
            try:
                if item["verb"] == "connect":
                    self._machine.log_in(book, volume_id, item["iqn"], item["portals"], None)
                elif item["verb"] == "disconnect":
                    self._machine.log_out(book, volume_id)
                elif item["verb"] == "extend":
                    self._machine.extend(book, volume_id)
                elif item["verb"] == "resize_encryption":
                    self._machine.resize_crypt(book, volume_id)
                elif item["verb"] == "format_encryption":
                    self._machine.write_header(volume_id, Header.LUKS)
                elif item["verb"] == "open_encryption":
                    self._machine.open_crypt(book, volume_id)
                else:
                    self._machine.close_crypt(book, volume_id)
            except FinalError:
                # It came too late: what it needed is gone by now, so it has no effect, as on a real host.
                continue


def _no_answer(call: str, volume_id: str) -> UncertainError:
    return UncertainError(
        f"{_subject(call, volume_id)} did not answer in time",
        resource=f"volume {volume_id}" if volume_id else "",
        hint="see whether the host answers again",
    )


def _subject(call: str, volume_id: str) -> str:
    return f"{call} of volume {volume_id}" if volume_id else call
