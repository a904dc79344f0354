"""The fault matrix: every single fault, a tenth of what is drawn, and that no point is left out."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.report import counted
from tests.tree import ROOT
from tether.cli.demo import PROGRAM
from tether.flows.registry import CURRENT
from tether.matrix.journeys import FURTHER, KILLED, PLAIN, VARIANTS, flows, journeys
from tether.matrix.live import PACE, LiveBench, LiveWorld
from tether.matrix.points import OTHERS, RARE, all_points
from tether.sim.script import CALLS
from tether.tasks.step import Step

#: Seconds for a run of the matrix.
LIMIT = 3000
NAMES = {point.name for point in all_points()}


def run(*options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, float]]:
    """Run the matrix; return what it said, and its bars."""
    done = subprocess.run(
        [*PROGRAM, "faults", "run", "--json", *options], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    return done, {bar["name"]: bar["value"] for bar in figures["bars"]}


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="singles"),
        pytest.param(("--everywhere", "--cases", str(counted(600, 15000))), id="everywhere"),
        pytest.param(("--double", "--cases", str(counted(200, 2000))), id="doubles"),
    ],
)
def test_nothing_is_left_half_done(
    options: tuple[str, ...],
    record_property: Callable[[str, object], None],
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    seed = pytestconfig.getoption("--seed")
    report = tmp_path_factory.getbasetemp() / "matrix"  # shared: what one of them has tried, the others need not
    done, bars = run(*options, "--seed", str(1 if seed is None else seed), "--report", str(report))
    record_property("matrix", [done.stderr.splitlines()[0]])
    assert done.returncode == 0, done.stderr[-5000:]
    assert bars == {"violations": 0, "points_without_case": 0}


def test_a_violation_is_found_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that never finds anything would be worse than none."""
    from tether.cli.main import main
    from tether.matrix.bench import Bench
    from tether.matrix.trial import Case, Trial
    from tether.tasks.host import ConnectHost

    monkeypatch.setattr(ConnectHost, "undo", lambda *_args, **_kwargs: None)
    journey = next(each for each in journeys() if each.name == "attach compensate")
    verdict = Trial(Bench(tmp_path, main), journey, Case(journey.name, "plug-live.undo.after=kill")).run()
    assert verdict.end == "rolled-back"
    assert any("/host/" in line for line in verdict.violations), verdict.violations
    assert "this host has a device of vol1, which is not exported" in verdict.violations


# -- completeness --------------------------------------------------------------------------------------------


def literals() -> Iterator[tuple[str, str]]:
    """Yield every fault point's name in the program, as a pattern, and where it is."""
    for path in sorted((ROOT / "tether").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "point"):
                continue
            if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "faults"):
                continue
            (name,) = node.args
            if isinstance(name, ast.Constant):
                yield re.escape(name.value), str(path)
            elif isinstance(name, ast.JoinedStr):
                parts = [re.escape(each.value) if isinstance(each, ast.Constant) else ".+" for each in name.values]
                yield "".join(parts), str(path)
            else:
                assert ast.unparse(name) == "point", path  # the database's own, of what is broken elsewhere


def test_every_point_of_the_program_is_in_the_list() -> None:
    found = list(literals())
    assert len(found) > 20
    for pattern, place in found:
        assert any(re.fullmatch(pattern, name) for name in NAMES), f"{pattern} in {place}"
    for point in all_points():
        assert point.kind == "call" or any(re.fullmatch(pattern, point.name) for pattern, _place in found), point


def steps(base: type[Step] = Step) -> Iterator[type[Step]]:
    """Yield every step of the package that has a name."""
    for each in base.__subclasses__():
        if each.__module__.startswith("tether."):
            yield from [each] if "code" in vars(each) else []
            yield from steps(each)


def test_every_effect_has_its_points() -> None:
    found = list(steps())
    assert len(found) > 20
    for step in found:
        label = step.code.partition("/")[0]
        assert f"{label}.act.before" in NAMES, step
        assert f"{label}.act.after" in NAMES, step
        if step.book:
            assert {f"commit.{label}.act.before", f"commit.{label}.act.after"} <= NAMES, step
        if step.book and step.undo is not Step.undo:
            undoes = {f"{label}.undo.before", f"{label}.undo.after", f"commit.{label}.undo.before"}
            assert undoes <= NAMES, step


def test_every_call_that_changes_something_is_in_the_list() -> None:
    left = {call for call in CALLS if call not in NAMES} - set(RARE)
    assert all(re.search(r"\.(show_|list_|read_|find|survey|device_at)", call) for call in left)


def test_every_point_has_something_that_can_go_wrong_there() -> None:
    assert all(point.actions for point in all_points())
    assert set(OTHERS) <= {point.name.rpartition(".")[0] for point in all_points()}


def test_the_variants_are_named_apart() -> None:
    for names in ([each.name for each in (*VARIANTS, *FURTHER)], [flow.name for flow in flows()]):
        assert len(set(names)) == len(names)
    assert len({each.name for each in journeys()}) == len(journeys())


def test_every_kind_of_job_is_broken() -> None:
    assert {flow.kind for flow in flows()} == set(CURRENT)


# -- the command ---------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_from_its_report(tmp_path: Path) -> None:
    options = ("--flow", "db prune", "--point", "commit.prune", "--report", str(tmp_path))
    first, _bars = run(*options)
    assert first.returncode == 0, first.stderr
    lines = (tmp_path / "cases.jsonl").read_text().splitlines()
    assert len(lines) == 11
    (tmp_path / "cases.jsonl").write_text("\n".join(lines[:4]) + '\n{"case": "db prune exec')
    again, _bars = run(*options)
    assert again.returncode == 0, again.stderr
    kept = (tmp_path / "cases.jsonl").read_text().splitlines()
    assert kept[:4] == lines[:4]
    assert "11 cases" in again.stderr
    page = (tmp_path / "index.html").read_text()
    assert 'data-cell="commit.prune.before=kill"' in page
    assert "tether --fault commit.prune.before=kill db prune" in page


@pytest.mark.parametrize(
    "options",
    [("--point", "nowhere"), ("--flow", "nothing"), ("--action", "explode"), ("--cases", "0"), ("--jobs", "x")],
)
def test_what_is_not_there_is_refused(options: tuple[str, ...]) -> None:
    done = subprocess.run([*PROGRAM, "faults", "run", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""


def test_no_live_world_is_said(tmp_path: Path) -> None:
    environment = {"TETHER_LIVE_DIR": str(tmp_path), "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(
        [*PROGRAM, "faults", "run", "--world", "live"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "next: start one: bin/live up" in done.stderr


def test_a_command_of_a_live_world_may_wait_as_long_as_its_cinder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tether.matrix.live.PATIENCE", 0.1)
    monkeypatch.setitem(PACE, "OS_CINDER__SETTLE_MARGIN", "0.1")
    (tmp_path / "world.json").write_text("{}")
    ends = {}
    for timeout in (0.0, 5.0):
        (tmp_path / "tether.conf").write_text(f"[cinder]\nrpc_response_timeout = {timeout}\n")
        world = LiveWorld(LiveBench(tmp_path, slow, tmp_path), tmp_path / "case", PLAIN)
        ends[timeout] = world.run(("attach",)).code
    assert ends == {0.0: KILLED, 5.0: 0}


def slow(_words: list[str]) -> int:
    """Be a command that waits for a second."""
    time.sleep(1.0)
    return 0
