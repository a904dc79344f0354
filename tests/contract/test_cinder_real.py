"""The contract on a real Cinder without Keystone (``auth_strategy = noauth``).

Environment:
    TETHER_TEST_CINDER: its URL, such as http://127.0.0.1:8776/v3.
    TETHER_TEST_CINDER_TYPE: a volume type of an iSCSI backend.
    TETHER_TEST_CINDER_MULTI_TYPE: one with ``multiattach = <is> True``.
    TETHER_TEST_CINDER_FAULTY_TYPE: one of a backend that reads faults from a directory: the file
        ``VOLUME_ID.METHOD`` there makes that driver method raise (``fail``) or wait (``sleep SECONDS``).
    TETHER_TEST_CINDER_FAULTS: that directory.
    TETHER_TEST_CINDER_RPC_TIMEOUT: Cinder's ``rpc_response_timeout`` in seconds; a short one, such as 3.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.contract.cinder_contract import CinderContract
from tests.contract.cinder_words import CONNECTOR, eventually
from tether.adapters.cinder.session import open_cinder
from tether.errors import UncertainError
from tether.settings import Settings

pytestmark = pytest.mark.live

LUKS_TYPE = "tether-contract-luks"


def needed(variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        pytest.fail(f"{variable} is not set: these tests need a real Cinder (see this module's docstring)")
    return value


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(endpoint_override=needed("TETHER_TEST_CINDER"))


@pytest.fixture(scope="module")
def cinder(settings: Settings) -> Any:
    return open_cinder(settings.but(send_service_user_token=True))


@pytest.fixture(scope="module")
def plain_cinder(settings: Settings) -> Any:
    return open_cinder(settings)


@pytest.fixture(scope="module")
def admin(settings: Settings) -> Any:
    """Python-cinderclient itself, for what tether has no verb for."""
    from cinderclient.client import Client
    from cinderclient.contrib.noauth import CinderNoAuthPlugin
    from keystoneauth1.session import Session

    auth = CinderNoAuthPlugin("admin", settings.noauth_project, endpoint=settings.endpoint_override)
    return Client("3.71", session=Session(auth=auth, additional_headers={"X-Service-Roles": "service"}))


def luks_type(admin: Any) -> str:
    if LUKS_TYPE not in {item.name for item in admin.volume_types.list()}:
        model = admin.volume_types.find(name=needed("TETHER_TEST_CINDER_TYPE"))
        made = admin.volume_types.create(LUKS_TYPE)
        made.set_keys(dict(model.extra_specs))
        admin.volume_encryption_types.create(
            made,
            {
                "provider": "luks",
                "cipher": "aes-xts-plain64",
                "key_size": 256,
                "control_location": "front-end",
            },
        )
    return LUKS_TYPE


@pytest.fixture
def new_volume(admin: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    made: list[str] = []

    def make(
        name: str = "",
        *,
        multiattach: bool = False,
        encrypted: bool = False,
        readonly: bool | None = None,
        status: str = "available",
    ) -> str:
        faulty = "fault" in request.fixturenames
        which = "_FAULTY_TYPE" if faulty else "_MULTI_TYPE" if multiattach else "_TYPE"
        kind = needed(f"TETHER_TEST_CINDER{which}")
        volume = admin.volumes.create(1, name=name or None, volume_type=luks_type(admin) if encrypted else kind)
        made.append(volume.id)
        wait_for(admin, volume.id)
        if readonly is not None:
            admin.volumes.update_readonly_flag(volume.id, readonly)
        if status != "available":
            admin.volumes.reset_state(volume.id, status)
        return str(volume.id)

    yield make
    for volume_id in made:
        for row in admin.attachments.list(search_opts={"volume_id": volume_id}):
            admin.attachments.delete(row.id)
        admin.volumes.reset_state(volume_id, "available", attach_status="detached")
        admin.volumes.delete(volume_id)


@pytest.fixture
def fault() -> Callable[[str, str, str], Any]:
    directory, timeout = Path(needed("TETHER_TEST_CINDER_FAULTS")), float(needed("TETHER_TEST_CINDER_RPC_TIMEOUT"))

    @contextmanager
    def broken(volume_id: str, step: str, what: str) -> Iterator[None]:
        path = directory / f"{volume_id}.{step}"
        path.write_text({"fail": "fail", "late": f"sleep {timeout + 1}", "slow": f"sleep {timeout / 2}"}[what])
        try:
            yield
        finally:
            path.unlink()

    return broken


def wait_for(admin: Any, volume_id: str) -> None:
    end = time.monotonic() + 60
    while (status := admin.volumes.get(volume_id).status) != "available":
        if status == "error" or time.monotonic() > end:
            pytest.fail(f"the new volume {volume_id} is {status}")
        time.sleep(0.05)


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
