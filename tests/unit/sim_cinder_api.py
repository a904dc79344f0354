"""Raw HTTP to the simulated Cinder, for the tests beside it."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any

import requests

from tether.sim import script
from tether.sim.cinder import SimTransport, add_volume
from tether.sim.cinder.seed import PROJECT
from tether.sim.store import Store

VM = "aaaaaaaa-0000-4000-8000-00000000000a"
OTHER_VM = "bbbbbbbb-0000-4000-8000-00000000000b"
GENERIC = "The server has either erred or is incapable of performing the requested operation."


class HandClock:
    """A clock that only moves when told to, or waited by."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.waited: list[float] = []

    def time(self) -> float:
        return self.now

    def wait(self, seconds: float, wake: threading.Event | None = None) -> None:
        self.waited.append(seconds)
        self.now += seconds


def connector(host: str = "host-a", **more: Any) -> dict[str, Any]:
    return {"initiator": f"iqn.1993-08.org.debian:01:{host}", "ip": "127.0.0.1", "host": host, **more}


class Api:
    """A noauth admin of one project."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory)
        self.clock = HandClock()
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.mount("http://sim", SimTransport(self.store, self.clock))

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        version: str | None = "3.71",
        service: bool = False,
        project: str = PROJECT,
    ) -> requests.Response:
        headers = {"X-Auth-Token": f"tester:{project}"}
        if version:
            headers["OpenStack-API-Version"] = f"volume {version}"
        if service:
            headers["X-Service-Roles"] = "service"
        return self.session.request(method, f"http://sim/v3{path}", json=body, headers=headers)

    def volume(self, **facts: Any) -> str:
        return add_volume(self.store, clock=self.clock, **facts)

    def create(self, volume: str, *, host: str = "", mv: str = "3.71", **more: Any) -> requests.Response:
        wanted = {"volume_uuid": volume, "connector": connector(host) if host else None, **more}
        return self.call("POST", "/attachments", {"attachment": wanted}, version=mv)

    def created(self, volume: str, **more: Any) -> str:
        answer = self.create(volume, **more)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["attachment"]["id"])

    def update(self, attachment: str, host: str = "host-a", **more: Any) -> requests.Response:
        return self.call("PUT", f"/attachments/{attachment}", {"attachment": {"connector": connector(host, **more)}})

    def complete(self, attachment: str) -> requests.Response:
        return self.call("POST", f"/attachments/{attachment}/action", {"os-complete": None})

    def attached(self, volume: str, host: str = "host-a", **more: Any) -> str:
        attachment = self.created(volume, host=host, **more)
        assert self.complete(attachment).status_code == 204
        return attachment

    def delete(self, attachment: str, *, service: bool = False) -> requests.Response:
        return self.call("DELETE", f"/attachments/{attachment}", service=service)

    def show(self, attachment: str) -> dict[str, Any]:
        answer = self.call("GET", f"/attachments/{attachment}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["attachment"])

    def action(self, volume: str, action: str, argument: Any = None, *, service: bool = False) -> requests.Response:
        return self.call("POST", f"/volumes/{volume}/action", {action: argument}, service=service)

    def attach(self, volume: str, instance: str = VM, mode: str = "rw") -> requests.Response:
        return self.action(volume, "os-attach", {"mountpoint": "/dev/vdb", "mode": mode, "instance_uuid": instance})

    def detach(self, volume: str, attachment: str | None = None, *, service: bool = False) -> requests.Response:
        return self.action(volume, "os-detach", {"attachment_id": attachment}, service=service)

    def shown(self, volume: str, version: str = "3.71") -> dict[str, Any]:
        answer = self.call("GET", f"/volumes/{volume}", version=version)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["volume"])

    def states(self, volume: str) -> tuple[str, str, list[str]]:
        """The volume's status and attach_status, and its attachments' states, oldest first."""
        row = self.book()["volumes"][volume]
        return row["status"], row["attach_status"], [other["attach_status"] for other in self.rows(volume)]

    def rows(self, volume: str) -> list[dict[str, Any]]:
        rows = [row for row in self.book().get("attachments", {}).values() if row["volume_id"] == volume]
        return sorted(rows, key=lambda row: int(row["serial"]))

    def book(self) -> dict[str, Any]:
        return self.store.read("cinder")

    def exported(self, volume: str) -> bool:
        return volume in self.book().get("exports", {})

    def set(self, volume: str, **facts: Any) -> None:
        with self.store.change("cinder") as book:
            book["volumes"][volume].update(facts)

    def nova(self, answers: dict[str, dict[str, str]]) -> None:
        with self.store.change("cinder") as book:
            book["nova"] = answers

    def script(self, call: str, action: str, **more: Any) -> None:
        script.add(self.store, script.Scripted(f"cinder.{call}", action, **more))


def message(answer: requests.Response) -> str:
    """The text of a fault, whose body also repeats its status."""
    (fault,) = answer.json().values()
    assert fault["code"] == answer.status_code
    return str(fault["message"])


def unknown_id() -> str:
    return str(uuid.uuid4())
