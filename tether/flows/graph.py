"""A job's flows as one directed graph, and its text in the languages of graphviz and mermaid."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import networkx as nx

from tether.flows.plan import facts_of, pivot_of, shape
from tether.flows.registry import CURRENT
from tether.persistence.params import Params

#: Fill and border of a step, by what it touches.
COLOURS = {
    "": ("#f3f4f6", "#6b7280"),
    "ledger": ("#e0e7ff", "#4f46e5"),
    "cinder": ("#fee2e2", "#dc2626"),
    "host": ("#fef3c7", "#d97706"),
    "guest": ("#dcfce7", "#16a34a"),
}


def graph(kind: str, params: Params) -> nx.DiGraph:
    """Return the graph of an attach or a detach, as the registry builds it for one case.

    A node is a step's durable name; its attributes are ``label``, ``flow``, ``book`` (empty: it only reads),
    ``effect``, ``compensation``, ``pivot`` and ``forward_only``. An edge says that one step waits for another; edges
    that follow from others are left out. ``between_flows`` is True on an edge from one flow to the next.
    """
    flows = shape(kind, CURRENT[kind], params)
    pivot = pivot_of(flows)
    result = nx.DiGraph(name=kind)
    for flow in flows:
        for step in flow.steps:
            facts = facts_of(step)
            result.add_node(
                step.code,
                label=facts.name,
                flow=flow.name,
                book=step.book if facts.has_effect else "",
                effect=facts.effect,
                compensation=facts.compensation,
                pivot=step.code == pivot,
                forward_only=step.forward_only,
            )
        result.add_edges_from(flow.edges, between_flows=False)
    for before, after in pairwise(flows):
        result.add_edge(before.steps[-1].code, after.steps[0].code, between_flows=True)
    reduced = nx.transitive_reduction(result)
    reduced.graph.update(result.graph)
    reduced.add_nodes_from(result.nodes(data=True))
    reduced.add_edges_from((before, after, result.edges[before, after]) for before, after in reduced.edges)
    return reduced


def to_mermaid(flow: nx.DiGraph) -> str:
    """Return the graph in mermaid's language."""
    return "\n".join(["flowchart TD", *_mermaid(flow)]) + "\n"


def _mermaid(flow: nx.DiGraph) -> Iterator[str]:
    for name, members in _flows(flow):
        yield f"  subgraph {name}"
        for step in members:
            data = flow.nodes[step]
            left, right = ("{{", "}}") if data["pivot"] else ("(", ")") if not data["book"] else ("[", "]")
            yield f'    {data["label"]}{left}"{data["label"]}{" (pivot)" * data["pivot"]}"{right}'
        yield "  end"
    for before, after, between in flow.edges(data="between_flows"):
        arrow = "==>" if between else "-->"
        yield f"  {flow.nodes[before]['label']} {arrow} {flow.nodes[after]['label']}"
    for book, (fill, border) in COLOURS.items():
        members = [data["label"] for _step, data in flow.nodes(data=True) if data["book"] == book]
        if members:
            yield f"  classDef {book or 'reads'} fill:{fill},stroke:{border},color:#111827"
            yield f"  class {','.join(members)} {book or 'reads'}"


def to_dot(flow: nx.DiGraph) -> str:
    """Return the graph in graphviz's language."""
    return "\n".join([f'digraph "{flow.graph["name"]}" {{', *_dot(flow), "}"]) + "\n"


def _dot(flow: nx.DiGraph) -> Iterator[str]:
    yield '  node [shape=box, style="rounded,filled", fontname="sans-serif"];'
    for name, members in _flows(flow):
        yield f'  subgraph "cluster_{name}" {{'
        yield f'    label="{name}";'
        for step in members:
            data = flow.nodes[step]
            fill, border = COLOURS[data["book"]]
            extra = ", penwidth=3" if data["pivot"] else ""
            label = f"{data['label']}{' (pivot)' * data['pivot']}"
            yield (
                f'    "{data["label"]}" [label="{label}", tooltip="{_quoted(data["compensation"])}",'
                f' fillcolor="{fill}", color="{border}"{extra}];'
            )
        yield "  }"
    for before, after, between in flow.edges(data="between_flows"):
        style = " [style=bold]" if between else ""
        yield f'  "{flow.nodes[before]["label"]}" -> "{flow.nodes[after]["label"]}"{style};'


def _quoted(text: str) -> str:
    return "Compensation: " + text.replace("\\", "\\\\").replace('"', '\\"')


def _flows(flow: nx.DiGraph) -> list[tuple[str, list[str]]]:
    """Return the names of the flows, each with its steps in order."""
    result: dict[str, list[str]] = {}
    for step in nx.lexicographical_topological_sort(flow, key=list(flow.nodes).index):
        result.setdefault(flow.nodes[step]["flow"], []).append(step)
    return list(result.items())
