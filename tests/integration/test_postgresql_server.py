"""The server that the integration tier runs on is what it claims to be."""

from __future__ import annotations

import psycopg
import pytest


def _ask(url: str, statement: str) -> object:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        row = connection.execute(statement).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.postgresql
def test_commits_are_durable_and_nothing_listens_on_tcp(postgresql_url: str) -> None:
    assert _ask(postgresql_url, "SHOW fsync") == "on"
    assert _ask(postgresql_url, "SHOW synchronous_commit") == "on"
    assert _ask(postgresql_url, "SHOW listen_addresses") == ""


@pytest.mark.postgresql
@pytest.mark.parametrize("round_", [1, 2])
def test_each_test_has_an_empty_database(postgresql: str, round_: int) -> None:
    with psycopg.connect(postgresql.replace("+psycopg", "")) as connection:
        connection.execute(f"CREATE TABLE marks AS SELECT {round_} AS mark")
    assert _ask(postgresql, "SELECT count(*) FROM marks") == 1
