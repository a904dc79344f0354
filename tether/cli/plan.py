"""``tether plan``: what an attach or a detach would do. Nothing is changed."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from tether.cli.attach import Ask, Attach, Detach
from tether.cli.printable import one_line

if TYPE_CHECKING:
    from tether.runner.preview import PlannedStep, Preview

WIDTH = 100


class _Plan(Ask):
    """Prints a plan; for people as text, in every other format as one object."""

    preview: Preview
    fields = ()  # its own, which are known once it is made

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        self.check(parsed_args)
        with self.world(connects=True) as world:
            from tether.runner.preview import preview

            self.preview = preview(world.tools, self.kind, self.request(parsed_args))
        self.exit_code = self.preview.exit_code
        fields = _fields(self.preview)
        return tuple(fields), tuple(fields.values())

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        if parsed_args.formatter == "table" and not parsed_args.columns:
            self.app.stdout.write("".join(f"{one_line(line)}\n" for line in _text(self.preview)))
            self.app.stdout.flush()
        else:
            super().produce_output(parsed_args, column_names, data)
        refusal, by = self.preview.refusal, self.preview.refused_by
        if refusal is not None:
            self.app.say(f"tether: {refusal.message}" + f" (at {by})" * bool(by))
            self.app.say(f"next: {refusal.hint or 'correct the request'}")
        return 0


class PlanAttach(_Plan, Attach):  # type: ignore[misc]  # cliff's own `app`, as in the bases
    """Show what an attach would do: its steps, their compensations, the calls and the XML. Nothing is changed.

    Exits with 3 and the same message as the attach if that would be refused right now.
    """

    several = False


class PlanDetach(_Plan, Detach):  # type: ignore[misc]  # cliff's own `app`, as in the bases
    """Show what a detach would do: its steps, their compensations, the calls and the XML. Nothing is changed.

    Exits with 3 and the same message as the detach if that would be refused right now.
    """


def _fields(plan: Preview) -> dict[str, Any]:
    """Return the plan for programs."""
    return {
        "kind": plan.kind,
        "volume": plan.volume.name,
        "volume_id": plan.volume.id,
        "server": plan.server.name,
        "server_id": plan.server.uuid,
        "dialect": plan.params.dialect,
        "data_path": plan.params.data_path,
        "mode": plan.params.mode,
        "device": plan.slot.target if plan.slot else "",
        "bus": plan.params.bus,
        "address": dict(plan.slot.address) if plan.slot else {},
        "steps": [_step_fields(step) for step in plan.steps],
        "xml": dict(plan.xml or {}),
        "notes": list(plan.notes),
        "refused": plan.refusal.message if plan.refusal else "",
        "refused_by": plan.refused_by,
        "hint": plan.refusal.hint if plan.refusal else "",
        "exit_code": plan.exit_code,
    }


def _step_fields(step: PlannedStep) -> dict[str, Any]:
    return {
        "step": step.facts.code,
        "flow": step.flow,
        "what": step.facts.title,
        "effect": step.facts.effect,
        "compensation": step.facts.compensation,
        "forward_only": step.forward_only,
        "pivot": step.pivot,
        "calls": list(step.calls),
    }


def _text(plan: Preview) -> Iterator[str]:
    """Return the plan for people, line by line."""
    volume, server, params = plan.volume, plan.server, plan.params
    yield f"{plan.kind}: volume {volume.name or volume.id} ({volume.size} GiB, {volume.status})"
    yield f"{'':{len(plan.kind)}}  server {server.name} ({server.power})"
    if plan.slot:
        address = " ".join(f"{key}={value}" for key, value in plan.slot.address.items())
        yield f"{'':{len(plan.kind)}}  {plan.slot.target} on {params.bus}, {params.mode}; address {address}"
    yield f"{'':{len(plan.kind)}}  {params.dialect} dialect, {params.data_path} data path"
    for number, step in enumerate(plan.steps, 1):
        yield from _step_text(number, step)
    if plan.xml:
        verb = "plugged" if plan.kind == "attach" else "taken out"
        same = len(set(plan.xml.values())) == 1
        for scope, element in list(plan.xml.items())[: 1 if same else None]:
            where = " and ".join(plan.xml) if same else scope
            yield ""
            yield f"{verb} ({where} definition):"
            yield ""
            yield from (f"  {line}" for line in _indented(element).splitlines())
    for note in plan.notes:
        yield ""
        yield from textwrap.wrap(f"Note: {note}.", WIDTH)


def _step_text(number: int, step: PlannedStep) -> Iterator[str]:
    facts = step.facts
    yield ""
    mark = "  [pivot]" if step.pivot else "  [only forward]" if step.forward_only else ""
    yield f"{number:3}  {facts.name}{mark}"
    if facts.has_effect:
        yield from _wrapped("effect", facts.effect)
        yield from _wrapped("undo", facts.compensation)
    for call in step.calls or (() if not facts.has_effect else ("nothing to do in this case",)):
        yield from _wrapped("call" if facts.has_effect else "read", call)


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{'':5}{label:<7}",
        subsequent_indent=f"{'':14}",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _indented(element: str) -> str:
    tree = ET.fromstring(element)  # noqa: S314 - tether's own rendering, or libvirt's
    ET.indent(tree)
    return ET.tostring(tree, encoding="unicode")
