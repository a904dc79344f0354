"""Builds wheel and sdist once from the tracked files, and installs the wheel far from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tree import ROOT, tracked_files

# tether itself must come from the wheel; the rest is what `pip install tether` must do without.
NOT_BASE = ("tether", "__editable__", "libvirt", "psycopg")


@dataclass(frozen=True)
class Built:
    """The two files that a release consists of."""

    wheel: Path
    sdist: Path


@dataclass(frozen=True)
class Installed:
    """A venv that holds the wheel and its base dependencies, and an empty folder to run in."""

    bin: Path
    cwd: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OS_"))}
        command = [self.bin / words[0], *words[1:]]
        return subprocess.run(
            command, cwd=self.cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build from a copy of what is tracked: neither stray files nor an old build/ can hide a fault."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked_files():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    # Without isolation no network is needed; pyproject's dev extra carries the build requirements.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Built(wheel, sdist)


@pytest.fixture(scope="session")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install the wheel alone, and lend the dependencies from the venv that runs the tests."""
    home, lent = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("dependencies")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, built.wheel], check=True)
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(NOT_BASE):
            (lent / entry.name).symlink_to(entry)
    (site,) = (home / "lib").glob("python3*/site-packages")
    (site / "lent.pth").write_text(f"{lent}\n")
    return Installed(home / "bin", tmp_path_factory.mktemp("elsewhere"))
