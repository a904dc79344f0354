"""Finds what an operator's word names, in the books that were read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from tether.audit.survey import Survey
from tether.errors import NotFound, UncertainError, UsageError


def volumes(survey: Survey) -> Mapping[str, str]:
    """Return the name of every volume that some book knows, by its id."""
    ids = set(survey.cloud.volumes) if survey.cloud else set()
    ids |= set(survey.mappings_of) | set(survey.job_of) | set(survey.seats_of) | set(survey.holdings_of)
    if survey.ledger:  # one about several volumes stands under its own id
        ids -= {job.id for job in survey.ledger.open_jobs}
    return {volume_id: survey.volume_name(volume_id) for volume_id in ids}


def servers(survey: Survey) -> Mapping[str, str]:
    """Return the name of every server that some book knows, by its UUID."""
    ids = set(survey.servers) | (set(survey.guest.unread) if survey.guest else set())
    if survey.ledger:
        ids |= {row.server_id for row in survey.ledger.mappings} | {job.server_id for job in survey.ledger.open_jobs}
    return {server_id: survey.server_name(server_id) for server_id in ids}


def find(survey: Survey, kind: str, word: str) -> str:
    """Return the id of the volume or the server that a word names: its id, or a name that only it has.

    Args:
        kind: ``volume`` or ``server``.

    Raises:
        UsageError: several have this name.
        NotFound: there is none.
        UncertainError: there is none in the books that could be read, and not all could.
    """
    found = matching(survey, kind, word)
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} {kind}s are named {word}: {', '.join(found)}",
            resource=f"{kind} {word}",
            hint="give the id instead of the name",
        )
    if not found:
        unknown(survey, kind, word)
    return found[0]


def matching(survey: Survey, kind: str, word: str) -> list[str]:
    """Return the ids of the volumes or the servers that a word names."""
    known = volumes(survey) if kind == "volume" else servers(survey)
    return [word] if word in known else sorted(key for key, name in known.items() if name == word)


def unknown(survey: Survey, kind: str, word: str) -> NoReturn:
    """Raise the error for a word that names nothing.

    Raises:
        NotFound: all books were read.
        UncertainError: one could not be read; it may know the word.
    """
    if survey.unread:
        book = survey.unread[0]
        raise UncertainError(
            f"no book that could be read knows {kind} {word}; {book.book} could not: {book.reason}",
            resource=f"{kind} {word}",
            hint=book.hint,
        )
    raise NotFound(
        f"no book knows {kind} {word}",
        resource=f"{kind} {word}",
        hint="list them: openstack volume list, virsh list --all",
    )
