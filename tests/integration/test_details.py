"""What a flow leaves is read back as it was, on SQLite and on PostgreSQL; or it is refused."""

from __future__ import annotations

import json
import math
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from taskflow import engines, retry, states, task
from taskflow.patterns import linear_flow
from taskflow.persistence import models
from taskflow.types.failure import Failure

from tests.integration.books import Books
from tether.errors import FinalError, Interrupted
from tether.persistence.details import check_storable, decode_atom, encode_atom
from tether.persistence.logbook import JobConnection

LONG = "ä\U0001f600\x00\ud800\"'\\\n" * 1500


@pytest.fixture
def connection(books: Books) -> JobConnection:
    return books.logbook.backend(books.held_job(id="j")[1]).get_connection()


def reloaded(books: Books, connection: JobConnection, *atoms: models.AtomDetail, meta: Any = None) -> Any:
    """Store a flow with these atoms; return it as another process reads it, its atoms by name."""
    flow = models.FlowDetail("f", "f")
    flow.state, flow.meta = states.RUNNING, meta or {}
    for atom in atoms:
        flow.add(atom)
    connection.update_flow_details(flow)
    for atom in atoms:
        connection.update_atom_details(atom)
    connection.write({})
    stored = books.logbook.flow("j", "f")
    assert stored is not None
    return stored


def only(flow: models.FlowDetail) -> models.AtomDetail:
    (atom,) = flow
    return atom


def a_task(**attributes: Any) -> models.TaskDetail:
    atom = models.TaskDetail("a/1", "a")
    atom.state = states.SUCCESS
    for name, value in attributes.items():
        setattr(atom, name, value)
    return atom


def said(failure: Failure) -> tuple[Any, ...]:
    """Return all that a failure says."""
    causes = tuple(said(cause) for cause in failure.causes)
    return failure.exception_str, failure.traceback_str, list(failure), failure.exception_args, causes


# -- results -------------------------------------------------------------------------------------------------

RESULTS = [0, "", [], {}, False, None, 1, -1.5, True, LONG, 2**70, [None, [0, {}]], {"": {"a": [LONG, None]}}, -0.0]


@pytest.mark.parametrize("result", RESULTS, ids=range(len(RESULTS)))
def test_a_result_is_read_back_as_it_was(books: Books, connection: JobConnection, result: Any) -> None:
    atom = only(reloaded(books, connection, a_task(results=result, revert_results=result)))
    for found in (atom.results, atom.revert_results):
        assert (found, type(found)) == (result, type(result))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON, JSON)
@settings(max_examples=200, deadline=None)
def test_any_json_is(result: Any, provided: Any) -> None:
    of_task = a_task(results=result)
    of_retry = models.RetryDetail("r/1", "r")
    of_retry.state, of_retry.results = states.SUCCESS, [(provided, {})]
    for atom in (of_task, of_retry):
        check_storable(atom)
        text = encode_atom(atom, [])
        assert text.isascii(), "no database's own encoding matters"
        assert "\x00" not in text, "which PostgreSQL refuses"
        assert repr(decode_atom(json.loads(text)).results) == repr(atom.results)


@given(JSON)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_on_a_database(books: Books, connection: JobConnection, result: Any) -> None:
    assert repr(only(reloaded(books, connection, a_task(results=result))).results) == repr(result)


class Number(IntEnum):
    ONE = 1


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)
DEEP: list[Any] = []
for _ in range(10**5):
    DEEP = [DEEP]
NOT_JSON = {
    "tuple": (1, 2),
    "tuple-inside": {"a": [(1,)]},
    "set": {1},
    "bytes": b"a",
    "int-keys": {1: "a"},
    "none-key": {"a": {None: 1}},
    "nan": math.nan,
    "infinity": [math.inf],
    "object": object(),
    "enum": Number.ONE,
    "circle": CIRCLE,
    "deep": DEEP,
}


@pytest.mark.parametrize("name", NOT_JSON)
@pytest.mark.parametrize("where", ["results", "revert_results", "history"])
def test_what_is_not_json_is_refused(books: Books, connection: JobConnection, name: str, where: str) -> None:
    """It would be read back as something else, or not at all."""
    good = a_task(results={"a": 1})
    reloaded(books, connection, good)
    atom: models.AtomDetail = models.RetryDetail("a/1", "a") if where == "history" else models.TaskDetail("a/1", "a")
    atom.state = states.SUCCESS
    if where == "history":
        atom.results = [(NOT_JSON[name], {})]
    else:
        setattr(atom, where, NOT_JSON[name])
    with pytest.raises(FinalError, match="cannot be stored as it is"):
        connection.update_atom_details(atom)
    connection.write({})
    stored = books.logbook.flow("j", "f")
    assert stored is not None
    assert only(stored).results == {"a": 1}


# -- the rest of a detail ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, "4.2", (1, 0), (1, 2, 3)])
def test_versions_and_meta_are_kept(books: Books, connection: JobConnection, version: Any) -> None:
    meta = {"a": [1, LONG], "": None}
    flow = reloaded(books, connection, a_task(version=version, meta=dict(meta)), meta=meta)
    assert (flow.meta, only(flow).meta, only(flow).version) == (meta, meta, version)


@pytest.mark.parametrize("state", [states.RUNNING, states.REVERTING, states.FAILURE, states.REVERTED, None])
@pytest.mark.parametrize("intention", [states.EXECUTE, states.REVERT, states.RETRY, states.IGNORE])
def test_states_and_intentions_are_kept(
    books: Books, connection: JobConnection, state: str | None, intention: str
) -> None:
    atom = only(reloaded(books, connection, a_task(state=state, intention=intention)))
    assert (atom.state, atom.intention) == (state, intention)


# -- failures ------------------------------------------------------------------------------------------------


class Silent:
    """Cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def caught(*arguments: Any) -> Failure:
    """Return a failure with two causes, one inside the other."""
    try:
        try:
            try:
                raise KeyError("innermost", 1)  # noqa: TRY301 - as deep as it looks
            except KeyError as inner:
                raise OSError(5, LONG) from inner
        except OSError as middle:
            raise ValueError(*arguments) from middle
    except ValueError:
        return Failure()


def test_a_failure_is_read_back_with_its_causes(books: Books, connection: JobConnection) -> None:
    failure = caught("ä\U0001f600", 1, None, [1, {"a": LONG}], 1.5)
    atom = only(reloaded(books, connection, a_task(state=states.FAILURE, failure=failure, revert_failure=failure)))
    for found in (atom.failure, atom.revert_failure):
        assert found is not None
        assert said(found) == said(failure)
        assert [cause.exception_str for cause in found.causes][1] == "('innermost', 1)"
        assert found.check(ValueError) is ValueError


def test_an_argument_that_cannot_be_stored_is_kept_as_text(books: Books, connection: JobConnection) -> None:
    failure = caught(b"\xff", {1}, ("a",), math.nan, DEEP[:0])
    atom = only(reloaded(books, connection, a_task(state=states.FAILURE, failure=failure)))
    assert atom.failure is not None
    assert atom.failure.exception_args == ("b'\\xff'", "{1}", "('a',)", "nan", [])


def test_an_argument_that_cannot_even_be_shown_does_not_keep_the_failure_from_being_stored(
    books: Books, connection: JobConnection
) -> None:
    failure = Failure.from_exception(ValueError("no"))
    failure._exc_args = (Silent(), CIRCLE, "x" * 10**6)
    atom = only(reloaded(books, connection, a_task(state=states.FAILURE, failure=failure)))
    assert atom.failure is not None
    assert "Silent" in atom.failure.exception_args[0]
    assert atom.failure.exception_args[1] == "[[...]]"


def test_the_history_of_a_retry_is_read_back(books: Books, connection: JobConnection) -> None:
    """TaskFlow's own decode puts a failure where a value was."""
    atom = models.RetryDetail("r/1", "r")
    failures = [caught("first"), caught("second")]
    atom.state = states.SUCCESS
    atom.results = [(0, {"a/1": failures[0], "b/1": failures[1]}), ({"host": "h2"}, {"a/1": failures[1]}), (None, {})]
    found = only(reloaded(books, connection, atom))
    assert isinstance(found, models.RetryDetail)
    assert [value for value, _failures in found.results] == [0, {"host": "h2"}, None]
    assert [{name: said(failure) for name, failure in failures_.items()} for _value, failures_ in found.results] == [
        {"a/1": said(failures[0]), "b/1": said(failures[1])},
        {"a/1": said(failures[1])},
        {},
    ]


# -- a retry that was cut off --------------------------------------------------------------------------------


class Tries(task.Task):  # type: ignore[misc]  # taskflow has no types
    """Fails with all values but the last; is cut off at one of them, once."""

    def __init__(self, seen: list[Any], cut_off_at: Any, good: Any) -> None:
        super().__init__("tries/1", requires=["value"])
        self.seen, self.cut_off_at, self.good = seen, cut_off_at, good

    def execute(self, value: Any) -> None:
        self.seen.append(value)
        if value == self.cut_off_at and self.seen.count(value) == 1:
            raise Interrupted("cut off")
        if value != self.good:
            raise OSError(f"{value} does not answer")


RETRIES = {
    "ForEach": lambda: retry.ForEach(["h1", "h2", "h3"], name="retry/1", provides="value"),
    "ParameterizedForEach": lambda: retry.ParameterizedForEach(name="retry/1", provides="value"),
    "Times": lambda: retry.Times(3, name="retry/1", provides="value"),
}


@pytest.mark.parametrize("kind", RETRIES)
@pytest.mark.parametrize("cut_off_at", [0, 1, 2])
def test_a_retry_that_was_cut_off_goes_on_with_the_same_value(books: Books, kind: str, cut_off_at: int) -> None:
    """TaskFlow's own backend gives the first value again."""
    values: list[Any] = [1, 2, 3] if kind == "Times" else ["h1", "h2", "h3"]
    seen: list[Any] = []
    _job, lease = books.held_job(id="j")

    def engine(detail: models.FlowDetail) -> Any:
        backend = books.logbook.backend(lease)
        backend.get_connection().update_flow_details(detail)
        flow = linear_flow.Flow("f", RETRIES[kind]()).add(Tries(seen, values[cut_off_at], values[-1]))
        return engines.load(flow, flow_detail=detail, backend=backend, store={"values": values})

    with pytest.raises(Interrupted):
        engine(models.FlowDetail("f", "f")).run()
    stored = books.logbook.flow("j", "f")
    assert stored is not None
    again = engine(stored)
    again.run()
    assert again.storage.get_flow_state() == states.SUCCESS
    assert seen == [*values[: cut_off_at + 1], *values[cut_off_at:]]
