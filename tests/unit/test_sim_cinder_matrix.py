"""Every call in every state, plain and multiattach, against what the real Cinder 29 answered.

A cell is the HTTP status, then what is left: the volume's status (A available, R reserved, T attaching,
U in-use, D detaching, E error, M maintenance, W downloading, X deleted), its attach_status (d detached,
t attaching, a attached), and one letter per attachment (r reserved, t attaching, a attached).
"""

# ruff: noqa: E501 - a row of the grid is a line

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.unit.sim_cinder_api import GENERIC, OTHER_VM, VM, Api, connector, message

STATUS = {
    "A": "available",
    "R": "reserved",
    "T": "attaching",
    "U": "in-use",
    "D": "detaching",
    "E": "error",
    "M": "maintenance",
    "W": "downloading",
}
ATTACH_STATUS = {"d": "detached", "t": "attaching", "a": "attached"}
ROW = {"r": "reserved", "t": "attaching", "a": "attached"}

# The columns; those of legacy calls and of the attachments API have an instance unless they say otherwise.
STATES = (
    "available",
    "attaching (legacy reserve)",
    "in-use (legacy)",
    "detaching (legacy)",
    "reserved",
    "attaching",
    "in-use",
    "in-use (no instance)",
    "detaching",
    "error",
    "maintenance",
    "downloading",
)

PLAIN = {
    "os-reserve": "202Td 400Td 400Uaa 400Daa 400Rdr 400Ttt 400Uaa 400Uaa 400Daa 400Ed 400Md 400Wd",
    "os-unreserve": "202Ad 202Ad 202Uaa 202Daa 202Rdr 202Utt 202Uaa 202Uaa 202Daa 202Ed 202Md 202Wd",
    "os-initialize_connection": "200Ad 200Td 200Uaa 200Daa 200Rdr 200Ttt 200Uaa 200Uaa 200Daa 200Ed 400Md 200Wd",
    "os-attach other instance": "202Uaa 202Uaa 400Uaa 202Uaaa 202Uara 202Uata 400Uaa 400Uaa 202Uaaa 202Uaa 400Md 202Uaa",
    "os-attach same instance": "202Uaa 202Uaa 202Uaa 202Uaa 202Udr 202Utt 202Uaa 400Uaa 202Uaa 202Uaa 400Md 202Uaa",
    "os-begin_detaching": "400Ad 400Td 202Daa 400Daa 400Rdr 400Ttt 202Daa 202Daa 400Daa 400Ed 400Md 400Wd",
    "os-roll_detaching": "202Ad 202Td 202Uaa 202Uaa 202Rdr 202Ttt 202Uaa 202Uaa 202Uaa 202Ed 202Md 202Wd",
    "os-terminate_connection": "202Ad 202Ad 202Uaa 202Daa 202Rdr 500Ttt 500Uaa 202Uaa 500Daa 202Ed 202Md 202Wd",
    "os-terminate_connection (service)": "202Ad 202Ad 202Uaa 202Daa 202Rdr 202Utt 202Uaa 202Uaa 202Daa 202Ed 202Md 202Wd",
    "os-detach": "202Ad 202Ad 202Ad 202Ad 202Ad 500Ttt 500Uaa 202Ad 500Daa 202Ad 400Md 202Ad",
    "os-detach (service)": "202Ad 202Ad 202Ad 202Ad 202Ad 202Ad 202Ad 202Ad 202Ad 202Ad 400Md 202Ad",
    "att. create(None, other inst.)": "200Rdr 400Td 400Uaa 400Daa 400Rdr 400Ttt 400Uaa 400Uaa 400Daa 400Ed 400Md 200Rdr",
    "att. create(conn, other inst.)": "200Ttt 400Td 400Uaa 400Daa 400Rdr 400Ttt 400Uaa 400Uaa 400Daa 400Ed 400Md 200Ttt",
    "att. create(None, same inst.)": "200Rdr 400Td 200Uaar 400Daa 200Rdrr 400Ttt 200Uaar 400Uaa 400Daa 400Ed 400Md 200Rdr",
    "att. update": "- - - - 200Ttt 200Ttt 200Ttt 200Ttt 200Ttt - - -",
    "att. complete": "- - - - 204Uaa 204Uaa 204Uaa 204Uaa 204Uaa - - -",
    "att. delete": "- - - - 200Ad 500Ttt 500Uaa 200Ad 500Daa - - -",
    "att. delete (service)": "- - - - 200Ad 200Ad 200Ad 200Ad 200Ad - - -",
    "volume delete": "202Xd 400Td 400Uaa 400Daa 400Rdr 400Ttt 400Uaa 400Uaa 400Daa 202Xd 400Md 400Wd",
}

MULTIATTACH = {
    "os-reserve": "202Td 400Td 202Taa 400Daa 400Rdr 400Ttt 202Taa 202Taa 400Daa",
    "os-unreserve": "202Ad 202Ad 202Uaa 202Daa 202Rdr 202Utt 202Uaa 202Uaa 202Daa",
    "os-initialize_connection": "200Ad 200Td 200Uaa 200Daa 200Rdr 200Ttt 200Uaa 200Uaa 200Daa",
    "os-attach other instance": "202Uaa 202Uaa 202Uaaa 202Uaaa 202Uara 202Uata 202Uaaa 202Uaaa 202Uaaa",
    "os-attach same instance": "202Uaa 202Uaa 202Uaa 202Uaa 202Udr 202Utt 202Uaa 202Uaaa 202Uaa",
    "os-begin_detaching": "400Ad 400Td 202Daa 400Daa 400Rdr 400Ttt 202Daa 202Daa 400Daa",
    "os-roll_detaching": "202Ad 202Td 202Uaa 202Uaa 202Rdr 202Ttt 202Uaa 202Uaa 202Uaa",
    "os-terminate_connection": "202Ad 202Ad 202Uaa 202Daa 202Rdr 500Ttt 500Uaa 202Uaa 500Daa",
    "os-terminate_connection (service)": "202Ad 202Ad 202Uaa 202Daa 202Rdr 202Utt 202Uaa 202Uaa 202Daa",
    "os-detach": "202Ad 202Ad 202Ad 202Ad 202Ad 500Ttt 500Uaa 202Ad 500Daa",
    "os-detach (service)": "202Ad 202Ad 202Ad 202Ad 202Ad 202Ad 202Ad 202Ad 202Ad",
    "att. create(None, other inst.)": "200Rdr 400Td 200Raar 400Daa 400Rdr 400Ttt 200Raar 200Raar 400Daa",
    "att. create(conn, other inst.)": "200Ttt 400Td 200Ttat 400Daa 400Rdr 400Ttt 200Ttat 200Ttat 400Daa",
    "att. create(None, same inst.)": "200Rdr 400Td 200Raar 400Daa 200Rdrr 400Ttt 200Raar 200Raar 400Daa",
    "att. update": "- - - - 200Ttt 200Ttt 200Ttt 200Ttt 200Ttt",
    "att. complete": "- - - - 204Uaa 204Uaa 204Uaa 204Uaa 204Uaa",
    "att. delete": "- - - - 200Ad 500Ttt 500Uaa 200Ad 500Daa",
    "att. delete (service)": "- - - - 200Ad 200Ad 200Ad 200Ad 200Ad",
    "volume delete": "202Xd 400Td 400Uaa 400Daa 400Rdr 400Ttt 400Uaa 400Uaa 400Daa",
}

IN_MAINTENANCE = {
    "os-initialize_connection": "Invalid volume: The volume connection cannot be initialized in maintenance mode.",
    "os-attach other instance": "Invalid volume: The volume cannot be attached in maintenance mode.",
    "os-attach same instance": "Invalid volume: The volume cannot be attached in maintenance mode.",
    "os-detach": "Invalid volume: The volume cannot be detached in maintenance mode.",
    "os-detach (service)": "Invalid volume: The volume cannot be detached in maintenance mode.",
}


ALWAYS = {
    "os-begin_detaching": (
        "Invalid volume: Unable to detach volume. Volume status must be 'in-use' and attach_status must be "
        "'attached' to detach."
    ),
    "volume delete": (
        "Invalid volume: Volume status must be available or error or error_restoring or error_extending or "
        "error_managing and must not be migrating, attached, belong to a group, have snapshots, awaiting a "
        "transfer, or be disassociated from snapshots after volume transfer."
    ),
}


def refusal(call: str, volume: str, status: str, *, multiattach: bool) -> str:
    """The text of the 400 that Cinder gives to a call on a volume of this status."""
    if call == "os-reserve":
        expected = "available or in-use" if multiattach else "available"
        return f"Invalid volume: Volume status must be {expected} to reserve, but the status is {status}."
    if call in ALWAYS:
        return ALWAYS[call]
    if call.startswith("att. create"):
        if status == "error":
            return (
                "Invalid volume: Volume attachments can not be created if the volume is in an error state. "
                f"The Volume {volume} currently has a status of: error "
            )
        expected = "available or in-use or downloading" if multiattach else "available or downloading"
        return (
            f"Invalid volume: Volume {volume} status must be {expected} to reserve, but the current status is {status}."
        )
    if status == "maintenance":
        return IN_MAINTENANCE[call]
    return "Invalid volume: volume is already attached and multiple attachments are not enabled"


def bring(api: Api, state: str, *, multiattach: bool) -> tuple[str, str]:
    """Make a volume of this state; return it and its attachment."""
    volume = api.volume(multiattach=multiattach)
    if "legacy" in state:
        api.action(volume, "os-reserve")
        if state.startswith(("in-use", "detaching")):
            api.attach(volume)
    elif state.startswith("in-use") or state == "detaching":
        api.attached(volume, **({} if "no instance" in state else {"instance_uuid": VM}))
    elif state in {"reserved", "attaching"}:
        api.created(volume, instance_uuid=VM, host="host-a" if state == "attaching" else "")
    else:
        api.set(volume, status=state)
    if state.startswith("detaching"):
        api.action(volume, "os-begin_detaching")
    rows = api.rows(volume)
    return volume, rows[0]["id"] if rows else ""


def ask(api: Api, call: str, volume: str, attachment: str) -> requests.Response:
    service = call.endswith("(service)")
    calls: dict[str, Callable[[], requests.Response]] = {
        "os-attach other instance": lambda: api.attach(volume, OTHER_VM),
        "os-attach same instance": lambda: api.attach(volume),
        "os-initialize_connection": lambda: api.action(volume, "os-initialize_connection", {"connector": connector()}),
        "os-terminate_connection": lambda: api.action(
            volume, "os-terminate_connection", {"connector": connector()}, service=service
        ),
        "os-detach": lambda: api.detach(volume, service=service),
        "att. create(None, other inst.)": lambda: api.create(volume, instance_uuid=OTHER_VM),
        "att. create(conn, other inst.)": lambda: api.create(volume, host="host-b", instance_uuid=OTHER_VM),
        "att. create(None, same inst.)": lambda: api.create(volume, instance_uuid=VM),
        "att. update": lambda: api.update(attachment),
        "att. complete": lambda: api.complete(attachment),
        "att. delete": lambda: api.delete(attachment, service=service),
        "volume delete": lambda: api.call("DELETE", f"/volumes/{volume}"),
    }
    name = call.removesuffix(" (service)")
    return calls[name]() if name in calls else api.action(volume, name)


@pytest.mark.parametrize("call", PLAIN)
@pytest.mark.parametrize("multiattach", [False, True], ids=["plain", "multiattach"])
def test_a_call_in_every_state(tmp_path: Path, call: str, *, multiattach: bool) -> None:
    api = Api(tmp_path)
    cells = (MULTIATTACH if multiattach else PLAIN)[call].split()
    assert len(cells) == (9 if multiattach else len(STATES))
    checked = 0
    for state, cell in zip(STATES, cells, strict=False):
        if cell == "-":
            continue
        volume, attachment = bring(api, state, multiattach=multiattach)
        before = api.states(volume)[0]
        answer = ask(api, call, volume, attachment)
        where = f"{call} in {state}"
        assert str(answer.status_code) == cell[:3], where
        if cell[3] == "X":
            assert volume not in api.book()["volumes"], where
        else:
            expected = (STATUS[cell[3]], ATTACH_STATUS[cell[4]], sorted(ROW[letter] for letter in cell[5:]))
            status, attach_status, rows = api.states(volume)
            assert (status, attach_status, sorted(rows)) == expected, where
        if answer.status_code == 400:
            assert message(answer) == refusal(call, volume, before, multiattach=multiattach), where
        if answer.status_code == 500:
            assert message(answer) == GENERIC, where
        checked += 1
    assert checked >= 5
