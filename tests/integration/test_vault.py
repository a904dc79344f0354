"""The vault: one key for a database, rotated under running runners, and no way to lock oneself out by a crash."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet

from tests.integration.books import Books, a_job, a_mapping, forked
from tether import faults
from tether.errors import ConfigError
from tether.persistence import vault as module
from tether.persistence.database import Database
from tether.persistence.keys import KeyFile, KeyRing, fingerprint
from tether.persistence.schema import secrets
from tether.persistence.vault import BATCH, CANARY, Vault
from tether.sealed import Sealed

KILLED = -9
CREATION = ["key.create.before", "key.create.after", "key.canary.before", "key.canary.after"]
ROTATION = [
    f"key.rotate.{part}.{moment}" for part in ("add", "begin", "rows", "end", "drop") for moment in ("before", "after")
]
PASSWORD = "chap-Secret-12"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "private" / "keys"


@pytest.fixture
def opened(books: Books, key_file: Path) -> Iterator[Callable[[], Vault]]:
    """Open the vault as another process would: over connections of its own, which no fork may share."""
    databases = []

    def another() -> Vault:
        databases.append(Database(books.url))
        return Vault(databases[-1], KeyRing(KeyFile(key_file)))

    yield another
    for database in databases:
        database.close()


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.disarm()


def put(books: Books, vault: Vault, job_id: str, text: str) -> None:
    """Keep a secret as a barrier does."""
    with books.database.write() as connection:
        connection.execute(sa.delete(secrets).where(secrets.c.job_id == job_id))
        connection.execute(sa.insert(secrets).values(job_id=job_id, name="connection", sealed=vault.seal(Sealed(text))))


def fill(books: Books, vault: Vault, count: int = BATCH * 2 + 3) -> dict[str, str]:
    """Keep many secrets; return them by job."""
    made = {str(uuid.uuid4()): f"{PASSWORD}-{number}" for number in range(count)}
    rows = [{"job_id": job, "name": "connection", "sealed": vault.seal(Sealed(text))} for job, text in made.items()]
    with books.database.write() as connection:
        connection.execute(sa.insert(secrets), rows)
    return made


def stored(books: Books) -> dict[str, str]:
    """Return the sealed secrets as they are stored, by job; the canary's job is empty."""
    return dict(books.rows("SELECT job_id, sealed FROM tether_secrets"))


def readable(books: Books, vault: Vault) -> dict[str, str]:
    """Return what the vault reads of all secrets."""
    return {job: vault.open(text).open() for job, text in stored(books).items() if job != CANARY[0]}


def keys_of(path: Path) -> list[bytes]:
    return path.read_bytes().split()


def killed_at(point: str, work: Callable[[], Any]) -> int:
    """Do ``work`` in a process that is killed at a point; return how it ended."""

    def armed() -> None:
        faults.arm(f"{point}=kill")
        work()

    return os.waitstatus_to_exitcode(os.waitpid(forked(armed), 0)[1])


def everything(books: Books, directory: Path) -> Any:
    """Return all that may not change: the rows, and what is in the key file's directory."""
    files = (
        {path.name: (path.stat().st_mode, path.read_bytes()) for path in directory.iterdir()}
        if directory.exists()
        else {}
    )
    return stored(books), files


# -- first use -----------------------------------------------------------------------------------------------


def test_the_first_use_makes_a_key_that_only_its_owner_reads(
    books: Books, opened: Callable[[], Vault], key_file: Path
) -> None:
    assert opened().fits() is None
    assert not key_file.exists(), "to look makes nothing"
    opened().ready()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(key_file.parent.stat().st_mode) == 0o700
    before = everything(books, key_file.parent)
    assert list(before[0]) == [CANARY[0]]
    assert list(before[1]) == ["keys"], "nothing else is left"
    opened().ready()
    assert everything(books, key_file.parent) == before
    assert opened().fits()


@pytest.mark.parametrize("point", CREATION)
def test_a_first_use_that_is_killed_is_repeated(
    books: Books, opened: Callable[[], Vault], key_file: Path, point: str
) -> None:
    assert killed_at(point, lambda: opened().ready()) == KILLED
    first = keys_of(key_file) if key_file.exists() else []
    opened().ready()
    assert opened().fits()
    assert len(keys_of(key_file)) == 1
    assert not first or keys_of(key_file) == first, "the key is kept"


def test_first_uses_at_a_time_make_one_key(books: Books, opened: Callable[[], Vault], key_file: Path) -> None:
    for _ in range(3):
        pids = [forked(lambda: opened().ready()) for _ in range(4)]
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0, 0]
        assert len(keys_of(key_file)) == 1
        assert opened().fits()
        key_file.unlink()
        with books.database.write() as connection:
            connection.execute(sa.delete(secrets))


def test_a_key_file_that_is_there_is_used(books: Books, opened: Callable[[], Vault], key_file: Path) -> None:
    """Another database's, or a host's that was set up by hand."""
    key_file.parent.mkdir()
    key_file.touch(0o600)
    key_file.write_text(f"# made by hand\n\n{Fernet.generate_key().decode()}\n")
    before = key_file.read_bytes()
    opened().ready()
    assert key_file.read_bytes() == before


# -- a key that does not fit ---------------------------------------------------------------------------------


def missing(path: Path) -> None:
    path.unlink()


def another(path: Path) -> None:
    path.write_bytes(Fernet.generate_key() + b"\n")


def empty(path: Path) -> None:
    path.write_bytes(b"\n")


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def group_may_read(path: Path) -> None:
    path.chmod(0o640)


def others_may_read(path: Path) -> None:
    path.chmod(0o604)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


WRONG = [
    (missing, ("is missing", "key forget")),
    (another, ("no key in", "key forget")),
    (empty, ("holds no key", "put back")),
    (broken, ("key 1 in", "put back")),
    (group_may_read, ("0640", "chmod 0600")),
    (others_may_read, ("0604", "chmod 0600")),
    (directory, ("cannot be read|no file", "key")),
]


@pytest.mark.parametrize(("spoil", "told"), WRONG, ids=[spoil.__name__ for spoil, _ in WRONG])
def test_a_wrong_key_is_said_and_changes_nothing(
    books: Books, opened: Callable[[], Vault], key_file: Path, spoil: Callable[[Path], None], told: tuple[str, str]
) -> None:
    message, hint = told
    opened().ready()
    put(books, opened(), "j", PASSWORD)
    spoil(key_file)
    before = stored(books), sorted(key_file.parent.iterdir())
    for work in (lambda: opened().ready(), lambda: opened().rotate()):
        with pytest.raises(ConfigError, match=message) as caught:
            work()
        assert str(key_file) in caught.value.message
        assert hint in caught.value.hint
    assert (stored(books), sorted(key_file.parent.iterdir())) == before


def test_a_directory_that_cannot_be_written_is_said(books: Books, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    vault = Vault(books.database, KeyRing(KeyFile(tmp_path / "file" / "keys")))
    with pytest.raises(ConfigError, match=r"cannot be (written|read)") as caught:
        vault.ready()
    assert caught.value.hint
    assert stored(books) == {}


def test_a_key_of_another_database_is_not_taken_for_ours(
    books: Books, opened: Callable[[], Vault], tmp_path: Path
) -> None:
    """Two hosts with one database, and a key file each."""
    opened().ready()
    here = Vault(books.database, KeyRing(KeyFile(tmp_path / "elsewhere" / "keys")))
    with pytest.raises(ConfigError, match="is missing"):
        here.ready()
    assert not (tmp_path / "elsewhere").exists()


# -- sealing -------------------------------------------------------------------------------------------------


def test_what_is_sealed_says_nothing_and_opens_as_it_was(books: Books, opened: Callable[[], Vault]) -> None:
    vault = opened()
    vault.ready()
    text = vault.seal(Sealed(PASSWORD))
    assert PASSWORD not in text
    assert vault.seal(Sealed(PASSWORD)) != text, "equal secrets look different"
    assert opened().open(text) == Sealed(PASSWORD)
    with pytest.raises(ConfigError, match="no key for what is sealed"):
        vault.open(text[:-8] + "AAAAAAA=")


def test_a_mapping_takes_its_secrets_along(books: Books, opened: Callable[[], Vault]) -> None:
    vault = opened()
    vault.ready()
    jobs = [a_job(), a_job()]
    for job in jobs:
        books.ledger.add_job(job)
        books.ledger.add_mapping(a_mapping(job_id=job.id, volume_id=job.volume_id, server_id=job.server_id))
        put(books, vault, job.id, PASSWORD)
    books.ledger.delete_mapping(jobs[0].volume_id, jobs[0].server_id)
    assert set(stored(books)) == {CANARY[0], jobs[1].id}
    assert books.ledger.secret(jobs[0].id, "connection") is None
    assert books.ledger.secret(jobs[1].id, "connection") is not None


# -- rotation ------------------------------------------------------------------------------------------------


def test_a_rotation_seals_all_anew_and_keeps_the_key_before(
    books: Books, opened: Callable[[], Vault], key_file: Path
) -> None:
    opened().ready()
    made = fill(books, opened())
    seen = [keys_of(key_file)]
    for _ in range(3):
        before = stored(books)
        done = opened().rotate()
        assert (done.resumed, done.renewed, done.unreadable) == (False, len(made), 0)
        seen.append(keys_of(key_file))
        after = stored(books)
        assert all(after[job] != before[job] for job in before), "the canary too"
        newest = Fernet(seen[-1][0])
        assert {job: newest.decrypt(after[job].encode()).decode() for job in made} == made
    assert [len(keys) for keys in seen] == [1, 2, 2, 2]
    assert all(now[1] == earlier[0] for earlier, now in pairwise(seen))
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600


@pytest.mark.parametrize("point", ROTATION)
def test_a_rotation_that_is_killed_is_finished_by_the_next(
    books: Books, opened: Callable[[], Vault], key_file: Path, point: str
) -> None:
    opened().ready()
    made = fill(books, opened())
    opened().rotate()  # a second one, so that there is a key to drop
    before = keys_of(key_file)
    assert killed_at(point, lambda: opened().rotate()) == KILLED
    opened().ready()
    assert readable(books, opened()) == made, "nobody is locked out meanwhile"
    begun = keys_of(key_file) != before
    done = opened().rotate()
    assert done.unreadable == 0
    assert done.resumed == (begun and point != "key.rotate.drop.after")
    assert readable(books, opened()) == made
    after = keys_of(key_file)
    assert len(after) == 2
    newest = Fernet(after[0])
    for text in stored(books).values():
        newest.decrypt(text.encode())
    assert [path.name for path in key_file.parent.iterdir()] == ["keys"]


def test_a_killed_rotation_that_left_its_file_half_made_is_no_obstacle(
    books: Books, opened: Callable[[], Vault], key_file: Path
) -> None:
    opened().ready()
    (key_file.parent / ".keys.new").write_text("half a k")
    opened().rotate()
    assert [path.name for path in key_file.parent.iterdir()] == ["keys"]


def test_two_rotations_at_a_time_come_one_after_the_other(
    books: Books, opened: Callable[[], Vault], key_file: Path
) -> None:
    opened().ready()
    made = fill(books, opened())
    pids = [forked(lambda: opened().rotate()) for _ in range(3)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    assert readable(books, opened()) == made
    assert len(keys_of(key_file)) == 2


def test_a_running_runner_goes_on_through_rotations(books: Books, opened: Callable[[], Vault], key_file: Path) -> None:
    runner = opened()
    runner.ready()
    put(books, runner, "j", PASSWORD)
    for number in range(3):
        opened().rotate()
        assert readable(books, runner) == {"j": PASSWORD}, "it opens what was sealed with a newer key"
        put(books, runner, "j", PASSWORD)
        assert readable(books, opened()) == {"j": PASSWORD}, "and others what it seals"
        Fernet(keys_of(key_file)[0]).decrypt(stored(books)["j"].encode())
        runner.ready()
        assert number < 3


def test_what_was_sealed_before_a_rotation_and_stored_after_it_is_readable(
    books: Books, opened: Callable[[], Vault]
) -> None:
    """Between the two is a barrier's time."""
    runner = opened()
    runner.ready()
    text = runner.seal(Sealed(PASSWORD))
    opened().rotate()
    with books.database.write() as connection:
        connection.execute(sa.insert(secrets).values(job_id="j", name="connection", sealed=text))
    assert readable(books, opened()) == {"j": PASSWORD}
    opened().rotate()
    assert readable(books, opened()) == {"j": PASSWORD}


def test_what_a_runner_replaces_while_it_is_sealed_anew_stays(
    books: Books, opened: Callable[[], Vault], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, rotating = opened(), opened()
    runner.ready()
    put(books, runner, "j", "old")
    renew, done = KeyRing.renew, []

    def between(ring: KeyRing, token: bytes) -> bytes | None:
        if not done and token == stored(books)["j"].encode():
            done.append(token)
            put(books, runner, "j", "new")
        return renew(ring, token)

    monkeypatch.setattr(KeyRing, "renew", between)
    rotating.rotate()
    assert done
    assert readable(books, opened()) == {"j": "new"}


def test_the_database_is_never_held_for_long(
    books: Books, opened: Callable[[], Vault], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 10)
    vault = opened()
    vault.ready()
    made = fill(books, vault, 35)
    sizes = []

    def count(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        if statement.startswith("UPDATE tether_secrets"):
            sizes.append(statement)

    engine, commits = vault._database.engine, []
    sa.event.listen(engine, "before_cursor_execute", count)
    sa.event.listen(engine, "commit", lambda _connection: commits.append(len(sizes)))
    vault.rotate()
    between = [after - before for before, after in pairwise(commits)]
    assert max(between) == 10
    assert readable(books, opened()) == made


def test_what_no_key_opens_is_counted_and_left(books: Books, opened: Callable[[], Vault], tmp_path: Path) -> None:
    vault = opened()
    vault.ready()
    put(books, vault, "j", PASSWORD)
    stranger = KeyRing(KeyFile(tmp_path / "lost" / "keys"))
    stranger.create()
    put(books, Vault(books.database, stranger), "k", PASSWORD)
    lost = stored(books)["k"]
    done = opened().rotate()
    assert (done.renewed, done.unreadable) == (1, 1)
    assert stored(books)["k"] == lost
    assert opened().forget() == 1
    assert readable(books, opened()) == {"j": PASSWORD}
    assert opened().forget() == 0


# -- a lost key ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["", "key.create.after", "key.forget.rows.after", "key.forget.end.before"])
def test_after_a_lost_key_one_can_begin_anew(
    books: Books, opened: Callable[[], Vault], key_file: Path, point: str
) -> None:
    opened().ready()
    fill(books, opened())
    key_file.unlink()
    if point:
        assert killed_at(point, lambda: opened().forget()) == KILLED
        if point != "key.forget.end.before":
            with pytest.raises(ConfigError):
                opened().ready()
    opened().forget()
    assert set(stored(books)) == {CANARY[0]}
    opened().ready()
    assert len(keys_of(key_file)) == 1


def test_a_fingerprint_names_a_key_and_is_none() -> None:
    key = Fernet.generate_key()
    assert fingerprint(key) == fingerprint(key)
    assert fingerprint(key) != fingerprint(Fernet.generate_key())
    assert fingerprint(key) not in key.decode()
