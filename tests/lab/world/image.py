"""Builds the lab's image: Debian packages and wheels in, a root file system and two kernels out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab.world import recipe
from tests.lab.world.layout import Image, cache_directory
from tests.live.world import packages
from tests.live.world.layout import CHECKOUT, WorldError

Stage = Callable[[str, Callable[[], Any]], Any]
PYTHON = "/usr/bin/python3"
SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
APT_SETTINGS = ("Acquire::http", "Acquire::https", "Acquire::Check", "Acquire::Retries")
PATH_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "PIP_CONFIG_FILE": "/dev/null",
}
#: Of this checkout, what the guests' image is built from inside the lab's.
GUEST_SOURCE = ("tests/__init__.py", "tests/live/__init__.py", "tests/live/world")


def find() -> Image | None:
    """Return the image of the present recipe, if it is built."""
    image = Image(cache_directory() / recipe.name())
    return image if image.directory.exists() else None


def build(stage: Stage) -> Image:
    """Return the image of the present recipe; build it if the cache has none. Call it under the cache's lock.

    Raises:
        WorldError: a part of it failed.
    """
    if (found := find()) is not None:
        return found
    if os.geteuid() != 0:
        raise WorldError("building the image needs root: it is a file system with all its owners")
    stage("packages of this machine", lambda: packages.install(packages.missing_packages(recipe.BUILDERS)))
    image = Image(cache_directory() / recipe.name())
    work = cache_directory() / "build"
    _remove_tree(work)
    parts = Image(work / "image")
    parts.directory.mkdir(parents=True)
    tree = work / "tree"
    stage("wheels", lambda: _wheels(work / "wheels"))
    stage("Debian packages", lambda: _debian(tree, work))
    stage("Python environments, settings", lambda: _finish(tree, work, parts))
    stage("file system", lambda: _file_system(tree, parts))
    parts.directory.rename(image.directory)
    _remove_tree(work)
    _remove_older(image)
    return image


def _wheels(place: Path) -> None:
    """Collect the wheels of both environments, by this machine's own pip and its settings."""
    version = subprocess.run([PYTHON, "-V"], check=True, capture_output=True, text=True).stdout
    if not version.startswith("Python 3.11."):
        raise WorldError(f"{PYTHON} is {version.strip()}: the wheels must be built by the image's own, 3.11")
    venv = place / "venv"
    packages.run([PYTHON, "-m", "venv", str(venv)])
    pip = str(venv / "bin/pip")
    packages.run([pip, "install", "-q", "-U", "setuptools", "wheel"])
    bounds = ["-c", str(packages.CONSTRAINTS)]
    for name, needs, more in (("tether", recipe.tether_needs(), []), ("cinder", list(recipe.CINDER_NEEDS), bounds)):
        packages.run([pip, "wheel", "-q", "-w", str(place / name), *more, "pip", "setuptools", "wheel", *needs])
        (place / name / "requirements").write_text("".join(f"{line}\n" for line in needs))
    shutil.rmtree(venv)


def _debian(tree: Path, work: Path) -> None:
    """Install the packages into a tree; what was downloaded is kept for the next build."""
    kept = cache_directory() / "debs"
    kept.mkdir(exist_ok=True)
    settings = work / "apt.conf"
    dump = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
    settings.write_text("".join(f"{line}\n" for line in dump.splitlines() if line.startswith(APT_SETTINGS)))
    archives = '"$1"/var/cache/apt/archives'
    initramfs = recipe.ROOT / "etc/initramfs-tools"
    packages.run(
        [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            f"--include={','.join(recipe.PACKAGES)}",
            f"--aptopt={settings}",
            '--aptopt=APT::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")),
            "--skip=download/empty",
            "--skip=essential/unlink",
            f"--setup-hook=mkdir -p {archives} && cp -al {kept}/. {archives}/",
            f'--setup-hook=mkdir -p "$1"/etc && cp -r {initramfs} "$1"/etc/',
            f"--customize-hook=cp -aln {archives}/*.deb {kept}/ || true",
            recipe.SUITE,
            str(tree),
            *_sources(),
        ]
    )


def _sources() -> list[str]:
    """Return this machine's own sources if they are of the image's suite; otherwise none, for mmdebstrap's default."""
    for path in SOURCES:
        if path.exists() and f"{recipe.SUITE} " in path.read_text():
            return [str(path)]
    return []


def _finish(tree: Path, work: Path, parts: Image) -> None:
    """Copy settings into the tree and run finish.sh in it."""
    shutil.copytree(recipe.ROOT, tree, dirs_exist_ok=True)
    packages.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(parts.key)])
    shutil.copy(f"{parts.key}.pub", tree / "etc/ssh/authorized_keys")
    inside = tree / "tmp/wheels"
    shutil.copytree(work / "wheels", inside)
    for name in GUEST_SOURCE:
        source, copy = CHECKOUT / name, inside / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    script = tree / "tmp/finish"
    shutil.copy(recipe.FINISH, script)
    environment = [f"{key}={value}" for key, value in PATH_ENVIRONMENT.items()]
    packages.run(["env", "-i", *environment, "chroot", str(tree), "/bin/bash", "/tmp/finish"])
    shutil.rmtree(inside)
    script.unlink()


def _file_system(tree: Path, parts: Image) -> None:
    """Take the kernels out of the tree, and make the tree a file system."""
    flags = ["-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
    packages.run(["gcc", *flags, "-o", str(parts.preload), str(recipe.PRELOAD), "-ldl"])
    for source, copy in (
        (tree / "usr/bin/linux.uml", parts.user_mode_kernel),
        (_followed(tree, "vmlinuz"), parts.kernel),
        (_followed(tree, "initrd.img"), parts.initrd),
    ):
        shutil.copy(source, copy)
    for path in (tree / "var/cache/apt/archives").glob("*.deb"):
        path.unlink()
    shutil.rmtree(tree / "var/lib/apt/lists", ignore_errors=True)
    packages.run(["truncate", "-s", recipe.ROOT_SIZE, str(parts.root)])
    lazy = "lazy_itable_init=1,lazy_journal_init=1"
    packages.run(["mkfs.ext4", "-q", "-F", "-L", "root", "-E", lazy, "-d", str(tree), str(parts.root)])


def _followed(tree: Path, name: str) -> Path:
    """Return where a link of the tree's root leads inside the tree."""
    return tree / str((tree / name).readlink()).lstrip("/")


def _remove_tree(place: Path) -> None:
    """Remove what an earlier build has left, unless something is still mounted below it."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    if below := [path for path in mounts if path.startswith(f"{place}/")]:
        raise WorldError(f"an earlier build has left {', '.join(below)} mounted: unmount them first")
    shutil.rmtree(place, ignore_errors=True)


def _remove_older(image: Image) -> None:
    """Remove the images of other recipes that no lab runs from: a running one holds its image's lock."""
    for path in image.directory.parent.glob("image-*"):
        if path == image.directory:
            continue
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
        os.close(handle)
