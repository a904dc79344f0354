"""Configurations of every kind: the settings, or a ConfigError; never anything else."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.report import counted
from tether.errors import ConfigError, TetherError
from tether.persistence.database import Database
from tether.settings import LONGEST, Settings, config_options, load

NAMES = [(section, option.name) for section, options in config_options().items() for option in options]
VALUES = st.one_of(
    st.sampled_from(["", "nan", "inf", "-inf", "-1", "1e400", "1" * 5000, "true", "$nope", "$wait", "%s", "a\0b", "٣"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.floats().map(str),
    st.integers().map(str),
)
COUNT = counted(60, 2000)


def read(directory: Path, content: bytes) -> Settings | None:
    """Return the settings of a file, of the right types; None if it was refused."""
    file = directory / "tether.conf"
    file.write_bytes(content)
    try:
        found = load(str(file))
    except ConfigError as error:
        return None if error.message and error.hint else pytest.fail(f"no hint: {error}")
    for item in fields(Settings):
        value = getattr(found, item.name)
        assert type(value) is type(item.default), item.name
        assert not isinstance(value, float) or 0 <= value <= LONGEST, item.name
        assert not isinstance(value, str) or "\0" not in value, item.name
    return found


def one(section: str, name: str, value: str) -> bytes:
    return f"[{section}]\n{name} = {value}\n".encode()


@settings(
    max_examples=COUNT, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=st.sampled_from(NAMES), value=VALUES)
@example(where=("DEFAULT", "wait"), value="")
@example(where=("DEFAULT", "wait"), value="nan")
@example(where=("DEFAULT", "wait"), value="1e300")
@example(where=("secrets", "key_file"), value="a\0b")
@example(where=("libvirt", "device_detach_attempts"), value="9" * 30)
def test_any_value_of_any_setting(tmp_path: Path, where: tuple[str, str], value: str) -> None:
    read(tmp_path, one(*where, value))


@settings(
    max_examples=COUNT, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200))
@example(b"\xff\xfe[\0D\0")
@example(b"[DEFAULT]\nwait = 1\nwait = 2\n[DEFAULT]\nwait = 3\n")
@example(b"x" * 100_000)
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    read(tmp_path, content)


@settings(
    max_examples=COUNT, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=st.sampled_from(NAMES), value=VALUES.filter(lambda text: "\0" not in text))
def test_any_value_in_the_environment(tmp_path: Path, where: tuple[str, str], value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"OS_{where[0].upper()}__{where[1].upper()}", value)
        read(tmp_path, b"")


@pytest.mark.parametrize("value", ["", "nan", "inf", "86401", "-0.1"])
def test_a_time_that_is_none_is_refused_by_name(tmp_path: Path, value: str) -> None:
    file = tmp_path / "tether.conf"
    file.write_bytes(one("DEFAULT", "wait", value))
    with pytest.raises(ConfigError, match="wait"):
        load(str(file))
    assert math.isclose(read(tmp_path, one("DEFAULT", "wait", "86400")).wait, LONGEST)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:hunter2@host:port/tether",
        "postgresql://[::1",
        "sqlite:////tmp/db?timeout=soon",
        "sqlite:////" + "x" * 5000,
        "sqlite:////tmp/" + "x" * 5000,
        "",
        "://",
        "nope://host",
    ],
)
def test_a_database_url_that_cannot_be_used(url: str) -> None:
    with pytest.raises(TetherError) as caught:
        Database(url).version()
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None or "hunter2" not in str(caught.value.__cause__)
