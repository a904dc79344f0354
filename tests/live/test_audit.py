"""``tether audit`` on a real Cinder and a real libvirt: clean where all is well, and what others have done is named."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.live.commands import DONE
from tests.live.conftest import Live, wait_for
from tests.live.test_attach import GUEST, OTHER, detach, disk_of

DRIFT = 7
NewVolume = Callable[..., str]


def audit(live: Live, volume_id: str) -> tuple[int, list[tuple[str, str, str]], str]:
    """Return the exit code, and kind, server and owner of each row about a volume."""
    done = live.tether("audit", "--volume", volume_id, "-f", "json")
    return done.code, [(row["kind"], row["server"], row["owner"]) for row in json.loads(done.out or "[]")], done.err


@pytest.mark.parametrize("dialect", ["attachments", "legacy"])
def test_a_clean_world_is_clean(live: Live, new_volume: NewVolume, dialect: str) -> None:
    running, stopped, shared = new_volume(), new_volume(), new_volume("multiattach")
    pairs = [(running, GUEST), (stopped, live.stopped), (shared, GUEST), (shared, OTHER)]
    if dialect == "legacy":
        pairs = pairs[:2]
    for volume_id, server in pairs:
        done = live.tether("attach", volume_id, server, cinder__dialect=dialect)
        assert done.code == DONE, done.err
    before = live.judge.snapshot()
    done = live.tether("audit", "-f", "json")
    assert (done.code, json.loads(done.out)) == (DONE, []), done.err
    assert "all books agree" in done.err
    live.assert_books(before)
    story = live.tether("explain", running, "-f", "json")
    assert story.code == DONE, story.err
    assert json.loads(story.out)["next"] == "nothing"
    for volume_id, server in pairs:
        detach(live, volume_id, server)
    assert live.tether("audit").code == DONE


def test_an_attachment_of_another_tool_is_named_as_foreign(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    connector: dict[str, Any] = {"initiator": live.initiator, "ip": "127.0.0.1", "host": this_host(live)}
    made = live.cinder.attachments.create(volume_id, connector, instance_id=str(uuid.uuid4()))
    attachment = made["id"]
    assert audit(live, volume_id)[:2] == (DRIFT, [("reserved-without-job", "", "foreign")])
    live.cinder.attachments.complete(attachment)
    wait_for(lambda: live.cinder.volumes.get(volume_id).status == "in-use")
    code, rows, err = audit(live, volume_id)
    assert (code, rows) == (DRIFT, [("attachment-without-disk", "", "foreign")]), err
    live.cinder.attachments.delete(attachment)
    assert audit(live, volume_id)[:2] == (DONE, [])


def this_host(live: Live) -> str:
    """Return this host's name as tether gives it to Cinder: that of an attachment that tether makes."""
    volume_id = live.new_volume()
    assert live.tether("attach", volume_id, GUEST).code == DONE
    (row,) = live.cinder.volumes.get(volume_id).attachments
    detach(live, volume_id, GUEST)
    live.delete_volume(volume_id)
    return str(row["host_name"])


def test_a_disk_that_was_detached_by_hand_is_named(live: Live, new_volume: NewVolume) -> None:
    volume_id = new_volume()
    done = live.tether("attach", volume_id, GUEST, "-f", "json")
    assert done.code == DONE, done.err
    target = json.loads(done.out)["device"]
    live.virsh("detach-disk", GUEST, target, "--config")
    code, rows, err = audit(live, volume_id)
    assert (code, rows) == (DRIFT, [("live-only-disk", GUEST, "ours")]), err
    live.virsh("detach-disk", GUEST, target, "--live")
    wait_for(lambda: disk_of(live, GUEST, volume_id) is None)
    code, rows, err = audit(live, volume_id)
    assert (code, rows) == (DRIFT, [("attachment-without-disk", GUEST, "ours")]), err
    assert live.tether("detach", volume_id, GUEST).code == DONE
    assert audit(live, volume_id)[:2] == (DONE, [])
