"""Verbs inside a lab: ``python3 -m tests.lab.world.inside VERB …``."""

from __future__ import annotations

import argparse
import json
import os
import sys

from tests.lab.world.inside import judge, services
from tests.lab.world.stages import stage
from tests.live.world.console import ConsoleError
from tests.live.world.layout import WorldError


def up() -> None:
    """Start what is missing of the host."""
    stage("volume group, iSCSI, multipath", services.start_storage)
    stage("libvirt, guest started", services.start_guest)
    stage("Cinder", services.start_cinder)
    stage("volume types and volumes", services.fill_cinder)
    stage("tether", services.install_tether)
    stage("guest booted", services.wait_for_guest)


def main() -> int:
    """Do what the command line says."""
    os.environ["XDG_CACHE_HOME"] = "/opt/guests"
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab.world.inside", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="start what is missing of the host")
    guest = verbs.add_parser("guest", help="run one line of shell in the guest")
    guest.add_argument("line")
    verbs.add_parser("books", help="print what all the books say, as JSON")
    verbs.add_parser("disks", help="print the disks as the guest sees them: name, serial, sectors")
    volume = verbs.add_parser("create", help="make a volume and print its id")
    volume.add_argument("name")
    volume.add_argument("--type", default="lvm")
    given = parser.parse_args()
    try:
        if given.verb == "up":
            up()
        elif given.verb == "guest":
            print(services.console().run(given.line, timeout=120))
        elif given.verb == "books":
            print(json.dumps(judge.snapshot(), indent=1))
        elif given.verb == "disks":
            for disk in services.console().disks():
                print(disk.name, disk.serial, disk.sectors, disk.head)
        else:
            print(services.create_volume(given.name, given.type))
    except (WorldError, ConsoleError) as error:
        print(f"in the lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
