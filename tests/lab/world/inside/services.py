"""Starts what a lab's host has besides its system services: the volume group, Cinder, a guest, and tether."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.live.world.cinder_part import ENCRYPTED, FIXED_KEY, Api, limit_type, make_type
from tests.live.world.console import Console
from tests.live.world.guest_image import guest_image
from tests.live.world.layout import CHECKOUT, WorldError, write
from tests.live.world.libvirt_part import DOMAIN, ROOT_PORTS
from tests.live.world.processes import wait_until

HERE = Path(__file__).parent
GUEST = "guest1"
GROUP = "cinder-volumes"
PORTALS = ("10.99.1.1", "10.99.2.1")
#: What the NFS server exports; each volume of type ``nfs`` is a file there.
SHARE = Path("/srv/share")
CEPH_CONF = Path("/etc/ceph/ceph.conf")
NVME_MODULES = ("nvmet", "nvmet-tcp", "nvme-tcp")
DATA_DISKS = (Path("/dev/ubdb"), Path("/dev/vdb"))
TETHER = Path("/opt/tether/lib/python3.11/site-packages")
UNIT = Path("/etc/systemd/system/cinder.service")
BACKENDS = Path("/etc/cinder/backends.conf")
CONSOLE_LOG = Path(f"/var/log/libvirt/qemu/{GUEST}.console")
CONSOLE_SOCKET = Path(f"/var/lib/libvirt/qemu/{GUEST}.sock")


@dataclass(frozen=True)
class Host:
    """What the other worlds' tools must know of this host."""

    endpoint: str = "http://127.0.0.1:8776/v3"
    libvirt_uri: str = "qemu:///system"
    cinder_database: Path = Path("/var/lib/cinder/cinder.sqlite")
    ledger: Path = Path("/var/lib/tether/tether.sqlite")

    @property
    def environment(self) -> dict[str, str]:
        """Nothing that the machine's own tools need."""
        return dict(os.environ)


def call(*words: str, timeout: float = 120) -> str:
    """Run a command and return what it prints.

    Raises:
        WorldError: it failed, or did not end in time.
    """
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise WorldError(f"{' '.join(words)} does not end within {timeout:g} s") from error
    if done.returncode != 0:
        raise WorldError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def works(*words: str) -> bool:
    """Tell whether a command succeeds."""
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


def start_storage() -> None:
    """Make the volume group on the data disk, what LIO needs of the kernel, and the NFS server's share."""
    if not works("vgs", GROUP):
        disk = next((path for path in DATA_DISKS if path.exists()), None)
        if disk is None:
            raise WorldError(f"none of {', '.join(map(str, DATA_DISKS))} is there")
        call("pvcreate", "-q", "-y", str(disk))
        call("vgcreate", "-q", GROUP, str(disk))
    call("modprobe", "-a", "target_core_mod", "target_core_iblock", "iscsi_target_mod")
    if has_nvme():
        call("modprobe", "-a", *NVME_MODULES)
    if not works("mountpoint", "-q", "/sys/kernel/config"):
        call("mount", "-t", "configfs", "configfs", "/sys/kernel/config")
    wait_until("the portals' addresses", lambda: all(f" {ip}/" in call("ip", "-4", "-o", "addr") for ip in PORTALS), 30)
    SHARE.mkdir(parents=True, exist_ok=True)
    call("systemctl", "start", "iscsid", "multipathd", "nfs-server")


def has_nvme() -> bool:
    """Tell whether the kernel has NVMe over TCP; user-mode Linux has not."""
    return works("modinfo", *NVME_MODULES)


def backends() -> list[str]:
    """Return Cinder's back ends, each of which has a section in cinder.conf and a volume type of its name."""
    return ["lvm", "nfs", *(("nvme", "nvme-shared") if has_nvme() else ()), *(("ceph",) if CEPH_CONF.exists() else ())]


def start_cinder() -> None:
    """Start Cinder unless it runs with the back ends that it should, and wait until it serves."""
    changed = write(BACKENDS, f"[DEFAULT]\nenabled_backends = {','.join(backends())}\n")
    if write(UNIT, (HERE / "cinder.service").read_text()):
        call("systemctl", "daemon-reload")
    call("systemctl", "restart" if changed else "start", UNIT.stem)

    def serves() -> bool:
        if not works("systemctl", "is-active", "-q", UNIT.stem):
            raise WorldError("Cinder ended:\n" + call("journalctl", "-q", "-n", "20", "-o", "cat", "-u", UNIT.stem))
        try:
            Api(Host()).call("GET", "/types")
        except (OSError, http.client.HTTPException):
            return False
        return True

    wait_until("Cinder serves", serves, 240, pause=0.5)


def fill_cinder() -> None:
    """Make the volume types and one volume, unless they are there."""
    api = Api(Host())
    have = _types(api).keys()
    encrypted = [*ENCRYPTED, *(("ceph-luks",) if "ceph" in backends() else ())]
    for name in {*backends(), "qos", "multiattach", *encrypted} - have:
        backend = max((each for each in backends() if name.startswith(each)), key=len, default="lvm")
        specs = {"volume_backend_name": backend}
        make_type(api, name, specs | ({"multiattach": "<is> True"} if name == "multiattach" else {}))
    if not any(row["name"] == "vol1" for row in api.call("GET", "/volumes")["volumes"]):
        create_volume("vol1")


def _types(api: Api) -> dict[str, str]:
    return {row["name"]: row["id"] for row in api.call("GET", "/types")["volume_types"]}


def limit(specs: list[str]) -> None:
    """Give the volume type ``qos`` these front-end QoS specs, ``KEY=VALUE``, and no other."""
    api = Api(Host())
    given = dict(spec.split("=", 1) for spec in specs)
    limit_type(api, _types(api)["qos"], {"consumer": "front-end", **given})


def create_volume(name: str, kind: str = "lvm", size: int = 1) -> str:
    """Make a volume, wait until it is there, and return its id.

    Raises:
        WorldError: Cinder cannot, or not in time.
    """
    api = Api(Host())
    body = {"volume": {"name": name, "size": size, "volume_type": kind}}
    volume_id = str(api.call("POST", "/volumes", body)["volume"]["id"])

    def settled() -> bool:
        status = api.call("GET", f"/volumes/{volume_id}")["volume"]["status"]
        if status == "error":
            raise WorldError(f"Cinder could not create {name}: see /var/log/cinder/cinder.log")
        return bool(status == "available")

    wait_until(f"{name} is created", settled, 120, pause=0.2)
    return volume_id


def delete_volume(volume_id: str) -> None:
    """Delete a volume, and wait until it is gone.

    Raises:
        WorldError: Cinder refuses, or not in time.
    """
    api = Api(Host())
    api.call("DELETE", f"/volumes/{volume_id}")

    def gone() -> bool:
        return all(row["id"] != volume_id for row in api.call("GET", "/volumes")["volumes"])

    wait_until(f"volume {volume_id} is deleted", gone, 120, pause=0.2)


def start_guest() -> None:
    """Define the guest unless it is, and start it unless it runs; it boots while other parts start.

    A guest with disks is not started: after a power cut their devices are not there, and somebody must connect them
    first.
    """
    call("systemctl", "start", "libvirtd")
    if GUEST not in call("virsh", "-q", "list", "--all", "--name").split():
        file = Path("/var/lib/libvirt") / f"{GUEST}.xml"
        text = DOMAIN.format(
            name=GUEST,
            image=guest_image(),
            world="lab",
            ports="<controller type='pci' model='pcie-root-port'/>" * ROOT_PORTS,
            log=CONSOLE_LOG,
            socket=CONSOLE_SOCKET,
        )
        write(file, text)
        call("virsh", "-q", "define", str(file))
    if runs_guest():
        return
    if disks := call("virsh", "-q", "domblklist", "--inactive", GUEST).split():
        print(f"{GUEST} is not started: it has {disks[0]} on {disks[1]}, which must be connected first", flush=True)
        return
    _boot()


def _boot() -> None:
    CONSOLE_LOG.unlink(missing_ok=True)  # of an earlier boot: it says that the guest is up
    call("virsh", "-q", "start", GUEST)


def boot_guest() -> None:
    """Start the guest with the disks that it has, unless it runs, and wait until it is up."""
    if not runs_guest():
        _boot()
    wait_for_guest()


def runs_guest() -> bool:
    """Tell whether the guest runs."""
    return GUEST in call("virsh", "-q", "list", "--name").split()


def console() -> Console:
    """Return the guest's console."""
    return Console(CONSOLE_SOCKET, CONSOLE_LOG)


def wait_for_guest() -> None:
    """Wait until the guest has booted, if it was started."""
    if not runs_guest():
        return
    wait_until(f"{GUEST} boots (see {CONSOLE_LOG})", console().is_up, 300, pause=0.2)


def install_tether() -> None:
    """Let the environment's Python find the checkout's tether, with its commands, and make its tables."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    write(TETHER / "checkout.pth", f"{CHECKOUT}\n")
    for old in TETHER.glob("tether-*.dist-info"):
        shutil.rmtree(old)
    info = TETHER / f"tether-{project['version']}.dist-info"
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: tether\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {place}" for name, place in entries.items()), ""]
    write(info / "entry_points.txt", "\n".join(lines))
    write(Path("/etc/tether/tether.conf"), (HERE / "tether.conf").read_text())
    write(Path("/etc/tether/volume-keys"), f"{' '.join(FIXED_KEY)}\n")
    call("tether", "db", "upgrade")
