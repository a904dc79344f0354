"""Tables, migrations and the ledger on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tests.integration.books import Books, a_job, a_mapping, forked, opened
from tether import faults
from tether.errors import ConfigError, ConflictError, HeldError, NotFound, UncertainError
from tether.persistence import schema
from tether.persistence.database import Database
from tether.persistence.handovers import End, Handover
from tether.persistence.journal import Lease
from tether.persistence.ledger import ConnectionRow, job_columns
from tether.persistence.migrations import upgrade

# -- the schema ----------------------------------------------------------------------------------------------


def test_the_migrations_make_what_the_code_expects(books: Books) -> None:
    with books.database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"compare_type": True, "compare_server_default": True, "version_table": schema.VERSION_TABLE},
        )
        assert compare_metadata(context, schema.metadata) == []
        names = set(sa.inspect(connection).get_table_names())
    assert names == {*schema.metadata.tables, schema.VERSION_TABLE}


def test_an_upgrade_may_be_repeated(url: str) -> None:
    with opened(url, ready=False) as books:
        assert upgrade(books.database) == (None, schema.HEAD)
        books.ledger.add_job(a_job())
        assert upgrade(books.database) == (schema.HEAD, schema.HEAD)
        books.database.check()
        assert len(books.ledger.list_jobs()) == 1


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_upgrade_that_is_killed_leaves_all_or_nothing_and_is_repeated(url: str, moment: str) -> None:
    def bring_up() -> None:
        faults.arm(f"commit.upgrade.{moment}=kill")
        with opened(url):
            pass

    assert os.waitstatus_to_exitcode(os.waitpid(forked(bring_up), 0)[1]) == -9
    with opened(url, ready=False) as books:
        assert books.database.version() == (None if moment == "before" else schema.HEAD)
        assert sa.inspect(books.database.engine).has_table("tether_jobs") == (moment == "after")
        assert upgrade(books.database)[1] == schema.HEAD
        books.database.check()


def test_two_upgrades_at_a_time_make_one_schema(url: str) -> None:
    """Two first uses of an embedded world, say."""

    def bring_up() -> None:
        with opened(url):
            pass

    for _ in range(3):
        pids = [forked(bring_up) for _ in range(3)]
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
        with opened(url, ready=False) as books:
            books.database.check()
            with books.database.write() as connection:
                schema.metadata.drop_all(connection)
                connection.execute(sa.text(f"DROP TABLE {schema.VERSION_TABLE}"))


def test_a_database_without_a_schema_is_refused(url: str) -> None:
    with opened(url, ready=False) as books, pytest.raises(ConfigError, match="no tether schema") as caught:
        books.database.check()
    assert "tether db upgrade" in caught.value.hint


@pytest.mark.parametrize(("version", "message", "hint"), [("9999", "newer", "release"), ("0000", "needs", "upgrade")])
def test_another_schema_is_refused(books: Books, version: str, message: str, hint: str) -> None:
    with books.database.write() as connection:
        connection.execute(sa.text(f"UPDATE {schema.VERSION_TABLE} SET version_num = :v"), {"v": version})
    with pytest.raises(ConfigError, match=message) as caught:
        books.database.check()
    assert hint in caught.value.hint
    assert version in caught.value.message
    if version > schema.HEAD:
        with pytest.raises(ConfigError, match="newer"):
            upgrade(books.database)


@pytest.mark.postgresql
def test_taskflows_own_tables_are_left_alone(postgresql: str) -> None:
    """TaskFlow's stock backend keeps its version in ``alembic_version``, in the same database."""
    from taskflow.persistence.backends.impl_sqlalchemy import SQLAlchemyBackend

    stock = SQLAlchemyBackend({"connection": postgresql})
    stock.get_connection().upgrade()
    with opened(postgresql, ready=False) as books:
        before = books.rows("SELECT version_num FROM alembic_version")
        assert books.database.version() is None
        upgrade(books.database)
        assert books.rows("SELECT version_num FROM alembic_version") == before
        assert before != []
        books.database.check()
    stock.get_connection().upgrade()
    stock.close()


def test_sqlite_commits_outlive_a_power_loss(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path / 'tether.sqlite'}") as books:
        for enter in (books.database.write, books.database.read):
            with enter() as connection:
                assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
                assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


@pytest.mark.parametrize(
    "words", ["nonsense", "mysql+none://h/d", "sqlite:////no/such/folder/t.sqlite", "postgresql+none://u:pa55@h/d"]
)
def test_an_unusable_url_is_a_matter_of_configuration(words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Database(words)
    assert caught.value.hint
    assert "pa55" not in caught.value.message


def test_a_server_that_is_not_there_is_uncertain_and_its_password_stays_unsaid(tmp_path: Path) -> None:
    database = Database(f"postgresql+psycopg://u:pa55@/d?host={tmp_path}")
    with pytest.raises(UncertainError, match="does not answer") as caught:
        database.check()
    assert "pa55" not in str(caught.value) + caught.value.hint


# -- the ledger ----------------------------------------------------------------------------------------------


def test_a_job_is_read_as_it_was_written(books: Books) -> None:
    job = a_job(volume_name="Größe <&> \"q\" 'é'", idempotency_key="k")
    stored = books.ledger.add_job(job)
    assert stored == replace(job, created_at=stored.created_at, updated_at=stored.updated_at)
    assert books.ledger.job(job.id) == stored
    end(books, job.id, error={"message": "m"}, exit_code=4, state="blocked")
    assert (books.ledger.job(job.id).error, books.ledger.job(job.id).open) == ({"message": "m"}, True)


def end(books: Books, job_id: str, **values: Any) -> None:
    """Change a job's row as its runner would."""
    generation = books.ledger.job(job_id).generation
    books.logbook.backend(Lease(job_id, generation, 30.0)).get_connection().write(job_columns(**values))


def test_one_open_job_a_volume(books: Books) -> None:
    first = books.ledger.add_job(a_job())
    with pytest.raises(HeldError, match=first.id) as caught:
        books.ledger.add_job(a_job(volume_id=first.volume_id))
    assert first.id in caught.value.hint
    for state in ("running", "blocked"):
        end(books, first.id, state=state)
        with pytest.raises(HeldError):
            books.ledger.add_job(a_job(volume_id=first.volume_id))
    end(books, first.id, state="rolled-back")
    assert books.ledger.open_job(first.volume_id) is None
    books.ledger.add_job(a_job(volume_id=first.volume_id))


def test_one_job_an_idempotency_key_also_when_it_has_ended(books: Books) -> None:
    first = books.ledger.add_job(a_job(idempotency_key="k"))
    end(books, first.id, state="attached")
    with pytest.raises(ConflictError, match="'k'"):
        books.ledger.add_job(a_job(idempotency_key="k"))
    assert books.ledger.job_of_key("k") == books.ledger.job(first.id)


@pytest.mark.parametrize("same", [("server_id", "target"), ("server_id", "address"), ("volume_id", "server_id")])
def test_a_mapping_holds_its_pair_its_name_and_its_address(books: Books, same: tuple[str, str]) -> None:
    first = a_mapping()
    books.ledger.add_mapping(first)
    other = a_mapping(target="vdc", address={"slot": "0x06"})
    clash = replace(other, **{name: getattr(first, name) for name in same})
    with pytest.raises(ConflictError) as caught:
        books.ledger.add_mapping(clash)
    assert caught.value.hint
    books.ledger.add_mapping(replace(clash, server_id="another", volume_id="another"))
    assert len(books.ledger.list_mappings()) == 2


def test_an_address_is_the_same_in_any_order(books: Books) -> None:
    first = a_mapping(address={"slot": "1", "bus": "0"})
    books.ledger.add_mapping(first)
    with pytest.raises(ConflictError):
        books.ledger.add_mapping(a_mapping(server_id=first.server_id, target="vdz", address={"bus": "0", "slot": "1"}))


def test_one_device_identity_a_host(books: Books) -> None:
    row = ConnectionRow("m", "v1", "naa.1", "/dev/sda")
    books.ledger.record_connection(row)
    books.ledger.record_connection(replace(row, path="/dev/sdb"))
    with pytest.raises(ConflictError, match=r"naa\.1"):
        books.ledger.record_connection(replace(row, volume_id="v2"))
    books.ledger.record_connection(replace(row, volume_id="v2", machine_id="other"))
    books.ledger.record_connection(replace(row, volume_id="v3", identity=None))
    books.ledger.record_connection(replace(row, volume_id="v4", identity=""))
    assert [item.path for item in books.ledger.list_connections("m")] == ["/dev/sdb", "/dev/sda", "/dev/sda"]


@pytest.mark.parametrize("name", ["", "%", "_", "zz"])
def test_a_beginning_that_names_no_job(books: Books, name: str) -> None:
    books.ledger.add_job(a_job())
    with pytest.raises(NotFound):
        books.ledger.job(name)


def test_the_ends_of_a_hand_over_change_places_with_their_secrets_once(books: Books) -> None:
    ledger = books.ledger
    mapping = a_mapping(state="attached", machine_id="here", attachment_id="first")
    pair = mapping.volume_id, mapping.server_id
    end = Handover(*pair, job_id="prepare", state=End.PREPARING, host="there", machine_id="there")
    ledger.add_mapping(mapping)
    ledger.handovers.begin(end)
    with pytest.raises(HeldError):
        ledger.handovers.begin(replace(end, job_id="another"))
    sealed = [{"job_id": job, "name": "connection", "sealed": job} for job in (mapping.job_id, "prepare")]
    with books.database.write() as connection:
        connection.execute(sa.insert(schema.secrets), sealed)

    ledger.handovers.swap(*pair)  # nothing is prepared yet
    assert ledger.mapping(*pair) == replace(mapping, created_at=ANY, updated_at=ANY)
    ledger.handovers.prepared(*pair, "second")
    for _ in range(2):
        ledger.handovers.swap(*pair)
        row, left = ledger.mapping(*pair), ledger.handovers.find(*pair)
        assert row is not None
        assert left is not None
        assert (row.machine_id, row.attachment_id) == ("there", "second")
        assert (left.machine_id, left.attachment_id, left.state, left.host) == ("here", "first", End.OUTGOING, "there")
        found = [ledger.secret(job, "connection") for job in (mapping.job_id, "prepare")]
        assert found == ["prepare", mapping.job_id]
    ledger.handovers.forget(*pair)
    assert [ledger.secret(job, "connection") for job in (mapping.job_id, "prepare")] == ["prepare", None]
    assert ledger.handovers.list() == []
