"""TaskFlow's own tests of a persistence backend, run on the logbook, on SQLite and on PostgreSQL.

They are part of the installed package. In them a backend holds any number of logbooks, and each call has a connection
of its own; here a logbook is a job's, and its connection is the run's. The adapter below finds the connection of a
book's job; what it is asked to save is written when TaskFlow's tests close theirs, as a barrier would.
"""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from typing import Any

import pytest
from taskflow import exceptions
from taskflow.persistence import models
from taskflow.tests.unit.persistence.base import PersistenceTestMixin

from tests.integration.books import Books
from tether.persistence.logbook import JobConnection

#: Tests that do not apply, and why.
NOT_OURS = {
    "test_logbook_save_retrieve": "a logbook is a job's: it has no name, meta and times of its own",
    "test_logbook_delete": "a logbook goes when its job is pruned, never through TaskFlow",
}
ALL = {name for name in dir(PersistenceTestMixin) if name.startswith("test")}
#: As many as there were when :data:`NOT_OURS` was last read against them.
KNOWN = 18


class Connections:
    """The connections of all jobs of a database."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.of_book: dict[str, JobConnection] = {}
        self.of_detail: dict[str, JobConnection] = {}

    # -- what TaskFlow's tests call --------------------------------------------------------------------------

    def close(self) -> None:
        for connection in self.of_book.values():
            connection.write({})

    def save_logbook(self, book: models.LogBook) -> None:
        if book.uuid not in self.of_book:
            _job, lease = self.books.held_job(id=book.uuid)
            self.of_book[book.uuid] = self.books.logbook.backend(lease).get_connection()
        connection = self.of_book[book.uuid]
        connection.save_logbook(book)
        self.of_detail |= dict.fromkeys([flow.uuid for flow in book], connection)

    def update_flow_details(self, flow: models.FlowDetail) -> models.FlowDetail:
        saved = self._found(self.of_detail, flow.uuid).update_flow_details(flow)
        self.of_detail |= dict.fromkeys([atom.uuid for atom in flow], self.of_detail[flow.uuid])
        return saved

    def update_atom_details(self, atom: models.AtomDetail) -> models.AtomDetail:
        return self._found(self.of_detail, atom.uuid).update_atom_details(atom)

    def get_logbook(self, book_id: str, lazy: bool = False) -> models.LogBook:
        return self._found(self.of_book, book_id).get_logbook(book_id, lazy)

    def get_logbooks(self, lazy: bool = False) -> Iterator[models.LogBook]:
        for connection in self.of_book.values():
            yield from connection.get_logbooks(lazy)

    def get_flow_details(self, flow_id: str, lazy: bool = False) -> models.FlowDetail:
        return self._found(self.of_detail, flow_id).get_flow_details(flow_id, lazy)

    @staticmethod
    def _found(known: dict[str, JobConnection], name: str) -> JobConnection:
        if name not in known:
            raise exceptions.NotFound(f"no job has {name}")
        return known[name]


class Case(PersistenceTestMixin, unittest.TestCase):  # type: ignore[misc]  # taskflow has no types
    """TaskFlow's tests; not collected by itself, since each needs a database."""

    __test__ = False
    connections: Connections

    def _get_connection(self) -> Any:
        return self.connections


@pytest.mark.parametrize("name", sorted(ALL - NOT_OURS.keys()))
def test_taskflows_own(books: Books, name: str) -> None:
    case = Case(name)
    case.connections = Connections(books)
    getattr(case, name)()


def test_every_test_of_taskflow_runs_or_says_why_it_does_not() -> None:
    """A release of TaskFlow that adds one turns this red: read it, then count it here."""
    assert set(NOT_OURS) <= ALL, "TaskFlow has dropped a test that is explained here"
    assert len(ALL) == KNOWN, f"TaskFlow has other tests than before: {sorted(ALL)}"
