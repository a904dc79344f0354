"""What the world needs from apt and pip."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.live.world.guest_image import kernel_version
from tests.live.world.layout import WorldError, cache_directory

PACKAGES = (
    "busybox-static",
    "cpio",
    "gcc",
    "kmod",
    "libvirt-clients",
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "libvirt-dev",
    "pkg-config",
    "python3-dev",
    "python3-venv",
    "qemu-block-extra",
    "qemu-system-x86",
    "qemu-utils",
    "tgt",
)
KERNEL_PACKAGE = "linux-image-amd64"  # only where no kernel with modules is installed: for the guests
CINDER = "cinder==29.0.0"
CONSTRAINTS = Path(__file__).with_name("cinder-constraints.txt")
POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_MARK = "written by tether's bin/live for the time of one apt-get"


def missing_packages(wanted: Sequence[str]) -> list[str]:
    """Return the packages that are not installed."""
    listed = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *wanted],
        check=False,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    installed = {line.split()[0] for line in listed if line.endswith(" installed")}
    return [name for name in wanted if name not in installed]


def install_packages() -> None:
    """Install what the live world lacks (see install)."""
    install(missing_packages(PACKAGES) + ([] if kernel_version() else [KERNEL_PACKAGE]))


def install(missing: Sequence[str]) -> None:
    """Install packages, without starting or restarting any of the machine's daemons.

    Raises:
        WorldError: apt-get failed.
    """
    if not missing:
        return
    environment = os.environ | {
        "DEBIAN_FRONTEND": "noninteractive",
        "RUNLEVEL": "1",
        "NEEDRESTART_SUSPEND": "1",
    }
    with _no_daemon_is_started():
        run(["apt-get", "-q", "update"], environment)
        run(
            ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=600", "--no-install-recommends", "install", *missing],
            environment,
        )


@contextlib.contextmanager
def _no_daemon_is_started() -> Iterator[None]:
    """Keep packages from starting daemons, unless the machine has a policy of its own."""
    ours = not POLICY.exists() or POLICY_MARK in POLICY.read_text(errors="replace")
    if ours:
        POLICY.write_text(f"#!/bin/sh\n# {POLICY_MARK}\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            POLICY.unlink(missing_ok=True)


def cinder_environment() -> Path:
    """Return the virtual environment with Cinder, built in the cache if need be.

    Raises:
        WorldError: pip failed, or TETHER_CINDER_VENV names none.
    """
    if given := os.environ.get("TETHER_CINDER_VENV"):
        if not Path(given, "bin/cinder-manage").exists():
            raise WorldError(f"TETHER_CINDER_VENV={given} has no bin/cinder-manage")
        return Path(given)
    place = cache_directory() / "cinder-29"
    complete = place / "complete"
    wanted = CONSTRAINTS.read_text()
    if not complete.exists() or complete.read_text() != wanted:
        place.mkdir(parents=True, exist_ok=True)
        run(["/usr/bin/python3", "-m", "venv", "--clear", str(place)])
        run([str(place / "bin/pip"), "install", "-q", "-c", str(CONSTRAINTS), CINDER])
        complete.write_text(wanted)
    return place


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Run a command to its end.

    Raises:
        WorldError: it failed; the end of what it printed is in the message.
    """
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise WorldError(f"{' '.join(command)} ended with {done.returncode}:\n{end}")
