"""The command line, as a person and as a program use it."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.crash import judge
from tests.crash.world import DONE, KILLED, SimWorld
from tests.integration.commands import run
from tests.tree import ROOT

WORDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["tether.commands"]
VOL1 = "11111111-1111-4111-8111-111111111111"
GUEST1 = "9e570000-0000-4000-8000-000000000001"
ESCAPE = "\x1b"

#: Every command with a result, as it is asked for once vol1 is attached to guest1.
RESULTS = {
    "attach": ["attach", "vol1", "guest1"],
    "detach": ["detach", "vol1", "guest1"],
    "explain": ["explain", "vol1"],
    "job list": ["job", "list"],
    "job show": ["job", "show", "--last"],
    "job resume": ["job", "resume", "--last"],
    "key show": ["key", "show"],
    "mapping list": ["mapping", "list"],
    "mapping show": ["mapping", "show", "vol1", "guest1"],
    "plan attach": ["plan", "attach", "vol2", "guest1"],
    "plan detach": ["plan", "detach", "vol1", "guest1"],
    "sim show": ["sim", "show", "DIR"],
}
LISTS = {"job list", "job resume", "mapping list", "sim show"}


def of(sim: SimWorld, command: str) -> list[str]:
    return [word.replace("DIR", str(sim.directory)) for word in RESULTS[command]]


# -- every command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(WORDS))
def test_every_command_has_a_module_and_help(sim: SimWorld, command: str) -> None:
    module, _, name = WORDS[command].partition(":")
    assert importlib.util.find_spec(module), f"{module} is missing"
    assert hasattr(importlib.import_module(module), name)
    done = run(sim, *command.split(), "--help", bare=True)
    assert (done.code, done.err) == (0, "")
    assert f"usage: tether {command}" in done.out
    assert len(done.out.split("options:")[0].splitlines()) > 3, "it says what it is for"


def test_every_command_with_a_result_is_in_the_table() -> None:
    formats = {
        command
        for command, where in WORDS.items()
        if importlib.util.find_spec(where.partition(":")[0]) and _has_formats(where)
    }
    tested_apart = {"adopt", "audit", "extend", "faults list", "faults run", "job abort", "job settle"}
    tested_apart |= {"migrate abort", "migrate complete", "migrate prepare", "qos", "reconnect", "repair"}
    assert formats - tested_apart == set(RESULTS)


def _has_formats(where: str) -> bool:
    from tether.cli.base import Lister, ShowOne

    module, _, name = where.partition(":")
    return issubclass(getattr(importlib.import_module(module), name), Lister | ShowOne)


PARSERS: dict[str, Any] = {
    "json": json.loads,
    "yaml": yaml.safe_load,
    "value": str.splitlines,
    "csv": lambda text: list(csv.reader(io.StringIO(text))),
    "table": str.splitlines,
}


@pytest.mark.parametrize("command", RESULTS)
def test_results_go_to_stdout_in_every_format_and_nothing_else(attached: SimWorld, command: str) -> None:
    for kind, parse in PARSERS.items():
        done = run(attached, *of(attached, command), "-f", kind)
        assert done.code == 0, done.err
        assert done.err == ""
        assert ESCAPE not in done.out
        found = parse(done.out)
        assert found, kind
        if kind == "json":
            first = found[0] if command in LISTS else found
            assert {name for name in first if not re.fullmatch("[a-z0-9_]+", name)} == set()
        if kind == "yaml":
            assert isinstance(found, list if command in LISTS else dict)
        if kind == "csv":
            assert len({len(row) for row in found}) == 1
        if kind == "table" and not command.startswith("plan"):  # that one is prose
            assert len({len(line) for line in found}) == 1


def test_columns_can_be_chosen(attached: SimWorld) -> None:
    done = run(attached, "job", "list", "-f", "value", "-c", "volume", "-c", "state")
    assert done.out.split() in (["attached", "vol1"], ["vol1", "attached"])


def test_a_refused_attach_has_the_columns_of_one_that_is_done(sim: SimWorld) -> None:
    shown = json.loads(run(sim, "attach", "vol1", "guest1", "--device", "vda", "-f", "json").out)
    assert shown["state"] == "rolled-back"
    assert shown["device"] == shown["bus"] == shown["mode"] == ""
    assert set(shown) == set(json.loads(run(sim, "attach", "vol1", "guest1", "-f", "json").out))


CHILD = (sys.executable, "-c", "import sys; from tether.cli.main import main; sys.exit(main())")


@pytest.mark.parametrize(
    ("streams", "code", "says"),
    [
        (">&-", 0, ""),
        (">/dev/full", 1, "cannot be written: No space left on device"),
        ("2>&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
    ],
)
def test_streams_that_cannot_be_written(sim: SimWorld, streams: str, code: int, says: str) -> None:
    words = [*CHILD, "--sim", str(sim.directory), "attach", "vol1", "guest1"]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {streams}', "-", *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert sim.jobs() == [("attach", "attached")]


def test_a_failure_keeps_its_code_where_stderr_cannot_be_written(sim: SimWorld) -> None:
    sim.script("guest.plug_live", "fail")
    words = [*CHILD, "--sim", str(sim.directory), "attach", "vol1", "guest1", "-f", "value", "-c", "state"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=full, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (3, "rolled-back\n")


@pytest.mark.parametrize(
    "words", [["--server", "guest1"], ["--volume", "vol1"], ["--server", GUEST1, "--volume", VOL1]]
)
def test_mappings_are_found_by_name_and_by_id(attached: SimWorld, words: list[str]) -> None:
    assert run(attached, "attach", "vol2", "guest2").code == DONE
    (row,) = json.loads(run(attached, "mapping", "list", *words, "-f", "json").out)
    assert (row["volume"], row["server"], row["volume_id"], row["server_id"]) == ("vol1", "guest1", VOL1, GUEST1)
    assert json.loads(run(attached, "mapping", "list", "--server", "guest9", "-f", "json").out) == []


def test_a_stdout_without_utf_8_loses_nothing(sim: SimWorld) -> None:
    rename(sim, "vol1", "Größe")
    words = [*CHILD, "--sim", str(sim.directory), "attach", VOL1, "guest1", "-f", "value", "-c", "volume"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert (done.returncode, done.stdout) == (0, "Gr\\xf6\\xdfe\n"), done.stderr


def test_abort_prints_a_result_too(sim: SimWorld) -> None:
    assert run(sim, "--fault", "connect-host.act.after=kill", "attach", "vol1", "guest1").code == KILLED
    done = run(sim, "job", "abort", "--last", "-f", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["state"] == "rolled-back"


def test_a_job_is_shown_with_its_steps_for_a_program(attached: SimWorld) -> None:
    shown = json.loads(run(attached, "job", "show", "--last", "-f", "json").out)
    assert "plug-live/1 SUCCESS" in shown["steps"]
    assert shown["request_id"] == f"req-{shown['job']}"
    assert json.loads(run(attached, "job", "show", shown["job"][:8], "-f", "json").out) == shown


@pytest.mark.parametrize("words", [["db", "check"], ["db", "upgrade"]])
def test_the_database_commands_speak_on_stderr(sim: SimWorld, words: list[str]) -> None:
    done = run(sim, *words)
    assert (done.code, done.out) == (0, "")
    assert "schema 0002" in done.err


def test_what_fails_says_so_on_stderr_and_ends_with_the_next_step(sim: SimWorld) -> None:
    done = run(sim, "--fault", "plug-live.act.before=fail", "attach", "vol1", "guest1", "-f", "json")
    assert done.code == 3
    assert json.loads(done.out)["state"] == "rolled-back"
    assert ESCAPE not in done.err
    lines = done.err.splitlines()
    assert lines[0].startswith("tether: ")
    assert lines[-1].startswith("next: ")


# -- wrong words ---------------------------------------------------------------------------------------------

LONG = "n" * 10_000
REFUSED: dict[str, tuple[list[str], int, str]] = {
    "no such command": (["frobnicate"], 2, "frobnicate"),
    "half a command": (
        ["job"],
        2,
        "perhaps tether job abort, tether job list, tether job resume, tether job settle",
    ),
    "help for no such command": (["help", "frobnicate"], 2, "frobnicate"),
    "no such global option": (["--frob", "job", "list"], 2, "no option --frob"),
    "an empty world": (["--sim", "", "job", "list"], 2, "--sim is empty"),
    "an empty database": (["--database", "", "job", "list"], 2, "--database is empty"),
    "no such column": (["attach", "vol1", "guest1", "-c", "state", "-c", "colour"], 2, "colour"),
    "no such column of a list": (["job", "list", "-c", "colour"], 2, "colour"),
    "a word too few": (["attach", "vol1"], 2, "SERVER"),
    "a word too many": (["attach", "vol1", "guest1", "more"], 2, "more"),
    "no such option": (["attach", "vol1", "guest1", "--frob"], 2, "--frob"),
    "no such format": (["job", "list", "-f", "xml"], 2, "xml"),
    "no such bus": (["attach", "vol1", "guest1", "--bus", "ide"], 2, "ide"),
    "no such mode": (["attach", "vol1", "guest1", "--mode", "wr"], 2, "wr"),
    "no such dialect": (["attach", "vol1", "guest1", "--dialect", "v1"], 2, "v1"),
    "no job named": (["job", "show"], 2, "name one job"),
    "two jobs named": (["job", "show", "x", "--last"], 2, "name one job"),
    "no such job": (["job", "show", "zzz"], 6, "zzz"),
    "no such job to resume": (["job", "resume", "zzz"], 6, "zzz"),
    "no job yet": (["job", "abort", "--last"], 6, "no job yet"),
    "no such volume": (["attach", "vol9", "guest1"], 6, "vol9"),
    "no such server": (["attach", "vol1", "guest9"], 6, "see: tether sim show /"),
    "no such volume to detach": (["detach", "vol9", "guest1"], 6, "vol9"),
    "never attached": (["detach", "vol1", "guest1"], 6, "has not attached"),
    "no such mapping": (["mapping", "show", "vol1", "guest1"], 6, "no mapping"),
    "a long volume": (["attach", LONG, "guest1"], 6, "nnn"),
    "a long server": (["attach", "vol1", LONG], 6, "nnn"),
    "an empty volume": (["attach", "", "guest1"], 6, "volume"),
    "an empty server": (["attach", "vol1", ""], 6, "server"),
    "a long request id": (["attach", "vol1", "guest1", "--request-id", LONG], 2, "10000 characters"),
    "a device of another bus": (["attach", "vol1", "guest1", "--device", "sda"], 2, "sda"),
    "a device that is a path": (["attach", "vol1", "guest1", "--device", "../../etc/passwd"], 2, "passwd"),
    "a long device": (["attach", "vol1", "guest1", "--device", "vd" + LONG], 2, "nnn"),
    "a device that is taken": (["attach", "vol1", "guest1", "--device", "vda"], 3, "vda"),
    "no such fault": (["--fault", "nonsense", "job", "list"], 2, "nonsense"),
    "no such call": (["sim", "script", "DIR", "guest.fly"], 2, "guest.fly"),
    "no such action": (["sim", "script", "DIR", "guest.mark", "sing"], 2, "sing"),
    "a failure no call can have": (["sim", "script", "DIR", "guest.mark", "refuse"], 2, "only guest.unplug_live"),
    "no call at all": (["sim", "script", "DIR", "guest.mark", "--times", "0"], 2, "number of calls"),
    "a time before now": (["sim", "script", "DIR", "guest.mark", "late", "--seconds", "-1"], 2, "--seconds"),
    "no status of a failure": (["sim", "script", "DIR", "cinder.attach", "--status", "99"], 2, "99"),
    "a world that is there": (["sim", "create", "DIR"], 2, "already"),
    "a log file nowhere": (["--log-file", "/nonexistent/log", "job", "list"], 2, "/nonexistent/log"),
    "no such database": (["--database", "nonsense", "job", "list"], 2, "database URL"),
    "a database nowhere": (["--database", "sqlite:////nonexistent/t.sqlite", "job", "list"], 2, "/nonexistent"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_wrong_words_are_refused_and_change_nothing(sim: SimWorld, words: str) -> None:
    command, code, said = REFUSED[words]
    before = sim.books()
    done = run(sim, *(word.replace("DIR", str(sim.directory)) for word in command))
    assert done.code == code, done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert "usage: " in done.err or done.err.splitlines()[-1].startswith("next: "), done.err
    if code != 3:
        assert done.out == ""
        assert sim.jobs() == []
    assert judge.diff(before, sim.books()) == []


@pytest.mark.parametrize("words", [[], ["--debug"]])
def test_no_command_at_all(sim: SimWorld, words: list[str]) -> None:
    done = run(sim, *words, bare=True)
    assert (done.code, done.out) == (2, "")
    assert "tether --help" in done.err or "usage: tether" in done.err


def test_ambiguous_names_are_refused(sim: SimWorld) -> None:
    rename(sim, "vol2", "vol1")
    done = run(sim, "attach", "vol1", "guest1")
    assert done.code == 2, done.err
    assert "vol1" in done.err
    assert sim.jobs() == []
    assert run(sim, "attach", VOL1, GUEST1).code == DONE, "the id is not ambiguous"


def rename(sim: SimWorld, old: str, new: str) -> None:
    book = json.loads((sim.directory / "cinder.json").read_text())
    next(volume for volume in book["volumes"].values() if volume["name"] == old)["name"] = new
    (sim.directory / "cinder.json").write_text(json.dumps(book))


@pytest.mark.parametrize(
    "name", ["two words", 'it\'s "quoted"', "Größe-卷-🎉", "<a & b/>]]>", "x" * 255, "a,b;c\tx", "%s {0} $HOME `id`"]
)
def test_a_name_is_any_text(sim: SimWorld, name: str) -> None:
    rename(sim, "vol1", name)
    before = sim.books()
    done = run(sim, "attach", name, "guest1", "-f", "json")
    assert done.code == DONE, done.err
    assert json.loads(done.out)["volume"] == name
    for kind, parse in (("json", json.loads), ("yaml", yaml.safe_load)):
        assert parse(run(sim, "job", "list", "-f", kind).out)[0]["volume"] == name
    assert run(sim, "detach", name, "guest1").code == DONE
    assert judge.diff(before, sim.books()) == []


def test_a_name_does_not_steer_the_terminal(sim: SimWorld) -> None:
    name = "\x1b]0;yours\x07\x9b31mred\u202etxt.\r"
    rename(sim, "vol1", name)
    for words in (
        ["-v", "attach", name, "guest1"],
        ["plan", "attach", name, "guest2"],
        ["job", "list"],
        ["job", "show", "--last"],
    ):
        done = run(sim, *words)
        assert not set("\x1b\x07\x9b\u202e\r") & set(done.out + done.err), words
        assert "\\x1b]0;yours" in done.out, words
    assert json.loads(run(sim, "job", "show", "--last", "-f", "json").out)["volume"] == name


# -- configuration -------------------------------------------------------------------------------------------

BROKEN = {
    "no section": "database = x\n",
    "no number": "[cinder]\nrequest_timeout = soon\n",
    "no choice": "[DEFAULT]\ndata_path = carrier-pigeon\n",
    "no such setting": "[cinder]\nsend_service_user_tokn = true\n",
    "no such section": "[cindr]\ndialect = legacy\n",
    "less than nothing": "[DEFAULT]\nretry_interval = -1\n",
    "no attempt": "[libvirt]\ndevice_detach_attempts = 0\n",
    "no text": "\x00\x01\n",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_configuration_file(sim: SimWorld, tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.conf"
    file.write_text(BROKEN[text])
    done = run(sim, "--config-file", str(file), "job", "list")
    assert (done.code, done.out) == (2, ""), done.err
    assert f"configuration {file}" in done.err
    assert "LocationInfo" not in done.err
    assert "Traceback" not in done.err


def test_a_missing_configuration_file(sim: SimWorld) -> None:
    done = run(sim, "--config-file", "/nonexistent.conf", "job", "list")
    assert (done.code, done.out) == (2, "")
    assert "/nonexistent.conf" in done.err


def test_a_damaged_world(sim: SimWorld) -> None:
    (sim.directory / "cinder.json").write_text('{"volumes": ')
    done = run(sim, "sim", "show", str(sim.directory))
    assert (done.code, done.out) == (2, ""), done.err
    assert "cinder.json is damaged" in done.err


def test_a_world_shows_what_is_special_about_a_volume(sim: SimWorld) -> None:
    shown = json.loads(run(sim, "sim", "show", str(sim.directory), "-f", "json").out)
    details = {row["name"]: row["details"] for row in shown}
    assert (details["vol1"], details["shared1"], details["secret1"]) == (
        "1 GiB",
        "1 GiB multiattach",
        "1 GiB encrypted",
    )


@pytest.mark.parametrize("words", [["job", "list"], ["mapping", "list"], ["db", "check"]])
def test_a_database_without_a_schema(sim: SimWorld, tmp_path: Path, words: list[str]) -> None:
    url = f"sqlite:///{tmp_path / 'new.sqlite'}"
    done = run(sim, "--database", url, *words, bare=True)
    assert (done.code, done.out) == (2, ""), done.err
    assert done.err.splitlines()[-1] == "next: create it with: tether db upgrade"
    assert run(sim, "--database", url, "db", "upgrade", bare=True).code == 0
    assert run(sim, "--database", url, *words, bare=True).code == 0


# -- logs ----------------------------------------------------------------------------------------------------


def test_verbose_shows_a_line_a_call_with_its_request_id(sim: SimWorld) -> None:
    done = run(sim, "-v", "attach", "vol1", "guest1")
    assert done.code == DONE
    calls = [line for line in done.err.splitlines() if "cinder: " in line]
    assert len(calls) > 5
    assert [line for line in calls if not re.search(r"req-[0-9a-f-]{36}", line)] == []
    assert run(sim, "job", "list").err == "", "without -v there is none"


def test_log_lines_as_json(sim: SimWorld, tmp_path: Path) -> None:
    file = tmp_path / "log"
    done = run(sim, "-v", "--log-json", "--log-file", str(file), "attach", "vol1", "guest1")
    assert done.code == DONE
    for text in (done.err, file.read_text()):
        lines = [json.loads(line) for line in text.splitlines()]
        assert len(lines) > 5
        assert {"event", "level", "logger", "timestamp"} <= set.intersection(*(set(line) for line in lines))
        of_the_job = json.loads(run(sim, "job", "show", "--last", "-f", "json").out)["request_id"]
        assert {line["request_id"] for line in lines} == {of_the_job}, "from the pool's threads too"


def test_a_log_file_names_the_request(sim: SimWorld, tmp_path: Path) -> None:
    file = tmp_path / "log"
    for words in (["attach", "vol1", "guest1"], ["mapping", "show", "vol1", "guest1"]):
        assert run(sim, "--log-file", str(file), *words).code == DONE
    request = json.loads(run(sim, "job", "show", "--last", "-f", "json").out)["request_id"]
    named = re.findall(r" \[(\S+)\] ", file.read_text())
    assert set(named) == {request, "-"}
    assert len(named) == len(file.read_text().splitlines())
