"""The contract on the simulated Cinder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.contract.cinder_contract import CinderContract
from tether.adapters.cinder.model import Cinder
from tether.adapters.cinder.session import open_cinder
from tether.settings import Settings
from tether.sim import script
from tether.sim.cinder import SimTransport, add_volume
from tether.sim.store import Store

#: Which calls of the API run a step of the driver.
STEPS = {
    ("initialize_connection", "fail"): ("update_attachment", "initialize_connection"),
    ("initialize_connection", "late"): ("update_attachment", "initialize_connection"),
    ("terminate_connection", "fail"): ("delete_attachment", "terminate_connection"),
    ("terminate_connection", "late"): ("delete_attachment", "terminate_connection"),
    ("remove_export", "fail"): ("detach",),  # DELETE /attachments swallows it
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def opened(store: Store, *, service_token: bool) -> Cinder:
    settings = Settings(endpoint_override="http://sim/v3", send_service_user_token=service_token)
    return open_cinder(settings, transport=SimTransport(store))


@pytest.fixture
def cinder(store: Store) -> Cinder:
    return opened(store, service_token=True)


@pytest.fixture
def plain_cinder(store: Store) -> Cinder:
    return opened(store, service_token=False)


@pytest.fixture
def new_volume(store: Store) -> Callable[..., str]:
    def make(name: str = "", *, readonly: bool | None = None, limited: bool = False, **facts: Any) -> str:
        flag = {} if readonly is None else {"admin_metadata": {"readonly": str(readonly)}}
        return add_volume(store, name=name or None, volume_type="limited" if limited else "plain", **flag, **facts)

    return make


@pytest.fixture
def limit_type(store: Store) -> Callable[[str, dict[str, str]], None]:
    def change(volume_id: str, specs: dict[str, str]) -> None:
        with store.change("cinder") as book:
            book["volumes"][volume_id]["qos_specs"] = specs

    return change


@pytest.fixture
def fault(store: Store) -> Callable[[str, str, str], Any]:
    @contextmanager
    def broken(_volume_id: str, step: str, what: str) -> Iterator[None]:
        for call in STEPS[step, what]:
            script.add(store, script.Scripted(f"cinder.{call}", what, status=500, seconds=0.3))
        try:
            yield
        finally:
            script.clear(store)

    return broken


class TestSimulatedCinder(CinderContract):
    pass
