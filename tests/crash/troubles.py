"""What may go wrong inside one command of the state machine: a fault point, a scripted call, or both."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

#: Steps with an effect, whatever the case; what a case's flow does not have is not hit.
STEPS = {
    "attach": (
        "create-mapping",
        "reserve-volume",
        "export-volume",
        "connect-host",
        "open-encryption",
        "define-secret",
        "plug-persistent",
        "plug-live",
        "complete-attachment",
        "finish-mapping",
    ),
    "detach": (
        "begin-detaching",
        "unplug-persistent",
        "unplug-live",
        "undefine-secret",
        "close-encryption",
        "disconnect-host",
        "release-attachment",
        "delete-mapping",
    ),
}
#: Steps that the legacy dialect has its own of.
LEGACY = {"reserve-volume", "export-volume", "complete-attachment", "finish-mapping", "release-attachment"}
UNDONE = {
    "attach": STEPS["attach"][:8],
    "detach": ("begin-detaching", "unplug-persistent", "unplug-live"),
}
#: Calls by the dialect that makes them; None: both.
CALLS: dict[str, tuple[tuple[str, str | None], ...]] = {
    "attach": (
        ("cinder.show_volume", None),
        ("cinder.create_attachment", "attachments"),
        ("cinder.update_attachment", "attachments"),
        ("cinder.show_attachment", "attachments"),
        ("cinder.list_attachments", None),
        ("cinder.complete_attachment", "attachments"),
        ("cinder.reserve", "legacy"),
        ("cinder.initialize_connection", "legacy"),
        ("cinder.attach", "legacy"),
        ("host.connect", None),
        ("host.find", None),
        ("host.open_encryption", None),
        ("guest.show_server", None),
        ("guest.mark", None),
        ("guest.define_secret", None),
        ("guest.plug_persistent", None),
        ("guest.plug_live", None),
    ),
    "detach": (
        ("cinder.show_volume", None),
        ("cinder.list_attachments", None),
        ("cinder.begin_detaching", None),
        ("cinder.roll_detaching", None),
        ("cinder.delete_attachment", "attachments"),
        ("cinder.terminate_connection", "legacy"),
        ("cinder.detach", "legacy"),
        ("host.close_encryption", None),
        ("host.disconnect", None),
        ("guest.show_server", None),
        ("guest.unplug_persistent", None),
        ("guest.unplug_live", None),
        ("guest.unmark", None),
        ("guest.undefine_secret", None),
    ),
}
#: What an undo calls, beside what it undoes.
UNDO_CALLS = (
    *(item for item in CALLS["detach"] if item[0] != "cinder.begin_detaching"),
    ("cinder.unreserve", "legacy"),
)
READS = {"cinder.show_volume", "cinder.show_attachment", "cinder.list_attachments", "host.find", "guest.show_server"}
#: Seconds until a late call is carried out: less than the settle times of this machine's pace.
LATE = 0.06


@dataclass(frozen=True)
class Fault:
    """An armed fault point."""

    point: str
    action: str
    times: int = 1

    def words(self, dialect: str) -> tuple[str, str]:
        """Return the command line's words for it."""
        prefix = "commit." * self.point.startswith("commit.")
        step, _, moment = self.point.removeprefix("commit.").partition(".")
        step += "-legacy" * (dialect == "legacy" and step in LEGACY)
        return "--fault", f"{prefix}{step}.{moment}={self.action}*{self.times}"


@dataclass(frozen=True)
class Script:
    """A scripted call."""

    call: str
    action: str
    times: int = 1


@dataclass(frozen=True)
class Trouble:
    """What goes wrong in one command."""

    fault: Fault | None = None
    script: Script | None = None

    @property
    def lasts(self) -> bool:
        """True if trying again inside the command does not help."""
        return any(item is not None and item.times != 1 for item in (self.fault, self.script))


NONE = Trouble()


def _faults(steps: tuple[str, ...], phase: str) -> st.SearchStrategy[Fault]:
    points = [f"{step}.{phase}" for step in steps]
    moments = st.sampled_from(["before", "after"])
    kill = st.builds(
        lambda commit, point, moment: Fault(f"{commit}{point}.{moment}", "kill"),
        st.sampled_from(["", "commit."]),
        st.sampled_from(points),
        moments,
    )
    # A final error says that nothing happened, so it stands only where nothing has.
    error = st.builds(
        lambda point, action, times: Fault(f"{point}.{'after' if action == 'lost-reply' else 'before'}", action, times),
        st.sampled_from(points),
        st.sampled_from(["fail", "uncertain", "lost-reply"]),
        st.sampled_from([1, 1, 99]),
    )
    return st.one_of(kill, error)


def _scripts(calls: tuple[tuple[str, str | None], ...], dialect: str) -> st.SearchStrategy[Script]:
    names = [call for call, only in calls if only in {None, dialect}]

    def actions(call: str) -> st.SearchStrategy[Script]:
        more = ["refuse", "ignore"] if call == "guest.unplug_live" else []
        known = ["fail", "timeout"] if call in READS else ["fail", "timeout", "lost-reply", "late", *more]
        return st.builds(Script, st.just(call), st.sampled_from(known), st.sampled_from([1, 1, -1]))

    return st.sampled_from(names).flatmap(actions)


def troubles(kind: str, dialect: str) -> st.SearchStrategy[Trouble]:
    """Return what may go wrong in a command of a kind: ``attach``, ``detach``, or the undo of an attach, ``abort``."""
    if kind == "abort":
        faults = _faults(UNDONE["attach"] + UNDONE["detach"], "undo")
        scripts = _scripts(UNDO_CALLS, dialect)
        return st.one_of(st.just(NONE), st.builds(Trouble, faults), st.builds(Trouble, st.none(), scripts))
    forward = _faults(STEPS[kind], "act")
    ends = st.builds(
        Fault,
        st.builds("commit.job.{}.{}".format, st.sampled_from(["begin", "end"]), st.sampled_from(["before", "after"])),
        st.just("kill"),
    )
    scripts = _scripts(CALLS[kind], dialect)
    undone = st.builds(Trouble, _faults(UNDONE[kind], "undo"), st.builds(Script, _late_calls(kind), st.just("fail")))
    return st.one_of(
        st.just(NONE),
        st.builds(Trouble, forward),
        st.builds(Trouble, st.none(), scripts),
        st.builds(Trouble, st.one_of(forward, ends), st.one_of(st.none(), scripts)),
        undone,
    )


def _late_calls(kind: str) -> st.SearchStrategy[str]:
    """Return calls whose refusal has much to be undone."""
    if kind == "attach":
        return st.sampled_from(["guest.plug_live", "guest.plug_persistent", "host.connect"])
    return st.sampled_from(["guest.unplug_live", "guest.unplug_persistent"])
