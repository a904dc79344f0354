"""Every exception that os-brick and its libraries can raise has a place in tether's tree."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from oslo_concurrency import processutils

from tether.adapters.host import errors
from tether.adapters.host.errors import Verdict, as_json, from_json, mapped, translate
from tether.errors import ConfigError, ConflictError, FinalError, NotFound, TetherError, UncertainError
from tether.sealed import scrub, secrets_in

LIST = """
import inspect, sys
sys.modules["eventlet"] = None
from os_brick import exception
for name, kind in inspect.getmembers(exception, inspect.isclass):
    if issubclass(kind, Exception) and kind.__module__ == "os_brick.exception":
        print(name, *(base.__name__ for base in kind.__mro__[1:]))
"""


def brick_exceptions() -> dict[str, list[str]]:
    """os-brick is imported in a process of its own: it would bring its global state into this one."""
    listed = subprocess.run([sys.executable, "-W", "ignore", "-c", LIST], capture_output=True, text=True, check=True)
    return {words[0]: words[1:] for line in listed.stdout.splitlines() if (words := line.split())}


def made(name: str, bases: tuple[type, ...] = (Exception,), text: str = "words") -> Exception:
    return type(name, bases, {})(text)


def test_every_exception_of_os_brick_is_named_in_the_map() -> None:
    known = brick_exceptions()
    assert len(known) > 20
    assert set(known) - set(errors.MEANINGS) == set()


def test_every_exception_of_os_brick_gets_its_own_verdict() -> None:
    for name, bases in brick_exceptions().items():
        error = made(name, tuple(made_base(bases)))
        verdict, hint = errors.MEANINGS[name]
        told = translate(error, doing="connecting", volume_id="v1", clean=True)
        expected = {Verdict.REFUSED: FinalError, Verdict.LACKING: ConfigError, Verdict.UNCERTAIN: UncertainError}
        assert type(told) is expected[verdict], name
        assert told.hint == hint
        assert name in told.message
        assert "volume v1" in told.message
        assert type(translate(error, doing="connecting", volume_id="v1", clean=False)) is UncertainError, name


def test_what_os_brick_has_collected_is_told() -> None:
    """The exception's own text is all the tracebacks."""
    error = made("ExceptionChainer")
    flush = processutils.ProcessExecutionError(stderr="Input/output error\nmore", exit_code=1, cmd="a password")
    error._exceptions = [(type(each), each, None) for each in (flush, ValueError("no such map"))]  # type: ignore[attr-defined]
    told = translate(error, doing="disconnecting", volume_id="v1", clean=False)
    assert told.message == (
        "disconnecting volume v1 failed: ExceptionChainer: exit status 1: Input/output error; no such map"
    )


def made_base(names: list[str]) -> list[type]:
    return [ValueError] if "ValueError" in names else [Exception]


@pytest.mark.parametrize("name", ["ExecutionTimeout", "MultipathdPathsNotRemoved", "VolumePathNotRemoved"])
def test_what_may_still_be_at_work_is_never_final(name: str) -> None:
    assert errors.MEANINGS[name][0] is Verdict.UNCERTAIN


def test_every_exception_of_processutils_is_mapped() -> None:
    for name, kind in inspect.getmembers(processutils, inspect.isclass):
        if issubclass(kind, Exception) and kind.__module__ == processutils.__name__:
            assert any(base.__name__ in errors.MEANINGS for base in kind.__mro__), name


def test_a_command_line_is_never_told() -> None:
    error = processutils.ProcessExecutionError(
        cmd="iscsiadm -v chap-Secret-12", exit_code=24, stderr="iscsiadm: login failed\nmore", stdout="out"
    )
    told = translate(error, doing="connecting", volume_id="v1", clean=True)
    assert isinstance(told, FinalError)
    assert "exit status 24: iscsiadm: login failed" in told.message
    assert "chap-Secret-12" not in told.message


def test_a_subclass_takes_its_nearest_base() -> None:
    base = type("VolumePathNotRemoved", (Exception,), {})
    assert isinstance(translate(made("New", (base,)), doing="x", volume_id="v", clean=True), UncertainError)


def test_an_unknown_exception_is_uncertain() -> None:
    assert type(translate(KeyError("x"), doing="x", volume_id="v", clean=True)) is UncertainError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(2, "No such file or directory", "iscsiadm"), ConfigError),
        (PermissionError(1, "Operation not permitted"), ConfigError),
        (ModuleNotFoundError("No module named 'os_brick'"), ConfigError),
        (TimeoutError("too long"), UncertainError),
        (OSError(5, "Input/output error", "/dev/sda"), FinalError),
    ],
)
def test_errors_of_the_system(error: Exception, kind: type[TetherError]) -> None:
    told = translate(error, doing="connecting", volume_id="v1", clean=True)
    assert type(told) is kind
    assert told.hint


def test_an_error_of_our_own_stays_as_it_is() -> None:
    error = FinalError("no", hint="x")
    assert translate(error, doing="connecting", volume_id="v1", clean=False) is error


def test_mapped_cleans_before_it_is_final() -> None:
    asked: list[str] = []

    def clean() -> bool:
        asked.append("clean")
        return True

    with pytest.raises(FinalError), mapped("connecting", "v1", clean=clean):
        raise made("VolumeDeviceNotFound")
    assert asked == ["clean"]
    with pytest.raises(UncertainError), mapped("connecting", "v1"):
        raise made("VolumeDeviceNotFound")


@pytest.mark.parametrize("kind", [FinalError, UncertainError, ConfigError, NotFound])
def test_errors_cross_the_pipe(kind: type[TetherError]) -> None:
    error = kind("what", resource="volume v1", hint="do")
    back = from_json(as_json(error))
    assert type(back) is kind
    assert (back.message, back.resource, back.hint) == ("what", "volume v1", "do")


def test_an_unknown_code_is_uncertain() -> None:
    assert type(from_json({"code": "new", "message": "m", "resource": "", "hint": ""})) is UncertainError
    assert type(from_json(as_json(ConflictError("m")))) is TetherError


def test_secrets_are_found_at_every_depth_and_masked() -> None:
    words = {
        "data": {
            "auth_password": "p1",
            "target_iqn": "iqn",
            "discovery_auth_password": "p1-longer",
            "nested": [{"secret": {"value": "p2"}}],
        },
        "passphrase": "p3",
    }
    assert set(secrets_in(words)) == {"p1-longer", "p1", "p2", "p3"}
    assert secrets_in(words)[0] == "p1-longer"
    assert scrub("a p1-longer b p1 c p2 iqn", secrets_in(words)) == "a *** b *** c *** iqn"
