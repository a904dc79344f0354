"""The guests' kernel and initial RAM disk: Debian's kernel, busybox, and the virtio drivers."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.live.world.layout import WorldError, cache_directory

INIT = Path(__file__).with_name("guest-init")
MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "crc32c_generic")
XZ_MAGIC = b"\xfd7zXZ\0"


def kernel_version() -> str | None:
    """Return the newest installed kernel that has its modules beside it, or None."""
    versions = [path.name.removeprefix("vmlinuz-") for path in Path("/boot").glob("vmlinuz-*")]
    usable = [version for version in versions if Path("/lib/modules", version, "modules.dep").exists()]
    return max(
        usable,
        key=lambda version: [int(part) for part in version.replace("-", ".").split(".") if part.isdigit()],
        default=None,
    )


def guest_image() -> Path:
    """Return a directory with ``kernel`` and ``initrd``, built if the cache has none for this kernel and init.

    Raises:
        WorldError: no kernel is installed.
    """
    version = kernel_version()
    if version is None:
        raise WorldError("no kernel in /boot has its modules in /lib/modules: apt-get install linux-image-amd64")
    digest = hashlib.sha256(INIT.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]
    image = cache_directory() / f"guest-{version}-{digest}"
    if not image.exists():
        with tempfile.TemporaryDirectory(dir=image.parent, prefix="guest-") as scratch:
            work = Path(scratch, "image")
            work.mkdir()
            (work / "kernel").write_bytes(_kernel(Path(f"/boot/vmlinuz-{version}").read_bytes()))
            (work / "initrd").write_bytes(_initrd(Path(scratch, "root"), version))
            work.rename(image)
    return image


def _kernel(packed: bytes) -> bytes:
    """Return the kernel proper, which QEMU boots at once (PVH): unpacking it inside the emulator costs seconds.

    A kernel that is not packed by xz is left to unpack itself.
    """
    start = packed.find(XZ_MAGIC)
    if start < 0:
        return packed
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    kernel = unpacker.decompress(packed[start:])
    return kernel if kernel.startswith(b"\x7fELF") else packed


def _initrd(root: Path, version: str) -> bytes:
    for name in ("bin", "proc", "sys", "dev", "lib/modules"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    shutil.copy(INIT, root / "init")
    (root / "init").chmod(0o755)
    order: list[str] = []
    for module in MODULES:
        lines = subprocess.run(
            ["modprobe", "-S", version, "--show-depends", module], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        for path in (Path(line.split()[1]) for line in lines if line.startswith("insmod ")):
            if path.name not in order:
                order.append(path.name)
                shutil.copy(path, root / "lib/modules" / path.name)
    (root / "lib/modules/order").write_text("".join(f"{name}\n" for name in order))
    names = [os.fspath(path.relative_to(root)) for path in sorted(root.rglob("*"))]
    archive = subprocess.run(
        ["cpio", "--create", "--format=newc", "--quiet", "--owner=0:0"],
        check=True,
        cwd=root,
        input="\n".join(names).encode(),
        capture_output=True,
    ).stdout
    return gzip.compress(archive, 1)
