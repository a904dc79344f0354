"""The contract on a real Cinder without Keystone (``auth_strategy = noauth``).

Environment:
    TETHER_TEST_CINDER: its URL, such as http://127.0.0.1:8776/v3.
    TETHER_TEST_CINDER_TYPE: a volume type of an iSCSI backend.
    TETHER_TEST_CINDER_MULTI_TYPE: one with ``multiattach = <is> True``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.contract.cinder_contract import AttachmentsContract, LegacyContract, LookupContract
from tether.adapters.cinder.session import open_cinder
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
def new_volume(admin: Any) -> Iterator[Callable[..., str]]:
    made: list[str] = []

    def make(
        name: str = "",
        *,
        multiattach: bool = False,
        encrypted: bool = False,
        readonly: bool | None = None,
        status: str = "available",
    ) -> str:
        kind = needed("TETHER_TEST_CINDER_MULTI_TYPE" if multiattach else "TETHER_TEST_CINDER_TYPE")
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


def wait_for(admin: Any, volume_id: str) -> None:
    end = time.monotonic() + 60
    while (status := admin.volumes.get(volume_id).status) != "available":
        if status == "error" or time.monotonic() > end:
            pytest.fail(f"the new volume {volume_id} is {status}")
        time.sleep(0.05)


class TestAttachments(AttachmentsContract):
    pass


class TestLegacy(LegacyContract):
    pass


class TestLookup(LookupContract):
    pass
