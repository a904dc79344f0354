"""The steps' docstrings, and the shape of the flows that plan and graph show."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest

import tether.tasks.adopt
import tether.tasks.extend
import tether.tasks.guest
import tether.tasks.half
import tether.tasks.host
import tether.tasks.legacy
import tether.tasks.mapping
import tether.tasks.qos
import tether.tasks.release
import tether.tasks.repair
import tether.tasks.volume
from tether.errors import FinalError
from tether.flows import calls, plan, registry
from tether.persistence.params import Params
from tether.tasks.step import Step

ROOMS = (
    tether.tasks.adopt,
    tether.tasks.extend,
    tether.tasks.guest,
    tether.tasks.half,
    tether.tasks.host,
    tether.tasks.legacy,
    tether.tasks.mapping,
    tether.tasks.qos,
    tether.tasks.release,
    tether.tasks.repair,
    tether.tasks.volume,
)
STEPS = sorted(
    {
        item
        for room in ROOMS
        for item in vars(room).values()
        if isinstance(item, type) and issubclass(item, Step) and "code" in vars(item)
    },
    key=lambda step: step.code,
)
CASES = [
    Params(dialect=dialect, data_path=path, encrypted=encrypted)
    for dialect, path, encrypted in product(("attachments", "legacy"), ("host", "network"), (False, True))
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.code)
def test_every_step_declares_its_five_lines(step: type[Step]) -> None:
    facts = plan.facts_of(step)
    assert facts.title[0].isupper()
    for item in dataclasses.fields(facts):
        text = getattr(facts, item.name)
        assert text, item.name
        assert not {"`", "*"} & set(text), item.name
        assert not any(f"{label}:" in text for label in plan.LABELS), f"{item.name} holds another line's text"


def test_a_docstring_without_a_line_is_refused() -> None:
    class Silent(Step):
        """Do something.

        Effect: none. Key: none.
        """

        code = "silent/1"

        def act(self) -> None: ...

    with pytest.raises(FinalError, match="Compensation, Uncertain, Crash windows"):
        plan.facts_of(Silent)


def test_lines_are_told_apart_also_when_two_share_one() -> None:
    facts = plan.facts_of(tether.tasks.volume.ReserveVolume)
    assert facts.code == "reserve-volume/1"
    assert facts.name == "reserve-volume"
    assert "reserved" in facts.title
    assert facts.effect.startswith("POST /attachments")
    facts = plan.facts_of(tether.tasks.mapping.CreateMapping)
    assert (facts.effect, facts.key, facts.compensation) == ("a mapping row", "the job", "delete the row")


@pytest.mark.parametrize("kind", registry.CURRENT)
@pytest.mark.parametrize("params", CASES, ids=lambda case: f"{case.dialect}-{case.data_path}-{case.encrypted}")
def test_the_shape_is_that_of_the_flow_which_is_run(kind: str, params: Params) -> None:
    flows = plan.shape(kind, registry.CURRENT[kind], params)
    assert [flow.name for flow in flows] == [part.name for part in registry.parts(kind, registry.CURRENT[kind])]
    for flow in flows:
        names = [step.code for step in flow.steps]
        assert len(set(names)) == len(names)
        assert {name for edge in flow.edges for name in edge} == (set(names) if len(names) > 1 else set())
        assert all(names.index(before) < names.index(after) for before, after in flow.edges)
    names = [step.code.partition("/")[0] for flow in flows for step in flow.steps]
    on_host = params.data_path == "host"
    if kind not in {"attach", "detach"}:
        wanted = {"adopt": "adopt-device", "repair-connect": "reconnect-host", "repair-release": "disconnect-host"}
        wanted["extend"] = "extend-device"
        assert kind not in wanted or (wanted[kind] in names) == on_host
        return
    assert ("connect-host" in names or "disconnect-host" in names) == on_host
    assert ("open-encryption" in names or "close-encryption" in names) == (on_host and params.encrypted)
    assert any(name.endswith("-legacy") for name in names) == (params.dialect == "legacy")


PIVOTS = {"attach": "plug-live/1", "extend": "extend-volume/1", "detach": "unplug-live/1", "adopt": "adopt-disk/1"}


@pytest.mark.parametrize(("kind", "pivot"), PIVOTS.items())
@pytest.mark.parametrize("params", CASES, ids=lambda case: f"{case.dialect}-{case.data_path}-{case.encrypted}")
def test_the_pivot_is_the_last_step_that_may_be_undone(kind: str, pivot: str, params: Params) -> None:
    assert plan.pivot_of(plan.shape(kind, registry.CURRENT[kind], params)) == pivot


def test_a_step_of_a_flow_belongs_to_no_job() -> None:
    with pytest.raises(AttributeError):
        tether.tasks.mapping.ReadVolume().act()


@pytest.mark.parametrize("params", CASES, ids=lambda case: f"{case.dialect}-{case.data_path}-{case.encrypted}")
def test_every_step_of_every_flow_has_its_calls(params: Params) -> None:
    case = calls.Case(params, "v1", "guest1", live=True, link="/run/tether/volumes/v1")
    on_host = {"define-secret", "undefine-secret"} if params.data_path == "host" else set()
    for kind, version in registry.CURRENT.items():
        for flow in plan.shape(kind, version, params):
            for step in flow.steps:
                name = step.code.partition("/")[0]
                assert bool(calls.calls_of(name, case)) != (name in on_host), name


def test_calls_name_what_is_known() -> None:
    case = calls.Case(Params(mode="ro", owner_mark=False), "v1", "guest1", live=False, link="/l", target="vdc")
    (post,) = calls.calls_of("reserve-volume", case)
    assert '"volume_uuid": "v1"' in post
    assert '"mode": "ro"' in post
    assert "instance_uuid" not in post
    assert calls.calls_of("plug-live", case) == ()
    assert calls.calls_of("plug-persistent", case)[1] == "virsh attach-device guest1 disk.xml --config"
    assert calls.calls_of("create-mapping", case) == ("INSERT INTO tether_mappings (vdc of guest1)",)
