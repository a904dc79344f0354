"""A libvirtd of the world's own, and its guests."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.live.world.console import Console
from tests.live.world.layout import GUESTS, STOPPED, World, WorldError, cache_directory, write
from tests.live.world.processes import Daemon, end, runs, wait_until

MOUNTS = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
#: libvirtd looks this user and group up before it reads qemu.conf, and only Debian's libvirt-daemon-system makes them.
#: The world's libvirtd sees them in copies of its own: the machine's accounts stay as they are.
ACCOUNTS = {"passwd": "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin", "group": "libvirt-qemu:x:64055:"}
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
# QEMU writes its console files by itself: no virtlogd, and no rotation below a reader
stdio_handler = "file"
"""
LIBVIRTD_CONF = """\
unix_sock_rw_perms = "0700"
auth_unix_rw = "none"
log_outputs = "3:stderr"
"""
QEMU_CAPABILITIES = cache_directory() / "qemu-capabilities"
EMULATOR = "qemu-system-x86"  # the kernel cuts a process's name to 15 bytes
ROOT_PORTS = 12  # one for each disk that may be plugged, and a few for the controllers

DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>192</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{image}/kernel</kernel>
    <initrd>{image}/initrd</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 mitigations=off world={world}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='custom'><model>qemu64</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='pci' model='pcie-root'/>
    {ports}
    <controller type='scsi' index='0' model='virtio-scsi'/>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{log}' append='on'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{socket}'/><target port='1'/></serial>
    <video><model type='none'/></video>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def daemon(world: World) -> Daemon:
    """Return libvirtd in a mount namespace of its own, where libvirt's directories are the world's."""
    binds = "; ".join(f"mkdir -p {path}; mount --bind {world.libvirt / name} {path}" for name, path in MOUNTS.items())
    files = "; ".join(f"mount --bind {world.libvirt / name} /etc/{name}" for name in ACCOUNTS)
    script = f"set -e; {binds}; {files}; exec libvirtd --pid-file /run/libvirt/libvirtd.pid"
    return Daemon(
        world, "libvirtd", "libvirtd", ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script]
    )


def virsh(world: World, *arguments: str, timeout: float = 60) -> str:
    """Run one virsh command and return what it prints.

    Raises:
        WorldError: it failed, or did not end within ``timeout`` seconds.
    """
    command = ["virsh", "-q", "-c", world.libvirt_uri, *arguments]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise WorldError(f"{' '.join(command)} does not end within {timeout:g} s") from error
    if done.returncode != 0:
        raise WorldError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def with_account(text: str, line: str) -> str:
    """Return /etc/passwd's or /etc/group's text with one more line, unless that account is there."""
    name = line.partition(":")[0]
    if any(found.partition(":")[0] == name for found in text.splitlines()):
        return text
    return f"{text.rstrip()}\n{line}\n"


def start_libvirt(world: World) -> None:
    """Start libvirtd unless it runs."""
    for name in MOUNTS:
        (world.libvirt / name).mkdir(parents=True, exist_ok=True)
    for name, line in ACCOUNTS.items():
        write(world.libvirt / name, with_account(Path("/etc", name).read_text(), line))
    write(world.libvirt / "etc/qemu.conf", QEMU_CONF)
    write(world.libvirt / "etc/libvirtd.conf", LIBVIRTD_CONF)

    def serves() -> bool:
        try:
            virsh(world, "version")
        except WorldError:
            return False
        return True

    probed = world.libvirt / "cache/qemu/capabilities"
    _copy_changed(QEMU_CAPABILITIES, probed)
    daemon(world).start(serves)
    _copy_changed(probed, QEMU_CAPABILITIES)


def _copy_changed(source: Path, destination: Path) -> None:
    """Copy the files that differ; libvirtd takes 7 s to ask QEMU for them, and checks by itself whether they fit."""
    for path in source.glob("*.xml"):
        copy = destination / path.name
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            write(copy, path.read_text())


def start_guests(world: World, image: Path) -> None:
    """Define what is not defined and start what should run; they boot while other parts start."""
    world.logs.mkdir(exist_ok=True)
    defined = virsh(world, "list", "--all", "--name").split()
    running = virsh(world, "list", "--name").split()
    for name in (*GUESTS, STOPPED):
        if name not in defined:
            define_guest(world, image, name)
        if name != STOPPED and name not in running:
            virsh(world, "start", name)


def define_guest(world: World, image: Path, name: str) -> None:
    """Define a guest; it is not started."""
    file = world.directory / f"{name}.xml"
    write(
        file,
        DOMAIN.format(
            name=name,
            image=image,
            world=world.directory,
            ports="<controller type='pci' model='pcie-root-port'/>" * ROOT_PORTS,
            log=world.console_log(name),
            socket=world.console_socket(name),
        ),
    )
    virsh(world, "define", str(file))


def console(world: World, guest: str) -> Console:
    """Return a guest's console."""
    return Console(world.console_socket(guest), world.console_log(guest))


def wait_for_guests(world: World) -> None:
    """Wait until both guests have booted."""
    for name in GUESTS:
        wait_until(f"{name} boots (see {world.console_log(name)})", console(world, name).is_up, 180)


def guest_pid(world: World, name: str) -> int | None:
    """Return the pid of a guest's QEMU, if it runs."""
    try:
        pid = int((world.libvirt / f"run/qemu/{name}.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    ours = f"world={world.directory}\0".encode() in command  # libvirt gives QEMU none of our environment
    return pid if ours and runs(pid, EMULATOR) else None


def stop_libvirt(world: World) -> None:
    """End the guests, then libvirtd; a QEMU that libvirtd can no longer end is ended here."""
    part = daemon(world)
    if part.pid() is not None:
        for name in (*GUESTS, STOPPED):
            try:
                virsh(world, "destroy", name, timeout=20)
            except WorldError:
                continue  # not running, or stuck: its process is ended below
    part.stop()
    for name in (*GUESTS, STOPPED):
        pid = guest_pid(world, name)
        if pid is not None:
            end(pid, EMULATOR)
