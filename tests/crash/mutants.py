"""Bugs on purpose: one at a time, each judged by the fault matrix, by outsiders, and by the state machine.

    python -m tests.crash.mutants [--jobs N] [--only TEXT] [--sample N --seed S] [--report FILE]

For every step: its undo removed, its probe skipped, its intent not made durable before its effect, and each of its
checks left out. Beside them the fence, the takeover, the sealing, the settle time and the eyesight. Each is patched
into the processes of the commands, never into a file. The matrix tries its single faults at the step, then those in
every flow that has the step, until one is a violation. A check may guard against what others do, and the matrix has no
others: one that it does not miss is left out of the scripted sequences of crashes and foreign changes (SCRIPTED), and
of the state machine's commands. Ends with the number caught of all; what is not caught must be in ARGUED. A run
that was interrupted goes on from its report, which counts for one state of the code and says nothing of another.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import inspect
import json
import os
import random
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

sys.modules.setdefault("eventlet", None)  # type: ignore[arg-type]  # as tether.cli.main does

from tether import faults
from tether.errors import NotFound
from tether.flows.registry import CURRENT, parts
from tether.matrix import campaign as matrix
from tether.matrix.campaign import Campaign, Wanted
from tether.matrix.trial import Case
from tether.persistence.params import Params
from tether.tasks import volume
from tether.tasks.run import Run
from tether.tasks.step import Step

#: Whole commands in worlds in which others take part, each with the books held against what must be in them.
SCRIPTED = ("tests/crash/test_meanwhile.py", "tests/crash/test_hostile.py")
#: What goes wrong at a step to show that its undo is missing, its probe, its intent, one of its checks. An intent
#: counts only for who comes after this process.
UNDO = ("kill", "fail", "lost-reply", "cut-off", "late", "not-done")
PROBE = ("kill", "uncertain", "lost-reply", "cut-off", "late", "hang")
INTENT = ("kill", "cut-off", "stop")
CHECK = ("kill", "fail", "uncertain", "lost-reply", "cut-off", "late", "hang", "not-done", "refuse", "ignore")
#: What a case says in which the fault did not come.
NOT_BROKEN = re.compile("was not passed$|^it did not begin as it should")
_FORWARD = "past the pivot nothing is undone, and who comes after a kill has the effect again, to no change; a call"
#: Mutants that no case can show, and why.
ARGUED = {
    "reserve-volume: look without its check 1 (self._refuse_strangers())": "Cinder refuses a second reservation while"
    " there is one, and the undo that follows makes the same check",
    "export-volume: undo removed": "reserve-volume's undo, the next one, waits for what is on the wire and deletes the"
    " same attachment; what is lost is the patience with an attachment that says reserved",
    "plug-live: undo removed": "plug-persistent's undo, the next one, takes the disk out of both definitions: the guest"
    " may have been started from the persistent one",
    "plug-live: no intent before the effect": "a second run finds its disk and plugs nothing, and the undo of"
    " plug-persistent takes it out",
    "complete-attachment: no intent before the effect": f"{_FORWARD} that comes late finds its own attachment, or none",
    "complete-attachment: act without its check 1 (if row.status == 'reserved':)": "its check 2 then blocks the"
    " job, when the time for retries is over",
    "finish-mapping: no intent before the effect": f"{_FORWARD} to the ledger cannot come late",
    "close-encryption: no intent before the effect": f"{_FORWARD} of the host's lasts as long as the lock of os-brick",
    "disconnect-host: no intent before the effect": f"{_FORWARD} of the host's lasts as long as the lock of os-brick",
    "release-attachment: no intent before the effect": f"{_FORWARD} that comes late finds no such attachment",
    "finish-adoption: no intent before the effect": f"{_FORWARD} to the ledger cannot come late",
    "clear-secret: no intent before the effect": f"{_FORWARD} is made only where nothing uses the volume",
    "clear-host: no intent before the effect": f"{_FORWARD} is made only where nothing uses the volume",
    "reopen-encryption: undo without its check 1 (if self.tools.host.encryption_open(self.job.volume_id):)": "the proof"
    " of reconnect-host's undo, the next one, sees the open mapping too",
    "clear-host: act without its check 2 (if host.encryption_open(volume_id):)": "the proof of the disconnect"
    " that follows sees the open mapping too, and the step, which is repeated, closes it again",
    "clear-rows: no intent before the effect": f"{_FORWARD} that comes late finds no such attachment",
    "extend-device: no intent before the effect": f"{_FORWARD} looks once more at the size that the target has",
    "resize-encryption: no intent before the effect": f"{_FORWARD} takes up what the device has",
    "resize-guest: no intent before the effect": f"{_FORWARD} sets the same size",
    "second-attachment: probe skipped": "what is there is deleted then, and made anew: only time is lost",
    "second-attachment: undo without its check 1 (self.run.refuse_while_held())": "the undo before it, that of"
    " connect-host or define-secret, makes the same check a moment earlier",
    "finish-handover: no intent before the effect": f"{_FORWARD} to the ledger cannot come late",
    "reserve-volume-legacy: probe skipped": "os-reserve is sent again then, Cinder refuses it, and the undo blocks for"
    " the reason for which the probe does",
    "reserve-volume-legacy: look without its check 1 (self._refuse_attaching())": "as for the whole probe",
    "reserve-volume-legacy: undo without its check 1 (if self._status() == 'attaching':)": "no case comes to"
    " os-unreserve (RARE in tether/matrix/points.py says why)",
    "export-volume-legacy: no intent before the effect": "an abort then leaves the export, which the legacy dialect"
    " leaves anyhow (docs/residue.md)",
    "complete-attachment-legacy: no intent before the effect": f"{_FORWARD} that comes late finds its own row, or none",
    "finish-mapping-legacy: no intent before the effect": f"{_FORWARD} to the ledger cannot come late",
    "release-attachment-legacy: act without its check 1 (if status == 'detaching':)": "the status goes with the row, in"
    " one transaction of Cinder's, and the row is looked at before",
    "release-attachment-legacy: no intent before the effect": f"{_FORWARD} is not repeated once the row is gone",
}


@dataclass(frozen=True)
class Mutant:
    """One bug.

    Args:
        apply: puts it into this process.
        points: names of the points, or beginnings of them, at which the matrix looks for it.
        actions: what goes wrong there; empty for all.
        step: whose bug it is, without its version; empty if it is none's.
    """

    name: str
    apply: Callable[[], None]
    points: tuple[str, ...]
    actions: tuple[str, ...] = ()
    step: str = ""


def mutants() -> list[Mutant]:
    """Return all of them."""
    return [*(each for step in steps() for each in of_step(step)), *of_helpers(), *of_the_rest()]


def steps() -> list[type[Step]]:
    """Return the steps with an effect, of every flow."""
    found: dict[str, type[Step]] = {}
    for dialect in ("attachments", "legacy"):
        for kind, version in CURRENT.items():
            for part in parts(kind, version):
                params = Params(dialect=dialect, data_path="host", encrypted=True)
                for step, _data in part.build(params).iter_nodes():
                    if step.book:
                        found[step.code] = type(step)
    return list(found.values())


def of_step(step: type[Step]) -> Iterator[Mutant]:
    label = step.code.partition("/")[0]
    around = (label, f"commit.{label}", f"{step.book}.")
    if step.undo is not Step.undo:
        yield Mutant(f"{label}: undo removed", _patch(step, "undo", _nothing(step.undo)), around, UNDO, label)
    if step.look is not Step.look:
        yield Mutant(f"{label}: probe skipped", _patch(step, "look", _nothing(step.look)), around, PROBE, label)
    without = functools.partial(_without_intent, step.code)
    yield Mutant(f"{label}: no intent before the effect", without, around, INTENT, label)
    for method in ("act", "look", "undo"):
        if method in vars(step):
            for number, what, changed in _without_checks(vars(step)[method]):
                name = f"{label}: {method} without its check {number} ({what})"
                yield Mutant(name, _patch(step, method, changed), around, CHECK, label)


#: What several steps prove by: module, function, and whose points it is behind.
HELPERS: tuple[tuple[Any, str, tuple[str, ...]], ...] = (
    (volume, "delete_until_gone", ("reserve-volume", "export-volume", "release-attachment", "cinder.")),
)


def of_helpers() -> Iterator[Mutant]:
    for module, name, points in HELPERS:
        for number, what, changed in _without_checks(getattr(module, name)):
            yield Mutant(f"{name} without its check {number} ({what})", _patch(module, name, changed), points)


def of_the_rest() -> Iterator[Mutant]:
    from tether.persistence import journal
    from tether.persistence.owner import Owner
    from tether.persistence.vault import Vault

    def no_fence() -> None:
        import sqlalchemy as sa

        def unfenced(kind: Any) -> sa.Update:
            jobs = journal.jobs
            values = {name: sa.bindparam(name) for name in kind.names}
            return sa.update(jobs).where(jobs.c.id == sa.bindparam("b_id")).values(values)

        journal._fenced_update = unfenced

    def looks_and_believes(self: Run) -> None:
        with contextlib.suppress(NotFound):
            self.tools.cinder.show_volume(self.job.volume_id)

    everywhere = ("commit", *(step.code.partition("/")[0] for step in steps()))
    calls = ("cinder.", "host.", "guest.")
    yield Mutant("no fence", no_fence, everywhere, ("stop",))
    yield Mutant("takeover does not end the old runner", _patch(Owner, "end", lambda *_: True), everywhere, ("stop",))
    yield Mutant("secrets are not sealed", _patch(Vault, "seal", lambda _self, secret: secret.open()), everywhere)
    yield Mutant("no settle time", _patch(Run, "_settle", lambda *_: 0.0), calls, ("late",))
    yield Mutant("no eyesight", _patch(Run, "see_volume", looks_and_believes), (faults.TOKEN,))


def _patch(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return functools.partial(setattr, owner, name, value)


def _nothing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the same inputs that does nothing."""

    @functools.wraps(function)
    def nothing(*_args: Any, **_kwargs: Any) -> None:
        return None

    return nothing


def _without_intent(code: str) -> None:
    from tether.runner.jobs import Runner

    own = Runner._effects
    Runner._effects = lambda self, job: own(self, job) - {code}  # type: ignore[method-assign]


def _without_checks(function: Callable[..., Any]) -> Iterator[tuple[int, str, Callable[..., Any]]]:
    """Yield the function without each of its statements that only look: ``if …: raise …``, and calls that refuse."""
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    total = sum(_is_check(node) for node in ast.walk(ast.parse(source)))
    for number in range(total):
        tree = ast.parse(source)
        seen = [node for node in ast.walk(tree) if _is_check(node)][number]
        what = ast.unparse(seen).splitlines()[0][:60]
        for node in ast.walk(tree):
            for name in ("body", "orelse"):
                block = getattr(node, name, None)
                if isinstance(block, list) and seen in block:
                    block[block.index(seen)] = ast.Pass()
        space: dict[str, Any] = {}
        # `super()` without arguments, and annotations, are as in the module.
        code = compile(
            ast.fix_missing_locations(tree), inspect.getfile(function), "exec", dont_inherit=True, flags=ANNOTATIONS
        )
        exec(code, function.__globals__, space)
        yield number + 1, what, space[function.__name__]


def _is_check(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return len(node.body) == 1 and isinstance(node.body[0], ast.Raise) and not node.orelse
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return "refuse" in ast.unparse(node.value.func) or "prove" in ast.unparse(node.value.func)
    return False


import __future__

ANNOTATIONS = __future__.annotations.compiler_flag


class Mutated:
    """tether's program with one bug."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def __call__(self, words: list[str]) -> int:
        from tether.cli.main import main

        self._mutant.apply()
        return main(words)


def hunt(mutant: Mutant, cases: list[Case], whole: Campaign, jobs: int) -> tuple[str, int]:
    """Return the case that shows the mutant, or an empty text, and how many were tried."""
    tried = 0
    matrix._bench.program = Mutated(mutant)
    with ProcessPoolExecutor(jobs, get_context("fork"), matrix._begin) as pool:
        futures = [pool.submit(matrix._run, (whole.journeys[case.journey], case)) for case in cases]
        for future in as_completed(futures):
            verdict = future.result()
            tried += 1
            # A mutant without an intent does not pass the points around it: a case that needs them shows nothing.
            wrong = verdict.violations
            if wrong and not any(NOT_BROKEN.search(line) for line in wrong):
                for each in futures:
                    each.cancel()
                return f"{verdict.case}: {wrong[0][:160]}", tried
    return "", tried


#: What the state machine plays for one mutant.
SEEDS, EXAMPLES, STEPS = (1,), 30, 20


def played(mutant: Mutant) -> str:
    """Return how the state machine ended with a mutant; empty if it did not see it."""
    return in_a_fork(lambda: next(filter(None, (_play(mutant, number) for number in SEEDS)), ""))


def _play(mutant: Mutant, number: int) -> str:
    from tests.crash.machine import Machine
    from tests.crash.world import SimWorld

    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        template = SimWorld(Path(scratch) / "world")
        template.tether("job", "list")
        mutant.apply()
        machine = hypothesis.seed(number)(type("Machine", (Machine,), {"template": template.directory}))
        try:
            run_state_machine_as_test(
                machine,
                settings=hypothesis.settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(hypothesis.HealthCheck),
                    phases=[hypothesis.Phase.generate],
                    print_blob=False,
                ),
            )
        except AssertionError as wrong:
            return f"state machine, seed {number}: {str(wrong).splitlines()[0][:160]}"
    return ""


def scripted(mutant: Mutant) -> str:
    """Return which of the scripted sequences fails with a mutant; empty if none does."""
    said = in_a_fork(lambda: _script(mutant))
    return f"scripted: {said}" if said else ""


def _script(mutant: Mutant) -> str:
    class Failures:
        first = ""

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed and not self.first:
                self.first = report.nodeid.rpartition("::")[2]

    mutant.apply()
    failures = Failures()
    quiet = ("-W", "ignore:Module already imported")
    ended = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *quiet, *SCRIPTED], plugins=[failures])
    return failures.first or ("" if ended == pytest.ExitCode.OK else f"pytest ended with {ended}")


def in_a_fork(act: Callable[[], str]) -> str:
    """Return what a function returns in a process of its own, which prints nothing."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for number in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            os.write(write, act().encode()[:1000])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    return said


class Cases:
    """What may show a mutant.

    Args:
        whole: the matrix.
    """

    def __init__(self, whole: Campaign) -> None:
        passed = whole.scout(Wanted(everywhere=True))
        own = {name: points for name, points in passed.items() if not whole.journeys[name].further}
        # Where nothing in Cinder says whose a reservation is.
        unmarked = {name: points for name, points in passed.items() if whole.journeys[name].flow == "attach-unmarked"}
        self._steps = {name: {point.partition(".")[0] for point in points} for name, points in passed.items()}
        self._singles = whole.singles(own, Wanted())
        self._everywhere = whole.singles(own | unmarked, Wanted(everywhere=True))

    def of(self, mutant: Mutant) -> list[Case]:
        """Return them, the likely ones first: for a step those in every flow that has it, else the single faults."""
        cases = [
            case
            for case in (self._everywhere if mutant.step else self._singles)
            if any(f"{case.points[0]}.".startswith(f"{each.rstrip('.')}.") for each in mutant.points)
            and (not mutant.actions or case.fault.partition("=")[2] in mutant.actions)
            and (not mutant.step or mutant.step in self._steps[case.journey])
        ]
        return sorted(cases, key=lambda case: (mutant.points[0] not in case.points[0], not case.fault.endswith("kill")))


#: How many cases are tried before the scripted sequences, which take a minute.
FIRST = 100


def judged(mutant: Mutant, cases: list[Case], whole: Campaign, jobs: int) -> tuple[str, int]:
    """Return what shows a mutant, or an empty text, and how many cases were tried."""
    if " without its check " not in mutant.name:
        return hunt(mutant, cases, whole, jobs)
    shown, tried = hunt(mutant, cases[:FIRST], whole, jobs)
    shown = shown or scripted(mutant)
    if not shown:
        shown, more = hunt(mutant, cases[FIRST:], whole, jobs)
        tried += more
    return shown or played(mutant), tried


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=6, metavar="N")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="those with this in their name; may be repeated"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="only so many, drawn by the seed")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--report", type=Path, metavar="FILE", help="keep what is found there, and go on from there")
    asked = parser.parse_args()
    known = read_report(asked.report)
    todo = [mutant for mutant in mutants() if any(text in mutant.name for text in asked.only or [""])]
    if asked.sample is not None:
        todo = random.Random(asked.seed).sample(todo, min(asked.sample, len(todo)))
    whole = Campaign(_program, jobs=asked.jobs)
    left = []
    try:
        cases = Cases(whole)
        whole.rest()
        for mutant in todo:
            if mutant.name not in known:
                begun = time.monotonic()
                shown, tried = judged(mutant, cases.of(mutant), whole, asked.jobs)
                known[mutant.name] = {"shown": shown, "tried": tried, "seconds": round(time.monotonic() - begun)}
                if asked.report:
                    with asked.report.open("a") as stream:
                        stream.write(f"{json.dumps({'mutant': mutant.name} | known[mutant.name])}\n")
            found = known[mutant.name]
            argued = ARGUED.get(mutant.name, "")
            mark = "caught" if found["shown"] else "argued" if argued else "NOT CAUGHT"
            took = f"{found['tried']} cases, {found['seconds']} s"
            print(f"{mark:10} {mutant.name}  [{took}] {found['shown'] or argued}", flush=True)
            if not found["shown"]:
                left.append(mutant)
    finally:
        whole.close()
    bad = [mutant.name for mutant in left if mutant.name not in ARGUED]
    print(
        f"mutants: {len(todo) - len(left)} caught of {len(todo)}, {len(left) - len(bad)} argued, {len(bad)} not caught"
    )
    return 1 if bad else 0


def read_report(path: Path | None) -> dict[str, dict[str, Any]]:
    """Return what an earlier run has found out, by the mutant's name."""
    if path is None or not path.exists():
        return {}
    found = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]  # not a cut-off one
    return {each.pop("mutant"): each for each in found}


def _program(words: list[str]) -> int:
    from tether.cli.main import main as program

    return program(words)


if __name__ == "__main__":
    raise SystemExit(main())
