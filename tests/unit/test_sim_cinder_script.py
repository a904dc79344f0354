"""Scripted failures of the simulated Cinder, late ends, and a process killed between requests."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import requests

from tests.unit.sim_cinder_api import GENERIC, VM, Api, connector, message, unknown_id
from tether.sim import script


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


@pytest.mark.parametrize(
    ("status", "name", "text"),
    [
        (400, "badRequest", "Refused by the script: create_attachment."),
        (409, "conflictingRequest", "Refused by the script: create_attachment."),
        (413, "overLimit", "Refused by the script: create_attachment."),
        (500, "computeFault", GENERIC),
        (503, "serviceUnavailable", GENERIC),
        (599, "computeFault", GENERIC),
    ],
)
def test_fail_answers_and_does_nothing(api: Api, status: int, name: str, text: str) -> None:
    volume = api.volume()
    api.script("create_attachment", "fail", status=status)
    answer = api.create(volume)
    assert (answer.status_code, answer.json()) == (status, {name: {"code": status, "message": text}})
    assert answer.headers["OpenStack-API-Version"] == "volume 3.71"
    assert api.states(volume) == ("available", "detached", [])
    assert api.create(volume).status_code == 200


def test_timeout_does_nothing(api: Api) -> None:
    volume = api.volume()
    api.script("reserve", "timeout")
    with pytest.raises(requests.exceptions.ReadTimeout):
        api.action(volume, "os-reserve")
    assert api.states(volume) == ("available", "detached", [])


def test_lost_reply_does_it(api: Api) -> None:
    volume = api.volume()
    api.script("reserve", "lost-reply")
    with pytest.raises(requests.exceptions.ReadTimeout):
        api.action(volume, "os-reserve")
    assert api.states(volume) == ("attaching", "detached", [])


def test_slow_waits_by_the_clock(api: Api) -> None:
    api.script("show_volume", "slow", seconds=7.5)
    volume = api.volume()
    api.shown(volume)
    api.shown(volume)
    assert api.clock.waited == [7.5]


def test_every_scripted_verb_is_known_by_its_request(api: Api) -> None:
    volume = api.volume(encrypted=True)
    attachment = api.created(volume)
    requests_of = {
        "list_volumes": lambda: api.call("GET", "/volumes/detail"),
        "show_volume": lambda: api.call("GET", f"/volumes/{volume}"),
        "list_attachments": lambda: api.call("GET", "/attachments/detail"),
        "show_attachment": lambda: api.call("GET", f"/attachments/{attachment}"),
        "create_attachment": lambda: api.create(volume),
        "update_attachment": lambda: api.update(attachment),
        "complete_attachment": lambda: api.complete(attachment),
        "delete_attachment": lambda: api.delete(attachment),
        "show_encryption": lambda: api.call("GET", f"/volumes/{volume}/encryption"),
        "list_types": lambda: api.call("GET", "/types"),
        "show_qos": lambda: api.call("GET", f"/qos-specs/{volume}"),
        "reserve": lambda: api.action(volume, "os-reserve"),
        "unreserve": lambda: api.action(volume, "os-unreserve"),
        "initialize_connection": lambda: api.action(volume, "os-initialize_connection", {"connector": connector()}),
        "terminate_connection": lambda: api.action(volume, "os-terminate_connection", {"connector": connector()}),
        "attach": lambda: api.attach(volume),
        "detach": lambda: api.detach(volume),
        "begin_detaching": lambda: api.action(volume, "os-begin_detaching"),
        "extend": lambda: api.action(volume, "os-extend", {"new_size": 2}),
        "roll_detaching": lambda: api.action(volume, "os-roll_detaching"),
    }
    assert {f"cinder.{verb}" for verb in requests_of} == {call for call in script.CALLS if call.startswith("cinder.")}
    before = api.book()
    for verb, ask in requests_of.items():
        api.script(verb, "fail", status=418)
        assert ask().status_code == 418, verb
    assert api.book() == before


def test_a_late_update_loses_its_connection_info(api: Api) -> None:
    volume = api.volume()
    attachment = api.created(volume)
    api.script("update_attachment", "late", seconds=4)
    answer = api.update(attachment)
    assert (answer.status_code, message(answer)) == (500, "Unable to update the attachment.")
    assert api.states(volume) == ("reserved", "detached", ["reserved"])
    api.clock.now += 3.9
    assert api.show(attachment)["status"] == "reserved"
    assert not api.exported(volume)
    api.clock.now += 0.1
    shown = api.show(attachment)
    assert (shown["status"], shown["connection_info"], shown["attach_mode"]) == ("attaching", {}, "rw")
    assert shown["attached_at"] == "2027-01-15T08:00:04.000000"
    assert api.exported(volume)
    again = api.update(attachment).json()["attachment"]["connection_info"]
    assert again["auth_password"] == api.book()["exports"][volume]["auth_password"]
    assert api.delete(attachment).status_code == 200
    assert not api.exported(volume)


def test_an_export_outlives_a_row_deleted_before_the_late_update(api: Api) -> None:
    volume = api.volume()
    attachment = api.created(volume)
    api.script("update_attachment", "late", seconds=4)
    api.update(attachment)
    assert api.delete(attachment).status_code == 200
    api.clock.now += 4
    assert api.shown(volume)["status"] == "available"
    assert api.states(volume) == ("available", "detached", [])
    assert api.exported(volume)


def test_a_late_update_that_is_refused_at_once_is_no_500(api: Api) -> None:
    volume = api.volume()
    attachment = api.created(volume)
    api.set(volume, status="error")
    api.script("update_attachment", "late", seconds=4)
    assert api.update(attachment).status_code == 409
    assert not api.book().get("pending")


def test_a_late_create_with_connector_leaks_a_row_that_connects_later(api: Api) -> None:
    volume = api.volume()
    api.script("create_attachment", "late", seconds=4)
    answer = api.create(volume, host="host-a")
    assert (answer.status_code, message(answer)) == (500, "Unable to create attachment for volume.")
    assert api.states(volume) == ("reserved", "detached", ["reserved"])
    leaked = api.rows(volume)[0]["id"]
    assert (api.show(leaked)["attach_mode"], api.show(leaked)["connection_info"]) == (None, None)
    api.clock.now += 4
    shown = api.show(leaked)
    assert (shown["status"], shown["attach_mode"], shown["connection_info"]) == ("attaching", None, None)
    assert api.states(volume) == ("attaching", "attaching", ["attaching"])


def test_a_late_reservation_appears_later(api: Api) -> None:
    volume = api.volume()
    api.script("create_attachment", "late", seconds=4)
    answer = api.create(volume, instance_uuid=VM)
    assert (answer.status_code, message(answer)) == (500, GENERIC)
    assert api.states(volume) == ("available", "detached", [])
    api.clock.now += 4
    listed = api.call("GET", f"/attachments?instance_id={VM}").json()["attachments"]
    assert [row["status"] for row in listed] == ["reserved"]
    assert api.states(volume) == ("reserved", "detached", ["reserved"])


def test_a_late_reservation_may_find_the_volume_taken(api: Api) -> None:
    volume = api.volume()
    api.script("create_attachment", "late", seconds=4)
    api.create(volume, instance_uuid=VM)
    api.created(volume)
    api.clock.now += 4
    assert len(api.call("GET", f"/attachments?volume_id={volume}").json()["attachments"]) == 1


def test_a_late_delete_tears_the_backend_down_and_leaves_the_row(api: Api) -> None:
    volume = api.volume()
    attachment = api.attached(volume)
    api.script("delete_attachment", "late", seconds=4)
    answer = api.delete(attachment)
    assert (answer.status_code, message(answer)) == (500, GENERIC)
    assert api.exported(volume)
    api.clock.now += 4
    assert api.show(attachment)["connection_info"]["target_lun"] == 1
    assert api.states(volume) == ("in-use", "attached", ["attached"])
    assert not api.exported(volume)
    assert api.delete(attachment).status_code == 200
    assert api.states(volume) == ("available", "detached", [])


def test_a_late_delete_of_a_reserved_attachment_is_done_whole(api: Api) -> None:
    volume = api.volume()
    attachment = api.created(volume)
    api.script("delete_attachment", "late", seconds=4)
    assert api.delete(attachment).status_code == 500
    assert api.show(attachment)["status"] == "reserved"
    api.clock.now += 4
    assert api.call("GET", f"/attachments/{attachment}").status_code == 404
    assert api.states(volume) == ("available", "detached", [])


def test_late_legacy_calls(api: Api) -> None:
    volume = api.volume()
    api.script("initialize_connection", "late", seconds=4)
    assert api.action(volume, "os-initialize_connection", {"connector": connector()}).status_code == 500
    assert not api.exported(volume)
    api.clock.now += 4
    api.shown(volume)
    assert api.exported(volume)
    api.script("attach", "late", seconds=4)
    assert api.attach(volume).status_code == 500
    assert api.states(volume) == ("available", "detached", [])
    api.clock.now += 4
    assert api.shown(volume)["status"] == "in-use"
    api.script("detach", "late", seconds=4)
    assert api.detach(volume).status_code == 500
    assert api.states(volume) == ("in-use", "attached", ["attached"])
    api.clock.now += 4
    assert api.shown(volume)["status"] == "available"
    assert not api.exported(volume)
    api.script("reserve", "late", seconds=4)
    api.script("terminate_connection", "late", seconds=4)
    assert api.action(volume, "os-reserve").status_code == 500
    api.clock.now += 4
    assert api.shown(volume)["status"] == "attaching"
    assert api.action(volume, "os-terminate_connection", {"connector": connector()}).status_code == 500
    api.clock.now += 4
    assert api.shown(volume)["status"] == "attaching"  # it is the API that unreserves, after the hop


def test_a_late_read_is_only_a_500(api: Api) -> None:
    volume = api.volume()
    api.script("show_volume", "late", seconds=4)
    assert api.call("GET", f"/volumes/{volume}").status_code == 500
    assert not api.book().get("pending")


def test_pending_work_ends_without_a_request(api: Api) -> None:
    volume = api.volume()
    api.script("reserve", "late", seconds=4)
    api.action(volume, "os-reserve")
    transport = api.session.get_adapter("http://sim")
    api.clock.now += 4
    transport.app.settle()
    assert api.states(volume) == ("attaching", "detached", [])


def test_one_of_many_at_once_wins(api: Api) -> None:
    volume = api.volume()
    owners = [unknown_id() for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        created = pool.map(lambda owner: Api(api.store.directory).create(volume, instance_uuid=owner), owners)
        assert sorted(answer.status_code for answer in created) == [200, *[400] * 7]
    other = api.volume()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        reserved = pool.map(lambda _: Api(api.store.directory).action(other, "os-reserve"), range(8))
        assert sorted(answer.status_code for answer in reserved) == [202, *[400] * 7]
    assert len(api.rows(volume)) == 1


def attach_and_detach_for_ever(directory: Path, volume: str) -> None:
    api = Api(directory)
    while True:
        attachment = api.created(volume)
        api.update(attachment)
        api.complete(attachment)
        api.delete(attachment)


CONSISTENT = {
    ("available", "detached", ()),
    ("reserved", "detached", ("reserved",)),
    ("attaching", "attaching", ("attaching",)),
    ("in-use", "attached", ("attached",)),
}


def test_a_killed_process_leaves_a_whole_book(api: Api) -> None:
    volume = api.volume()
    fork = multiprocessing.get_context("fork")
    seen = set()
    for _ in range(30):
        before = api.book()["serial"]
        child = fork.Process(target=attach_and_detach_for_ever, args=(api.store.directory, volume))
        child.start()
        assert child.pid is not None
        for _ in range(1000):  # until it is at work
            if api.book()["serial"] > before:
                break
            assert child.is_alive()
            time.sleep(0.001)
        else:
            pytest.fail("the child did nothing")
        time.sleep(random.random() * 0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        book = json.loads((api.store.directory / "cinder.json").read_text())
        row = book["volumes"][volume]
        states = tuple(other["attach_status"] for other in book["attachments"].values())
        seen.add((row["status"], row["attach_status"], states))
        exported = states in {("attaching",), ("attached",)}
        assert (volume in book["exports"]) == exported
        assert len(book["attachments"]) <= 1
        for attachment in list(book["attachments"]):
            assert api.delete(attachment).status_code == 200
    assert seen <= CONSISTENT
    assert len(seen) > 1
