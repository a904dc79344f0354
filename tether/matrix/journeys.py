"""What the matrix breaks: commands in small worlds, each up to the one in which a fault is to come."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

KILLED = 128 + signal.SIGKILL


RESUME = ("job", "resume", "--last")
ABORT = ("job", "abort", "--last")
#: Two volumes as one.
BOTH = ("attach", "--all", "vol1", "vol2", "guest1")
CONSENT = ("--force", "--accept-lost-writes")
#: The directory of a second host, in that of the first.
BESIDE = "beside"


@dataclass(frozen=True)
class Variant:
    """One case that a flow is built for.

    Args:
        name: empty for the plain one.
        data_path: the setting; ``owner_mark`` too.
        force: it is detached by force.
        several: two volumes are attached as one; which of them the host calls what is chance.
        host: on which its commands run: empty for the first, or :data:`BESIDE`.
    """

    name: str = ""
    volume: str = "vol1"
    server: str = "guest1"
    dialect: str = "attachments"
    data_path: str = "host"
    owner_mark: str = "auto"
    force: bool = False
    several: bool = False
    host: str = ""

    def flow(self, kind: str) -> str:
        """Return the name of a kind of job in this case."""
        return f"{kind}-{self.name}" if self.name else kind

    @property
    def void(self) -> tuple[str, ...]:
        """Steps that have nothing to do in this case, although the flow has them: secrets are for QEMU's own paths."""
        return ("define-secret", "undefine-secret", "clear-secret") if self.data_path == "host" else ()

    @property
    def has_owner(self) -> bool:
        """True if what is reserved in Cinder says whose it is; if not, after some faults nothing can tell."""
        return self.dialect == "attachments" and self.owner_mark != "off"

    @property
    def attach(self) -> tuple[str, ...]:
        """The command that attaches."""
        return ("attach", self.volume, self.server, "--dialect", self.dialect)

    def migrate(self, part: str) -> tuple[str, ...]:
        """Return the command that does a part of the server's move to the second host."""
        return ("migrate", part, self.server, "--to", f"sim-{BESIDE}")

    @property
    def detach(self) -> tuple[str, ...]:
        """The command that detaches."""
        return ("detach", self.volume, self.server, *(CONSENT if self.force else ()))


PLAIN = Variant()
ENCRYPTED = Variant("encrypted", volume="secret1")
NETWORK = Variant("network", data_path="network")
LEGACY = Variant("legacy", dialect="legacy")
STOPPED = Variant("stopped", server="stopped1")
STOPPED_ENCRYPTED = Variant("stopped-encrypted", volume="secret1", server="stopped1")
FORCED = Variant("forced", force=True)
#: Between them, attach and detach pass every point of theirs.
VARIANTS = (PLAIN, ENCRYPTED, NETWORK, LEGACY)
#: In these they pass no point that they do not pass in one of the others.
FURTHER = (
    Variant("encrypted-network", volume="secret1", data_path="network"),
    STOPPED,
    Variant("paused", server="paused1"),
    Variant("multiattach", volume="shared1"),
    Variant("unmarked", owner_mark="off"),
    Variant("legacy-network", dialect="legacy", data_path="network"),
)


@dataclass(frozen=True)
class Command:
    """One command of a journey.

    Args:
        words: of the command line.
        faults: what is armed in its process, as ``--fault`` has it.
    """

    words: tuple[str, ...]
    faults: tuple[str, ...] = ()

    @property
    def ends(self) -> int:
        """The exit code with which it prepares what is to be broken."""
        return KILLED if self.faults else 0


@dataclass(frozen=True)
class Journey:
    """Commands that lead to one, in which a fault is to come.

    Args:
        flow: what is broken: ``attach``, ``detach-legacy``, ``key rotate``, ….
        phase: *execute*, *resume*, *compensate* or *abort*.
        start: the world that it begins in: one of :data:`tether.matrix.bench.RECIPES`.
        done: the world that it ends in if nothing is rolled back.
        broken: the command in which a fault is to come.
        before: commands that were interrupted before.
        kind: of the job that is broken; empty if the command has none, and is simply run again.
        undoing: only what is undone in the broken command counts, not what goes forward in it.
        where: tells journeys of one flow and phase apart.
        recovery: the command that is to end what the fault has left open.
        actions: what alone may go wrong; empty for all.
        points: where alone, by the beginning of their names; empty for everywhere.
        further: it passes no point that none of the others passes.
    """

    flow: str
    phase: str
    start: str
    done: str
    broken: Command
    variant: Variant = PLAIN
    before: tuple[Command, ...] = ()
    kind: str = ""
    undoing: bool = False
    where: str = ""
    recovery: tuple[str, ...] = RESUME
    actions: tuple[str, ...] = ()
    points: str = ""
    further: bool = False

    @property
    def name(self) -> str:
        """The journey's name, of which there is one."""
        return " ".join(filter(None, (self.flow, self.phase, self.where)))


@dataclass(frozen=True)
class Flow:
    """A kind of job in one case, and where its journeys are interrupted before they are broken.

    Args:
        name: of which there is one.
        words: the command that runs the job.
        first: the first step with an effect.
        last: the last step that is undone if it fails; empty if nothing is undone.
        aborted: where a job is killed that is then turned back; empty if it never can be.
        where: tells it apart from one of the same kind with the same points, so that all of them are tried in both.
    """

    name: str
    kind: str
    start: str
    done: str
    variant: Variant
    words: tuple[str, ...]
    first: str
    last: str
    aborted: str
    further: bool = False
    where: str = ""


def journeys() -> list[Journey]:
    """Return all journeys; every point is passed in the broken command of at least one."""
    return [*(journey for flow in flows() for journey in _of_flow(flow)), *_of_commands()]


def flows() -> Iterator[Flow]:
    """Yield every kind of job, in every case that its flow is built for."""
    for variant in (*VARIANTS, *FURTHER):
        live, legacy = variant.server != "stopped1", "-legacy" if variant.dialect == "legacy" else ""
        last = "plug-live" if live else "plug-persistent"
        paused = variant.server == "paused1"  # its live unplug cannot be carried out
        aborted = "-" if paused else f"finish-mapping{legacy}.act.after"
        yield _flow("attach", variant, variant.attach, "fresh attached", f"create-mapping {last} {aborted}")
        if not paused:
            steps = "begin-detaching unplug-live unplug-live.act.before"
            yield _flow("detach", variant, variant.detach, "attached fresh", steps)
    # How far its parts are when one of them is killed is chance, and so what is passed afterwards; unless all or none
    # of them have begun.
    steps = "attach-all attach-all attach-all.act.after"
    yield _flow("attach-all", Variant(several=True), BOTH, "fresh both", steps)
    for variant in (FORCED, Variant("forced-encrypted", volume="secret1", force=True)):
        steps = "begin-detaching unplug-live unplug-live.act.before"
        yield replace(_flow("detach", variant, variant.detach, "dead fresh", steps), further=True)
    for variant in (PLAIN, NETWORK, LEGACY):
        words = ("adopt", variant.volume, variant.server)
        steps = "adopt-mapping adopt-disk finish-adoption.act.before"
        yield _flow("adopt", variant, words, "by-hand adopted", steps)
    for variant in (PLAIN, ENCRYPTED, NETWORK):
        steps = "extend-volume - check-extendable.act.before"
        yield _flow("extend", variant, ("extend", variant.volume, "2"), "attached extended", steps)
    words = ("qos", PLAIN.volume, PLAIN.server)
    yield _flow("qos", PLAIN, words, "retyped limited", "limit-persistent limit-live limit-live.act.after")
    yield from _moves()
    yield from _repairs()


def _moves() -> Iterator[Flow]:
    """Yield the parts of a server's move to the host beside: there, and in the end where it came from."""
    for case, last in ((PLAIN, "connect-host"), (ENCRYPTED, "open-encryption"), (NETWORK, "define-secret")):
        variant = replace(case, host=BESIDE)
        steps = f"create-handover {last} finish-handover.act.after"
        yield _flow("migrate-prepare", variant, variant.migrate("prepare"), "paired prepared", steps)
        steps = "undefine-secret - check-left.act.before"
        yield _flow("migrate-release", variant, variant.migrate("abort"), "prepared paired", steps)
    there = replace(PLAIN, host=BESIDE)
    yield _flow(
        "migrate-complete", there, there.migrate("complete"), "arrived taken", "take-mapping - check-arrived.act.before"
    )
    left = Variant("left")
    steps = "undefine-secret - check-left.act.before"
    yield replace(_flow("migrate-release", left, left.migrate("complete"), "taken left", steps), where="behind")


def _repairs() -> Iterator[Flow]:
    """Yield the repairs, each in a world in which an audit finds nothing else."""

    def repair(kind: str, worlds: str, steps: str, variant: Variant = PLAIN) -> Flow:
        words = ("repair", "--apply", "--volume", variant.volume)
        return _flow(f"repair-{kind}", variant, words, worlds, steps)

    for last, worlds, variant in (
        ("reconnect-host", "rebooted attached", STOPPED),
        ("reopen-encryption", "rebooted attached", STOPPED_ENCRYPTED),
        ("claim-mapping", "moved attached", NETWORK),
    ):
        yield repair("connect", worlds, f"claim-mapping {last} {last}.act.after", variant)
    for variant in (PLAIN, NETWORK):
        yield repair("attach", "lost attached", "claim-mapping hold-attachment hold-attachment.act.after", variant)
    for half in ("live-only", "persistent-only"):
        yield repair("define", f"{half} attached", "plug-half plug-half plug-half.act.after", Variant(half))
    yield repair("complete", "detaching attached", "settle-status - check-status.act.before")
    for variant in (PLAIN, NETWORK, LEGACY):
        yield repair("release", "unplugged fresh", "clear-mark - check-unused.act.before", variant)
    for variant in (PLAIN, ENCRYPTED, NETWORK):
        yield repair("clean", "stray fresh", "clear-mark - check-stray.act.before", variant)


def _flow(kind: str, variant: Variant, words: tuple[str, ...], worlds: str, steps: str) -> Flow:
    start, done = worlds.split()
    first, last, aborted = ("" if each == "-" else each for each in steps.split())
    further = kind in ("attach", "detach") and variant in FURTHER
    return Flow(variant.flow(kind), kind, start, done, variant, words, first, last, aborted, further)


def _of_flow(flow: Flow) -> Iterator[Journey]:
    made = partial(
        Journey,
        flow.name,
        start=flow.start,
        done=flow.done,
        variant=flow.variant,
        kind=flow.kind,
        further=flow.further,
        where=flow.where,
    )
    failed = partial(made, undoing=True)
    first, failing = f"commit.{flow.first}.act.before=kill", f"{flow.last}.act.before=fail"
    yield made("execute", broken=Command(flow.words))
    yield made("resume", broken=Command(RESUME), before=(Command(flow.words, (first,)),))
    if flow.last:
        yield failed("compensate", broken=Command(flow.words, (failing,)))
        undoing = Command(flow.words, (failing, f"{flow.last}.undo.before=kill"))
        yield failed("resume", broken=Command(RESUME), before=(undoing,), where=f"{flow.where} undoing".strip())
    if flow.aborted:
        yield made("abort", broken=Command(ABORT), before=(Command(flow.words, (f"{flow.aborted}=kill",)),))
        yield made(
            "abort",
            broken=Command(flow.words),
            recovery=ABORT,
            actions=("kill", "cut-off"),
            where=f"{flow.where} after".strip(),
        )


def _of_commands() -> Iterator[Journey]:
    def command(words: str, worlds: str, *before: str, variant: Variant = PLAIN) -> Journey:
        earlier = tuple(Command(tuple(each.split())) for each in before)
        flow, (start, done) = " ".join(words.split()[:2]), worlds.split()
        return Journey(flow, "execute", start, done, Command(tuple(words.split())), variant, earlier)

    first = Command(PLAIN.attach)
    yield Journey("first attach", "execute", "bare", "attached", first, kind="attach")
    interrupted = Command(PLAIN.attach, ("commit.connect-host.act.before=uncertain",))
    asleep = Command(PLAIN.attach, ("connect-host.act.before=clock-jump",))
    own = partial(Journey, "attach", "execute", "fresh", "attached", kind="attach")
    yield own(interrupted, where="interrupted", points="commit.job.leave")
    # Its clock is an hour ahead already: there is no lease of its that lapses while it is stopped.
    awake = ("kill", "uncertain", "lost-reply", "database-gone", "disk-full")
    yield own(asleep, where="asleep", points="commit.job.renew", actions=awake)
    yield from _forced()
    yield command("db prune --older-than 0s", "used fresh")
    yield command("db upgrade", "bare fresh")
    yield command("key rotate", "attached attached", "key rotate", "key rotate", variant=NETWORK)
    yield command("key forget", "keyless forgotten", variant=NETWORK)


def _forced() -> Iterator[Journey]:
    """Yield the detaches from a dead device: one that is forced from the start, and one by its resume."""
    made = partial(Journey, "detach", start="dead", done="fresh", kind="detach", where="forced")
    yield made("execute", broken=Command(FORCED.detach), variant=FORCED)
    stuck = Command(PLAIN.detach, ("commit.disconnect-host.act.before=kill",))
    consent = (*RESUME, *CONSENT)
    yield made("resume", broken=Command(consent), before=(stuck,), recovery=consent)
