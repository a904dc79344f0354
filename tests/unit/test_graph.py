"""The graph of a flow, and its three languages."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from xml.etree import ElementTree as ET

import networkx as nx
import pytest

from tether.flows import graph, svg
from tether.flows.plan import shape
from tether.persistence.params import Params

SVG = "{http://www.w3.org/2000/svg}"
CASES = [
    (kind, Params(data_path=path, encrypted=path == "host"))
    for kind in ("attach", "detach")
    for path in ("host", "network")
]
cases = pytest.mark.parametrize(("kind", "params"), CASES, ids=lambda value: getattr(value, "data_path", value))


def test_reads_have_no_edge_between_them() -> None:
    flow = graph.graph("attach", Params())
    reads = {"read-volume/1", "read-server/1", "read-connector/1"}
    assert set(next(nx.topological_generations(flow))) == reads
    for read in reads:
        assert list(flow.successors(read)) == ["check-attachable/1"]


@cases
def test_nothing_is_lost_by_leaving_out_what_follows(kind: str, params: Params) -> None:
    flow = graph.graph(kind, params)
    for part in shape(kind, 1, params):
        assert all(nx.has_path(flow, before, after) for before, after in part.edges)
    assert set(nx.transitive_reduction(flow).edges) == set(flow.edges)
    assert all(data["label"] and data["compensation"] for _step, data in flow.nodes(data=True))


@cases
def test_one_pivot_and_only_forward_after_it(kind: str, params: Params) -> None:
    flow = graph.graph(kind, params)
    (pivot,) = [step for step, data in flow.nodes(data=True) if data["pivot"]]
    assert {step for step, data in flow.nodes(data=True) if data["forward_only"]} == nx.descendants(flow, pivot)
    between = [edge for edge in flow.edges if flow.edges[edge]["between_flows"]]
    assert between == ([] if kind == "attach" else [("unplug-live/1", "undefine-secret/1")])


@cases
def test_mermaid_and_dot_have_every_step_and_every_edge(kind: str, params: Params) -> None:
    flow = graph.graph(kind, params)
    labels = {data["label"] for _step, data in flow.nodes(data=True)}
    edges = {(flow.nodes[before]["label"], flow.nodes[after]["label"]) for before, after in flow.edges}
    mermaid = graph.to_mermaid(flow)
    assert mermaid.startswith("flowchart TD\n")
    assert set(re.findall(r"^  ([\w-]+) (?:-->|==>) ([\w-]+)$", mermaid, re.MULTILINE)) == edges
    assert set(re.findall(r'^    ([\w-]+)[\[({]+"', mermaid, re.MULTILINE)) == labels
    dot = graph.to_dot(flow)
    assert set(re.findall(r'^  "([\w-]+)" -> "([\w-]+)"', dot, re.MULTILINE)) == edges
    assert set(re.findall(r'^    "([\w-]+)" \[', dot, re.MULTILINE)) == labels
    assert dot.count("{") == dot.count("}")
    assert dot.count('"') % 2 == 0


@cases
def test_svg_boxes_do_not_overlap_and_lie_inside(kind: str, params: Params) -> None:
    flow = graph.graph(kind, params)
    image = ET.fromstring(svg.to_svg(flow))
    width, height = float(image.attrib["width"]), float(image.attrib["height"])
    boxes = [
        tuple(float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        for box in image.iter(f"{SVG}rect")
        if box.find(f"{SVG}title") is not None
    ]
    assert len(boxes) == len(flow)
    for x, y, wide, high in boxes:
        assert 0 <= x <= x + wide <= width
        assert 0 <= y <= y + high <= height
    for (x, y, wide, high), (other_x, other_y, _wide, _high) in combinations(boxes, 2):
        assert abs(x - other_x) >= wide or abs(y - other_y) >= high
    texts = {text.text for text in image.iter(f"{SVG}text")}
    assert {data["label"] for _step, data in flow.nodes(data=True)} <= texts
    lines = sorted(float(text.attrib["y"]) for text in image.iter(f"{SVG}text") if text.attrib["font-size"] == "11")
    beside = [y for y in lines if y > min(box[1] for box in boxes)]
    assert beside
    assert all(after - before >= svg.LINE for before, after in pairwise(beside))
    assert beside[-1] < height
