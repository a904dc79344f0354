"""The guest by libvirt-python, an optional extra."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from uuid import UUID
from xml.etree import ElementTree as ET

from tether.adapters.guest.connection import Libvirtd, Waiter
from tether.adapters.guest.disk import IOTUNE_KEYS
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
from tether.adapters.guest.xml import MARKS_KEY, MARKS_URI, marks_xml, parse_definition, parse_element
from tether.errors import ConfigError, FinalError, NotFound, UncertainError
from tether.sealed import Sealed
from tether.settings import Settings

T = TypeVar("T")

#: While QEMU is silent, the XML is read this often (seconds): an event is lost with its connection.
POLL_INTERVAL = 1.0
#: QEMU's word for a request that is still open from an earlier attempt.
STILL_OPEN = "in the process of unplug"
#: How often a domain is read whose state changes under the reader's eyes.
READS = 3
#: How the description of a secret of tether's begins, and the element that names what a secret is for.
_OURS = "tether: volume "
_NAMED_BY = {"iscsi": "target", "volume": "volume"}


def open_guest(settings: Settings) -> LibvirtGuest:
    """Return the guest adapter; libvirtd is contacted by its first verb.

    Raises:
        ConfigError: libvirt-python is not installed.
    """
    try:
        import libvirt
    except ImportError as error:
        raise ConfigError("libvirt-python is not installed", hint="pip install tether[libvirt]") from error
    return LibvirtGuest(libvirt, settings)


class LibvirtGuest:
    """Implements :class:`tether.adapters.guest.model.Guest`.

    It may be used by several threads, and only by the process that made it: threads do not survive a fork.
    """

    def __init__(self, libvirt: Any, settings: Settings) -> None:
        self._libvirt = libvirt
        self._settings = settings
        self._daemon = Libvirtd(libvirt, settings)
        self._flags = {
            Scope.LIVE: libvirt.VIR_DOMAIN_AFFECT_LIVE,
            Scope.PERSISTENT: libvirt.VIR_DOMAIN_AFFECT_CONFIG,
        }

    def identity(self) -> GuestIdentity:
        uri, capabilities = self._daemon.read("getCapabilities", lambda c: (c.getURI(), c.getCapabilities()))
        plain = re.sub(r"^([^/]*//)[^/]*@", r"\1", uri)
        return GuestIdentity(plain, parse_element(capabilities, "capabilities").findtext("host/uuid", ""))

    def find_server(self, name_or_uuid: str) -> Server:
        try:
            return self.show_server(str(UUID(name_or_uuid)))
        except (ValueError, NotFound):
            resource = f"server {name_or_uuid}"
            return self._daemon.read(
                "lookupByName", lambda c: self._server(c.lookupByName(name_or_uuid)), resource=resource
            )

    def show_server(self, uuid: str) -> Server:
        return self._read(uuid, "XMLDesc", self._server)

    def list_servers(self) -> list[Server]:
        servers = []
        for uuid in self._daemon.read("listAllDomains", lambda c: [d.UUIDString() for d in c.listAllDomains(0)]):
            try:
                servers.append(self.show_server(uuid))
            except NotFound:
                continue  # undefined or migrated since the list was made
        return servers

    def survey(self) -> GuestSurvey:
        servers: list[Server] = []
        unread: dict[str, str] = {}
        for uuid in self._daemon.read("listAllDomains", lambda c: [d.UUIDString() for d in c.listAllDomains(0)]):
            try:
                servers.append(self.show_server(uuid))
            except NotFound:
                continue  # as in list_servers
            except (FinalError, UncertainError) as error:
                unread[uuid] = error.message
        secrets = self._daemon.read("listAllSecrets", lambda c: [s.XMLDesc(0) for s in c.listAllSecrets(0)])
        uses = frozenset(use for use in map(_own_secret, secrets) if use is not None)
        return GuestSurvey(tuple(servers), uses, unread)

    def mark(self, uuid: str, scope: Scope, volume_id: str, job_id: str, adopted: Disk | None = None) -> None:
        definition = self._definition(uuid, scope)
        places = {volume: place for volume, place in definition.adopted.items() if volume != volume_id}
        if adopted is not None:
            places[volume_id] = (adopted.target, adopted.source)
        self._set_marks(uuid, scope, {**definition.marks, volume_id: job_id}, places)

    def unmark(self, uuid: str, scope: Scope, volume_id: str) -> None:
        definition = self.show_server(uuid).definition(scope)
        if definition is None or volume_id not in definition.marks:
            return
        marks = {volume: job for volume, job in definition.marks.items() if volume != volume_id}
        self._set_marks(uuid, scope, marks, definition.adopted)

    def plug(self, uuid: str, scope: Scope, disk_xml: str) -> None:
        self._change(uuid, "attachDeviceFlags", lambda d: d.attachDeviceFlags(disk_xml, self._flags[scope]))

    def unplug(self, uuid: str, scope: Scope, handle: str) -> Unplugged:
        if scope is Scope.LIVE:
            with self._daemon.watch(uuid, handle) as waiter:
                return self._unplug_live(uuid, handle, waiter)
        if (there := self._has(uuid, scope, handle)) is not None:
            self._request(uuid, scope, there)
            if self._has(uuid, scope, handle) is not None:
                raise UncertainError(
                    f"libvirt says that disk {handle} is detached, and the persistent XML still has it",
                    resource=f"server {uuid}",
                    hint="look at `virsh dumpxml --inactive`",
                )
        return Unplugged.REMOVED

    def capacity(self, uuid: str, target: str) -> int:
        # blockInfo of a domain that does not run would read the image's file.
        self._running_disk(uuid, target)
        found: list[int] = self._read(uuid, "blockInfo", lambda domain: domain.blockInfo(target))
        return found[0]

    def resize(self, uuid: str, target: str, size: int) -> None:
        flags = self._libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES
        self._change(uuid, "blockResize", lambda domain: domain.blockResize(target, size, flags))

    def limit(self, uuid: str, scope: Scope, target: str, limits: Mapping[str, int]) -> None:
        wanted = dict.fromkeys(IOTUNE_KEYS, 0) | dict(limits)  # what is not given would stay as it is
        flags = self._flags[scope]
        self._change(uuid, "setBlockIoTune", lambda domain: domain.setBlockIoTune(target, wanted, flags))

    def _running_disk(self, uuid: str, target: str) -> None:
        live = self.show_server(uuid).live
        if live is None or target not in {disk.target for disk in live.disks}:
            raise FinalError(
                f"server {uuid} does not run, or has no disk {target}",
                resource=f"server {uuid}",
                hint="read the server again: its power state or its disks have changed",
            )

    def define_secret(self, use: SecretUse, value: Sealed[str]) -> None:
        def define(connection: Any) -> None:
            secret = self._lookup(connection, use)
            if secret is None:
                secret = connection.secretDefineXML(_secret_xml(use), 0)
            secret.setValue(value.open().encode(), 0)

        self._daemon.call("secretDefineXML", define, self._daemon.connection(), resource=f"secret {use.usage}")

    def has_secret(self, use: SecretUse) -> bool:
        return self._daemon.read(
            "secretLookupByUsage", lambda c: self._lookup(c, use) is not None, resource=f"secret {use.usage}"
        )

    def undefine_secret(self, use: SecretUse) -> None:
        def undefine(connection: Any) -> None:
            secret = self._lookup(connection, use)
            if secret is not None:
                secret.undefine()

        self._daemon.call("undefineSecret", undefine, self._daemon.connection(), resource=f"secret {use.usage}")

    # Reading and changing a domain.

    def _read(self, uuid: str, verb: str, function: Callable[[Any], T]) -> T:
        return self._daemon.read(verb, lambda c: function(c.lookupByUUIDString(uuid)), resource=f"server {uuid}")

    def _change(self, uuid: str, verb: str, function: Callable[[Any], Any]) -> None:
        """Look the domain up, which may reconnect, then call once: a change is never repeated here."""
        domain = self._read(uuid, "lookupByUUIDString", lambda found: found)
        self._daemon.call(verb, function, domain, resource=f"server {uuid}")

    def _definition(self, uuid: str, scope: Scope) -> Definition:
        definition = self.show_server(uuid).definition(scope)
        if definition is None:
            raise FinalError(
                f"server {uuid} has no {scope} definition now",
                resource=f"server {uuid}",
                hint="read the server again: its power state has changed",
            )
        return definition

    def _set_marks(
        self, uuid: str, scope: Scope, marks: Mapping[str, str], adopted: Mapping[str, tuple[str, str]]
    ) -> None:
        kind = self._libvirt.VIR_DOMAIN_METADATA_ELEMENT
        element = marks_xml(marks, adopted, prefixed=False) if marks else None
        self._change(
            uuid, "setMetadata", lambda d: d.setMetadata(kind, element, MARKS_KEY, MARKS_URI, self._flags[scope])
        )

    def _server(self, domain: Any) -> Server:
        """Read all of a domain; runs in the call's thread.

        The job is read before the XML: jobStats waits for a change that is being made, such as the attach of a
        runner that was killed, so that what the XML does not have then is really not there.
        """
        lv = self._libvirt
        for _ in range(READS):
            state, reason = domain.state()[:2]
            migrating = state != lv.VIR_DOMAIN_SHUTOFF and self._migrating(domain, state, reason)
            xml = domain.XMLDesc(0)
            runs = re.match(r"\s*<domain\s[^>]*\bid=", xml) is not None
            # A domain that starts or stops between the reads shows one state and the other's XML.
            if state == lv.VIR_DOMAIN_CRASHED or runs == (state != lv.VIR_DOMAIN_SHUTOFF):
                break
        else:
            raise UncertainError(
                "the domain's state changes while it is read",
                resource=f"server {domain.UUIDString()}",
                hint="wait until it has started or stopped",
            )
        persistent = domain.isPersistent()
        return Server(
            uuid=domain.UUIDString(),
            name=domain.name(),
            power=self._power(state),
            live=parse_definition(xml) if runs else None,
            persistent=parse_definition(domain.XMLDesc(lv.VIR_DOMAIN_XML_INACTIVE)) if persistent else None,
            managed_save=bool(domain.hasManagedSaveImage()),
            migrating=migrating,
            memory_snapshots=dict(
                snapshot
                for snapshot in (_memory_snapshot(item.getXMLDesc(0)) for item in domain.listAllSnapshots(0))
                if snapshot is not None
            ),
        )

    def _power(self, state: int) -> Power:
        lv = self._libvirt
        return {
            lv.VIR_DOMAIN_SHUTOFF: Power.SHUTOFF,
            lv.VIR_DOMAIN_CRASHED: Power.CRASHED,
            lv.VIR_DOMAIN_PAUSED: Power.PAUSED,
            # A guest in S3 runs no driver that could answer.
            lv.VIR_DOMAIN_PMSUSPENDED: Power.PAUSED,
        }.get(state, Power.RUNNING)

    def _migrating(self, domain: Any, state: int, reason: int) -> bool:
        lv = self._libvirt
        if (state, reason) in (
            (lv.VIR_DOMAIN_PAUSED, lv.VIR_DOMAIN_PAUSED_MIGRATION),
            (lv.VIR_DOMAIN_PAUSED, lv.VIR_DOMAIN_PAUSED_POSTCOPY),
            (lv.VIR_DOMAIN_PAUSED, lv.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED),
            (lv.VIR_DOMAIN_RUNNING, lv.VIR_DOMAIN_RUNNING_POSTCOPY),
        ):
            return True
        try:
            stats = domain.jobStats()
        except lv.libvirtError as error:
            if error.get_error_code() == lv.VIR_ERR_OPERATION_INVALID:  # it has stopped meanwhile
                return False
            raise
        return stats.get("type", lv.VIR_DOMAIN_JOB_NONE) != lv.VIR_DOMAIN_JOB_NONE and stats.get("operation") in (
            lv.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN,
            lv.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT,
        )

    # Unplugging.

    def _has(self, uuid: str, scope: Scope, handle: str) -> tuple[Power, Disk] | None:
        """Return the domain's power state and the disk if this definition has it, otherwise None."""
        server = self.show_server(uuid)
        definition = server.definition(scope)
        disks = () if definition is None else definition.disks
        disk = next((disk for disk in disks if disk.handle == handle), None)
        return None if disk is None else (server.power, disk)

    def _request(self, uuid: str, scope: Scope, there: tuple[Power, Disk]) -> None:
        """Ask for the unplug; a disk that is gone by now is no failure."""
        _power, disk = there
        flags = self._flags[scope]
        try:
            if disk.alias:
                self._change(uuid, "detachDeviceAlias", lambda d: d.detachDeviceAlias(disk.alias, flags))
            else:  # libvirt names only its running disks by itself
                self._change(uuid, "detachDeviceFlags", lambda d: d.detachDeviceFlags(disk.xml, flags))
        except FinalError as error:
            if STILL_OPEN not in error.message and self._has(uuid, scope, disk.handle) is not None:
                raise

    def _unplug_live(self, uuid: str, handle: str, waiter: Waiter) -> Unplugged:
        sent = False
        outcome = Unplugged.PENDING
        for _ in range(max(1, self._settings.device_detach_attempts)):
            there = self._has(uuid, Scope.LIVE, handle)
            if there is None:
                self._let_go(uuid, waiter)
                return Unplugged.REMOVED
            if waiter.refused:
                time.sleep(min(POLL_INTERVAL, self._settings.device_detach_timeout))
            waiter.forget()
            try:
                self._request(uuid, Scope.LIVE, there)
            except FinalError:
                if not sent:
                    raise
                outcome = Unplugged.PENDING  # an earlier request stays open, whatever was said to this one
                break
            except UncertainError:
                pass  # it may have been sent: what follows finds out
            sent = True
            if self._answered(uuid, handle, waiter):
                break
            outcome = Unplugged.REFUSED if waiter.refused else Unplugged.PENDING
            if there[0] is Power.PAUSED:
                break  # its processors stand still: asking again is of no use until it is resumed
        if self._has(uuid, Scope.LIVE, handle) is not None:
            return outcome
        self._let_go(uuid, waiter)
        return Unplugged.REMOVED

    def _answered(self, uuid: str, handle: str, waiter: Waiter) -> bool:
        """Wait for an answer; return True once the disk has left, False on a refusal or no answer in time."""
        end = time.monotonic() + self._settings.device_detach_timeout
        while (left := end - time.monotonic()) > 0:
            if waiter.wait(min(left, POLL_INTERVAL)) and waiter.refused:
                return False
            if self._has(uuid, Scope.LIVE, handle) is None:
                return True
        return False

    def _let_go(self, uuid: str, waiter: Waiter) -> None:
        """Wait until QEMU has closed the image: libvirt drops the disk from the XML a moment before.

        DEVICE_REMOVED comes after it. Where the event was missed, jobStats waits for the job that tears the
        disk down.
        """
        if waiter.removed:
            return
        try:
            self._read(uuid, "jobStats", lambda domain: domain.jobStats())
        except (FinalError, NotFound):
            return  # it no longer runs: nothing is open

    def _lookup(self, connection: Any, use: SecretUse) -> Any:
        """Return libvirt's secret or None; runs in the call's thread."""
        lv = self._libvirt
        kinds = {"iscsi": lv.VIR_SECRET_USAGE_TYPE_ISCSI, "volume": lv.VIR_SECRET_USAGE_TYPE_VOLUME}
        try:
            return connection.secretLookupByUsage(kinds[use.kind], use.usage)
        except lv.libvirtError as error:
            if error.get_error_code() == lv.VIR_ERR_NO_SECRET:
                return None
            raise


def _secret_xml(use: SecretUse) -> str:
    """Return the definition of a secret that is kept across libvirtd's restart and never shown.

    An ephemeral one is gone after a restart, and the guest's next start then fails.
    """
    secret = ET.Element("secret", {"ephemeral": "no", "private": "yes"})
    ET.SubElement(secret, "description").text = f"{_OURS}{use.usage}"
    usage = ET.SubElement(secret, "usage", {"type": use.kind})
    ET.SubElement(usage, _NAMED_BY[use.kind]).text = use.usage
    return ET.tostring(secret, encoding="unicode")


def _own_secret(xml: str) -> SecretUse | None:
    """Return what a secret of tether's is for; None for another's."""
    root = parse_element(xml, "secret")
    usage = root.find("usage")
    kind = usage.get("type", "") if usage is not None else ""
    if usage is None or kind not in _NAMED_BY or not root.findtext("description", "").startswith(_OURS):
        return None
    return SecretUse(kind, usage.findtext(_NAMED_BY[kind], ""))


def _memory_snapshot(xml: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the snapshot's name and its disks' targets if it holds memory, otherwise None."""
    root = parse_element(xml, "domainsnapshot")
    memory = root.find("memory")
    if memory is None or memory.get("snapshot", "no") == "no":
        return None
    targets = tuple(target.get("dev", "") for target in root.iterfind("domain/devices/disk/target"))
    return root.findtext("name", ""), targets
