"""The fixture ``lab``: a compute host of ``bin/lab``, started for the session unless it runs already."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lab.world import channel
from tests.lab.world.__main__ import INSIDE
from tests.lab.world.layout import Lab
from tests.live.commands import Outcome
from tests.live.world.console import GuestDisk
from tests.live.world.layout import CHECKOUT

UP_LIMIT = 2400  # seconds; the first start on a machine builds the image
TEST_LIMIT = 1200  # seconds for one test by itself: everything in a lab is slow
GUEST = "guest1"
NOT_PASSED = 99  # the code of a command that ends before it has come to the point where it was to stand still
#: A guest without a system: what it is asked it does not hear, as a guest in its boot loader.
IDLE = """\
<domain type='qemu'>
  <name>idle</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <cpu mode='custom'><model>qemu64</model></cpu>
  <devices>
    <controller type='pci' model='pcie-root'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='usb' model='none'/>
    <video><model type='none'/></video>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test below this directory, and let its time begin after the lab's start."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.lab)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TEST_LIMIT, func_only=True))


class LabHost:
    """One running lab, and what a test needs of it."""

    guest = GUEST

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def run(self, *words: str) -> str:
        """Run a command in the lab and return what it prints; it must succeed."""
        return channel.must(self.lab, *words)

    def inside(self, *words: str) -> str:
        """Run one of the verbs that the lab has inside."""
        return channel.must(self.lab, f"{INSIDE} {shlex.join(words)}")

    def tether(self, *words: str, **changes: object) -> Outcome:
        """Run a tether command in the lab.

        Args:
            changes: settings, as ``section__option``.
        """
        done = channel.run(self.lab, f"{_line(words, changes)}; exit $?")  # else ssh says 255 of what a signal ended
        return Outcome(done.returncode, done.stdout, done.stderr)

    def tether_halted(self, point: str, meanwhile: str, *words: str, **changes: object) -> Outcome:
        """Run a tether command that stands still at a fault point while a line of shell runs in the lab.

        Args:
            changes: settings, as for :meth:`tether`.
        """
        line = _line(("--fault", f"{point}=stop", *words), changes)
        # T: it was stopped. A command that ends before it gets there must not pass for one that stood still.
        passed = f"echo {point} was not passed >&2; wait $pid; exit {NOT_PASSED}"
        stopped = f'case "$(cut -d" " -f3 /proc/$pid/stat 2>/dev/null)" in T) break;; Z|"") {passed};; esac'
        script = f"{line} & pid=$!; while :; do {stopped}; sleep .1; done; {meanwhile}\nkill -CONT $pid; wait $pid"
        done = channel.run(self.lab, f"{script}; exit $?")
        return Outcome(done.returncode, done.stdout, done.stderr)

    def books(self) -> dict[str, Any]:
        """Return what the judge in the lab sees."""
        found: dict[str, Any] = json.loads(self.inside("books"))
        return found

    def in_guest(self, line: str) -> str:
        """Run one line of shell in the guest and return what it prints."""
        return self.inside("guest", line).rstrip("\n")

    def wait_for_disk(self, serial: str) -> GuestDisk:
        """Return the guest's disk with this serial, once the guest has it."""
        return GuestDisk(**json.loads(self.inside("disks", serial)))

    def write(self, disk: GuestDisk, text: str, sector: int = 0) -> None:
        """Write a text into a sector of the guest's disk."""
        self.in_guest(f"printf %-512s {text} | dd of=/dev/{disk.name} bs=512 seek={sector} conv=fsync 2>/dev/null")

    def read(self, disk: GuestDisk, sector: int = 0) -> str:
        """Return the text that the guest reads there, from the disk and not from its memory."""
        line = f"dd if=/dev/{disk.name} bs=512 skip={sector} count=1 iflag=direct 2>/dev/null"
        return self.in_guest(line).strip()

    def on_volume(self, volume_id: str, sector: int = 0) -> str:
        """Return the text that the logical volume has there.

        Direct: LIO writes below the block device's cache, where udev's first look at the volume may still be.
        """
        path = f"/dev/cinder-volumes/volume-{volume_id}"
        return self.run(f"dd if={path} bs=512 skip={sector} count=1 iflag=direct status=none").strip()

    def disks(self) -> list[GuestDisk]:
        """Return the disks that the guest has."""
        return [GuestDisk(**json.loads(line)) for line in self.inside("disks").splitlines()]


def _line(words: Sequence[str], changes: Mapping[str, object]) -> str:
    """Return the shell line of a tether command with settings."""
    return shlex.join(["env", *(f"OS_{name.upper()}={value}" for name, value in changes.items()), "tether", *words])


def bin_lab(verb: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a verb of bin/lab, on the lab that the environment names unless the words name one."""
    command = [str(CHECKOUT / "bin/lab"), verb, *words]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=UP_LIMIT, env=os.environ | environment
    )


def running(name: str, **environment: str) -> Iterator[LabHost]:
    """Yield a lab; it is started unless it runs, and ended afterwards only if it was started here.

    Args:
        environment: of ``bin/lab up``.
    """
    place = Lab.of_environment(name)
    ours = not place.exists()
    done = bin_lab("up", "--name", name, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    yield LabHost(Lab(place.directory))
    if ours:
        done = bin_lab("down", "--name", name)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def lab() -> Iterator[LabHost]:
    """The lab that LAB_NAME and TETHER_LAB_DIR name.

    Without LAB_NAME it is ``lab0``, and each further process of one run has one of its own.
    """
    process = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    yield from running(os.environ.setdefault("LAB_NAME", f"lab{process}"))


def volumes(lab: LabHost) -> Iterator[Callable[..., str]]:
    """Yield what makes volumes; they are gone afterwards."""
    made: list[str] = []

    def make(type: str = "lvm") -> str:
        made.append(lab.inside("create", f"test-{uuid.uuid4().hex[:8]}", "--type", type).strip())
        return made[-1]

    yield make
    for volume_id in made:
        lab.inside("delete", volume_id)


@pytest.fixture
def new_volume(lab: LabHost) -> Iterator[Callable[..., str]]:
    """Make volumes; they are gone after the test."""
    yield from volumes(lab)


@pytest.fixture
def idle_guest(lab: LabHost) -> Iterator[str]:
    """The name of a second guest, which runs and has no system."""
    lab.run(f"echo {shlex.quote(IDLE)} > /run/idle.xml && virsh define /run/idle.xml && virsh start idle")
    yield "idle"
    lab.run("virsh destroy idle; virsh undefine idle")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how the jobs ended that were killed, or lost their host's power, at random moments."""
    for key, option, name in (("lab_kills", "--kills", "random kills"), ("lab_cuts", "--cuts", "power cuts")):
        told = [
            (outcome, value)
            for outcome in ("passed", "failed")
            for report in terminalreporter.getreports(outcome)
            for found, value in report.user_properties
            if found == key and report.when == "call"
        ]
        if told:
            _print_ends(terminalreporter, told, option, name)


def _print_ends(reporter: pytest.TerminalReporter, told: list[tuple[str, Any]], option: str, name: str) -> None:
    ends = Counter(end for _, value in told for end in value["ends"])
    violations, seed = sum(outcome == "failed" for outcome, _ in told), told[0][1]["seed"]
    reporter.section(f"{name} in the lab")
    counts = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    reporter.write_line(f"{ends.total()} {name} ({counts}), {violations} violations")
    reporter.write_line(f"seed {seed}; again: bin/test lab {option} {ends.total()} --seed {seed}")
