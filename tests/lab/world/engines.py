"""Boots a lab: user-mode Linux, or QEMU."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.world.layout import MOUNT_POINT, Lab
from tests.live.world.layout import CHECKOUT, WorldError
from tests.live.world.processes import Daemon, runs, wait_until

#: What a boot needs on this machine, by engine.
PACKAGES = {
    "uml": ("iproute2", "openssh-client"),
    "tcg": ("openssh-client", "qemu-system-x86", "qemu-utils"),
    "kvm": ("openssh-client", "qemu-system-x86", "qemu-utils"),
}
DATA_SIZE = "20G"  # sparse
ADDRESS = "10.0.2.15"
KERNEL_WORDS = "rw net.ifnames=0 quiet mitigations=off apparmor=0 selinux=0 systemd.show_status=0"
#: In namespaces of its own: memory is a file, so it needs a tmpfs; the network is a tap of its own.
#: Its first words: the lab's directory, and what is preloaded into the command that follows.
UML_START = """\
set -e
cd "$0"
mkdir -p memory
mount -t tmpfs -o size=100%,mode=700 none memory
export TMPDIR="$0/memory" TMP="$0/memory" TEMP="$0/memory"
ip link set lo up
ip tuntap add tap0 mode tap
ip addr add 10.0.2.2/24 dev tap0
ip link set tap0 up
echo ready >up
exec env LD_PRELOAD="$1" "${@:2}"
"""


def daemon(lab: Lab) -> Daemon:
    """Return the process that the lab's machine is."""
    # The lock on the image, held as long as the machine runs, tells a build that the image is in use.
    command = ["flock", "--shared", "--no-fork", str(lab.image.directory)]
    if lab.memory["engine"] == "uml":
        return Daemon(lab, "machine", "unshare", [*command, *_user_mode(lab)])
    return Daemon(lab, "machine", "qemu-system-x86", [*command, *_qemu(lab)])


def _user_mode(lab: Lab) -> list[str]:
    # unshare stays as the parent, and when it ends the namespace and all that is in it end too
    namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [
        *namespaces,
        "/bin/bash",
        "-c",
        UML_START,
        str(lab.directory),
        str(lab.image.preload),
        str(lab.image.user_mode_kernel),
        f"umid={lab.name}",
        f"uml_dir={lab.directory}",
        f"mem={lab.memory['memory']}M",
        f"ubd0={lab.root_overlay},{lab.image.root}",
        f"ubd1={lab.data_disk}",
        "root=/dev/ubda",
        "eth0=tuntap,tap0",
        "con=null",
        "con0=null,fd:1",
        "ssl=null",
        *KERNEL_WORDS.split(),
    ]


def _qemu(lab: Lab) -> list[str]:
    engine = lab.memory["engine"]
    disk = "format=qcow2,cache=unsafe,discard=unmap"
    return [
        "qemu-system-x86_64",
        *("-name", lab.name, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"),
        *("-accel", engine, "-cpu", "host" if engine == "kvm" else "max"),
        *("-smp", "2", "-m", str(lab.memory["memory"])),
        *("-kernel", str(lab.image.kernel), "-initrd", str(lab.image.initrd)),
        *("-append", f"root=/dev/vda console=ttyS0 {KERNEL_WORDS}"),
        # without its locking: a user-mode lab on the same image holds a lock that QEMU cannot share
        *("-drive", f"if=none,id=root,file={lab.root_overlay},{disk},backing.file.locking=off"),
        *("-device", "virtio-blk-pci,drive=root,serial=root"),
        *("-drive", f"if=none,id=data,file={lab.data_disk},{disk}", "-device", "virtio-blk-pci,drive=data,serial=data"),
        # it reaches nothing outside; only ssh leads in
        *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{lab.memory['port']}-:22"),
        *("-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci", "-serial", "stdio"),
        *("-virtfs", f"local,path={CHECKOUT},mount_tag=checkout,security_model=none,readonly=on,multidevs=remap"),
    ]


def make_disks(lab: Lab) -> None:
    """Make the two disks unless they are there: a lab whose power was cut goes on with its own."""
    if lab.data_disk.exists():
        return
    if lab.memory["engine"] == "uml":  # the kernel makes the root's overlay by itself
        _run(["truncate", "-s", DATA_SIZE, str(lab.data_disk)])
        return
    base = ["-b", str(lab.image.root), "-F", "raw"]
    _run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(lab.root_overlay)])
    _run(["qemu-img", "create", "-q", "-f", "qcow2", str(lab.data_disk), DATA_SIZE])


def boot(lab: Lab) -> None:
    """Start the machine unless it runs, and wait until it is known how to get into it.

    Raises:
        WorldError: it ended; the end of its console is in the message.
    """
    part = daemon(lab)
    if part.pid() is not None:
        return
    make_disks(lab)
    (lab.directory / "up").unlink(missing_ok=True)
    part.launch()
    if lab.memory["engine"] == "uml":
        part.wait((lab.directory / "up").exists, timeout=60)
    else:
        part.wait(lambda: part.pid() is not None, timeout=60)


def inner_pid(lab: Lab) -> int | None:
    """Return the first process of a user-mode lab's namespaces; QEMU has none, and needs none."""
    pid = daemon(lab).pid()
    if pid is None or lab.memory["engine"] != "uml":
        return None
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None


def cut(lab: Lab) -> None:
    """End the machine at once, as a power cut does."""
    inner = inner_pid(lab)
    daemon(lab).stop(signal.SIGKILL)
    if inner is not None:
        wait_until(f"process {inner} of lab {lab.name} ends", lambda: not _alive(inner), 30)


def _alive(pid: int) -> bool:
    try:
        name = Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return runs(pid, name)


def entrance(lab: Lab) -> list[str]:
    """Return the words before ``ssh``: a user-mode lab's network is a namespace."""
    if lab.memory["engine"] != "uml":
        return []
    inner = inner_pid(lab)
    if inner is None:
        raise WorldError(f"lab {lab.name} is not running: run bin/lab up")
    return ["nsenter", "-t", str(inner), "-n"]


def address(lab: Lab) -> tuple[str, int]:
    """Return where its ssh listens, seen from behind the entrance."""
    return (ADDRESS, 22) if lab.memory["engine"] == "uml" else ("127.0.0.1", int(lab.memory["port"]))


def mount_command(lab: Lab) -> str:
    """Return what mounts the checkout inside the lab, for a shell; it may be repeated."""
    if lab.memory["engine"] == "uml":
        mount = f"mount -t hostfs -o ro,{CHECKOUT} none {MOUNT_POINT}"
    else:
        options = "ro,trans=virtio,version=9p2000.L,msize=512000,cache=none"
        mount = f"modprobe 9pnet_virtio && mount -t 9p -o {options} checkout {MOUNT_POINT}"
    return f"mkdir -p {MOUNT_POINT}; mountpoint -q {MOUNT_POINT} || {{ {mount}; }}"


#: Where two labs reach each other: addresses of their machines, and of the ends of the cable between their namespaces.
NEIGHBOURS = ("10.98.0.1", "10.98.0.2")
CABLE = ("10.97.0.1", "10.97.0.2")


def join(first: Lab, second: Lab) -> None:
    """Lay a cable between two user-mode labs: each reaches the other's address, and the second the first's portals.

    Raises:
        WorldError: one of them does not run, or is not user-mode.
    """
    pids = [inner_pid(lab) for lab in (first, second)]
    if None in pids:
        raise WorldError("only two running labs of LAB_ENGINE=uml can be joined")
    inside = [["nsenter", "-t", str(pid), "-n"] for pid in pids]
    if subprocess.run([*inside[1], "ip", "link", "show", "cable"], check=False, capture_output=True).returncode == 0:
        return
    _run([*inside[0], *f"ip link add cable type veth peer name cable netns {pids[1]}".split()])
    portals = f"ip route add 10.99.0.0/16 via {ADDRESS}", f"ip route add 10.99.0.0/16 via {CABLE[0]}"
    for here in (0, 1):
        there = 1 - here
        for line in (
            f"ip addr add {CABLE[here]}/30 dev cable",
            "ip link set cable up",
            "sysctl -q -w net.ipv4.ip_forward=1",
            f"ip route add {NEIGHBOURS[here]} dev tap0",
            f"ip route add {NEIGHBOURS[there]} via {CABLE[there]}",
            portals[here],
        ):
            _run([*inside[here], *line.split()])


def check_rights(engine: str) -> None:
    """Refuse an engine that cannot run here.

    Raises:
        WorldError: it says what is missing.
    """
    if engine == "uml" and os.geteuid() != 0:
        raise WorldError("LAB_ENGINE=uml needs root, for a network and a mount namespace; LAB_ENGINE=tcg does not")
    if engine == "uml" and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise WorldError("LAB_ENGINE=uml needs /dev/net/tun; LAB_ENGINE=tcg does not")
    if engine == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise WorldError("LAB_ENGINE=kvm needs /dev/kvm")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise WorldError(f"{' '.join(command)}: {done.stderr.strip()}")
