"""The model of the state machine: what must be true of the five books after each step.

It knows what each (volume, server) pair must be: *clean*, *attached*, or in the hands of an open job. Commands
run in processes of their own, foreign changes are written into the world's files, and what is judged is read from these
files: nothing of tether's adapters is asked.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from tests.crash import pairs
from tests.crash.outsider import Outsider
from tests.crash.pairs import SERVERS, VOLUMES, Facts, Pair, Row
from tests.crash.troubles import LATE, NONE, Script, Trouble
from tests.crash.world import BLOCKED, DONE, KILLED, ROLLED_BACK, Outcome, Running, SimWorld

UNEXPECTED, CONFLICT, HELD, MISSING = 1, 2, 5, 6

#: Settle times of a world that answers at once, longer than a late call is late.
PACE = """
[DEFAULT]
data_path = {data_path}
step_retry_time = 0.12
retry_interval = 0.02
wait = 5
[cinder]
rpc_response_timeout = 0.08
settle_margin = 0.02
[libvirt]
libvirt_settle = 0.1
[host]
host_settle = 0.1
"""

PLAIN = ("vol1", "vol2", "secret1")
PAIRS: tuple[Pair, ...] = (
    ("vol1", "guest1"),
    ("vol1", "guest2"),
    ("shared1", "guest1"),
    ("shared1", "guest2"),
    ("secret1", "guest1"),
    ("vol2", "stopped1"),
    ("secret1", "stopped1"),
    ("vol2", "paused1"),
)
DIALECTS = st.sampled_from(["attachments", "attachments", "legacy"])
BACKWARD = {"attach": "clean", "detach": "attached"}
ENDED = {"attached": "attached", "detached": "clean"}


class Model(RuleBasedStateMachine):
    """What each pair must be, and how a command is run and judged.

    Attributes:
        template: a world with its database, which each example copies.
        counts: what all examples did.
        is_[pair]: what the pair must be when no job is open for it: clean or attached.
        marred[pair]: in which books an outsider has changed it since it was last clean.
    """

    template: ClassVar[Path]
    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.counts["examples"] += 1
        self.scratch = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="tether-machine-"))
        shutil.copytree(self.template, self.scratch / "world")
        self.sim = SimWorld(self.scratch / "world")
        for path in ("host", "network"):
            (self.scratch / path).write_text(PACE.format(data_path=path))
        self.outsider = Outsider(self.sim.directory)
        self.outsider.furnish()
        self.facts = pairs.read(self.sim.directory)
        self.strange = self.outsider.belongings()
        self.is_: dict[Pair, str] = dict.fromkeys(PAIRS, "clean")
        self.marred: dict[Pair, set[str]] = {pair: set() for pair in PAIRS}
        #: Volumes of which the legacy dialect may have left an export, or an outsider's reset has.
        self.exported: set[str] = set()
        #: Volumes whose open job saw something that it cannot be blamed for: a lasting fault, an outsider, a guest.
        self.troubled: set[str] = set()
        self.doubled = False

    # -- how a command is run and judged ---------------------------------------------------------------------

    def command(self, kind: str, pair: Pair, trouble: Trouble, dialect: str, path: str = "host") -> None:
        """Run an attach or a detach, and hold what it says against what it did."""
        volume, server = pair
        before, was, held = self.facts, self.is_[pair], self.facts.open_job(volume)
        drifted = [*pairs.unless_attached(before, pair)] if pair in before.mappings else []
        words = ("--dialect", dialect) if kind == "attach" else ()
        if kind == "attach" and dialect == "legacy":
            self.exported.add(volume)
        ended = self.run(kind, volume, server, *words, "--no-wait", trouble=trouble, dialect=dialect, path=path)
        if ended.code in {HELD, CONFLICT} and held:
            self.judge()
            self.check(self.facts.open_job(volume) == held, "a refused command has changed the open job")
            return
        self.check(not held, f"{kind} ended with {ended.code} although a job is open")
        job = self.newest(pair, before)
        self.outcome(kind, pair, ended, trouble, job)
        if job is None and ended.code == DONE and kind == "attach":
            self.check(not drifted or self.is_[pair] == "clean", f"attached already, it says, but: {drifted}")
        calm = trouble == NONE and dialect == "attachments" and not self.marred_volume(volume)
        if calm and before.power[server] in {"running", "shutoff"}:
            self.check(ended.code != BLOCKED, f"blocked without a cause: {ended.err}")
        well = trouble == NONE and not self.marred_volume(volume) and self.can(kind, pair, before)
        if well and was == BACKWARD[kind]:
            self.check(ended.code == DONE, f"nothing is wrong, and {kind} ended with {ended.code}: {ended.err}")
        self.judge(late=ended.code != KILLED)

    def take_up(self, verb: str, pair: Pair, trouble: Trouble) -> None:
        """Resume or abort an open job."""
        before = self.facts
        row = self.job_of(pair)
        ended = self.run("job", verb, row["id"], trouble=trouble, dialect=self.dialect_of(row))
        job = next(job for job in pairs.read(self.sim.directory).jobs if job["id"] == row["id"])
        if verb == "abort" and ended.code == CONFLICT:
            self.check("pivot" in ended.err, ended.err)
            self.judge()
            self.check(self.facts.open_jobs() == before.open_jobs(), "a refused abort has changed the job")
            return
        self.outcome(verb, pair, ended, trouble, job)
        calm = trouble == NONE and self.dialect_of(row) == "attachments" and pair[0] not in self.troubled
        if calm and before.power[pair[1]] in {"running", "shutoff"}:
            self.check(ended.code != BLOCKED, f"blocked without a cause: {ended.err}")
        self.judge(late=ended.code != KILLED)

    def outcome(self, verb: str, pair: Pair, ended: Outcome, trouble: Trouble, job: Row | None) -> None:
        """Hold the exit code against the job, and follow the job in the model.

        Args:
            job: the command's own; None if it made none.
        """
        state = "none" if job is None else job["state"]
        fits = {
            DONE: {"none", "attached", "detached"} if verb != "abort" else {"rolled-back"},
            UNEXPECTED: {"running"},
            CONFLICT: {"none"},
            ROLLED_BACK: {"none", "rolled-back"},
            BLOCKED: {"none", "blocked"} if verb in {"attach", "resume", "abort"} else {"blocked"},
            HELD: {"none", "rolled-back"},
            MISSING: {"none"},
            KILLED: {"none", "running", "attached", "detached", "rolled-back", "blocked"},
        }
        self.check(
            state in fits.get(ended.code, ()), f"{verb} ended with {ended.code}, the job is {state}: {ended.err}"
        )
        if ended.code == UNEXPECTED:
            self.check("injected" in ended.err, f"an unexpected error: {ended.err}")
        if ended.code == KILLED:
            self.check(trouble.fault is not None and trouble.fault.action == "kill", "killed by nobody")
        elif ended.code != DONE:
            last = ended.err.strip().splitlines()[-1:] or [""]
            self.check(last[0].startswith("next: "), f"it does not say what to do next: {ended.err}")
        if job is None:
            return
        if state == "blocked":
            self.counts["blocked"] += 1
            self.check(json.loads(job["error"] or "{}").get("message"), "blocked without a reason")
        if state in pairs.OPEN:
            if trouble.lasts or (trouble.script and trouble.script.action in {"refuse", "ignore"}):
                self.troubled.add(pair[0])
            return
        self.counts[state] += 1
        self.is_[pair] = ENDED.get(state) or BACKWARD[job["kind"]]
        self.troubled.discard(pair[0])
        if self.is_[pair] == "clean":
            self.marred[pair].clear()

    def judge(self, *, late: bool = True) -> None:
        """Read the five books, and check all that must be true of them now."""
        if late:
            self.sim._let_late_things_happen()
        self.facts = facts = pairs.read(self.sim.directory)
        unrowed = {pair for pair in PAIRS if "row" in self.marred[pair]}
        wrong = [*pairs.dangers(facts, unrowed)]
        for pair in PAIRS:
            job = facts.open_job(pair[0])
            if job is not None and job["server_id"] == SERVERS[pair[1]]:
                continue
            if self.is_[pair] == "attached":
                found = [line for line in pairs.unless_attached(facts, pair) if not self.excused(pair, line)]
            else:
                found = [line for line in pairs.unless_clean(facts, pair) if not self.excused_clean(pair, line)]
            wrong += [f"{' '.join(pair)} is not {self.is_[pair]}: {line}" for line in found]
        wrong += self.differences()
        self.check(not wrong, "\n".join(wrong))

    def excused(self, pair: Pair, line: str) -> bool:
        """Return True if an outsider has brought about what speaks against the pair being attached."""
        book = line.partition(":")[0]
        marred = self.marred[pair]
        return (
            (book == "cinder" and any("row" in self.marred[other] for other in PAIRS if other[0] == pair[0]))
            or book in marred
            or (book == "live" and "persistent" in marred)
        )

    def excused_clean(self, pair: Pair, line: str) -> bool:
        return line.startswith("export:") and pair[0] in self.exported

    def differences(self) -> list[str]:
        """Return what has become of the strangers' belongings."""
        now = self.outsider.belongings()
        return [
            f"a stranger's {key}: {self.strange[key]} -> {value}"
            for key, value in now.items()
            if self.strange.get(key) != value
        ]

    @invariant()
    def every_step_is_counted(self) -> None:
        self.counts["steps"] += 1

    def check(self, holds: Any, message: str) -> None:
        assert holds, message

    # -- the model's eyes ------------------------------------------------------------------------------------

    def attached(self) -> list[Pair]:
        return [pair for pair in PAIRS if self.is_[pair] == "attached"]

    def busy_servers(self) -> list[str]:
        """Return the servers about which there is something to be disturbed; all if there is none."""
        return sorted({server for _volume, server in [*self.open_pairs(), *self.facts.mappings]}) or sorted(SERVERS)

    def open_pairs(self) -> list[Pair]:
        return [(pairs.NAMES[job["volume_id"]], pairs.NAMES[job["server_id"]]) for job in self.facts.open_jobs()]

    def job_of(self, pair: Pair) -> Row:
        job = self.facts.open_job(pair[0])
        assert job is not None
        return job

    def newest(self, pair: Pair, before: Facts) -> Row | None:
        """Return the job that a command has made; None if it made none."""
        known = {job["id"] for job in before.jobs}
        made = [job for job in pairs.read(self.sim.directory).jobs if job["id"] not in known]
        self.check(len(made) < 2, f"{len(made)} jobs for one command")
        if made:
            there = (made[0]["volume_id"], made[0]["server_id"])
            self.check(there == (VOLUMES[pair[0]], SERVERS[pair[1]]), "the job is about something else")
        return made[0] if made else None

    def dialect_of(self, job: Row) -> str:
        return str(json.loads(job["params"])["dialect"])

    def free_pairs(self) -> list[Pair]:
        return [
            pair
            for pair in PAIRS
            if self.is_[pair] == "clean" and not self.marred_volume(pair[0]) and self.can("attach", pair, self.facts)
        ]

    def can(self, kind: str, pair: Pair, facts: Facts) -> bool:
        """Return True if nothing in the world speaks against it."""
        volume, server = pair
        if facts.open_job(volume) or "saved" in facts.guests[server]:
            return False
        if kind == "detach":
            return facts.power[server] != "paused"
        status = facts.volumes[volume]["status"]
        taken = {disk.address for definition in facts.guests[server].values() for disk in definition.disks}
        ledger = [row for (_volume, name), row in facts.mappings.items() if name == server]
        return (status == "available" or (volume == "shared1" and status == "in-use")) and len(taken) + len(ledger) < 5

    def marred_volume(self, volume: str) -> bool:
        return any(self.marred[pair] for pair in PAIRS if pair[0] == volume)

    def rows_of(self, pair: Pair) -> list[Row]:
        mapping = self.facts.mappings.get(pair)
        if mapping is None:
            return []
        owners = {mapping["owner_mark"], mapping["attachment_id"]} - {""}
        return [row for row in self.facts.rows[pair[0]] if {row["id"], row["instance_uuid"]} & owners]

    def rowed(self) -> list[Pair]:
        return [pair for pair in PAIRS if self.rows_of(pair)]

    def held_disks(self) -> list[tuple[str, str, str]]:
        return [
            (volume, server, scope)
            for volume, server in PAIRS
            for scope in ("live", "persistent")
            if scope in self.facts.guests[server]
            and self.facts.guests[server][scope].disk(volume)
            and self.facts.power[server] != "paused"
        ]

    def strangers(self, volume: str) -> bool:
        return any(row["instance_uuid"] == pairs.STRANGER for row in self.facts.rows[volume])

    # -- what an outsider's change means ---------------------------------------------------------------------

    def mar(self, pair: Pair, book: str) -> None:
        self.marred[pair].add(book)
        self.foreign()
        self.troubled.add(pair[0])

    def mar_pending(self, server: str, reasons: set[str]) -> None:
        """A disk whose unplug is pending leaves by the guest's own hand."""
        for alias, reason in self.facts.pending[server].items():
            pair = (pairs.NAMES.get(alias.removeprefix("ua-"), ""), server)
            if reason in reasons and pair in self.marred:
                self.marred[pair].add("live")

    def unpause(self, server: str) -> None:
        self.mar_pending(server, {"paused"})
        self.outsider.unpause(server)

    def foreign(self, server: str = "") -> None:
        """Take note of an outsider's change, after which everything dangerous must still be absent."""
        self.counts["foreign changes"] += 1
        self.strange = self.outsider.belongings()
        self.troubled |= {volume for volume, name in self.open_pairs() if name == server}
        self.judge()

    # -- running ---------------------------------------------------------------------------------------------

    def start(self, *words: str, path: str = "host") -> Running:
        self.counts["commands"] += 1
        return self.sim.start(*words, config=str(self.scratch / path))

    def run(self, *words: str, trouble: Trouble = NONE, dialect: str = "attachments", path: str = "host") -> Outcome:
        """Run a command with its trouble, and count whether that hit."""
        if trouble.script:
            self.script(trouble.script)
        fault = trouble.fault.words(dialect) if trouble.fault else ()
        ended = self.start(*fault, *words, path=path).wait()
        note(f"{' '.join([*fault, *words])} -> {ended.code}; {trouble.script or ''}\n{ended.err}")
        if trouble.script:
            self.counts["scripted calls that hit"] += self.forgive() != trouble.script.times or trouble.script.times < 0
        if trouble.fault:
            self.counts["faults that hit"] += ended.code == KILLED or "injected" in ended.err
        self.counts["kills"] += ended.code == KILLED
        return ended

    def script(self, script: Script, seconds: float = LATE) -> None:
        """Script a failure, as ``tether sim script`` does."""
        failure = {"call": script.call, "action": script.action, "times": script.times, "skip": 0}
        failure |= {"seconds": seconds, "status": 400}
        (self.sim.directory / "script.json").write_text(json.dumps({"failures": [failure]}))

    def forgive(self) -> int:
        """Forget what is scripted; return how often it would still have hit."""
        path = self.sim.directory / "script.json"
        left = json.loads(path.read_text())["failures"] if path.exists() else []
        path.write_text(json.dumps({"failures": []}))
        return sum(item["times"] for item in left)

    def wait_for_job(self, volume: str) -> None:
        """Wait until another process has a job for the volume."""
        deadline = time.monotonic() + 20
        query = "SELECT COUNT(*) FROM tether_jobs WHERE open_volume = ?"
        while time.monotonic() < deadline:
            with sqlite3.connect(f"file:{self.sim.directory / 'tether.sqlite'}?mode=ro", uri=True, timeout=10) as book:
                if book.execute(query, (VOLUMES[volume],)).fetchone()[0]:
                    return
            time.sleep(0.005)
        raise AssertionError("the first attach makes no job")

    # -- the end ---------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.finish()
        finally:
            shutil.rmtree(self.scratch)

    def finish(self) -> None:
        """Once every cause is gone, a resume ends every job, and a detach of everything leaves nothing."""
        for server in SERVERS:
            if self.facts.power[server] == "paused":
                self.unpause(server)
            elif "saved" in self.facts.guests[server]:
                self.outsider.start(server)
        self.foreign()
        for pair in self.open_pairs():
            fair = not self.marred_volume(pair[0]) and self.dialect_of(self.job_of(pair)) == "attachments"
            self.take_up("resume", pair, NONE)
            if fair:
                self.check(not self.facts.open_job(pair[0]), "a resume without any trouble did not end the job")
        for pair in self.attached():
            if not self.facts.open_job(pair[0]):
                self.command("detach", pair, NONE, "attachments")
