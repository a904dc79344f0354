"""The repository as tests see it: its root, and the files that belong to it."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def tracked_files() -> list[str]:
    """Return the paths of every tracked file and of every new one that is not ignored, links included."""
    # A root shell in a checkout of someone else is no reason for git to refuse.
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split("\0") if name]
    return sorted(name for name in names if (ROOT / name).exists() or (ROOT / name).is_symlink())


def modules(*tops: str) -> list[str]:
    """Return the tracked Python files, below the given folders or everywhere."""
    return [name for name in tracked_files() if name.endswith(".py") and (not tops or name.startswith(tops))]
