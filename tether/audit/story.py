"""The story of one volume, server or job: what each book says, what has happened, and what to run next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tether.adapters.guest.model import Scope
from tether.audit import names
from tether.audit.books import books_of
from tether.audit.drift import Drift, Owner
from tether.audit.kinds import judge
from tether.audit.survey import Survey, seconds
from tether.errors import NotFound, UsageError
from tether.persistence.ledger import Job, Ledger
from tether.persistence.logbook import Logbook
from tether.persistence.overview import jobs_about, jobs_of

#: Hexadecimal digits from which on a word may be the beginning of a job's id.
SHORTEST_JOB = 4
#: How many of a volume's jobs are told of.
TOLD = 3


@dataclass(frozen=True)
class Step:
    """One step of a job as it went.

    Args:
        at: when it began; seconds since the epoch.
        took: until its last change, in seconds.
    """

    name: str
    state: str
    at: float
    took: float


@dataclass(frozen=True)
class Story:
    """What is to be told.

    Args:
        subject: what it is about, in words.
        books: book -> what it says, a line for each server; of a server, a line for each volume.
        since: when a book last saw it change; seconds since the epoch, or None.
        jobs: the newest first.
        steps: of the newest one.
        drifts: the gravest first.
        verdict: how things stand, in a sentence.
        next: the one command to run; empty if nothing is to be done.
    """

    subject: str
    books: dict[str, list[str]]
    since: float | None
    jobs: Sequence[Job]
    steps: Sequence[Step]
    drifts: Sequence[Drift]
    verdict: str
    next: str


def tell(survey: Survey, ledger: Ledger, logbook: Logbook, word: str) -> Story:
    """Return the story of what a word names: a volume, a server, or a job by the beginning of its id.

    Raises:
        UsageError: it names several things; the message lists them.
        NotFound: no book knows it. UncertainError: none of those that could be read.
    """
    found = {
        **{("volume", key): survey.volume_name(key) for key in names.matching(survey, "volume", word)},
        **{("server", key): survey.server_name(key) for key in names.matching(survey, "server", word)},
        **{("job", job.id): f"{job.kind} of {job.volume_name}" for job in _jobs(ledger, word)},
    }
    if len(found) > 1:
        raise UsageError(
            f"{word} names several things: "
            + ", ".join(f"{kind} {key} ({name})" for (kind, key), name in found.items()),
            hint="give the whole id of one of them",
        )
    if not found:
        names.unknown(survey, "volume, server or job", word)
    ((kind, key),) = found
    if kind == "server":
        return _server(survey, ledger, logbook, key)
    if kind == "volume":
        return _volume(survey, logbook, key, jobs_about(ledger, [key])[::-1][:TOLD])
    job = ledger.job(key)
    if job.params.volumes:
        return _whole(survey, logbook, job)
    return _pairs(survey, logbook, _subject(job), (job.volume_id, job.server_id), jobs=[job])


def _jobs(ledger: Ledger, word: str) -> list[Job]:
    if len(word) < SHORTEST_JOB:
        return []
    try:
        return [ledger.job(word)]
    except NotFound:
        return []


def _volume(survey: Survey, logbook: Logbook, volume_id: str, jobs: Sequence[Job]) -> Story:
    servers = {seat.server.uuid for seat in survey.seats_of.get(volume_id, ())}
    servers |= {row.server_id for row in survey.mappings_of.get(volume_id, ())}
    job = survey.job_of.get(volume_id)
    servers |= {job.server_id} if job else set()
    subject = f"volume {survey.volume_name(volume_id)} ({volume_id})"
    return _pairs(survey, logbook, subject, (volume_id, *sorted(servers, key=survey.server_name)), jobs=jobs)


def _pairs(survey: Survey, logbook: Logbook, subject: str, ids: Sequence[str], *, jobs: Sequence[Job]) -> Story:
    """Tell of a volume and of the servers that have to do with it: its id, then theirs."""
    volume_id, *servers = ids
    books: dict[str, list[str]] = {}
    for server_id in servers or [""]:
        for book, text in books_of(survey, volume_id, server_id).lines().items():
            of_pair = book in {"ledger", *Scope} and server_id
            line = f"{survey.server_name(server_id)}: {text}" if of_pair else text
            if line not in books.setdefault(book, []):
                books[book].append(line)
    listed = survey.cloud.volumes.get(volume_id) if survey.cloud else None
    times = [seconds(listed.updated_at) if listed else None]
    times += [row.updated_at for row in survey.mappings_of.get(volume_id, ())] + [job.updated_at for job in jobs]
    drifts = [item for item in judge(survey) if item.volume_id == volume_id]
    if len(servers) == 1:
        drifts = [item for item in drifts if item.server_id in {"", servers[0]}]
    since = max((moment for moment in times if moment is not None), default=None)
    steps = _steps(logbook, jobs[0]) if jobs else []
    return Story(subject, books, since, jobs, steps, drifts, *_end(survey, drifts, volume_id))


def _server(survey: Survey, ledger: Ledger, logbook: Logbook, server_id: str) -> Story:
    server = survey.servers.get(server_id)
    volumes = sorted(
        {seat.volume_id for seat in survey.seats if seat.server.uuid == server_id}
        | {volume_id for volume_id, owner in survey.mapping_of if owner == server_id},
        key=survey.volume_name,
    )
    books = {
        "guest": [str(server.power) if server else "unread, or unknown to this libvirt"],
        "volumes": [f"{survey.volume_name(key)}: {books_of(survey, key, server_id).line}" for key in volumes]
        or ["none"],
    }
    drifts = [item for item in judge(survey) if item.server_id == server_id]
    # Of the ended ones those that its mappings are from: the table has no index by server.
    known = {row.job_id for (_volume, owner), row in survey.mapping_of.items() if owner == server_id}
    open_ones = {job.id: job for job in survey.job_of.values() if job.server_id == server_id}
    jobs = sorted((jobs_of(ledger, known) | open_ones).values(), key=lambda job: job.created_at, reverse=True)[:TOLD]
    steps = _steps(logbook, jobs[0]) if jobs else []
    subject = f"server {survey.server_name(server_id)} ({server_id})"
    return Story(subject, books, None, jobs, steps, drifts, *_end(survey, drifts, *volumes))


def _whole(survey: Survey, logbook: Logbook, job: Job) -> Story:
    """Tell of a job about several volumes."""
    volumes = job.params.volumes.split()
    books = {"volumes": [f"{survey.volume_name(key)}: {books_of(survey, key, job.server_id).line}" for key in volumes]}
    drifts = [
        item for item in judge(survey) if item.volume_id in (job.id, *volumes) and item.server_id == job.server_id
    ]
    end = _end(survey, drifts, job.volume_id, *volumes)
    return Story(_subject(job), books, job.updated_at, [job], _steps(logbook, job), drifts, *end)


def _subject(job: Job) -> str:
    return f"job {job.id}: {job.called} of {job.volume_name}, server {job.server_name}"


def _steps(logbook: Logbook, job: Job) -> list[Step]:
    """Return the steps of a job in the order in which they began."""
    found = []
    for detail in logbook.flows(job.id):
        for atom in detail:
            times = [since for _state, since in atom.history]
            if times:
                found.append(Step(atom.name.partition("/")[0], str(atom.state), times[0], times[-1] - times[0]))
    return sorted(found, key=lambda step: step.at)


def _end(survey: Survey, drifts: Sequence[Drift], *volume_ids: str) -> tuple[str, str]:
    """Return how things stand in one sentence, and the one command to run next."""
    running = [job for volume in volume_ids if survey.is_busy(volume) and (job := survey.job_of.get(volume))]
    if running:
        job = running[0]
        return (
            f"a runner works on it ({job.kind}, at {job.step.partition('/')[0] or 'its start'})",
            f"tether job show {job.id}",
        )
    if drifts:
        first = drifts[0]
        whose = "" if first.owner is Owner.OURS else f"; it is not tether's to change ({first.owner})"
        return f"the books do not agree{whose}", first.safe
    if survey.unread:
        unread = survey.unread[0]
        return (
            f"nothing is wrong in what could be read; unread: {unread.book}, {unread.what}: {unread.reason}",
            unread.hint,
        )
    return "all books agree; there is nothing to do", ""
