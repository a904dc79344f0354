"""The helper process: carries out one verb of the host adapter, then ends.

The request is one line of JSON on standard input, the answer one line on standard output. Secrets travel
on these two only. Standard input stays open while the helper works: when it ends, the one who asked is
gone, and the helper ends itself together with the commands that os-brick has started.

It is a fork of :mod:`tether.adapters.host.origin`, in a session of its own.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

from tether.adapters.host import errors, targets
from tether.adapters.host.local import LocalHost
from tether.adapters.host.model import Device, as_json, survey_as_json
from tether.adapters.host.places import Places
from tether.errors import TetherError
from tether.sealed import scrub, secrets_in
from tether.settings import Settings

#: The verbs that call os-brick.
OF_BRICK = ("connector", "connect", "disconnect", "extend")


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


def main(requests: FileIO, answers: TextIO, tether: int) -> None:
    """Read one request, carry it out, write the answer.

    Args:
        requests: unbuffered, so that no lock is held when the process exits.
        tether: the process that asks (a pidfd).
    """
    threading.Thread(target=_end_with, args=(requests.fileno(), tether), daemon=True).start()
    line = requests.readline()
    if not line.endswith(b"\n"):
        # The one who asked has given up before.
        return
    asked = json.loads(line)
    secrets = secrets_in(asked["words"])
    try:
        answer = {"result": carry_out(asked)}
    except TetherError as error:
        answer = {"error": {key: scrub(text, secrets) for key, text in errors.as_json(error).items()}}
    if asked["verb"] in OF_BRICK:
        with suppress(OSError):
            targets.hand_over(Path(asked["settings"]["lock_path"]))
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _end_with(requests: int, tether: int) -> None:
    """End the group when tether has ended, or the other end of standard input is closed.

    Both are looked at: a fork of tether keeps the other end open, and tether may close it and live on. To end
    this process alone would leave an ``iscsiadm --login`` at work.
    """
    waiting = select.poll()
    waiting.register(requests, 0)
    waiting.register(tether, select.POLLIN)
    waiting.poll()
    os.killpg(os.getpgrp(), signal.SIGKILL)
