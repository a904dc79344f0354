"""Reads of sysfs and configfs, whose entries come and go with their devices."""

from __future__ import annotations

from pathlib import Path


def children(folder: Path) -> list[Path]:
    """Return a folder's entries in order; none if it is not there."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return []


def read(path: Path) -> str:
    """Return an attribute's value, or nothing: some answer EINVAL where they do not apply."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
