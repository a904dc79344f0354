"""Draws a flow's graph: one row for each generation of steps, effect and compensation beside each."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import networkx as nx

from tether.flows.graph import COLOURS

BOX_WIDTH, BOX_HEIGHT = 190, 40
ROW_GAP, COLUMN_GAP, MARGIN = 34, 30, 24
NOTE_WIDTH, LINE, TITLE = 470, 15, 64
WRAP = 76
INK, QUIET, PAPER = "#111827", "#6b7280", "#ffffff"


@dataclass(frozen=True)
class _Box:
    x: float
    y: float

    @property
    def middle(self) -> float:
        return self.x + BOX_WIDTH / 2


def to_svg(flow: nx.DiGraph) -> str:
    """Return the graph as an SVG image."""
    rows = [sorted(row, key=list(flow.nodes).index) for row in nx.topological_generations(flow)]
    boxes, height = _place(flow, rows)
    columns = max(len(row) for row in rows)
    notes_at = MARGIN + columns * BOX_WIDTH + (columns - 1) * COLUMN_GAP + MARGIN
    width = notes_at + NOTE_WIDTH + MARGIN
    svg = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "font-family": "DejaVu Sans, Verdana, sans-serif",
        },
    )
    ET.SubElement(svg, "rect", {"width": "100%", "height": "100%", "fill": PAPER})
    arrow = ET.SubElement(ET.SubElement(svg, "defs"), "marker", _marker())
    ET.SubElement(arrow, "path", {"d": "M0 0 L10 5 L0 10 z", "fill": QUIET})
    _text(svg, MARGIN, MARGIN + 8, f"tether {flow.graph['name']}", size=18, weight="bold")
    _legend(svg, MARGIN, MARGIN + 30)
    for before, after, between in flow.edges(data="between_flows"):
        _edge(svg, boxes[before], boxes[after], thick=bool(between))
    for row in rows:
        for step in row:
            _step(svg, flow.nodes[step], boxes[step])
        for line, style in _notes_at(flow, row, boxes):
            _text(svg, notes_at, line[0], line[1], size=11, fill=style)
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode") + "\n"


def _place(flow: nx.DiGraph, rows: list[list[str]]) -> tuple[dict[str, _Box], float]:
    """Return where each box is, and the height of the whole."""
    columns = max(len(row) for row in rows)
    full = columns * BOX_WIDTH + (columns - 1) * COLUMN_GAP
    boxes: dict[str, _Box] = {}
    y: float = MARGIN + TITLE
    for row in rows:
        wide = len(row) * BOX_WIDTH + (len(row) - 1) * COLUMN_GAP
        for place, step in enumerate(row):
            boxes[step] = _Box(MARGIN + (full - wide) / 2 + place * (BOX_WIDTH + COLUMN_GAP), y)
        y += max(BOX_HEIGHT, LINE * len(_notes(flow, row))) + ROW_GAP
    return boxes, y - ROW_GAP + MARGIN


def _notes(flow: nx.DiGraph, row: list[str]) -> list[tuple[str, str]]:
    """Return the lines beside a row, each with its colour: effect and compensation of the steps that have one."""
    lines: list[tuple[str, str]] = []
    for step in row:
        data = flow.nodes[step]
        if data["book"]:
            lines += [(text, INK) for text in textwrap.wrap(data["effect"], WRAP)]
            undo = textwrap.wrap(f"↩ {data['compensation']}", WRAP, subsequent_indent="   ")
            lines += [(text, QUIET) for text in undo]
    return lines


def _notes_at(flow: nx.DiGraph, row: list[str], boxes: dict[str, _Box]) -> Iterator[tuple[tuple[float, str], str]]:
    for number, (text, colour) in enumerate(_notes(flow, row)):
        yield (boxes[row[0]].y + 12 + number * LINE, text), colour


def _step(svg: ET.Element, data: dict[str, object], box: _Box) -> None:
    fill, border = COLOURS[str(data["book"])]
    shape = {
        "x": f"{box.x:g}",
        "y": f"{box.y:g}",
        "width": str(BOX_WIDTH),
        "height": str(BOX_HEIGHT),
        "rx": "8",
        "fill": fill,
        "stroke": border,
        "stroke-width": "3" if data["pivot"] else "1.2",
    }
    if data["forward_only"]:
        shape["stroke-dasharray"] = "5 3"
    rectangle = ET.SubElement(svg, "rect", shape)
    ET.SubElement(rectangle, "title").text = f"Compensation: {data['compensation']}"
    pivot = bool(data["pivot"])
    _text(svg, box.middle, box.y + (18 if pivot else 25), str(data["label"]), size=13, anchor="middle")
    if pivot:
        _text(svg, box.middle, box.y + 33, "pivot", size=10, fill=border, anchor="middle")


def _edge(svg: ET.Element, before: _Box, after: _Box, *, thick: bool) -> None:
    top, bottom = before.y + BOX_HEIGHT, after.y - 2
    bend = min(ROW_GAP, (bottom - top) / 2)
    path = (
        f"M{before.middle:g} {top:g} L{before.middle:g} {bottom - 2 * bend:g}"
        f" C{before.middle:g} {bottom - bend:g} {after.middle:g} {bottom - bend:g} {after.middle:g} {bottom:g}"
    )
    ET.SubElement(
        svg,
        "path",
        {
            "d": path,
            "fill": "none",
            "stroke": QUIET,
            "stroke-width": "3" if thick else "1.4",
            "marker-end": "url(#arrow)",
        },
    )


def _legend(svg: ET.Element, x: float, y: float) -> None:
    for book, (fill, border) in COLOURS.items():
        swatch = {"x": f"{x:g}", "y": f"{y:g}", "width": "12", "height": "12", "rx": "3", "fill": fill}
        ET.SubElement(svg, "rect", swatch | {"stroke": border})
        word = book or "reads only"
        _text(svg, x + 18, y + 10, word, size=11, fill=QUIET)
        x += 18 + 6.6 * len(word) + 16
    _text(svg, x, y + 10, "dashed: only goes forward  ·  ↩ compensation", size=11, fill=QUIET)


def _text(
    svg: ET.Element,
    x: float,
    y: float,
    text: str,
    *,
    size: int,
    fill: str = INK,
    anchor: str = "start",
    weight: str = "normal",
) -> None:
    attributes = {"x": f"{x:g}", "y": f"{y:g}", "font-size": str(size), "fill": fill}
    ET.SubElement(svg, "text", attributes | {"text-anchor": anchor, "font-weight": weight}).text = text


def _marker() -> dict[str, str]:
    return {
        "id": "arrow",
        "viewBox": "0 0 10 10",
        "refX": "9",
        "refY": "5",
        "markerWidth": "8",
        "markerHeight": "8",
        "markerUnits": "userSpaceOnUse",
        "orient": "auto",
    }
