"""What a job's steps would do, from their own docstrings: nothing is run and nothing is asked."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from itertools import pairwise

from tether.errors import FinalError
from tether.flows.registry import parts
from tether.persistence.params import Params
from tether.tasks.step import Step

LABELS = ("Effect", "Key", "Compensation", "Uncertain", "Crash windows")
_LABEL = re.compile(rf"(?:^|(?<=\.\s)|(?<=\n))({'|'.join(LABELS)}):\s")


@dataclass(frozen=True)
class StepFacts:
    """What a step's docstring declares.

    Args:
        code: the step's durable name with its version.
        title: what it does, in one sentence.
        windows: the moments at which a crash matters.
    """

    code: str
    title: str
    effect: str
    key: str
    compensation: str
    uncertain: str
    windows: str

    @property
    def name(self) -> str:
        """The step's name without its version."""
        return self.code.partition("/")[0]

    @property
    def has_effect(self) -> bool:
        """False for a step that only reads."""
        return not self.effect.startswith("none")


def facts_of(step: type[Step]) -> StepFacts:
    """Return what a step declares.

    Raises:
        FinalError: its docstring lacks one of the five lines.
    """
    head, *rest = _LABEL.split(inspect.getdoc(step) or "")
    said = dict(zip(rest[::2], (_plain(text) for text in rest[1::2]), strict=True))
    missing = [label for label in LABELS if not said.get(label)]
    if missing:
        raise FinalError(f"the docstring of {step.__name__} does not say: {', '.join(missing)}")
    title = _plain(head.partition("\n")[0])
    return StepFacts(step.code, title, *(said[label] for label in LABELS))


def _plain(text: str) -> str:
    """Return docstring text as one line without its markup."""
    return re.sub(r"\*([\w-]+)\*", r"\1", " ".join(text.split()).replace("``", "")).rstrip(".")


@dataclass(frozen=True)
class FlowShape:
    """One flow of a job as TaskFlow has it.

    Args:
        revertible: False for a flow past the job's pivot.
        steps: in an order that respects every edge.
        edges: pairs of step names: the links of the builder, and those that TaskFlow adds because one step needs
            another's result.
    """

    name: str
    revertible: bool
    steps: tuple[type[Step], ...]
    edges: tuple[tuple[str, str], ...]


def shape(kind: str, version: int, params: Params) -> list[FlowShape]:
    """Return the flows of a job for one case, from the registry's own builders."""
    return [
        FlowShape(
            part.name,
            part.revertible,
            tuple(type(step) for step, _data in flow.iter_nodes()),
            tuple((before.name, after.name) for before, after, _data in flow.iter_links()),
        )
        for part in parts(kind, version)
        for flow in [part.build(params)]
    ]


def pivot_of(flows: list[FlowShape]) -> str:
    """Return the name of the step after which the job only goes forward: the last one that may still be undone.

    Where that one only reads, it is the first effect, which can never be undone.
    """
    steps = [step for flow in flows for step in flow.steps]
    before, after = next(pair for pair in pairwise(steps) if pair[1].forward_only and not pair[0].forward_only)
    return before.code if before.book else after.code
