"""The helper process: carries out one verb of the host adapter, then ends.

The request is one line of JSON on standard input, the answer one line on standard output. Secrets travel
on these two only. Standard input stays open while the helper works: when it ends, the one who asked is
gone, and the helper ends itself together with the commands that os-brick has started.

Run as ``python -m tether.adapters.host.helper`` in a session of its own.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from io import FileIO
from types import FrameType
from typing import Any, NoReturn, TextIO

from tether.adapters.host import errors
from tether.adapters.host.local import LocalHost
from tether.adapters.host.model import Device, as_json, survey_as_json
from tether.adapters.host.places import Places
from tether.errors import TetherError
from tether.sealed import scrub, secrets_in
from tether.settings import Settings

_PR_SET_PDEATHSIG = 1


def carry_out(request: Mapping[str, Any]) -> Any:
    """Carry out one request and return what goes into the answer.

    Raises:
        TetherError: what the verb raises.
    """
    host = LocalHost(Settings(**request["settings"]), Places(**request["places"]))
    verb, words = request["verb"], request["words"]
    verbs: dict[str, Callable[..., Any]] = {
        "connector": host.connector,
        "connect": host.connect,
        "find": host.find,
        "device_at": host.device_at,
        "link": host.link,
        "unlink": host.unlink,
        "disconnect": host.disconnect,
        "residue": host.residue,
        "extend": host.extend,
        "usable_size": host.usable_size,
        "resize_encryption": host.resize_encryption,
        "read_header": host.read_header,
        "format_encryption": host.format_encryption,
        "open_encryption": host.open_encryption,
        "encryption_open": host.encryption_open,
        "close_encryption": host.close_encryption,
    }
    if verb == "survey":
        return survey_as_json(host.survey())
    result = verbs[verb](**words)
    return as_json(result) if isinstance(result, Device) else result


def request(verb: str, settings: Settings, places: Places, words: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request for one verb: the counterpart of :func:`carry_out`.

    Of the settings only the host's go along: the database's URL may hold a password.
    """
    names = ("run_dir", *(item.name for item in fields(Settings) if item.metadata["section"] == "host"))
    chosen = {name: getattr(settings, name) for name in names}
    return {"verb": verb, "settings": chosen, "places": asdict(places), "words": dict(words)}


def main(requests: FileIO, answers: TextIO) -> None:
    """Read one request, carry it out, write the answer.

    Args:
        requests: unbuffered, so that the thread that reads on holds no lock when the process exits.
    """
    _die_with_parent()
    line = requests.readline()
    threading.Thread(target=_end_with, args=(requests,), daemon=True).start()
    asked = json.loads(line)
    secrets = secrets_in(asked["words"])
    try:
        answer = {"result": carry_out(asked)}
    except TetherError as error:
        answer = {"error": {key: scrub(text, secrets) for key, text in errors.as_json(error).items()}}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _die_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent's thread ends, and end the whole group on it.

    SIGKILL would end this process alone, and leave an ``iscsiadm --login`` at work.
    """
    signal.signal(signal.SIGTERM, _end_group)
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        _end_group(signal.SIGTERM, None)


def _end_with(requests: FileIO) -> None:
    """End the group when the other end of standard input is closed."""
    while requests.read(1):
        pass
    _end_group(signal.SIGTERM, None)


def _end_group(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  a signal handler's
    os.killpg(os.getpgrp(), signal.SIGKILL)
    raise SystemExit(number)


if __name__ == "__main__":
    # os-brick's commands may write to standard output: the answer goes through a copy of it.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
        main(FileIO(0, closefd=False), channel)
