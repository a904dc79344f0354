"""What the matrix breaks: commands in small worlds, each up to the one in which a fault is to come."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

KILLED = 128 + signal.SIGKILL


RESUME = ("job", "resume", "--last")
ABORT = ("job", "abort", "--last")


@dataclass(frozen=True)
class Variant:
    """One case that a flow is built for.

    Args:
        name: empty for the plain one.
        data_path: the setting.
    """

    name: str = ""
    volume: str = "vol1"
    server: str = "guest1"
    dialect: str = "attachments"
    data_path: str = "host"

    def flow(self, kind: str) -> str:
        """Return the name of a kind of job in this case."""
        return f"{kind}-{self.name}" if self.name else kind

    @property
    def attach(self) -> tuple[str, ...]:
        """The command that attaches."""
        return ("attach", self.volume, self.server, "--dialect", self.dialect)

    @property
    def detach(self) -> tuple[str, ...]:
        """The command that detaches."""
        return ("detach", self.volume, self.server)


PLAIN = Variant()
#: Between them they pass every point.
VARIANTS = (
    PLAIN,
    Variant("encrypted", volume="secret1"),
    Variant("network", data_path="network"),
    Variant("legacy", dialect="legacy"),
)
#: These pass no point that none of the others passes.
FURTHER = (
    Variant("encrypted-network", volume="secret1", data_path="network"),
    Variant("stopped", server="stopped1"),
    Variant("paused", server="paused1"),
    Variant("multiattach", volume="shared1"),
    # A volume of its own: the legacy dialect leaves metadata by which Cinder calls later attachments read-only.
    Variant("legacy-network", volume="vol2", dialect="legacy", data_path="network"),
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
        start: the world that it begins in: ``bare`` (no database yet), ``fresh``, ``attached``, ``used`` (attached and
            detached) or ``keyless`` (attached, and the keys are lost).
        before: commands that were interrupted before.
        broken: the command in which a fault is to come.
        about_job: it is a job that is broken; else the command is simply run again.
        undoing: only what is undone in the broken command counts, not what goes forward in it.
        where: tells journeys of one flow and phase apart.
        recovery: the command that is to end what the fault has left open.
        actions: what alone may go wrong; empty for all.
    """

    flow: str
    phase: str
    start: str
    broken: Command
    variant: Variant = PLAIN
    before: tuple[Command, ...] = ()
    about_job: bool = True
    undoing: bool = False
    where: str = ""
    recovery: tuple[str, ...] = RESUME
    actions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The journey's name, of which there is one."""
        return " ".join(filter(None, (self.flow, self.phase, self.where)))


def journeys() -> list[Journey]:
    """Return all journeys; every point is passed in the broken command of at least one."""
    return [*(each for variant in (*VARIANTS, *FURTHER) for each in _of_jobs(variant)), *_of_commands()]


def _of_jobs(variant: Variant) -> Iterator[Journey]:
    live, legacy = variant.server != "stopped1", "-legacy" if variant.dialect == "legacy" else ""
    last = "plug-live" if live else "plug-persistent"
    first, failing = "commit.create-mapping.act.before=kill", f"{last}.act.before=fail"
    flow = partial(Journey, variant.flow("attach"), start="fresh", variant=variant)
    failed = partial(flow, undoing=True)
    yield flow("execute", broken=Command(variant.attach))
    yield flow("resume", broken=Command(RESUME), before=(Command(variant.attach, (first,)),))
    yield failed("compensate", broken=Command(variant.attach, (failing,)))
    undoing = Command(variant.attach, (failing, f"{last}.undo.before=kill"))
    yield failed("resume", broken=Command(RESUME), before=(undoing,), where="undoing")
    if variant.server == "paused1":
        return  # its live unplug cannot be carried out
    done = Command(variant.attach, (f"finish-mapping{legacy}.act.after=kill",))
    yield flow("abort", broken=Command(ABORT), before=(done,))
    yield flow("abort", broken=Command(variant.attach), recovery=ABORT, actions=("kill",), where="after")

    first, failing = "commit.begin-detaching.act.before=kill", "unplug-live.act.before=fail"
    flow = partial(Journey, variant.flow("detach"), start="attached", variant=variant)
    failed = partial(flow, undoing=True)
    yield flow("execute", broken=Command(variant.detach))
    yield flow("resume", broken=Command(RESUME), before=(Command(variant.detach, (first,)),))
    yield failed("compensate", broken=Command(variant.detach, (failing,)))
    undoing = Command(variant.detach, (failing, "unplug-live.undo.before=kill"))
    yield failed("resume", broken=Command(RESUME), before=(undoing,), where="undoing")
    yield flow("abort", broken=Command(ABORT), before=(Command(variant.detach, ("unplug-live.act.before=kill",)),))
    yield flow("abort", broken=Command(variant.detach), recovery=ABORT, actions=("kill",), where="after")


def _of_commands() -> Iterator[Journey]:
    def command(words: str, start: str, *before: str, variant: Variant = PLAIN) -> Journey:
        earlier = tuple(Command(tuple(each.split())) for each in before)
        flow = " ".join(words.split()[:2])
        return Journey(flow, "execute", start, Command(tuple(words.split())), variant, earlier, about_job=False)

    network = next(each for each in VARIANTS if each.name == "network")
    yield Journey("first attach", "execute", "bare", Command(PLAIN.attach))
    yield command("db prune --older-than 0s", "used")
    yield command("db upgrade", "bare")
    yield command("key rotate", "attached", "key rotate", "key rotate", variant=network)
    yield command("key forget", "keyless", variant=network)
