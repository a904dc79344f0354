"""The simulated libvirt: domains and secrets in files, with libvirt 9's rules and scripted failures.

The rules are those measured on libvirt 9.0 with QEMU 7.2: a target name, an alias or an address is refused
the second time, the same source is not; LIVE on a shut-off domain is refused; a live disk that needs a secret
is refused without it; a virtio disk leaves a paused guest only once that is resumed, a virtio-scsi disk at once.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

from tether.adapters.guest.model import (
    Definition,
    Disk,
    GuestIdentity,
    GuestSurvey,
    Power,
    Scope,
    SecretUse,
    Server,
    Unplugged,
)
from tether.adapters.guest.xml import parse_definition, parse_disk, parse_element
from tether.clock import Clock, SystemClock
from tether.errors import FinalError, NotFound, UncertainError, UsageError
from tether.sealed import Sealed
from tether.sim.disks import LUKS_HEADER, usable
from tether.sim.domains import Domain, live_of, locked, running_late, set_limits, set_mark, text, uuids_of
from tether.sim.script import Scripted, take
from tether.sim.store import Store, write_whole

LOG = logging.getLogger(__name__)
T = TypeVar("T")

GIB = 1024**3
URI = "sim:///system"
HOST_UUID = "9e570000-0000-4000-8000-0000000000aa"
_NOT_RUNNING = "libvirt refused: Requested operation is not valid: domain is not running"
_RUNNING_HINT = "read the server again: its power state has changed"


class SimGuest:
    """Implements :class:`tether.adapters.guest.model.Guest` over one world's directory.

    Args:
        clock: what slow and late calls wait by.
        host_uuid: which host's libvirt this pretends to be.
    """

    def __init__(self, store: Store, clock: Clock | None = None, *, host_uuid: str = HOST_UUID) -> None:
        self._store = store
        self._clock: Clock = clock or SystemClock()
        self._host_uuid = host_uuid

    def identity(self) -> GuestIdentity:
        return GuestIdentity(URI, self._host_uuid)

    def find_server(self, name_or_uuid: str) -> Server:
        for server in self.list_servers():
            if name_or_uuid in (server.uuid, server.name):
                return server
        raise NotFound(
            f"there is no server {name_or_uuid}",
            resource=f"server {name_or_uuid}",
            hint=f"see: tether sim show {self._store.directory}",
        )

    def show_server(self, uuid: str) -> Server:
        def show() -> Server:
            with self._domain(uuid, changes=False) as domain:
                return _server(domain)

        return self._scripted("show_server", show)

    def list_servers(self) -> list[Server]:
        servers = []
        for uuid in uuids_of(self._store):
            with self._domain(uuid, changes=False) as domain:
                servers.append(_server(domain))
        return servers

    def survey(self) -> GuestSurvey:
        def look() -> GuestSurvey:
            servers, unread = [], {}
            for uuid in uuids_of(self._store):
                try:
                    with self._domain(uuid, changes=False) as domain:
                        servers.append(_server(domain))
                except NotFound:
                    continue  # a transient one that was stopped
                except FinalError as error:
                    unread[uuid] = error.message
            with self._secrets() as book:
                uses = [SecretUse(*key.split(":", 1)) for key in book["secrets"]]
            return GuestSurvey(tuple(servers), frozenset(uses), unread)

        return self._scripted("survey", look)

    def mark(self, uuid: str, scope: Scope, volume_id: str, job_id: str, adopted: Disk | None = None) -> None:
        place = [adopted.target, adopted.source] if adopted else []
        call = {"verb": "mark", "scope": str(scope), "volume": volume_id, "job": job_id, "adopted": place}
        self._act("mark", uuid, call)

    def unmark(self, uuid: str, scope: Scope, volume_id: str) -> None:
        self._act("unmark", uuid, {"verb": "mark", "scope": str(scope), "volume": volume_id, "job": ""})

    def plug(self, uuid: str, scope: Scope, disk_xml: str) -> None:
        self._act(f"plug_{scope}", uuid, {"verb": "plug", "scope": str(scope), "xml": disk_xml})

    def unplug(self, uuid: str, scope: Scope, handle: str) -> Unplugged:
        def ignore(scripted: Scripted) -> Unplugged:
            with self._domain(uuid) as domain:
                if domain.live is None or _find(domain.live, handle) is None:
                    return Unplugged.REMOVED
                if scripted.action == "refuse":
                    return Unplugged.REFUSED
                domain.state["pending"][handle] = "ignored"
                return Unplugged.PENDING

        call = {"verb": "unplug", "scope": str(scope), "alias": handle}
        special = ignore if scope is Scope.LIVE else None
        return self._act(f"unplug_{scope}", uuid, call, special=special) or Unplugged.REMOVED

    def capacity(self, uuid: str, target: str) -> int:
        with self._domain(uuid) as domain:
            disk = self._running_disk(domain, target)
            return int(domain.state.get("capacities", {}).get(target) or self._source_size(disk) or GIB)

    def resize(self, uuid: str, target: str, size: int) -> None:
        self._act("resize", uuid, {"verb": "resize", "scope": str(Scope.LIVE), "target": target, "size": size})

    def limit(self, uuid: str, scope: Scope, target: str, limits: Mapping[str, int]) -> None:
        call = {"verb": "limit", "scope": str(scope), "target": target, "limits": dict(limits)}
        self._act(f"limit_{scope}", uuid, call)

    def define_secret(self, use: SecretUse, value: Sealed[str]) -> None:
        self._secret("define_secret", {"key": f"{use.kind}:{use.usage}", "value": value.open()})

    def has_secret(self, use: SecretUse) -> bool:
        with self._secrets() as book:
            return f"{use.kind}:{use.usage}" in book["secrets"]

    def undefine_secret(self, use: SecretUse) -> None:
        self._secret("undefine_secret", {"key": f"{use.kind}:{use.usage}", "value": None})

    # What an operator or the guest itself does: for tests and `tether sim`.

    def start(self, uuid: str) -> None:
        """Start the domain, from its managed-save image if it has one.

        Raises:
            FinalError: it runs already, or a disk needs a secret that is not defined.
        """
        with self._domain(uuid) as domain:
            if domain.live is not None:
                raise FinalError("libvirt refused: domain is already running", resource=f"server {uuid}")
            image = domain.saved
            root = copy.deepcopy(image if image is not None else domain.persistent)
            if root is None:
                raise FinalError("the domain has no definition to start from", resource=f"server {uuid}")
            for disk in root.iterfind("devices/disk"):
                self._need_secrets(disk)
            domain.live = ET.fromstring(live_of(text(root)))  # noqa: S314 - written by ourselves
            for disk in domain.live.iterfind("devices/disk"):
                self._open_source(domain, disk)
            domain.power = Power.RUNNING
            domain.keep_image(None)

    def stop(self, uuid: str) -> None:
        """Stop the domain: its live definition and every pending unplug are gone."""
        with self._domain(uuid) as domain:
            domain.live = None
            domain.power = Power.SHUTOFF
            domain.state["pending"] = {}
            if domain.persistent is None:
                domain.forget()

    def pause(self, uuid: str) -> None:
        """Suspend a running domain."""
        with self._running(uuid) as domain:
            domain.power = Power.PAUSED

    def resume(self, uuid: str) -> None:
        """Let a paused domain run on; it now answers what was asked of it while it was paused."""
        with self._running(uuid) as domain:
            domain.power = Power.RUNNING
            _carry_out(domain, {"paused"})

    def reset(self, uuid: str) -> None:
        """Reset the guest: every pending unplug is carried out, as QEMU does."""
        with self._running(uuid) as domain:
            _carry_out(domain, {"paused", "ignored"})

    def managed_save(self, uuid: str) -> None:
        """Save the running domain's memory, with its present disks, and shut it off."""
        with self._running(uuid) as domain:
            domain.keep_image(domain.live)
            domain.live = None
            domain.power = Power.SHUTOFF
            domain.state["pending"] = {}

    def migrating(self, uuid: str, *, on: bool) -> None:
        """Pretend that a migration job runs, or that it has ended."""
        with self._domain(uuid) as domain:
            domain.state["migrating"] = on

    def memory_snapshot(self, uuid: str, name: str) -> None:
        """Take a snapshot with memory, which holds the present live disks."""
        with self._running(uuid) as domain:
            assert domain.live is not None  # noqa: S101 - _running has looked
            targets = [parse_disk(disk).target for disk in domain.live.iterfind("devices/disk")]
            domain.state["memory_snapshots"][name] = targets

    def restart_libvirtd(self) -> None:
        """Forget every secret: tether's are ephemeral."""
        with self._secrets() as book:
            book["secrets"] = {}

    # How it works.

    @contextmanager
    def _domain(self, uuid: str, *, changes: bool = True) -> Iterator[Domain]:
        """Lock a domain, carry out what is due, yield it, and save what the block changes unless it raises."""
        with locked(self._store, uuid) as directory:
            domain = Domain(directory)
            due = running_late(domain.state, self._clock.time())
            for call in due:
                with suppress(FinalError):
                    self._apply(domain, call)
            if due:
                domain.save()
            yield domain
            if changes and directory.exists():
                domain.save()

    @contextmanager
    def _running(self, uuid: str) -> Iterator[Domain]:
        with self._domain(uuid) as domain:
            if domain.live is None:
                raise FinalError(_NOT_RUNNING, resource=f"server {uuid}", hint=_RUNNING_HINT)
            yield domain

    def _act(
        self,
        verb: str,
        uuid: str,
        call: dict[str, Any],
        *,
        special: Callable[[Scripted], Unplugged | None] | None = None,
    ) -> Unplugged | None:
        def act() -> Unplugged | None:
            with self._domain(uuid) as domain:
                return self._apply(domain, call)

        def later(at: float) -> None:
            with self._domain(uuid) as domain:
                domain.state["late"].append({**call, "at": at})

        return self._scripted(verb, act, later, special)

    def _scripted(
        self,
        verb: str,
        act: Callable[[], T],
        later: Callable[[float], None] | None = None,
        special: Callable[[Scripted], T] | None = None,
    ) -> T:
        """Carry a call out as the script says."""
        scripted = take(self._store, f"guest.{verb}")
        LOG.info("guest.%s: %s", verb, scripted.action if scripted else "as asked")
        if scripted is None:
            return act()
        action = scripted.action
        if action == "slow":
            self._clock.wait(scripted.seconds)
            return act()
        if action == "fail":
            raise FinalError(f"libvirt refused {verb} (scripted)", hint="this is a scripted failure: try again")
        if action == "not-done":
            return None  # type: ignore[return-value]  # as the calls that it is for
        if action in ("refuse", "ignore"):
            if special is None:
                raise UsageError(f"guest.{verb} cannot be scripted to {action}", hint="only guest.unplug_live can")
            return special(scripted)
        if action == "lost-reply":
            act()
        elif action == "late" and later is not None:
            later(self._clock.time() + scripted.seconds)
        scripted.sent()
        raise UncertainError(
            f"libvirt did not answer {verb} in time (scripted)", hint="read the server again before deciding"
        )

    def _apply(self, domain: Domain, call: Mapping[str, Any]) -> Unplugged | None:
        scope = Scope(call["scope"])
        root = domain.live if scope is Scope.LIVE else domain.persistent
        if call["verb"] == "unplug":
            return _unplug(domain, scope, root, call["alias"])
        if root is None and call["verb"] == "mark" and not call["job"]:
            return None
        if root is None:
            message = _NOT_RUNNING if scope is Scope.LIVE else "libvirt refused: a transient domain has no config"
            raise FinalError(message, resource=f"server {domain.uuid}", hint=_RUNNING_HINT)
        if call["verb"] == "plug":
            disk = parse_element(call["xml"], "disk")
            if scope is Scope.LIVE:
                self._need_secrets(disk)
            _plug(root, disk)
            if scope is Scope.LIVE:
                self._open_source(domain, disk)
        elif call["verb"] == "limit":
            set_limits(root, call["target"], call["limits"])
        elif call["verb"] == "resize":
            source = self._source_size(self._running_disk(domain, call["target"]))
            if source is not None and call["size"] > source:
                raise FinalError(
                    "libvirt refused: unable to execute QEMU command 'block_resize': Cannot grow device files",
                    resource=f"server {domain.uuid}",
                    hint="extend the volume first, and its device on this host",
                )
            domain.state.setdefault("capacities", {})[call["target"]] = call["size"]
        else:
            set_mark(root, call["volume"], call["job"], call.get("adopted"))
        return None

    def _running_disk(self, domain: Domain, target: str) -> ET.Element:
        for disk in domain.live.iterfind("devices/disk") if domain.live is not None else ():
            if parse_disk(disk).target == target:
                return disk
        raise FinalError(
            f"server {domain.uuid} does not run, or has no disk {target}",
            resource=f"server {domain.uuid}",
            hint=_RUNNING_HINT,
        )

    def _open_source(self, domain: Domain, disk: ET.Element) -> None:
        """Keep the size that QEMU finds when it opens a volume: it does not see it grow."""
        size = self._source_size(disk)
        if size is not None:
            domain.state.setdefault("capacities", {})[parse_disk(disk).target] = size

    def _source_size(self, disk: ET.Element) -> int | None:
        """Return the bytes behind a disk of this world's volumes; None for another's."""
        volume_id = parse_disk(disk).serial
        host, volumes = self._store.read("host"), self._store.read("cinder").get("volumes", {})
        if disk.get("type") != "network" and volume_id in host.get("devices", {}):
            return usable(host, volume_id)
        if volume_id not in volumes:
            return None
        return int(volumes[volume_id]["size"] * GIB - (LUKS_HEADER if disk.find(".//encryption") is not None else 0))

    def _need_secrets(self, disk: ET.Element) -> None:
        """Refuse a disk whose secret is not defined; the host's own (ceph, by UUID) are taken for granted."""
        with self._secrets() as book:
            for path, kind in ((".//auth/secret", "iscsi"), (".//encryption/secret", "volume")):
                secret = disk.find(path)
                usage = secret.get("usage") if secret is not None else None
                if usage and f"{kind}:{usage}" not in book["secrets"]:
                    raise FinalError(
                        f"libvirt refused: Secret not found: no secret with matching usage '{usage}'",
                        hint="define the secret first: the job that attaches the disk does",
                    )

    def _secret(self, verb: str, call: dict[str, Any]) -> None:
        def act() -> None:
            with self._secrets() as book:
                _set_secret(book, call)

        def later(at: float) -> None:
            with self._secrets() as book:
                book["late"].append({**call, "at": at})

        self._scripted(verb, act, later)

    @contextmanager
    def _secrets(self) -> Iterator[dict[str, Any]]:
        with locked(self._store) as guests:
            path = guests / "secrets.json"
            before = path.read_text() if path.exists() else '{"late": [], "secrets": {}}'
            book: dict[str, Any] = json.loads(before)
            for call in running_late(book, self._clock.time()):
                _set_secret(book, call)
            yield book
            after = json.dumps(book, sort_keys=True)
            if after != before:
                write_whole(path, after)


def _server(domain: Domain) -> Server:
    def definition(root: ET.Element | None) -> Definition | None:
        return parse_definition(text(root)) if root is not None else None

    return Server(
        uuid=domain.uuid,
        name=domain.state["name"],
        power=domain.power,
        live=definition(domain.live),
        persistent=definition(domain.persistent),
        managed_save=domain.saved is not None,
        migrating=domain.state["migrating"],
        memory_snapshots={name: tuple(targets) for name, targets in domain.state["memory_snapshots"].items()},
    )


def _find(root: ET.Element, handle: str) -> ET.Element | None:
    for element in root.iterfind("devices/disk"):
        if parse_disk(element).handle == handle:
            return element
    return None


def _remove(root: ET.Element, handle: str) -> None:
    element = _find(root, handle)
    devices = root.find("devices")
    if element is not None and devices is not None:
        devices.remove(element)


def _plug(root: ET.Element, element: ET.Element) -> None:
    """Put the disk in, by libvirt's rules."""
    new = parse_disk(element)
    definition = parse_definition(text(root))
    if not new.target or not new.bus or not new.address:
        raise FinalError(
            "libvirt refused: XML error: the disk names no target or no address", hint="choose a slot for it first"
        )
    for old in definition.disks:
        if old.target == new.target:
            raise FinalError(f"libvirt refused: target {new.target} already exists", hint="choose another target")
        if new.alias and old.alias == new.alias:
            raise FinalError(
                f"libvirt refused: non unique alias detected: {new.alias}", hint="this volume is attached already"
            )
        if old.bus == new.bus and old.address.get("type") == "drive" and dict(old.address) == dict(new.address):
            raise FinalError("libvirt refused: Domain already contains a disk with that address", hint="choose another")
    if new.address.get("type") == "pci":
        buses = [item.index for item in definition.controllers if item.type == "pci"]
        if int(new.address["bus"], 0) not in buses:
            raise FinalError(
                f"libvirt refused: Invalid PCI address: there is no bus {new.address['bus']}", hint="choose another"
            )
        if _pci(new.address) in [_pci(item) for item in definition.addresses if item.get("type") == "pci"]:
            raise FinalError("libvirt refused: Attempted double use of PCI Address", hint="choose another address")
    devices = root.find("devices")
    assert devices is not None  # noqa: S101 - every domain of this world has devices
    devices.append(element)


def _pci(address: Mapping[str, str]) -> tuple[int, ...]:
    return tuple(int(address.get(part, "0"), 0) for part in ("domain", "bus", "slot", "function"))


def _unplug(domain: Domain, scope: Scope, root: ET.Element | None, alias: str) -> Unplugged:
    element = _find(root, alias) if root is not None else None
    if root is None or element is None:
        domain.state["pending"].pop(alias, None)
        return Unplugged.REMOVED
    if scope is Scope.LIVE and domain.power is Power.PAUSED and parse_disk(element).bus != "scsi":
        domain.state["pending"].setdefault(alias, "paused")
        return Unplugged.PENDING
    _remove(root, alias)
    if scope is Scope.LIVE:
        domain.state["pending"].pop(alias, None)
    return Unplugged.REMOVED


def _carry_out(domain: Domain, reasons: set[str]) -> None:
    """Unplug what was asked for and left pending for one of these reasons."""
    pending: dict[str, str] = domain.state["pending"]
    for alias in [alias for alias, reason in pending.items() if reason in reasons]:
        del pending[alias]
        if domain.live is not None:
            _remove(domain.live, alias)


def _set_secret(book: dict[str, Any], call: Mapping[str, Any]) -> None:
    if call["value"] is None:
        book["secrets"].pop(call["key"], None)
    else:
        book["secrets"][call["key"]] = call["value"]
