"""The matrix as one page: a picture, point by action, with the log of every case behind its cell."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from string import Template

from tether.faults import ACTIONS
from tether.matrix.points import Point
from tether.matrix.trial import Verdict

#: From the one that must be seen to the one that need not.
LOOKS = {
    "violation": ("!", "the books do not agree, or the job did not end"),
    "blocked": ("■", "blocked: the legacy dialect cannot tell whose the volume is"),
    "rolled-back": ("↩", "rolled back: nothing is left"),
    "done": ("✓", "done: attached, detached, or carried out at the second time"),
    "nothing": ("○", "nothing was begun"),
}
_ENDS = dict.fromkeys(("attached", "detached", "prepared", "released", "repeated"), "done")

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>tether: the fault matrix</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light; font: 14px/1.45 system-ui, sans-serif; color: #1d2430; background: #fff; }
body { margin: 2rem auto; max-width: 82rem; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0 .75rem; max-width: 60rem; } .small { color: #5b6575; }
table { border-collapse: collapse; } th, td { padding: .12rem .35rem; text-align: left; }
thead th { position: sticky; top: 0; background: #fff; font-weight: 600; border-bottom: 1px solid #c9d0da; }
td.point { font: 12.5px ui-monospace, monospace; padding-right: 1.5rem; white-space: nowrap; }
tr:hover td { background: #f4f6f9; }
button { font: inherit; width: 3.4rem; border: 0; border-radius: 3px; cursor: pointer; padding: .05rem 0; }
button:focus-visible { outline: 2px solid #1d2430; }
.done { background: #cfe8d5; color: #114b23; } .rolled-back { background: #d3e2f7; color: #163a6b; }
.nothing { background: #e8eaee; color: #3c4452; } .blocked { background: #fbe3b0; color: #5e4100; }
.violation { background: #c62828; color: #fff; font-weight: 700; }
.legend span { display: inline-block; margin-right: 1.2rem; } .legend b { padding: 0 .45rem; border-radius: 3px; }
dialog { max-width: 76rem; width: 92%; max-height: 86vh; border: 1px solid #9aa4b2; border-radius: 6px; }
pre { background: #f4f6f9; padding: .6rem .8rem; overflow-x: auto; font-size: 12px; white-space: pre-wrap; }
.bad { color: #b71c1c; font-weight: 600; }
</style></head><body>
<h1>The fault matrix</h1>
<p>$summary</p>
<p class="small">A row is a point in the program, a column what goes wrong there. A cell counts its cases (one in each
phase of each flow that passes the point) and shows the worst end among them; click it for their logs. An empty cell
cannot be, or would be the same as its neighbour.</p>
<p class="legend">$legend</p>
$tables
<dialog id="box"><form method="dialog"><button style="float:right;width:auto;padding:.2rem .8rem">close</button></form>
<div id="cases"></div></dialog>
<script type="application/json" id="data">$data</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent);
const text = (tag, words, name) => { const e = document.createElement(tag); e.textContent = words;
  if (name) e.className = name; return e; };
document.addEventListener("click", event => {
  const key = event.target.dataset && event.target.dataset.cell;
  if (!key) return;
  const box = document.getElementById("cases");
  box.replaceChildren(text("h2", key));
  for (const one of data[key]) {
    box.append(text("h3", one.case), text("p", one.end + ", " + one.seconds + " s"));
    for (const line of one.violations) box.append(text("p", line, "bad"));
    box.append(text("pre", one.log));
  }
  document.getElementById("box").showModal();
});
</script></body></html>
""")


def look(verdict: Verdict) -> str:
    """Return how a case ended, as the page shows it."""
    return "violation" if verdict.violations else _ENDS.get(verdict.end, verdict.end)


def page(summary: str, points: Iterable[Point], cells: Mapping[tuple[str, str], Sequence[Verdict]]) -> str:
    """Return the page.

    Args:
        cells: by point and action; a case with two faults is in both of its cells.
    """
    data: dict[str, list[dict[str, object]]] = {}
    tables = []
    kinds: dict[str, list[Point]] = {}
    for point in points:
        kinds.setdefault(point.kind, []).append(point)
    for kind, members in kinds.items():
        actions = [action for action in ACTIONS if any(action in point.actions for point in members)]
        rows = []
        for point in members:
            found = {f"{point.name}={action}": cells.get((point.name, action), ()) for action in actions}
            shown = "".join(_cell(name, verdicts) for name, verdicts in found.items())
            rows.append(f'<tr><td class="point">{html.escape(point.name)}</td>{shown}</tr>')
            data |= {name: [_shown(each) for each in verdicts] for name, verdicts in found.items() if verdicts}
        heads = "".join(f'<th title="{html.escape(ACTIONS[action])}">{action}</th>' for action in actions)
        tables.append(
            f"<h2>{kind} points</h2><table><thead><tr><th>point</th>{heads}</tr></thead><tbody>{''.join(rows)}"
            "</tbody></table>"
        )
    legend = "".join(
        f'<span><b class="{name}">{mark}</b> {html.escape(words)}</span>' for name, (mark, words) in LOOKS.items()
    )
    return _PAGE.substitute(
        summary=html.escape(summary),
        legend=legend,
        tables="\n".join(tables),
        data=json.dumps(data).replace("</", "<\\/"),
    )


def _cell(name: str, verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "<td></td>"
    worst = min((look(each) for each in verdicts), key=list(LOOKS).index)
    mark, count = LOOKS[worst][0], len(verdicts)
    return f'<td><button class="{worst}" data-cell="{html.escape(name)}">{mark} {count}</button></td>'


def _shown(verdict: Verdict) -> dict[str, object]:
    return {name: getattr(verdict, name) for name in ("case", "end", "violations", "seconds", "log")}
