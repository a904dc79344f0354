"""What every guest adapter must do: run on the simulated libvirt and on a real one."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import pytest

from tether.adapters.guest.disk import DiskSpec, limits_in, render, source_of
from tether.adapters.guest.model import Guest, Power, Scope, SecretUse, Server, Unplugged, alias_of
from tether.adapters.guest.slots import Slot, choose_slot
from tether.errors import FinalError, NotFound
from tether.sealed import Sealed

BOTH = (Scope.PERSISTENT, Scope.LIVE)
UNKNOWN = "9e570000-0000-4000-8000-00000000dead"


class Operator(Protocol):
    """What somebody else does to a domain."""

    def pause(self, uuid: str) -> None: ...

    def resume(self, uuid: str) -> None: ...


NewDisk = Callable[..., DiskSpec]


def targets(server: Server, scope: Scope) -> dict[str, str]:
    definition = server.definition(scope)
    return {disk.alias or disk.target: disk.target for disk in definition.disks} if definition else {}


class GuestContract:
    """Subclasses give the fixtures guest, operator, server and stopped (UUIDs), and image (a path for a disk)."""

    @pytest.fixture
    def new_disk(self, guest: Guest, image: Callable[[], str]):
        """Make specs of disks that fit the server now, and unplug them all in the end."""
        made: list[tuple[str, str]] = []

        def make(server_uuid: str, bus: str = "scsi", **changes) -> DiskSpec:
            server = guest.show_server(server_uuid)
            taken = [Slot(**item) for item in changes.pop("taken", ())]
            slot = choose_slot(server.live, server.persistent, bus=bus, taken=taken)
            volume_id = str(uuid.uuid4())
            made.append((server_uuid, volume_id))
            values = {"type": "file", "source": image(), "io": "threads", **changes}
            return DiskSpec(volume_id=volume_id, slot=slot, **values)

        yield make
        for server_uuid, volume_id in made:
            for scope in BOTH:
                assert guest.unplug(server_uuid, scope, alias_of(volume_id)) is Unplugged.REMOVED

    def test_identity_is_the_same_each_time(self, guest):
        assert guest.identity() == guest.identity()
        assert uuid.UUID(guest.identity().host_uuid)
        assert "@" not in guest.identity().uri

    def test_a_server_is_found_by_uuid_and_by_name(self, guest, server):
        by_uuid = guest.find_server(server)
        assert by_uuid.uuid == server
        assert guest.find_server(by_uuid.name) == by_uuid
        assert server in [item.uuid for item in guest.list_servers()]

    def test_a_survey_has_every_server_and_tethers_secrets(self, guest, server, stopped):
        uses = [SecretUse(kind, str(uuid.uuid4())) for kind in ("iscsi", "volume")]
        before = guest.survey()
        for use in uses:
            guest.define_secret(use, Sealed("secret"))
        found = guest.survey()
        assert found.secrets - before.secrets == set(uses)
        assert found.unread == {}
        assert {item.uuid: item for item in found.servers} == {item.uuid: item for item in guest.list_servers()}
        assert {server, stopped} <= {item.uuid for item in found.servers}
        for use in uses:
            guest.undefine_secret(use)
        assert guest.survey().secrets == before.secrets

    @pytest.mark.parametrize("name", ["no-such-domain", UNKNOWN])
    def test_an_unknown_server_is_not_found(self, guest, name):
        with pytest.raises(NotFound) as caught:
            guest.find_server(name)
        assert caught.value.hint

    def test_a_running_server_has_both_definitions(self, guest, server):
        shown = guest.show_server(server)
        assert shown.power is Power.RUNNING
        assert shown.live is not None
        assert shown.persistent is not None
        assert not shown.managed_save
        assert not shown.migrating
        assert not shown.memory_snapshots
        assert shown.live.controllers

    def test_a_stopped_server_has_no_live_definition(self, guest, stopped):
        shown = guest.show_server(stopped)
        assert shown.power is Power.SHUTOFF
        assert shown.live is None
        assert shown.persistent is not None

    @pytest.mark.parametrize("bus", ["virtio", "scsi"])
    def test_one_disk_has_one_place_in_both_definitions(self, guest, server, new_disk, bus):
        before = guest.show_server(server)
        spec = new_disk(server, bus, discard=True, iotune={"total_bytes_sec": 10_000_000}, physical_block_size=4096)
        for scope in BOTH:
            guest.plug(server, scope, render(spec))
        after = guest.show_server(server)
        for scope in BOTH:
            disk = after.definition(scope).disk(spec.volume_id)
            assert disk is not None, scope
            assert (disk.target, disk.bus, dict(disk.address)) == (spec.slot.target, bus, spec.slot.address)
            assert disk.serial == spec.volume_id
            assert disk.source == source_of(spec)
            assert "<total_bytes_sec>10000000</total_bytes_sec>" in disk.xml
            assert after.definition(scope).controllers == before.definition(scope).controllers
        assert guest.unplug(server, Scope.PERSISTENT, alias_of(spec.volume_id)) is Unplugged.REMOVED
        assert guest.show_server(server).live.disk(spec.volume_id) is not None
        assert guest.unplug(server, Scope.LIVE, alias_of(spec.volume_id)) is Unplugged.REMOVED
        gone = guest.show_server(server)
        assert [targets(gone, scope) for scope in BOTH] == [targets(before, scope) for scope in BOTH]

    @pytest.mark.parametrize("bus", ["virtio", "scsi"])
    def test_a_live_disk_is_made_larger(self, guest, server, new_disk, bus):
        spec = new_disk(server, bus)
        guest.plug(server, Scope.LIVE, render(spec))
        before = guest.capacity(server, spec.slot.target)
        assert before > 0
        for _ in range(2):
            guest.resize(server, spec.slot.target, before + (8 << 20))
            assert guest.capacity(server, spec.slot.target) == before + (8 << 20)

    def test_what_does_not_run_has_no_capacity(self, guest, server, stopped, new_disk):
        spec = new_disk(stopped)
        guest.plug(stopped, Scope.PERSISTENT, render(spec))
        for where, target in ((stopped, spec.slot.target), (server, "vdzz")):
            with pytest.raises(FinalError):
                guest.capacity(where, target)
            with pytest.raises(FinalError):
                guest.resize(where, target, 1 << 30)

    @pytest.mark.parametrize("scope", BOTH)
    @pytest.mark.parametrize("bus", ["virtio", "scsi"])
    def test_a_disk_has_the_limits_that_it_was_given_last_and_no_other(self, guest, server, new_disk, bus, scope):
        spec = new_disk(server, bus, iotune={"total_bytes_sec": 10_000_000, "total_bytes_sec_max": 20_000_000})
        for each in BOTH:
            guest.plug(server, each, render(spec))
        for limits in ({"read_bytes_sec": 4096000, "write_iops_sec": 70, "size_iops_sec": 4096}, {}):
            for _ in range(2):
                guest.limit(server, scope, spec.slot.target, limits)
                shown = guest.show_server(server)
                assert limits_in(shown.definition(scope).disk(spec.volume_id)) == limits
        other = next(each for each in BOTH if each is not scope)
        assert limits_in(shown.definition(other).disk(spec.volume_id)) == spec.iotune

    @pytest.mark.parametrize("scope", BOTH)
    def test_limits_that_do_not_go_together_are_refused_and_change_nothing(self, guest, server, new_disk, scope):
        spec = new_disk(server, iotune={"total_iops_sec": 500})
        guest.plug(server, scope, render(spec))
        with pytest.raises(FinalError):
            guest.limit(server, scope, spec.slot.target, {"total_iops_sec": 500, "read_iops_sec": 100})
        assert limits_in(guest.show_server(server).definition(scope).disk(spec.volume_id)) == spec.iotune

    def test_what_is_not_there_cannot_be_limited(self, guest, server, stopped, new_disk):
        spec = new_disk(stopped)
        guest.plug(stopped, Scope.PERSISTENT, render(spec))
        guest.limit(stopped, Scope.PERSISTENT, spec.slot.target, {"total_iops_sec": 500})
        assert limits_in(guest.show_server(stopped).persistent.disk(spec.volume_id)) == {"total_iops_sec": 500}
        for where, scope, target in (
            (stopped, Scope.LIVE, spec.slot.target),
            (server, Scope.LIVE, "vdzz"),
            (server, Scope.PERSISTENT, "vdzz"),
        ):
            with pytest.raises(FinalError):
                guest.limit(where, scope, target, {"total_iops_sec": 500})

    @pytest.mark.parametrize("scope", BOTH)
    def test_unplugging_what_is_not_there_is_removed(self, guest, server, scope):
        assert guest.unplug(server, scope, alias_of(UNKNOWN)) is Unplugged.REMOVED

    def test_shared_and_readonly_are_kept(self, guest, server, new_disk):
        spec = new_disk(server, readonly=True, shareable=True)
        guest.plug(server, Scope.LIVE, render(spec))
        disk = guest.show_server(server).live.disk(spec.volume_id)
        assert (disk.readonly, disk.shareable) == (True, True)

    @pytest.mark.parametrize("scope", BOTH)
    @pytest.mark.parametrize("clash", ["target", "alias", "address"])
    def test_a_clash_is_refused_and_changes_nothing(self, guest, server, new_disk, scope, clash):
        first = new_disk(server)
        guest.plug(server, scope, render(first))
        second = new_disk(server, taken=[vars(first.slot)])
        if clash == "target":
            second = replace(second, slot=replace(second.slot, target=first.slot.target))
        elif clash == "alias":
            second = replace(second, volume_id=first.volume_id)
        else:
            second = replace(second, slot=replace(second.slot, address=first.slot.address))
        before = guest.show_server(server)
        with pytest.raises(FinalError) as caught:
            guest.plug(server, scope, render(second))
        assert caught.value.hint
        assert guest.show_server(server) == before

    def test_the_same_source_twice_is_not_refused(self, guest, server, new_disk):
        first = new_disk(server)
        second = new_disk(server, source=first.source, taken=[vars(first.slot)])
        for spec in (first, second):
            guest.plug(server, Scope.PERSISTENT, render(spec))
        assert guest.show_server(server).persistent.disk(second.volume_id).source == first.source

    def test_a_stopped_server_takes_a_persistent_disk_only(self, guest, stopped, new_disk):
        spec = new_disk(stopped, "virtio")
        with pytest.raises(FinalError, match="not running"):
            guest.plug(stopped, Scope.LIVE, render(spec))
        guest.plug(stopped, Scope.PERSISTENT, render(spec))
        assert guest.show_server(stopped).persistent.disk(spec.volume_id)
        assert guest.unplug(stopped, Scope.LIVE, alias_of(spec.volume_id)) is Unplugged.REMOVED
        assert guest.show_server(stopped).persistent.disk(spec.volume_id)

    @pytest.mark.parametrize("xml", ["<disk", "<disk/>", ""])
    def test_broken_xml_is_refused(self, guest, server, xml):
        with pytest.raises(FinalError):
            guest.plug(server, Scope.PERSISTENT, xml)

    def test_an_unknown_domain_is_not_found_by_any_verb(self, guest):
        for call in (
            lambda: guest.show_server(UNKNOWN),
            lambda: guest.plug(UNKNOWN, Scope.LIVE, "<disk/>"),
            lambda: guest.unplug(UNKNOWN, Scope.LIVE, "ua-x"),
            lambda: guest.mark(UNKNOWN, Scope.LIVE, "v", "j"),
            lambda: guest.unmark(UNKNOWN, Scope.LIVE, "v"),
        ):
            with pytest.raises(NotFound):
                call()

    def test_a_paused_guest_lets_a_virtio_disk_go_once_it_is_resumed(self, guest, server, new_disk, operator):
        spec = new_disk(server, "virtio")
        guest.plug(server, Scope.LIVE, render(spec))
        operator.pause(server)
        try:
            assert guest.show_server(server).power is Power.PAUSED
            assert guest.unplug(server, Scope.LIVE, alias_of(spec.volume_id)) is Unplugged.PENDING
            assert guest.show_server(server).live.disk(spec.volume_id)
        finally:
            operator.resume(server)
        assert guest.unplug(server, Scope.LIVE, alias_of(spec.volume_id)) is Unplugged.REMOVED

    def test_marks_of_several_volumes_share_one_element(self, guest, server):
        try:
            for scope in BOTH:
                guest.mark(server, scope, "volume-1", "job-1")
                guest.mark(server, scope, "volume-2", "job-2")
                guest.mark(server, scope, "volume-1", "job-3")
                assert guest.show_server(server).definition(scope).marks == {"volume-1": "job-3", "volume-2": "job-2"}
            guest.unmark(server, Scope.LIVE, "volume-1")
            guest.unmark(server, Scope.LIVE, "volume-1")
            shown = guest.show_server(server)
            assert shown.live.marks == {"volume-2": "job-2"}
            assert shown.persistent.marks == {"volume-1": "job-3", "volume-2": "job-2"}
        finally:
            for scope in BOTH:
                for volume in ("volume-1", "volume-2"):
                    guest.unmark(server, scope, volume)
        shown = guest.show_server(server)
        assert not shown.live.marks
        assert not shown.persistent.marks

    def test_a_disk_without_an_alias_is_marked_found_and_unplugged(self, guest, server, new_disk):
        """As another tool plugs it: libvirt names a running disk by itself, and one that is only defined not at all."""
        spec = new_disk(server)
        before = guest.show_server(server)
        element = re.sub(r"<(alias|serial)[^>]*?(/>|>.*?</serial>)", "", render(spec))
        for scope in BOTH:
            guest.plug(server, scope, element)
            assert guest.show_server(server).definition(scope).disk(spec.volume_id) is None
            (disk,) = [d for d in guest.show_server(server).definition(scope).disks if d.target == spec.slot.target]
            guest.mark(server, scope, spec.volume_id, "job-1", disk)
            guest.mark(server, scope, "volume-2", "job-2")
            definition = guest.show_server(server).definition(scope)
            assert definition.disk(spec.volume_id) == disk
            assert definition.marks == {spec.volume_id: "job-1", "volume-2": "job-2"}
            guest.unmark(server, scope, "volume-2")
            assert guest.show_server(server).definition(scope).disk(spec.volume_id) == disk
        for scope in BOTH:
            handle = guest.show_server(server).definition(scope).disk(spec.volume_id).handle
            assert guest.unplug(server, scope, handle) is Unplugged.REMOVED
            guest.unmark(server, scope, spec.volume_id)
        gone = guest.show_server(server)
        assert [targets(gone, scope) for scope in BOTH] == [targets(before, scope) for scope in BOTH]
        assert not gone.live.marks

    def test_a_stopped_server_has_no_live_mark(self, guest, stopped):
        guest.unmark(stopped, Scope.LIVE, "volume-1")
        with pytest.raises(FinalError):
            guest.mark(stopped, Scope.LIVE, "volume-1", "job-1")

    @pytest.mark.parametrize("kind", ["iscsi", "volume"])
    def test_secrets_come_and_go_repeatably(self, guest, kind):
        use = SecretUse(kind, f"tether-contract-{uuid.uuid4()}")
        other = SecretUse({"iscsi": "volume", "volume": "iscsi"}[kind], use.usage)
        assert not guest.has_secret(use)
        guest.undefine_secret(use)
        guest.define_secret(use, Sealed("one"))
        guest.define_secret(use, Sealed("two"))
        assert guest.has_secret(use)
        assert not guest.has_secret(other)
        guest.undefine_secret(use)
        guest.undefine_secret(use)
        assert not guest.has_secret(use)

    def test_a_live_disk_without_its_secret_is_refused(self, guest, server, new_disk):
        spec = new_disk(
            server,
            type="network",
            protocol="iscsi",
            source="iqn.2010-10.org.openstack:volume-none/1",
            hosts=(("127.0.0.1", "1"),),
            io="",
            auth_type="iscsi",
            auth_user="user",
            auth_usage=f"tether-contract-{uuid.uuid4()}",
            initiator="iqn.2010-10.org.openstack:contract",
        )
        guest.plug(server, Scope.PERSISTENT, render(spec))
        assert guest.show_server(server).persistent.disk(spec.volume_id).source == source_of(spec)
        with pytest.raises(FinalError, match="no secret with matching usage"):
            guest.plug(server, Scope.LIVE, render(spec))
        assert guest.show_server(server).live.disk(spec.volume_id) is None
