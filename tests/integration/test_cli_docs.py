"""The generated documents are up to date, and what the others tell a person to type does what they say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests import docs
from tests.tree import ROOT
from tether.cli.demo import environment

TUTORIAL = ROOT / "docs/tutorial.md"


@pytest.mark.parametrize("name", docs.DOCUMENTS)
def test_what_bin_docs_writes_is_what_is_there(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == docs.DOCUMENTS[name](), "run bin/docs"


def test_every_command_is_documented_with_its_options() -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == ["Global options", *docs.commands()]
    for option in ("--sim DIR", "--request-id KEY", "--data-path host\\|network", "--no-wait"):
        assert f"`{option}`" in text
    assert "--fault" not in text


def test_every_command_and_option_has_help() -> None:
    silent = []
    for words, command in docs.commands().items():
        parser = command(None, None).get_parser(f"tether {words}")
        if not parser.description:
            silent.append(words)
        silent += [f"{words} {docs._words(action)}" for action in parser._actions if not action.help]
    assert silent == []


def test_a_session_that_ends_otherwise_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "SESSION", ((("job", "show", "--last"), 0),))
    with pytest.raises(SystemExit, match="ended with 6, not 0"):
        docs.session()


def test_ids_and_times_in_a_session_are_made_equal() -> None:
    line = "job 0a1b2c3d-0000-4000-8000-0123456789ab of 2026-01-02T03:04:05Z"
    assert docs._settled(line) == "job <job> of <time>"


def test_readme_is_short_and_says_what_it_must() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    for words in ("guaranteed", "not guaranteed", "bin/try", "bin/test", "Alpha", "SIGKILL"):
        assert words in text


def _typed(path: Path) -> list[tuple[str, int]]:
    """Return the tether commands of a document's console blocks, each with the code that the document gives it."""
    found: list[tuple[str, int]] = []
    for block in re.findall(r"```console\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        lines = block.splitlines()
        for number, line in enumerate(lines):
            if line.startswith("$ tether "):
                after = lines[number + 1 : number + 3]
                code = int(after[1]) if after[:1] == ["$ echo $?"] else 137 if after[:1] == ["Killed"] else 0
                found.append((line.removeprefix("$ "), code))
    return found


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    typed = _typed(TUTORIAL)
    assert [code for _command, code in typed if code] == [3, 137, 4]
    words = f"{docs.PROGRAM[0]} {docs.PROGRAM[1]} '{docs.PROGRAM[2]}'"
    said = {}
    for command, code in typed:
        line = command.replace("/tmp/world", str(tmp_path / "world")).replace("tether ", f"{words} ", 1)
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        ended = 128 - done.returncode if done.returncode < 0 else done.returncode
        assert ended == code, f"{command}\n{done.stdout}{done.stderr}"
        said[command] = done.stdout + done.stderr
    last = said["tether --sim /tmp/world detach vol2 guest1"]
    assert "waiting for the guest" in last
    assert "next: " in last
    assert "interrupted" in said["tether --sim /tmp/world job list --open"]
    assert "connect-host" in said["tether --sim /tmp/world job list --open"]


def test_the_states_page_quotes_what_tether_says() -> None:
    """Each message of the page's table, the names aside, stands somewhere in tether's source."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tether").rglob("*.py"))
    joined = re.sub(r'"\s*\n?\s*f?"', "", source)
    text = (ROOT / "docs/states.md").read_text(encoding="utf-8").partition("## What")[2]
    quoted = re.findall(r"^\| \*(.+?)\*", text, re.MULTILINE)
    assert len(quoted) > 5
    for message in quoted:
        for part in message.split("…"):
            assert part.strip() in joined, message
