"""``tether plan`` and ``tether graph``: they tell the truth, and change nothing."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import requests

from tests.crash import judge
from tests.crash.world import SimWorld
from tether.sim.cinder.transport import SimTransport

VOL1 = "11111111-1111-4111-8111-111111111111"


def _plan(sim: SimWorld, *words: str, code: int = 0, first: tuple[str, ...] = ()) -> dict[str, Any]:
    done = sim.tether(*first, "plan", *words, "-f", "json")
    assert done.code == code, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def _everything(sim: SimWorld) -> tuple[Any, dict[str, list[Any]]]:
    """Return the five books, and every row of every table."""
    with sqlite3.connect(f"file:{sim.directory / 'tether.sqlite'}?mode=ro", uri=True) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
    return judge.snapshot(sim.directory), rows


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("format", ["table", "json", "yaml", "value", "shell"])
def test_a_plan_changes_nothing(sim: SimWorld, attached: bool, format: str) -> None:
    if attached:
        assert sim.tether("attach", "vol1", "guest1").code == 0
    before = _everything(sim)
    assert before[1]["tether_jobs"] if attached else not before[1]["tether_jobs"]
    for kind in ("attach", "detach"):
        done = sim.tether("plan", kind, "vol1", "guest1", "-f", format)
        assert done.code == (0 if attached or kind == "attach" else 6), done.err
        assert bool(done.out) == (done.code == 0)
    assert _everything(sim) == before


def test_the_xml_is_the_one_that_is_plugged(sim: SimWorld) -> None:
    plan = _plan(sim, "attach", "vol1", "guest1")
    done = sim.tether("attach", "vol1", "guest1")
    assert done.code == 0, done.err
    taken_out = _plan(sim, "detach", "vol1", "guest1")
    assert set(plan["xml"]) == {"persistent", "live"}
    for scope, element in plan["xml"].items():
        plugged = taken_out["xml"][scope]
        assert ET.canonicalize(element, strip_text=True) == ET.canonicalize(plugged, strip_text=True)
    assert plan["device"] == taken_out["device"]


@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
def test_the_calls_are_those_that_cinder_gets(
    sim: SimWorld, dialect: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "requests"
    send = SimTransport.send

    def record(self: SimTransport, request: requests.PreparedRequest, **more: Any) -> requests.Response:
        if request.method != "GET":
            action = next(iter(json.loads(request.body)), "") if request.body and "/action" in str(request.url) else ""
            with log.open("a") as lines:
                lines.write(f"{request.method} {_bare(str(request.url))} {action}".strip() + "\n")
        return send(self, request, **more)

    planned: list[str] = []
    for kind, more in (("attach", ("--dialect", dialect)), ("detach", ())):
        plan = _plan(sim, kind, "vol1", "guest1", *more)
        calls = [call for step in plan["steps"] for call in step["calls"]]
        planned += [
            f"{call.split()[0]} {_bare(call.split()[1])} {_action(call)}".strip()
            for call in calls
            if re.match(r"(POST|PUT|DELETE) /", call)
        ]
        with monkeypatch.context() as patch:
            patch.setattr(SimTransport, "send", record)
            assert sim.tether(kind, "vol1", "guest1", *more).code == 0
    assert log.read_text().splitlines() == planned
    assert len(planned) >= 5


def _bare(url: str) -> str:
    """Return a URL's path without its base, its query and every id."""
    path = re.sub(r"^https?://[^/]+/v3(/[0-9a-f]{32})?", "", url).partition("?")[0]
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|<attachment>", "ID", path)


def _action(call: str) -> str:
    found = re.search(r'/action \{"([\w-]+)"', call)
    return found[1] if found else ""


REFUSED = [
    ("vol2", "guest2", ()),
    ("vol1", "guest1", ("--device", "vda")),
    ("vol1", "guest1", ("--bus", "sata")),
    ("vol1", "guest1", ("--device", "vdb")),
    ("vol1", "guest1", ("--bus", "scsi", "--device", "vdb")),
    ("shared1", "guest1", ("--dialect", "legacy")),
    ("nowhere", "guest1", ()),
    ("vol1", "nobody", ()),
]


@pytest.mark.parametrize(("volume", "server", "more"), REFUSED)
def test_a_refusal_is_the_attachs_own(sim: SimWorld, volume: str, server: str, more: tuple[str, ...]) -> None:
    """The plan says what the attach then says, and ends with its code."""
    assert sim.tether("attach", "vol2", "guest1").code == 0
    plan = sim.tether("plan", "attach", volume, server, *more)
    attach = sim.tether("attach", volume, server, *more)
    assert attach.code in {2, 3, 6}, attach.err
    assert plan.code == attach.code
    first = next(line for line in attach.err.splitlines() if line.startswith("tether: "))
    assert first in plan.err.splitlines()
    assert plan.err.splitlines()[-1].startswith("next: ")


def test_a_detach_that_would_be_refused(sim: SimWorld) -> None:
    assert sim.tether("attach", "vol1", "paused1").code == 0
    plan = sim.tether("plan", "detach", "vol1", "paused1")
    assert plan.code == 3
    assert "tether: server paused1 is paused: it cannot answer an unplug (at check-detachable)" in plan.err
    assert "unplug-live" in plan.out
    assert sim.tether("detach", "vol1", "paused1").code == 3


def test_a_volume_that_a_job_holds(sim: SimWorld) -> None:
    assert sim.tether("--fault", "export-volume.act.after=kill", "attach", "vol1", "guest1").code == 137
    plan = sim.tether("plan", "attach", "vol1", "guest1")
    assert plan.code == 5
    assert "next: first: tether job resume " in plan.err


def test_on_the_network_path_the_source_is_a_placeholder(sim: SimWorld, tmp_path: Path) -> None:
    config = tmp_path / "tether.conf"
    config.write_text("[DEFAULT]\ndata_path = network\n")
    plan = _plan(sim, "attach", "vol1", "stopped1", first=("--config-file", str(config)))
    if plan["data_path"] != "network":
        pytest.fail(f"the world's data path is {plan['data_path']}")
    (element,) = plan["xml"].values()
    source = ET.fromstring(element).find("source")
    assert source is not None
    assert source.attrib == {"protocol": "iscsi", "name": "iqn-known-after-export/0"}
    assert source.find("host").attrib["name"] == "portal-known-after-export"  # type: ignore[union-attr]
    assert "iqn-known-after-export" in plan["notes"][0]
    steps = [step["step"].partition("/")[0] for step in plan["steps"]]
    assert "connect-host" not in steps
    live = next(step for step in plan["steps"] if step["step"] == "plug-live/1")
    assert live["calls"] == []  # the server is shut off


def test_what_is_attached_already_needs_no_steps(sim: SimWorld) -> None:
    assert sim.tether("attach", "vol1", "guest1").code == 0
    plan = _plan(sim, "attach", "vol1", "guest1")
    assert plan["steps"] == []
    assert plan["notes"] == ["nothing to do: volume vol1 is attached already (guest1)"]
    assert sim.tether("plan", "attach", "vol1", "guest1", "--mode", "ro").code == 2
    assert sim.tether("detach", "vol1", "guest1").code == 0
    assert _plan(sim, "detach", "vol1", "guest1")["steps"] == []


@pytest.mark.parametrize("format", ["dot", "mermaid", "svg"])
@pytest.mark.parametrize("kind", ["attach", "detach"])
def test_graph_asks_no_cloud(sim: SimWorld, kind: str, format: str) -> None:
    before = _everything(sim)
    done = sim.tether("graph", kind, "-f", format, "--dialect", "legacy", "--data-path", "network")
    assert (done.code, done.err) == (0, "")
    step = {"attach": "export-volume-legacy", "detach": "release-attachment-legacy"}[kind]
    assert step in done.out
    assert "connect-host" not in done.out
    assert _everything(sim) == before
