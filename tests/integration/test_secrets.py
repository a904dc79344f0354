"""A secret is nowhere but where it must be: in the keepers that SECURITY.md lists, and in memory."""

from __future__ import annotations

import base64
import json
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import pytest

from tests.crash import judge
from tests.crash.world import BLOCKED, DONE, KILLED, ROLLED_BACK, SimWorld
from tests.integration.commands import Command, run
from tether.sim.cinder.transport import SimTransport
from tether.sim.host import SimHost
from tether.sim.store import Store

VOL1 = "11111111-1111-4111-8111-111111111111"
VOL2 = "22222222-2222-4222-8222-222222222222"
#: Where an embedded world keeps what is another's: Cinder's own book, and libvirt's store of secrets.
KEEPERS = ("cinder.json", "secrets.json")
#: One with every character that a text may hide it behind.
AWKWARD = "p\"ä%/w\\x&'<9> s"
CONFIG_ERROR = 2


def forms(secret: str) -> set[bytes]:
    """Return the secret as it would stand in a text, a URL, JSON, XML, base64 (wherever it begins) or UTF-16."""
    plain = secret.encode()
    texts = {secret, quote(secret), quote_plus(secret), escape(secret), repr(secret)[1:-1]}
    texts |= {json.dumps(text, ensure_ascii=flag)[1:-1] for text in set(texts) for flag in (True, False)}
    found = {text.encode() for text in texts} | {plain.hex().encode()}
    found |= {secret.encode(code) for code in ("utf-16-le", "utf-16-be", "latin-1")}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for skipped in range(3):  # the characters at its ends depend on its neighbours
            found.add(encode(b"\0" * skipped + plain)[4 if skipped else 0 : -4])
    return found


def test_the_search_finds_what_it_looks_for() -> None:
    found = forms(AWKWARD)
    texts = [
        json.dumps({"a": AWKWARD}),
        base64.b64encode(f"xy{AWKWARD}zz".encode()).decode(),
        quote(f"a={AWKWARD}"),
        escape(AWKWARD),
        str({"a": AWKWARD}),
        json.dumps(str([AWKWARD])),
        AWKWARD.encode().hex(),
    ]
    assert [text for text in texts if not any(form in text.encode() for form in found)] == []
    assert any(form in AWKWARD.encode("utf-16") for form in found)
    assert min(map(len, found)) > 8, "what is short is found by chance"


class Searched:
    """A world whose every command is loud, and whose every trace is searched for secrets."""

    def __init__(self, sim: SimWorld) -> None:
        self.sim = sim
        self.secrets: set[str] = {AWKWARD}
        self.searched: set[str] = set()
        self._runs = 0
        self.log = sim.directory.parent / "log"
        self.keys = sim.directory / "keys"
        with Store(sim.directory).change("cinder") as book:
            # What is exported already keeps its password.
            book.setdefault("exports", {})[VOL1] = {
                "target_portal": "192.0.2.10:3260",
                "target_iqn": f"iqn.2010-10.org.openstack:volume-{VOL1}",
                "target_lun": 1,
                "auth_method": "CHAP",
                "auth_username": "somebody",
                "auth_password": AWKWARD,
            }

    def __call__(self, *words: str) -> int:
        """Run a command; return its exit code."""
        self._runs += 1
        json_lines = ["--log-json"] if self._runs % 2 else []
        done = self.sim.tether("--debug", *json_lines, "--log-file", str(self.log), *words)
        book = json.loads((self.sim.directory / "cinder.json").read_text())
        self.secrets |= {export["auth_password"] for export in book.get("exports", {}).values()}
        self.secrets |= set(book["keys"].values())
        self.search()
        return done.code

    def search(self) -> None:
        """Search every file that there is: databases, write-ahead logs, logs, what was printed, the guests' XML."""
        patterns = {form: secret for secret in self.secrets for form in forms(secret)}
        if self.keys.exists():
            assert stat.S_IMODE(self.keys.stat().st_mode) == 0o600
            keys = self.keys.read_bytes().split()
            patterns |= dict.fromkeys(keys, "a key") | {base64.urlsafe_b64decode(key): "a key" for key in keys}
        for path in self.sim.directory.parent.rglob("*"):
            if not path.is_file() or path.is_symlink() or path.name.strip(".").startswith(KEEPERS) or path == self.keys:
                continue
            content = path.read_bytes()
            self.searched.add(path.name)
            assert [(path.name, what) for form, what in patterns.items() if form in content] == []


@pytest.fixture
def ask(sim: SimWorld) -> Iterator[Searched]:
    made = Searched(sim)
    yield made
    made.search()
    assert {"tether.sqlite", "log"} <= made.searched


def test_a_secret_is_nowhere(ask: Searched) -> None:
    """After attach, failure, crash, resume and detach; in every command's output."""
    sim = ask.sim
    assert ask("plan", "attach", "vol1", "guest1") == DONE
    assert ask("--fault", "plug-live.act.after=kill", "attach", "vol1", "guest1") == KILLED
    assert {"tether.sqlite-wal", "tether.sqlite-shm"} & ask.searched, "the write-ahead log is there after a kill"
    assert ask("job", "show", "--last", "-f", "json") == DONE
    assert ask("job", "resume", "--last") == DONE
    assert ask("attach", "vol1", "guest1") == DONE
    for words in (
        ("mapping", "show", "vol1", "guest1", "-f", "json"),
        ("mapping", "list"),
        ("job", "list"),
        ("job", "show", "--last"),
        ("plan", "detach", "vol1", "guest1", "-f", "json"),
        ("graph", "attach"),
        ("key", "show", "-f", "json"),
        ("key", "rotate"),
        ("db", "check"),
        ("sim", "show", str(sim.directory)),
    ):
        assert ask(*words) == DONE, words
    assert ask("--fault", "complete-attachment.act.before=fail*9999", "attach", "vol2", "guest1") == BLOCKED
    assert ask("job", "show", "--last", "-f", "yaml") == DONE
    assert ask("job", "abort", "--last") == DONE
    for call in ("host.connect", "guest.plug_persistent", "guest.plug_live", "cinder.update_attachment"):
        sim.script(call, "fail")
        assert ask("attach", "vol3", "guest1") == ROLLED_BACK
        assert ask("job", "show", "--last", "-f", "json") == DONE
    assert ask("attach", "secret1", "guest1") == DONE
    assert ask("attach", "shared1", "guest1", "--dialect", "legacy") == ROLLED_BACK
    assert ask("attach", "vol3", "guest1", "--dialect", "legacy") == DONE
    assert ask("--fault", "disconnect-host.act.before=kill", "detach", "vol3", "guest1") == KILLED
    assert ask("job", "resume", "--last") == DONE
    assert ask("detach", "secret1", "guest1") == DONE
    assert ask("detach", "vol1", "guest1") == DONE
    assert ask("job", "list", "-f", "csv") == DONE
    assert len(ask.secrets) >= 4
    assert len(ask.log.read_bytes()) > 10_000, "it was loud"


def test_a_secret_is_nowhere_where_qemu_connects_by_itself(ask: Searched) -> None:
    sim = ask.sim
    sim._config.write_text(sim._config.read_text().replace("data_path = host", "data_path = network"))
    assert ask("--fault", "define-secret.act.after=kill", "attach", "vol1", "guest1") == KILLED
    kept = json.loads((sim.directory / "guests" / "secrets.json").read_text())["secrets"]
    assert AWKWARD in kept.values(), "QEMU needs it there"
    assert ask("job", "resume", "--last") == DONE
    assert ask("attach", "secret1", "guest1") == DONE
    sim.script("guest.define_secret", "fail")
    assert ask("attach", "vol2", "guest1") == ROLLED_BACK
    assert ask("mapping", "show", "vol1", "guest1") == DONE
    assert ask("detach", "vol1", "guest1") == DONE


@pytest.mark.parametrize("kind", [ValueError, KeyError, OSError])
def test_a_secret_in_a_foreign_error_is_masked(
    ask: Searched, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """What no adapter's map has foreseen."""

    def connect(_host: SimHost, _volume: str, connection: Any) -> Any:
        data = connection.data.open()
        raise kind(f"login failed: {data}", data["auth_password"], data)

    monkeypatch.setattr(SimHost, "connect", connect)
    assert ask("attach", "vol1", "guest1") == ROLLED_BACK
    assert ask("job", "show", "--last", "-f", "json") == DONE
    with sqlite3.connect(ask.sim.directory / "tether.sqlite") as database:
        ((error, steps),) = database.execute(
            "SELECT error, steps FROM tether_jobs JOIN tether_flows ON job_id = tether_jobs.id"
        ).fetchall()
    assert "***" in error
    assert "***" in steps


# -- what is sealed is used ----------------------------------------------------------------------------------


def rows(sim: SimWorld) -> list[str]:
    """Return the jobs that have sealed secrets."""
    with sqlite3.connect(f"file:{sim.directory / 'tether.sqlite'}?mode=ro", uri=True) as database:
        return [job for (job,) in database.execute("SELECT job_id FROM tether_secrets WHERE job_id != ''")]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Note every request to Cinder that may bring connection info."""
    log = tmp_path / "requests"
    log.touch()
    send = SimTransport.send

    def record(self: SimTransport, request: Any, **more: Any) -> Any:
        url, body = str(request.url), str(request.body or "")
        if ("/attachments/" in url and request.method in {"GET", "PUT"}) or "initialize_connection" in body:
            with log.open("a") as lines:
                lines.write(f"{request.method} {url.rpartition('/')[2]}\n")
        return send(self, request, **more)

    monkeypatch.setattr(SimTransport, "send", record)
    return log


def forget(sim: SimWorld) -> None:
    """Let Cinder lose what it knows of the volume's attachments."""
    with Store(sim.directory).change("cinder") as book:
        book["attachments"] = {}


@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
def test_it_is_kept_while_the_mapping_is(sim: SimWorld, dialect: str) -> None:
    assert sim.tether("attach", "vol1", "guest1", "--dialect", dialect).code == DONE
    assert len(rows(sim)) == 1
    assert sim.tether("--fault", "delete-mapping.act.before=kill", "detach", "vol1", "guest1").code == KILLED
    assert len(rows(sim)) == 1
    assert sim.tether("job", "resume", "--last").code == DONE
    assert rows(sim) == []


@pytest.mark.parametrize("point", ["create-mapping.undo.before", "create-mapping.undo.after", "commit.job.end.before"])
def test_a_roll_back_that_is_killed_leaves_none(sim: SimWorld, point: str) -> None:
    sim.script("guest.plug_live", "fail")
    assert sim.tether("--fault", f"{point}=kill", "attach", "vol1", "guest1").code == KILLED
    assert sim.tether("job", "resume", "--last").code == ROLLED_BACK
    assert rows(sim) == []


@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
def test_a_resumed_job_does_not_ask_cinder_for_it_again(sim: SimWorld, asked: Path, dialect: str) -> None:
    """Killed after the export was stored: everything after it needs the connection."""
    words = ("--fault", "connect-host.act.before=kill", "attach", "vol1", "guest1", "--dialect", dialect)
    assert sim.tether(*words).code == KILLED
    asked.write_text("")
    assert sim.tether("job", "resume", "--last").code == DONE
    # complete-attachment reads the status, before and after
    assert asked.read_text().count("\n") == (2 if dialect == "attachments" else 0)
    asked.write_text("")
    assert sim.tether("detach", "vol1", "guest1").code == DONE
    assert asked.read_text() == ""


@pytest.mark.parametrize("point", ["export-volume.act.after", "commit.connect-host.act.before"])
def test_an_export_that_is_repeated_replaces_it(sim: SimWorld, point: str) -> None:
    """The export's answer was not stored: by the time of the resume its password is another."""
    assert sim.tether("--fault", f"{point}=kill", "attach", "vol1", "guest1").code == KILLED
    assert rows(sim) == [], "it is stored together with the export's result"
    with Store(sim.directory).change("cinder") as book:
        book["exports"][VOL1]["auth_password"] = "another-one-12"
    assert sim.tether("job", "resume", "--last").code == DONE, "the host logs in with the new password"
    assert sim.tether("detach", "vol1", "guest1").code == DONE


def test_the_host_is_disconnected_although_cinder_forgot(sim: SimWorld) -> None:
    before = sim.books()
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    forget(sim)
    done = sim.tether("detach", "vol1", "guest1")
    assert done.code == DONE, done.err
    after = sim.books()
    assert (after["host"], after["guests"], after["ledger"]) == (before["host"], before["guests"], before["ledger"])


def test_what_was_not_sealed_is_read_from_cinder(sim: SimWorld) -> None:
    """After `key forget`, say."""
    before = sim.books()
    for dialect in ("attachments", "legacy"):
        assert sim.tether("attach", "vol2", "guest1", "--dialect", dialect).code == DONE
        (sim.directory / "keys").unlink()
        done = sim.tether("key", "forget")
        assert (done.code, rows(sim)) == (DONE, [])
        assert "deleted 1 secrets" in done.err
        assert sim.tether("detach", "vol2", "guest1").code == DONE
    assert judge.diff(before, sim.books()) == []


@pytest.mark.parametrize(("end", "left"), [("attached", 1), ("clean", 0)])
def test_a_settled_job_keeps_it_only_with_its_mapping(sim: SimWorld, end: str, left: int) -> None:
    point = "finish-mapping.act.before" if end == "attached" else "create-mapping.undo.before"
    sim.script("guest.plug_live", "fail" if end == "clean" else "slow")
    assert sim.tether("--fault", f"{point}=fail*9999", "attach", "vol1", "guest1").code == BLOCKED
    assert len(rows(sim)) == 1
    done = sim.tether("job", "settle", "--last", "--as", end, "--reason", "a test")
    assert done.code == DONE, done.err
    assert len(rows(sim)) == left
    assert sim.tether("db", "prune", "--older-than", "0s").code == DONE
    assert len(rows(sim)) == left


# -- rotation at the command line ----------------------------------------------------------------------------


def test_keys_are_rotated_under_a_running_job(sim: SimWorld) -> None:
    assert sim.tether("attach", "vol2", "guest1").code == DONE
    sim.script("host.connect", "slow", seconds=3.0)
    attach = Command(sim, "attach", "vol1", "guest1").reaches("host.connect")
    for _ in range(2):  # the key that the job began with is gone after the second
        rotated = run(sim, "key", "rotate")
        assert rotated.code == DONE, rotated.err
        assert "2 sealed anew" in rotated.err
    assert attach.end().code == DONE
    assert len((sim.directory / "keys").read_bytes().split()) == 2
    for volume in ("vol1", "vol2"):
        assert sim.tether("detach", volume, "guest1").code == DONE


@pytest.mark.parametrize("point", ["add.after", "rows.before", "rows.after", "end.before"])
def test_a_killed_rotation_is_in_nobodys_way(sim: SimWorld, point: str) -> None:
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    assert sim.tether("--fault", f"key.rotate.{point}=kill", "key", "rotate").code == KILLED
    assert sim.tether("attach", "vol2", "guest1").code == DONE
    again = sim.tether("key", "rotate")
    assert again.code == DONE
    assert "finished an interrupted rotation" in again.err
    for volume in ("vol1", "vol2"):
        assert sim.tether("detach", volume, "guest1").code == DONE


# -- a key that does not fit, at the command line ------------------------------------------------------------


def everything(sim: SimWorld) -> Any:
    with sqlite3.connect(f"file:{sim.directory / 'tether.sqlite'}?mode=ro", uri=True) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return judge.snapshot(sim.directory), {
            name: database.execute(f"SELECT * FROM {name}").fetchall() for name in names
        }


@pytest.mark.parametrize("wrong", ["missing", "another"])
def test_without_its_key_no_job_begins(sim: SimWorld, wrong: str) -> None:
    assert sim.tether("attach", "vol1", "guest1").code == DONE
    assert sim.tether("--fault", "connect-host.act.before=kill", "attach", "vol2", "guest1").code == KILLED
    keys = sim.directory / "keys"
    kept = keys.read_bytes()
    keys.unlink()
    if wrong == "another":
        keys.touch(0o600)
        keys.write_bytes(base64.urlsafe_b64encode(b"x" * 32) + b"\n")
    before = everything(sim)
    for words in (
        ("attach", "vol3", "guest1"),
        ("detach", "vol1", "guest1"),
        ("job", "resume", "--last"),
        ("job", "abort", "--last"),
        ("key", "rotate"),
    ):
        done = sim.tether(*words)
        assert done.code == CONFIG_ERROR, done.err
        assert str(keys) in done.err
        assert "sealed" in done.err
        assert done.err.splitlines()[-1].startswith("next: put back")
    assert everything(sim) == before
    for words in (
        ("job", "list"),
        ("job", "show", "--last"),
        ("mapping", "list"),
        ("plan", "detach", "vol1", "guest1"),
    ):
        assert sim.tether(*words).code == DONE, "what runs no job needs no key"
    shown = json.loads(sim.tether("key", "show", "-f", "json").out)
    assert (shown["fits"], len(shown["keys"])) == ("no", 0 if wrong == "missing" else 1)
    keys.touch(0o600)
    keys.write_bytes(kept)
    keys.chmod(0o600)
    assert sim.tether("job", "resume", "--last").code == DONE
    assert sim.tether("detach", "vol1", "guest1").code == DONE


def test_an_abort_without_the_key_does_not_stop_the_runner(sim: SimWorld) -> None:
    sim.script("host.connect", "slow", seconds=1.5)
    attach = Command(sim, "attach", "vol1", "guest1").reaches("host.connect")
    keys = sim.directory / "keys"
    keys.rename(sim.directory / "away")
    refused = run(sim, "job", "abort", "--last")
    (sim.directory / "away").rename(keys)
    assert refused.code == CONFIG_ERROR, refused.err
    assert attach.end().code == DONE


def test_a_key_that_goes_while_a_job_runs_blocks_it(sim: SimWorld) -> None:
    """The check before a job cannot see what comes after it."""
    assert sim.tether("--fault", "connect-host.act.before=kill", "attach", "vol1", "guest1").code == KILLED
    with sqlite3.connect(sim.directory / "tether.sqlite") as database:
        ((sealed,),) = database.execute("SELECT sealed FROM tether_secrets WHERE job_id != ''").fetchall()
        database.execute("UPDATE tether_secrets SET sealed = 'gAAAAA' WHERE job_id != ''")
    done = sim.tether("job", "resume", "--last")
    assert done.code == BLOCKED, done.err
    assert "tether job resume" in done.err
    with sqlite3.connect(sim.directory / "tether.sqlite") as database:
        database.execute("UPDATE tether_secrets SET sealed = ? WHERE job_id != ''", [sealed])
    assert sim.tether("job", "resume", "--last").code == DONE


@pytest.mark.parametrize("words", [("job", "list"), ("mapping", "list"), ("plan", "attach", "vol1", "guest1")])
def test_what_runs_no_job_imports_no_cryptography(sim: SimWorld, words: tuple[str, ...]) -> None:
    script = (
        "import sys; from tether.cli.main import main; code = main(sys.argv[1:]);"
        " sys.exit(code or ('cryptography' in sys.modules) * 99)"
    )
    command = [sys.executable, "-c", script, "--sim", str(sim.directory), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (sim.directory / "keys").exists()
