"""Verbs inside a lab: ``python3 -m tests.lab.world.inside VERB …``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict

from tests.lab.world.inside import ceph, judge, neighbour, services
from tests.lab.world.stages import stage
from tests.live.world.console import ConsoleError
from tests.live.world.layout import WorldError


def up(beside: str) -> None:
    """Start what is missing of the host.

    Args:
        beside: its name, if it is a compute host beside another, whose Cinder it uses; empty for one by itself.
    """
    if beside:
        stage("iSCSI, multipath, libvirt", lambda: neighbour.start_host(beside))
        stage("tether", lambda: neighbour.install_tether(beside))
        return
    stage("volume group, iSCSI, multipath", services.start_storage)
    stage("libvirt, guest started", services.start_guest)
    if services.CEPH_CONF.exists():  # else Cinder would wait for it
        stage("Ceph", ceph.start_cluster)
    stage("Cinder", services.start_cinder)
    stage("volume types and volumes", services.fill_cinder)
    stage("tether", services.install_tether)
    stage("guest booted", services.wait_for_guest)


def print_disks(serial: str | None) -> None:
    """Print the disks as the guest sees them, a line of JSON each.

    Args:
        serial: wait until the guest has a disk with this one, and print it alone.
    """
    console = services.console()
    for disk in console.disks() if serial is None else [console.wait_for_disk(serial)]:
        print(json.dumps(asdict(disk)))


def main() -> int:
    """Do what the command line says."""
    os.environ["XDG_CACHE_HOME"] = "/opt/guests"
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab.world.inside", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, help: str, work: Callable[..., object]) -> argparse.ArgumentParser:
        part = verbs.add_parser(name, help=help)
        part.set_defaults(work=work)
        return part

    up_words = verb("up", "start what is missing of the host", up)
    up_words.add_argument("--beside", default="", help="its name, as a compute host beside another")
    meet = verb("meet", "reach another lab, and be reached by it", neighbour.meet)
    meet.add_argument("own", help="this lab's address there")
    meet.add_argument("other", help="the other's")
    verb("guest", "run one line of shell in the guest", run_in_guest).add_argument("line")
    verb("boot", "start the guest with the disks that it has, and wait until it is up", services.boot_guest)
    verb("books", "print what all the books say, as JSON", lambda: print(json.dumps(judge.snapshot(), indent=1)))
    disks = verb("disks", "print the disks as the guest sees them", print_disks)
    disks.add_argument("serial", nargs="?", help="wait for the disk with this serial")
    create = verb("create", "make a volume and print its id", create_volume)
    create.add_argument("name")
    create.add_argument("--type", default="lvm")
    verb("delete", "delete a volume", services.delete_volume).add_argument("volume_id")
    verb("ceph", "start a Ceph cluster, as a back end of Cinder", ceph.start)
    verb("limit", "give the volume type qos these QoS specs, and no other", services.limit).add_argument(
        "specs", nargs="+", metavar="KEY=VALUE"
    )
    words = vars(parser.parse_args())
    try:
        words.pop("work")(**words)
    except (WorldError, ConsoleError) as error:
        print(f"in the lab: {error}", file=sys.stderr)
        return 1
    return 0


def run_in_guest(line: str) -> None:
    """Run one line of shell in the guest and print what it prints."""
    print(services.console().run(line, timeout=120))


def create_volume(name: str, type: str) -> None:
    """Make a volume and print its id."""
    print(services.create_volume(name, type))


if __name__ == "__main__":
    sys.exit(main())
