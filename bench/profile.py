"""Where the CPU time of a flow goes: each function's own time, summed by the library that it belongs to."""

from __future__ import annotations

import cProfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import tether_side
from bench.measure import Child
from bench.output import Table
from tests.tree import ROOT

LIBRARIES = "site-packages/"
MOST = 12


class Profiled(tether_side.World):
    """Tether whose threads are all profiled, by their own CPU clocks, from their first call on."""

    def __init__(self, url: str) -> None:
        self._profiles: list[cProfile.Profile] = []
        threading.setprofile(self._begin)
        super().__init__(url)

    def _begin(self, *_: Any) -> None:
        profile = cProfile.Profile(timer=time.thread_time)
        self._profiles.append(profile)
        profile.enable()  # in place of this function, for this thread alone

    def profile(self, flows: int) -> tuple[dict[str, float], dict[str, float]]:
        """Run flows; return the milliseconds a flow by library, and by the costliest functions."""
        self.run_many(3, 1)
        before = self._own_times()
        own = cProfile.Profile(timer=time.thread_time)
        self._profiles.append(own)
        own.enable()
        self.run_many(flows, 1)
        own.disable()
        times = {key: seconds - before.get(key, 0.0) for key, seconds in self._own_times().items()}
        libraries: dict[str, float] = defaultdict(float)
        for (library, _name), seconds in times.items():
            libraries[library] += seconds
        functions = {f"{library}: {name}": seconds for (library, name), seconds in times.items()}
        return _most(libraries, flows), _most(functions, flows)

    def _own_times(self) -> dict[tuple[str, str], float]:
        times: dict[tuple[str, str], float] = defaultdict(float)
        for profile in self._profiles:
            for entry in profile.getstats():
                times[_where(entry.code)] += entry.inlinetime
        return times


def _most(times: Mapping[str, float], flows: int) -> dict[str, float]:
    ordered = sorted(times.items(), key=lambda item: -item[1])[:MOST]
    return {name: seconds / flows * 1000 for name, seconds in ordered}


def _where(code: Any) -> tuple[str, str]:
    """Return the library and the name of a function; a text instead of code is one written in C."""
    if isinstance(code, str):
        return "C functions", code.strip("<>")
    name, path = code.co_qualname, code.co_filename
    if LIBRARIES in path:
        return path.rpartition(LIBRARIES)[2].partition("/")[0], name
    if path.startswith(str(ROOT)):
        return Path(path).relative_to(ROOT).parts[0], name
    return "Python's library", name


def tables(url: str, flows: int) -> list[Table]:
    """Profile tether over a new database."""
    with Child(Profiled, url) as child:
        found = child.call("profile", flows)
    note = f"over {flows} flows, one at a time; a profiler makes Python's own calls dearer than they are"
    return [
        Table(f"Own CPU time of a tether flow by {what}", ["", "ms/flow"], [[*item] for item in times.items()], note)
        for what, times in zip(("library", "function"), found, strict=True)
    ]
