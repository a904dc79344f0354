"""The words that the parts of Cinder's contract share."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from uuid import uuid4

from tether.adapters.cinder.model import Cinder

NewVolume = Callable[..., str]
Fault = Callable[[str, str, str], AbstractContextManager[None]]

CONNECTOR = {
    "initiator": "iqn.1993-08.org.debian:01:contract-a",
    "ip": "127.0.0.1",
    "host": "contract-a",
    "multipath": False,
    "platform": "x86_64",
    "os_type": "linux",
    "do_local_attach": False,
}
OTHER_CONNECTOR = {**CONNECTOR, "initiator": "iqn.1993-08.org.debian:01:contract-b", "host": "contract-b"}


def uuid() -> str:
    return str(uuid4())


def status(cinder: Cinder, volume_id: str) -> str:
    return cinder.show_volume(volume_id).status


def rows(cinder: Cinder, volume_id: str) -> list[tuple[str, str]]:
    """Return (attachment id, status), sorted."""
    return sorted((row.id, row.status) for row in cinder.list_attachments(volume_id))


def eventually(holds: Callable[[], bool]) -> bool:
    """Return True once it holds, False if it does not within half a minute."""
    end = time.monotonic() + 30
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def connected(cinder: Cinder, volume_id: str, *, owner: str = "", mode: str = "rw") -> str:
    """Take an attachment as far as *attached*; return its id."""
    attachment = cinder.create_attachment(volume_id, owner=owner, mode=mode)
    cinder.update_attachment(attachment, CONNECTOR)
    cinder.complete_attachment(attachment)
    return attachment
