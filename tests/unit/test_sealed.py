"""A secret has no text, survives the vault's way of storing it, and is masked where it slips into one all the same."""

from __future__ import annotations

import copy
import gc
import json
import logging
import pickle
from argparse import Namespace
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from taskflow.persistence import models
from taskflow.types.failure import Failure

from tether.adapters.cinder import wire
from tether.adapters.cinder.model import Connection
from tether.cli import logs
from tether.errors import FinalError
from tether.persistence.details import decode_atom, encode_atom
from tether.sealed import MASK, SHORTEST, Sealed, mask, masked, secrets_in
from tether.tasks.run import describe

PASSWORD = 'p"a/ss\\wörd<&>12'

json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
connections = st.builds(
    Connection,
    protocol=st.text(),
    data=st.builds(Sealed, st.dictionaries(st.text(), json_data)),
    access_mode=st.sampled_from(["rw", "ro"]),
    encrypted=st.booleans(),
    discard=st.booleans(),
    qos_specs=st.dictionaries(st.text(), st.text()),
    logical_block_size=st.none() | st.integers(),
    physical_block_size=st.none() | st.integers(),
    auth=st.booleans(),
)


@given(connections)
def test_a_connection_is_read_as_it_was_sealed(connection: Connection) -> None:
    assert wire.load(wire.dump(connection)) == connection


@pytest.mark.parametrize("text", [repr, str, format, lambda sealed: f"{sealed:>5}", lambda sealed: str([sealed])])
def test_it_has_no_text(text: Any) -> None:
    assert PASSWORD not in text(Sealed(PASSWORD))
    assert MASK in text(Sealed(PASSWORD))


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, hash])
def test_it_is_no_part_of_a_message(copied: Any) -> None:
    with pytest.raises(TypeError):
        copied(Sealed(PASSWORD))


# -- the net -------------------------------------------------------------------------------------------------


def test_a_sealed_value_is_masked_in_any_text_as_long_as_it_lives() -> None:
    text = f"login with {PASSWORD} failed"
    sealed = Sealed(PASSWORD)
    assert mask(text) == f"login with {MASK} failed"
    assert mask(json.dumps({"event": text})) == json.dumps({"event": f"login with {MASK} failed"})
    del sealed
    gc.collect()
    assert mask(text) == text


def test_of_connection_data_only_what_is_secret_is_masked() -> None:
    data = {"target_iqn": "iqn.2010-10.test", "auth_password": PASSWORD, "secret_uuid": "5ec4e7c0-0000", "hosts": ["a"]}
    sealed = Sealed(data)
    assert secrets_in(sealed.open()) == [PASSWORD]
    assert mask(f"iqn.2010-10.test {PASSWORD} 5ec4e7c0-0000") == f"iqn.2010-10.test {MASK} 5ec4e7c0-0000"


def test_a_longer_secret_is_masked_before_a_part_of_it() -> None:
    kept = [Sealed("hunter2-long"), Sealed("hunter2")]
    assert mask("hunter2-long hunter2") == f"{MASK} {MASK}"
    assert kept


def test_what_is_too_short_to_be_told_from_words_is_left() -> None:
    short = Sealed("a" * (SHORTEST - 1))
    assert mask("banaaaaana") == "banaaaaana"
    assert short


def test_data_is_masked_all_the_way_down() -> None:
    sealed = Sealed(PASSWORD)
    assert masked({"a": [PASSWORD, 1, None, {"b": f"x{PASSWORD}"}]}) == {"a": [MASK, 1, None, {"b": f"x{MASK}"}]}
    assert sealed


def test_a_jobs_error_is_masked() -> None:
    sealed = Sealed(PASSWORD)
    for error in (FinalError(PASSWORD, resource=PASSWORD, hint=PASSWORD), KeyError(PASSWORD), ValueError(PASSWORD)):
        told = json.dumps(describe("connect-host/1", error), ensure_ascii=False)
        assert MASK in told
        assert "wörd" not in told
    assert sealed


def test_a_failure_in_the_logbook_is_masked() -> None:
    sealed = Sealed(PASSWORD)
    atom = models.TaskDetail("connect-host/1", "u")
    try:
        try:
            raise ValueError(PASSWORD, {"deep": [PASSWORD]}, object())  # noqa: TRY301
        except ValueError as error:
            raise FinalError(f"no: {PASSWORD}") from error
    except FinalError:
        atom.put("FAILURE", Failure())
    text = encode_atom(atom, [])
    assert MASK in text
    assert "wörd" not in json.dumps(json.loads(text), ensure_ascii=False)
    again = decode_atom(json.loads(text))
    assert "wörd" not in again.failure.traceback_str + again.failure.exception_str + str(again.failure.exception_args)
    assert sealed


@pytest.mark.parametrize("as_json", [False, True])
def test_log_lines_are_masked(as_json: bool) -> None:
    sealed, console = Sealed(PASSWORD), StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        root.handlers = []
        logs.configure(Namespace(debug=True, verbose_level=1, log_file=None, log_json=as_json), console)  # type: ignore[arg-type]
        log = logging.getLogger("a.foreign.library")
        log.debug("Running cmd: iscsiadm -v %s", PASSWORD)
        try:
            raise KeyError(PASSWORD)  # noqa: TRY301
        except KeyError:
            log.exception("it failed")
    finally:
        root.handlers = before
        root.setLevel(level)
    text = console.getvalue()
    assert "iscsiadm" in text
    assert "Traceback" in text
    assert text.count(MASK) == 2
    assert "wörd" not in text
    assert "w\\u00f6rd" not in text
    assert sealed
