"""A real Cinder keeps Cinder's contract; the backend's faults are those of the live world's driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.contract.cinder_contract import CinderContract
from tests.contract.cinder_words import CONNECTOR, eventually
from tests.live.conftest import Live, wait_for
from tether.adapters.cinder.session import open_cinder
from tether.errors import UncertainError
from tether.settings import Settings


@pytest.fixture(scope="module")
def settings(live: Live) -> Settings:
    return Settings(endpoint_override=live.endpoint)


@pytest.fixture(scope="module")
def cinder(settings: Settings) -> Any:
    return open_cinder(settings.but(send_service_user_token=True))


@pytest.fixture(scope="module")
def plain_cinder(settings: Settings) -> Any:
    return open_cinder(settings)


@pytest.fixture
def new_volume(live: Live) -> Iterator[Callable[..., str]]:
    made: list[str] = []
    admin = live.cinder

    def make(
        name: str = "",
        *,
        multiattach: bool = False,
        encrypted: bool = False,
        limited: bool = False,
        readonly: bool | None = None,
        status: str = "available",
    ) -> str:
        kinds = {"luks": encrypted, "multiattach": multiattach, "qos": limited}
        kind = next((each for each, wanted in kinds.items() if wanted), "iscsi")
        volume = admin.volumes.create(1, name=name or None, volume_type=kind)
        made.append(volume.id)
        wait_for(lambda: admin.volumes.get(volume.id).status in ("available", "error"))
        assert admin.volumes.get(volume.id).status == "available"
        if readonly is not None:
            admin.volumes.update_readonly_flag(volume.id, readonly)
        if status != "available":
            admin.volumes.reset_state(volume.id, status)
        return str(volume.id)

    yield make
    for volume_id in made:
        live.remove(volume_id)


@pytest.fixture
def limit_type(live: Live) -> Iterator[Callable[[str, dict[str, str]], None]]:
    before = live.limits()

    def change(_volume_id: str, specs: dict[str, str]) -> None:
        live.limit(specs)

    yield change
    live.limit(before)


@pytest.fixture
def fault(live: Live) -> Callable[[str, str, str], Any]:
    texts = {"fail": "fail", "late": f"sleep {live.rpc_timeout + 1}", "slow": f"sleep {live.rpc_timeout / 2}"}

    @contextmanager
    def broken(volume_id: str, step: str, what: str) -> Iterator[None]:
        path = live.fault(step, texts[what], volume_id)
        try:
            yield
        finally:
            path.unlink()

    return broken


class TestRealCinder(CinderContract):
    def test_a_client_that_gives_up_first(self, settings: Settings, cinder: Any, new_volume: Any, fault: Any) -> None:
        """Cinder goes on after our own time-out, and here it loses nothing."""
        volume = new_volume()
        impatient = open_cinder(settings.but(request_timeout=0.5))
        attachment = cinder.create_attachment(volume, owner="", mode="rw")
        impatient.identity()
        with fault(volume, "initialize_connection", "slow"), pytest.raises(UncertainError):
            impatient.update_attachment(attachment, CONNECTOR)
        assert cinder.show_attachment(attachment).status == "reserved"
        assert eventually(lambda: cinder.show_attachment(attachment).connection is not None)
        assert cinder.show_attachment(attachment).status == "attaching"
