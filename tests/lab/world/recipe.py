"""What the lab's image is made of, and the name that follows from it."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

from tests.live.world import guest_image, packages
from tests.live.world.layout import CHECKOUT

HERE = Path(__file__).parent
ROOT = HERE / "root"
FINISH = HERE / "inside/finish.sh"
PRELOAD = HERE / "wide_registers.c"
SUITE = "bookworm"
ROOT_SIZE = "8G"  # of the file system; the file is sparse
#: What builds an image on this machine, beside what the engines need (see engines.py).
BUILDERS = (
    "debian-archive-keyring",
    "e2fsprogs",
    "gcc",
    "libvirt-dev",
    "mmdebstrap",
    "openssh-client",
    "pkg-config",
    "python3-dev",
    "python3-venv",
)
PACKAGES = (
    # the system
    "ca-certificates",
    "dbus",
    "dmidecode",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "linux-image-amd64",
    "openssh-server",
    "procps",
    "psmisc",
    "strace",
    "systemd-sysv",
    "udev",
    "zstd",
    # storage
    "ceph-common",
    "ceph-mon",
    "ceph-osd",
    "cryptsetup-bin",
    "e2fsprogs",
    "fdisk",
    "lsscsi",
    "lvm2",
    "multipath-tools",
    "nfs-common",
    "nfs-kernel-server",
    "nvme-cli",
    "open-iscsi",
    "python3-rbd",
    "python3-rtslib-fb",
    "sg3-utils",
    "sysfsutils",
    "targetcli-fb",
    "thin-provisioning-tools",
    # guests, and their image
    "busybox-static",
    "cpio",
    "libvirt-clients",
    "libvirt-daemon-system",
    "qemu-block-extra",
    "qemu-system-x86",
    "qemu-utils",
    "seabios",
    # Python
    "python3",
    "python3-venv",
    "sudo",
    # the same kernel code as a program: boots where there is no virtualisation
    "user-mode-linux",
)
CINDER_NEEDS = (packages.CINDER, "rtslib-fb")


def tether_needs() -> list[str]:
    """Return what tether needs from pip, as pyproject.toml says it."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["libvirt"], *extras["castellan"], *extras["postgresql"]]


def name() -> str:
    """Return the image's name: the same recipe has the same one."""
    digest = hashlib.sha256()
    for text in (SUITE, ROOT_SIZE, *PACKAGES, *CINDER_NEEDS, *tether_needs()):
        digest.update(f"{text}\n".encode())
    for path in (
        FINISH,
        PRELOAD,
        HERE / "image.py",
        packages.CONSTRAINTS,
        Path(guest_image.__file__),
        guest_image.INIT,
    ):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    for path in sorted(path for path in ROOT.rglob("*") if path.is_file()):
        rights = path.stat().st_mode & 0o111
        digest.update(f"{path.relative_to(ROOT)} {rights}\n".encode() + path.read_bytes())
    return f"image-{digest.hexdigest()[:12]}"
