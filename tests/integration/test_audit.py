"""``tether audit``: each kind of drift alone and mixed, what is unread, and what is none: a job at work, Nova's own."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import yaml

from tests.crash.world import DONE, SimWorld
from tests.integration import drifts
from tests.integration.drifts import DRIFTS, Expected
from tether.audit.drift import Kind

#: Exit code: the books do not agree, or not all could be read.
DRIFT = 7


def audit(sim: SimWorld, *words: str) -> tuple[int, list[dict[str, Any]], str]:
    """Return the exit code, the rows and what was said."""
    done = sim.tether("audit", "-f", "json", *words)
    return done.code, json.loads(done.out or "[]"), done.err


def named(rows: list[dict[str, Any]]) -> list[Expected]:
    return sorted(
        (Expected(Kind(item["kind"]), item["volume_id"], item["server"], item["owner"]) for item in rows), key=str
    )


@pytest.mark.parametrize("kind", DRIFTS, ids=str)
def test_a_drift_is_named_alone(sim: SimWorld, kind: Kind) -> None:
    before = sim.tether("audit")
    assert before.code == DONE, before.err
    expected = DRIFTS[kind](sim)
    assert expected.kind is kind
    books = sim.books()
    code, rows, err = audit(sim)
    assert (code, named(rows)) == (DRIFT, [expected]), err
    assert rows[0]["text"]
    assert rows[0]["evidence"]
    assert sim.books() == books, "an audit changes nothing"
    if expected.owner == "foreign":
        assert not rows[0]["next"].startswith("tether") or rows[0]["next"].startswith("tether adopt ")
    elif rows[0]["next"].startswith("tether job"):
        assert rows[0]["about"] in rows[0]["next"]


@pytest.mark.parametrize("seed", range(5))
def test_mixes_are_named_each_rightly(sim: SimWorld, seed: int) -> None:
    chance = random.Random(seed)
    kinds = chance.sample(list(DRIFTS), chance.randint(4, 9))
    expected = [DRIFTS[kind](sim) for kind in kinds]
    code, rows, err = audit(sim)
    assert (code, named(rows)) == (DRIFT, sorted(expected, key=str)), err
    order = list(Kind)
    assert [order.index(Kind(item["kind"])) for item in rows] == sorted(order.index(kind) for kind in kinds)


def test_all_kinds_at_once(sim: SimWorld) -> None:
    expected = [put(sim) for put in DRIFTS.values()]
    code, rows, err = audit(sim)
    assert (code, named(rows)) == (DRIFT, sorted(expected, key=str)), err
    for item in expected[:3]:
        _code, rows, err = audit(sim, "--volume", item.volume_id)
        assert named(rows) == [item], err
    _code, rows, _err = audit(sim, "--server", "guest2")
    assert named(rows) == sorted((item for item in expected if item.server == "guest2"), key=str)
    _code, rows, _err = audit(sim, "--host")
    only_cinder = {Kind.CINDER_CONTRADICTION, Kind.RESERVED_WITHOUT_JOB, Kind.UNFINISHED_MIGRATION}  # or another host's
    assert named(rows) == sorted((item for item in expected if item.kind not in only_cinder), key=str)
    assert "changed-secret" not in json.dumps(rows)


def test_every_format(sim: SimWorld) -> None:
    DRIFTS[Kind.LIVE_ONLY_DISK](sim)
    DRIFTS[Kind.RESERVED_WITHOUT_JOB](sim)
    for kind, lines in (("table", 4 + 2), ("csv", 1 + 2), ("value", 2)):
        done = sim.tether("audit", "-f", kind)
        assert (done.code, len(done.out.splitlines())) == (DRIFT, lines), done.err
    rows = yaml.safe_load(sim.tether("audit", "-f", "yaml").out)
    assert [row["kind"] for row in rows] == ["live-only-disk", "reserved-without-job"]
    done = sim.tether("audit", "-f", "value", "-c", "kind", "-c", "owner", "-c", "host")
    assert done.out.splitlines() == ["live-only-disk ours sim-host", "reserved-without-job foreign "]
    done = sim.tether("audit", "-c", "colour")
    assert (done.code, done.out) == (2, "")
    assert "there is no column colour" in done.err


# -- what could not be read ----------------------------------------------------------------------------------

UNREAD = {
    "cinder": ("cinder.list_volumes", {Kind.UNUSED_LINK, Kind.LIVE_ONLY_DISK, Kind.INTERRUPTED_JOB}),
    "cinder attachments": ("cinder.list_attachments", {Kind.UNUSED_LINK, Kind.LIVE_ONLY_DISK, Kind.INTERRUPTED_JOB}),
    "guest": ("guest.survey", {Kind.INTERRUPTED_JOB, Kind.RESERVED_WITHOUT_JOB}),
    "host": ("host.survey", {Kind.LIVE_ONLY_DISK, Kind.RESERVED_WITHOUT_JOB, Kind.INTERRUPTED_JOB}),
}


@pytest.mark.parametrize("book", UNREAD)
@pytest.mark.parametrize("action", ["timeout", "fail"])
def test_a_book_that_cannot_be_read_is_unread_and_nothing_is_absent_from_it(
    sim: SimWorld, book: str, action: str
) -> None:
    call, still = UNREAD[book]
    put = [Kind.UNUSED_LINK, Kind.LIVE_ONLY_DISK, Kind.INTERRUPTED_JOB, Kind.RESERVED_WITHOUT_JOB]
    expected = [DRIFTS[kind](sim) for kind in put]
    drifts.attached(sim, "healthy")
    sim.script(call, action, times=-1)
    code, rows, err = audit(sim)
    unread = [item for item in rows if item["kind"] == "unread"]
    assert code == DRIFT
    assert [item["text"].partition(",")[0] for item in unread] == [book.split(maxsplit=1)[0]]
    assert f"unread: {book.split(maxsplit=1)[0]}, " in err
    assert named([item for item in rows if item not in unread]) == sorted(
        (item for item in expected if item.kind in still), key=str
    )


@pytest.mark.parametrize("book", UNREAD)
def test_a_clean_world_that_cannot_be_read_is_not_clean(sim: SimWorld, book: str) -> None:
    drifts.attached(sim, "healthy")
    sim.script(UNREAD[book][0], "timeout", times=-1)
    code, rows, err = audit(sim)
    assert (code, [item["kind"] for item in rows]) == (DRIFT, ["unread"]), err
    assert "no drift in what could be read" in err


def test_a_domain_that_cannot_be_read_hides_only_itself(sim: SimWorld) -> None:
    drifts.attached(sim, "healthy")
    drifts.attached(sim, "unseen", "guest2")
    expected = DRIFTS[Kind.LIVE_ONLY_DISK](sim)
    DRIFTS[Kind.UNUSED_LINK](sim)  # guest2 may be using it
    with drifts.domain(sim, "guest2", "live") as root:
        root.tag = "not-a-domain"
    code, rows, err = audit(sim)
    assert code == DRIFT
    assert named([item for item in rows if item["kind"] != "unread"]) == [expected], err
    (unread,) = (item for item in rows if item["kind"] == "unread")
    assert drifts.GUEST2 in unread["text"]


def test_a_server_that_libvirt_no_longer_knows_is_unread(sim: SimWorld) -> None:
    drifts.attached(sim, "gone")
    (sim.directory / "guests" / drifts.GUEST1).rename(sim.directory / "guest1-migrated")
    code, rows, _err = audit(sim)
    assert (code, [item["kind"] for item in rows]) == (DRIFT, ["unread"])
    assert "migrated" in rows[0]["text"]


@pytest.mark.parametrize("table", ["jobs", "mappings"])
def test_a_ledger_with_a_damaged_row_is_unread(sim: SimWorld, table: str) -> None:
    DRIFTS[Kind.LIVE_ONLY_DISK](sim)
    DRIFTS[Kind.INTERRUPTED_JOB](sim)
    column = {"jobs": "params", "mappings": "address"}[table]
    drifts.execute(sim, f"UPDATE tether_{table} SET {column} = 'garbled' WHERE rowid = 1")
    code, rows, err = audit(sim)
    assert (code, [item["kind"] for item in rows]) == (DRIFT, ["unread"]), err
    assert "damaged" in rows[0]["text"]


def test_volumes_of_another_project_are_unread(sim: SimWorld) -> None:
    drifts.attached(sim, "elsewhere")
    config = sim.directory.parent / "other.conf"
    config.write_text(sim._config.read_text() + f"noauth_project = {'ab' * 16}\n")
    text = config.read_text().replace("[cinder]\n", f"[cinder]\nnoauth_project = {'ab' * 16}\n")
    config.write_text(text.rpartition("noauth_project")[0])
    done = sim.tether("audit", "-f", "json", config=str(config))
    rows = json.loads(done.out)
    assert (done.code, [item["kind"] for item in rows]) == (DRIFT, ["unread"]), done.err
    assert "project" in rows[0]["text"]


def test_without_the_key_only_the_connection_info_is_unread(sim: SimWorld) -> None:
    DRIFTS[Kind.STALE_CONNECTION](sim)
    expected = DRIFTS[Kind.PERSISTENT_ONLY_DISK](sim)
    (sim.directory / "keys").rename(sim.directory / "keys.away")
    code, rows, err = audit(sim)
    assert code == DRIFT
    assert named([item for item in rows if item["kind"] != "unread"]) == [expected], err
    assert "sealed connection info" in err
    assert not (sim.directory / "keys").exists()
