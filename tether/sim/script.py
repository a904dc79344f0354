"""Scripted failures of the embedded world: which call goes wrong, how, and how often."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import asdict, dataclass
from http import HTTPStatus

from tether import faults
from tether.errors import UsageError
from tether.sim.store import Store

#: What can be scripted for a call.
ACTIONS = {
    "fail": "refused: it does not happen (Cinder answers `status`, 400 unless said otherwise)",
    "timeout": "it does not happen, and the caller sees a time-out",
    "lost-reply": "it happens, and the caller sees a time-out",
    "late": "the caller sees a time-out (Cinder: 500) at once, and it happens `seconds` later",
    "slow": "it takes `seconds` longer",
    "no-flush": "host.disconnect only: the device cannot be flushed: refused unless forced, and then gone",
    "refuse": "guest.unplug_live only: the guest answers DEVICE_REMOVAL_FAILED",
    "ignore": "guest.unplug_live only: the guest does not answer; the request stays until its next reset",
}

#: Seconds until what an injected fault makes late is carried out: little less than the settle times of the matrix.
SOON = 1.0

#: Actions of one call alone.
ONLY = {"refuse": "guest.unplug_live", "ignore": "guest.unplug_live", "no-flush": "host.disconnect"}
LAST_STATUS = 599

#: The calls that can be scripted: the verbs of the adapters' protocols.
CALLS = (
    *(
        f"cinder.{verb}"
        for verb in (
            "list_volumes",
            "show_volume",
            "list_attachments",
            "show_attachment",
            "create_attachment",
            "update_attachment",
            "complete_attachment",
            "delete_attachment",
            "extend",
            "show_encryption",
            "list_types",
            "show_qos",
            "reserve",
            "unreserve",
            "initialize_connection",
            "terminate_connection",
            "attach",
            "detach",
            "begin_detaching",
            "roll_detaching",
        )
    ),
    *(
        f"host.{verb}"
        for verb in (
            "connect",
            "find",
            "device_at",
            "link",
            "unlink",
            "disconnect",
            "extend",
            "resize_encryption",
            "read_header",
            "format_encryption",
            "open_encryption",
            "close_encryption",
            "survey",
        )
    ),
    *(
        f"guest.{verb}"
        for verb in (
            "survey",
            "show_server",
            "plug_persistent",
            "plug_live",
            "unplug_persistent",
            "unplug_live",
            "resize",
            "limit_persistent",
            "limit_live",
            "mark",
            "unmark",
            "define_secret",
            "undefine_secret",
        )
    ),
)


@dataclass
class Scripted:
    """One scripted failure.

    Args:
        call: one of :data:`CALLS`.
        action: one of :data:`ACTIONS`.
        times: how many calls it hits; -1 for all.
        skip: how many calls pass before it starts.
        seconds: for ``late`` and ``slow``.
        status: the HTTP status of a ``fail`` of Cinder.
        fatal: the caller is killed while it waits for the answer of a ``late`` one.
    """

    call: str
    action: str
    times: int = 1
    skip: int = 0
    seconds: float = 0.0
    status: int = 400
    fatal: bool = False

    def sent(self) -> None:
        """Say that what comes late is on its way."""
        if self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def add(store: Store, scripted: Scripted) -> None:
    """Script a failure.

    Raises:
        UsageError: no such call or action, or a number that could never happen.
    """
    if scripted.call not in CALLS:
        raise UsageError(f"there is no call {scripted.call!r}", hint=f"one of: {', '.join(CALLS)}")
    if scripted.action not in ACTIONS:
        raise UsageError(f"there is no action {scripted.action!r}", hint=f"one of: {', '.join(ACTIONS)}")
    only = ONLY.get(scripted.action, scripted.call)
    if only != scripted.call:
        raise UsageError(f"{scripted.call} cannot {scripted.action}", hint=f"only {only} can")
    if scripted.times == 0 or scripted.times < -1:
        raise UsageError(f"{scripted.times} is no number of calls", hint="give --times 1 or more, or -1 for all")
    if scripted.skip < 0 or not 0 <= scripted.seconds < math.inf:
        raise UsageError("--skip and --seconds count from 0", hint="give finite numbers, 0 or more")
    if not HTTPStatus.BAD_REQUEST <= scripted.status <= LAST_STATUS:
        raise UsageError(f"{scripted.status} is no HTTP status of a failure", hint="give --status 400 to 599")
    with store.change("script") as book:
        book.setdefault("failures", []).append(asdict(scripted))


def take(store: Store, call: str) -> Scripted | None:
    """Return what is scripted for this call, or injected into this process, and use it up by one; None if all is well.

    A fault point of the call's name is passed.
    """
    fault = faults.taken(call)
    if fault is not None:
        action = {"hang": "timeout", "cut-off": "late"}.get(fault.action, fault.action)
        return Scripted(call, action, seconds=SOON, fatal=fault.action == "cut-off")
    if not any(item["call"] == call for item in store.read("script").get("failures", [])):
        return None
    with store.change("script") as book:
        for item in book["failures"]:
            if item["call"] != call:
                continue
            if item["skip"]:
                item["skip"] -= 1
                return None
            if item["times"] > 0:
                item["times"] -= 1
            scripted = Scripted(**item)
            book["failures"] = [other for other in book["failures"] if other["times"]]
            return scripted
    return None


def clear(store: Store) -> None:
    """Forget all scripted failures."""
    with store.change("script") as book:
        book["failures"] = []
