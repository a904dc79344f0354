"""Opens Cinder: credentials as every OpenStack client takes them, and no retry that tether has not asked for."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any

from tether.adapters.cinder.client import CinderClient, RequestIds
from tether.adapters.cinder.errors import Call, unusable_configuration
from tether.clock import Clock, SystemClock
from tether.errors import ConfigError
from tether.settings import Settings

if TYPE_CHECKING:
    from requests.adapters import BaseAdapter

_SYSTEM_CLOCK = SystemClock()
_SERVICE_TYPE = "block-storage"

# keystoneauth logs bodies at DEBUG, and masks no CHAP password in them: this logger never reaches DEBUG.
_wire_logger = logging.getLogger(f"{__name__}.wire")
_wire_logger.setLevel(logging.INFO)


def open_cinder(
    settings: Settings,
    *,
    global_request_id: str = "",
    transport: BaseAdapter | None = None,
    clock: Clock = _SYSTEM_CLOCK,
) -> CinderClient:
    """Return a client of the configured Cinder. Nothing is sent before its first call.

    Args:
        settings: os_cloud, or endpoint_override for a Cinder without Keystone; request_timeout in seconds.
        global_request_id: ``req-<uuid>``, which Cinder writes into its logs with every call.
        transport: answers http:// and https:// instead of the network (the embedded Cinder).
        clock: for the pauses between two tries of a read.

    Raises:
        ConfigError: the cloud is not known, or its credentials are incomplete.
    """
    try:
        session, options = _noauth(settings) if settings.endpoint_override else _keystone(settings)
    except ConfigError:
        raise
    except Exception as error:  # nothing is sent here, so whatever it is, it is the configuration
        endpoint = settings.endpoint_override or _cloud(settings)
        raise unusable_configuration(
            error, Call("open", "Cinder", "", endpoint, settings.send_service_user_token)
        ) from error
    if transport is not None:
        session.session.mount("http://", transport)
        session.session.mount("https://", transport)
    request_ids = RequestIds()
    session.session.hooks["response"].append(request_ids.note)

    def build(microversion: str, request_id: str) -> Any:
        from cinderclient.api_versions import APIVersion
        from cinderclient.v3.client import Client

        return Client(
            session=session,
            api_version=APIVersion(microversion),
            retries=0,
            connect_retries=0,
            status_code_retries=0,
            logger=_wire_logger,
            global_request_id=request_id,
            **options,
        )

    return CinderClient(
        build,
        # Left empty, cinderclient would send the id of Cinder's first answer with every later call.
        request_id=global_request_id or f"req-{uuid.uuid4()}",
        endpoint=settings.endpoint_override or f"the endpoint of {_cloud(settings)}",
        service_token=settings.send_service_user_token,
        request_ids=request_ids,
        clock=clock,
        patience=settings.request_timeout,
    )


def _cloud(settings: Settings) -> str:
    return f"cloud {settings.os_cloud}" if settings.os_cloud else "the environment's cloud"


def _noauth(settings: Settings) -> tuple[Any, dict[str, Any]]:
    """Return a session for a Cinder with ``auth_strategy = noauth``, where every caller is an administrator."""
    from cinderclient.contrib.noauth import CinderNoAuthPlugin
    from keystoneauth1.session import Session

    # The third positional argument would be `roles`, and the plugin appends the project to the URL by itself.
    auth = CinderNoAuthPlugin(
        settings.noauth_user, settings.noauth_project, endpoint=settings.endpoint_override.rstrip("/")
    )
    # Without Keystone's middleware nothing strips this header, which the middleware sets from a service token.
    headers = {"X-Service-Roles": "service"} if settings.send_service_user_token else {}
    return Session(auth=auth, timeout=settings.request_timeout, additional_headers=headers), {}


def _keystone(settings: Settings) -> tuple[Any, dict[str, Any]]:
    """Return a session from clouds.yaml and OS_*, and what the catalog is to be asked for."""
    from openstack.config import OpenStackConfig

    if settings.send_service_user_token and not settings.service_cloud:
        raise ConfigError(
            "[cinder] send_service_user_token is set, and service_cloud is not",
            resource="Cinder",
            hint="name the cloud of clouds.yaml whose user has the 'service' role",
        )
    loader = OpenStackConfig()
    cloud = loader.get_one(cloud=settings.os_cloud or None)
    session: Any = cloud.get_session()
    session.timeout = settings.request_timeout
    if settings.send_service_user_token:
        from keystoneauth1.service_token import ServiceTokenAuthWrapper

        service: Any = loader.get_one(cloud=settings.service_cloud).get_session()
        session.auth = ServiceTokenAuthWrapper(user_auth=session.auth, service_auth=service.auth)
    return session, {
        "service_type": cloud.get_service_type(_SERVICE_TYPE),
        "service_name": cloud.get_service_name(_SERVICE_TYPE),
        "region_name": cloud.get_region_name(_SERVICE_TYPE),
        "endpoint_type": cloud.get_interface(_SERVICE_TYPE),
        "os_endpoint": cloud.get_endpoint(_SERVICE_TYPE),
    }
