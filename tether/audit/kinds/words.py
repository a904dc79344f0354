"""What the finders share: how a drift is put together."""

from __future__ import annotations

import shlex
from typing import Any

from tether.adapters.guest.model import Server
from tether.audit.books import books_of
from tether.audit.drift import Drift, Kind, Owner
from tether.audit.survey import Survey

#: What ends a drift of tether's own.
REPAIR = "tether repair --plan"


def drift(
    survey: Survey,
    kind: Kind,
    text: str,
    *,
    owner: Owner,
    volume_id: str,
    server_id: str = "",
    host: str = "",
    **more: Any,
) -> Drift:
    """Return a drift with its names, and with what each book says of it.

    Args:
        host: a machine id; empty for what only Cinder has.
        more: the rest of :class:`Drift`; ``evidence`` is put before what the books say.
    """
    evidence = {**more.pop("evidence", {}), **books_of(survey, volume_id, server_id).lines()}
    return Drift(
        kind=kind,
        text=text,
        owner=owner,
        volume_id=volume_id,
        volume=survey.volume_name(volume_id),
        server_id=server_id,
        server=survey.server_name(server_id) if server_id else "",
        host=survey.host_name(host) if host else "",
        evidence=evidence,
        **more,
    )


def safe(owner: Owner, look: str) -> str:
    """Return the next command: a repair's plan for tether's own, and only a look for what is not."""
    return REPAIR if owner is Owner.OURS else look


def look_at_server(server: Server) -> str:
    """Return the command that shows a server's disks."""
    return shlex.join(["virsh", "domblklist", server.name, "--details"])


def look_at_volume(volume_id: str) -> str:
    """Return the command that shows a volume's attachments."""
    return f"cinder attachment-list --volume-id {volume_id}"


def here(survey: Survey) -> str:
    """Return this host's machine id."""
    return survey.machine.machine_id if survey.machine else ""


def age(survey: Survey, moment: float | None) -> float | None:
    """Return how long ago a moment was when the books were read; in seconds."""
    return None if moment is None else max(0.0, survey.at - moment)
