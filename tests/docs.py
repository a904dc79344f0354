"""Writes the generated documents; ``bin/docs`` runs it, and a test compares what it writes with what is there.

docs/cli.md               every command with its options, from the parsers
docs/attach.svg, detach.svg   the flows, as ``tether graph`` draws them
etc/tether.conf.sample    every setting, as oslo-config-generator prints them
docs/beside-nova.md       Nova's failures beside tether's, as tests/crash/nova.py has them
docs/protocols.md         every protocol and feature, as the tests' marks say
README.md                 the terminal session between its two marks
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import protocols
from tests.crash import nova_page
from tests.tree import ROOT
from tether.cli.demo import PROGRAM, environment

BEGIN, END = "<!-- session: bin/docs writes it -->\n", "<!-- end of session -->\n"
WORLD = "world"

#: The session in the README: what is typed, and the code that it must end with. {{}} is a world's option.
SESSION = (
    (("--fault", "connect-host.act.before=kill", "attach", "vol1", "guest1"), 137),
    (("job", "list", "-c", "kind", "-c", "state", "-c", "volume", "-c", "server", "-c", "step"), 0),
    (("job", "resume", "--last", "-c", "state"), 0),
    (("sim", "script", WORLD, "guest.plug_live", "fail"), 0),
    (("attach", "vol2", "guest1", "-c", "state"), 3),
    (("job", "show", "--last", "-c", "steps", "-f", "value"), 0),
)
NOTES = {137: "   # SIGKILL in the middle", 3: "     # not done, and nothing left"}


def session() -> str:
    """Return the terminal session, as a fenced block."""
    lines = ["```console"]
    with tempfile.TemporaryDirectory(prefix="tether-docs-") as scratch:
        for words, code in SESSION:
            given = ["--sim", WORLD] if words[0] != "sim" else []
            done = subprocess.run(
                [*PROGRAM, *given, *words],
                cwd=scratch,
                env=environment(Path(scratch)) | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            ended = 128 - done.returncode if done.returncode < 0 else done.returncode
            if ended != code:
                raise SystemExit(f"{words} ended with {ended}, not {code}:\n{done.stdout}")
            lines += [f"$ {shlex.join(['tether', *given, *words])}", *done.stdout.rstrip("\n").splitlines()]
            if code:
                lines += ["$ echo $?", f"{code}{NOTES[code]}"]
    return _settled("\n".join([*lines, "```"]) + "\n")


def _settled(text: str) -> str:
    """Return the text with ids of jobs and times of day made equal."""
    text = re.sub(r"\b[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\b", "<job>", text)
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "<time>", text)


def readme() -> str:
    """Return the README with a new session between its marks."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _old, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit("README.md has lost the marks of its session")
    return head + begin + session() + end + tail


def commands() -> dict[str, type[Any]]:
    """Return every command of pyproject.toml, by its words."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {}
    for words, target in project["entry-points"]["tether.commands"].items():
        module, _, name = target.partition(":")
        found[words] = getattr(importlib.import_module(module), name)
    return found


HEAD = """# Command line

Written by `bin/docs` from the commands' own parsers; do not edit. [Exit codes](exit-codes.md) · \
[states of a job](states.md)

Commands that print a result take `-f table|json|yaml|value|csv` (single objects: also `shell`) and \
`-c COLUMN`, once for each column wanted; `tether help COMMAND` names the rest of what the formats offer. Results are \
on standard output, everything else on standard error.

## Global options

They stand before the command: `tether --sim DIR attach …`.
"""


def reference() -> str:
    """Return the reference of the command line."""
    from tether.cli.main import Tether

    app = Tether()
    lines = [*HEAD.splitlines(), "", *_table(app.parser)]
    for words, command in commands().items():
        parser = command(app, None).get_parser(f"tether {words}")
        places = [action for action in parser._actions if not action.option_strings]
        usage = " ".join(
            [f"tether {words}", *(f"[{_name(each)}]" if each.nargs == "?" else _name(each) for each in places)]
        )
        lines += ["", f"## {words}", "", f"`{usage} [options]`", "", *_paragraphs(parser.description or "")]
        table = _table(parser)
        if table:
            lines += ["", *table]
    return "\n".join(lines) + "\n"


def _paragraphs(text: str) -> list[str]:
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())).splitlines()


def _table(parser: argparse.ArgumentParser) -> list[str]:
    own = [action for group in parser._action_groups if _is_ours(group) for action in group._group_actions]
    rows = [
        f"| {_words(action)} | {_cell(action.help or '')} |"
        for action in own
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
    ]
    return ["| option | |", "|---|---|", *rows] if rows else []


def _is_ours(group: Any) -> bool:
    """Return False for the options that cliff adds to every command with a result."""
    return "format" not in (group.title or "").lower()


def _words(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_name(action)}`"
    value = "" if action.nargs == 0 else f" {_name(action)}"
    return ", ".join(f"`{option}{value}`" for option in action.option_strings).replace("|", "\\|")


def _name(action: argparse.Action) -> str:
    if action.metavar:
        return str(action.metavar)
    return "|".join(map(str, action.choices)) if action.choices else action.dest.upper()


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"%\(prog\)s", "tether", text)


def sample() -> str:
    """Return the sample configuration."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GENERATE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.replace(" - <No description provided>", "")


#: oslo-config-generator with the options of this checkout, installed or not.
GENERATE = """
import sys
from oslo_config import generator
from tether import settings
generator._list_opts = lambda namespaces: [("tether", settings.list_options())]
generator.main(["--namespace", "tether", "--wrap-width", "110"])
"""


def picture(kind: str) -> str:
    """Return the drawing of a flow."""
    from tether.flows.graph import graph
    from tether.flows.svg import to_svg
    from tether.persistence.params import Params

    return to_svg(graph(kind, Params()))


DOCUMENTS: dict[str, Callable[[], str]] = {
    "README.md": readme,
    "docs/cli.md": reference,
    "docs/beside-nova.md": nova_page.page,
    "docs/protocols.md": protocols.page,
    "docs/attach.svg": lambda: picture("attach"),
    "docs/detach.svg": lambda: picture("detach"),
    "etc/tether.conf.sample": sample,
}


def main() -> None:
    """Write what is out of date, and name it."""
    sys.modules.setdefault("eventlet", None)  # type: ignore[arg-type]  # as tether's main does it
    for name, write in DOCUMENTS.items():
        path, text = ROOT / name, write()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"written: {name}")


if __name__ == "__main__":
    main()
