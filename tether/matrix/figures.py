"""Figures as every tool of tether ends with them: bars beside their limits, and the machine that they depend on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def bar(name: str, value: float, unit: str, limit: float, *, holds: bool) -> dict[str, Any]:
    """Return one measured figure beside the limit that it must keep."""
    return {"name": name, "value": value, "unit": unit, "limit": limit, "holds": holds}


def machine() -> dict[str, Any]:
    """Return what figures depend on; nothing that names the machine, its user or a path."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
