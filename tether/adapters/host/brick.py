"""The host by os-brick, in a helper process of its own.

os-brick reads the global CONF, brings eventlet along, and may hang in a command; so each verb runs in a
process that can be ended together with all that it has started: a fork of one that has os-brick loaded.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tether.adapters.cinder.model import Connection, Connector, Encryption
from tether.adapters.host import errors, helper, process, targets, wwid
from tether.adapters.host.model import Device, Header, HostIdentity, HostSurvey, from_json, survey_from_json
from tether.adapters.host.network import NetworkHost
from tether.adapters.host.places import Places, own_initiator, read_identity
from tether.errors import ConfigError, FinalError, UncertainError
from tether.sealed import Sealed, scrub, secrets_in
from tether.settings import Settings

LOG = logging.getLogger(__name__)


def open_host(settings: Settings) -> BrickHost | NetworkHost:
    """Return the host for the data path that is set."""
    return NetworkHost(settings) if settings.data_path == "network" else BrickHost(settings)


def prepare(settings: Settings) -> None:
    """Have os-brick loaded for a host that will connect or disconnect, while the caller does something else."""
    if settings.data_path == "host":
        process.prepare(_environment())


class BrickHost:
    """The host protocol over helper processes.

    Args:
        settings: the host section; ``host_timeout`` is each verb's limit.
        places: the host's file systems.
    """

    def __init__(self, settings: Settings, places: Places | None = None) -> None:
        self._settings = settings
        self._places = places or Places()

    def identity(self) -> HostIdentity:
        return read_identity(self._settings, self._places)

    def connector(self) -> Connector:
        own = own_initiator(self._places)
        if self._settings.initiator_name and self._settings.initiator_name != own:
            raise ConfigError(
                f"initiator_name is {self._settings.initiator_name}, but iscsid logs in as {own or 'nobody'}",
                hint="leave initiator_name empty, or write it to /etc/iscsi/initiatorname.iscsi and restart iscsid",
            )
        found: dict[str, Any] = self._ask("connector")
        return found

    def scans_manually(self) -> bool:
        return targets.scans_manually(Path(self._places.iscsiadm))

    def connect(self, volume_id: str, connection: Connection) -> Device:
        return from_json(self._ask("connect", volume_id=volume_id, **_reach(connection)))

    def find(self, volume_id: str) -> Device | None:
        found = self._ask("find", volume_id=volume_id)
        return None if found is None else from_json(found)

    def device_at(self, volume_id: str, path: str, connection: Connection) -> Device | None:
        found = self._ask("device_at", volume_id=volume_id, path=path, **_reach(connection))
        return None if found is None else from_json(found)

    def link(self, volume_id: str, path: str) -> Device:
        return from_json(self._ask("link", volume_id=volume_id, path=path))

    def unlink(self, volume_id: str) -> None:
        self._ask("unlink", volume_id=volume_id)

    def disconnect(
        self, volume_id: str, connection: Connection, others: Collection[str] = (), *, force: bool = False
    ) -> list[str]:
        words = {"others": sorted(others), "force": force, **_reach(connection)}
        return list(self._ask("disconnect", volume_id=volume_id, **words))

    def residue(self, volume_id: str, connection: Connection) -> list[str]:
        return list(self._ask("residue", volume_id=volume_id, **_reach(connection)))

    def survey(self) -> HostSurvey:
        return survey_from_json(self._ask("survey"))

    def expected_identity(self, connection: Connection) -> str:
        return wwid.named_by(connection.protocol, connection.data.open())

    def expected_paths(self, connection: Connection) -> int:
        settings = self._settings
        many = {"iscsi": settings.volume_use_multipath, "iser": settings.iser_use_multipath}
        portals = connection.data.open().get("target_portals", ()) if many.get(connection.protocol) else ()
        return len(set(portals)) or 1

    def extend(self, volume_id: str, connection: Connection) -> Device:
        return from_json(self._ask("extend", volume_id=volume_id, **_reach(connection)))

    def usable_size(self, volume_id: str) -> int:
        return int(self._ask("usable_size", volume_id=volume_id))

    def resize_encryption(self, volume_id: str, passphrase: Sealed[str]) -> None:
        self._ask("resize_encryption", volume_id=volume_id, passphrase=passphrase.open())

    def read_header(self, volume_id: str) -> Header:
        return Header(self._ask("read_header", volume_id=volume_id))

    def format_encryption(self, volume_id: str, encryption: Encryption, passphrase: Sealed[str]) -> None:
        self._ask("format_encryption", volume_id=volume_id, **_cipher(volume_id, encryption, passphrase))

    def open_encryption(self, volume_id: str, encryption: Encryption, passphrase: Sealed[str]) -> Device:
        return from_json(
            self._ask("open_encryption", volume_id=volume_id, **_cipher(volume_id, encryption, passphrase))
        )

    def encryption_open(self, volume_id: str) -> bool:
        return bool(self._ask("encryption_open", volume_id=volume_id))

    def close_encryption(self, volume_id: str) -> None:
        self._ask("close_encryption", volume_id=volume_id)

    def _ask(self, verb: str, **words: Any) -> Any:
        """Have a helper carry out one verb.

        Raises:
            UncertainError: it did not answer within ``host_timeout``, or died.
            TetherError: what it answered.
        """
        volume_id = words.get("volume_id", "")
        subject = f"{verb} of volume {volume_id}" if volume_id else verb
        resource = f"volume {volume_id}" if volume_id else ""
        asked = helper.request(verb, self._settings, self._places, words)
        started = time.monotonic()
        ended = process.run(
            json.dumps(asked).encode() + b"\n",
            environment=_environment(),
            brick=verb in helper.OF_BRICK,
            limit=self._settings.host_timeout,
            settle=self._settings.host_settle,
        )
        LOG.info("host %s took %.2f s, exit status %s", subject, time.monotonic() - started, ended.status)
        secrets = secrets_in(words)
        for line in scrub(ended.log.decode(errors="replace"), secrets).splitlines():
            LOG.debug("host %s: %s", verb, line)
        answer = _read(ended.answer)
        if "error" in answer:
            raise errors.from_json(answer["error"])
        if "result" in answer:
            return answer["result"]
        left = f"; processes {', '.join(map(str, ended.left))} could not be ended" if ended.left else ""
        how = (
            f"ended with status {ended.status} before it answered"
            if ended.in_time
            else f"did not answer within {self._settings.host_timeout:g} s"
        )
        raise UncertainError(
            f"{subject}: os-brick's helper {how}{left}",
            resource=resource,
            hint="see whether the host answers again; tether's debug log has the helper's words",
        )


def _environment() -> dict[str, str]:
    """Return the helper's environment: ours, with this very tether at the end of the import path."""
    package = sys.modules["tether"].__file__ or ""
    paths = [os.environ.get("PYTHONPATH", ""), str(Path(package).parents[1])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _cipher(volume_id: str, encryption: Encryption, passphrase: Sealed[str]) -> dict[str, Any]:
    """Return what the helper needs to know of an encryption.

    Raises:
        FinalError: it is the backend's.
    """
    if encryption.control_location != "front-end":
        raise FinalError(
            f"volume {volume_id} is encrypted by its backend, so there is nothing to open here",
            resource=f"volume {volume_id}",
            hint="attach it as it is",
        )
    return {
        "provider": encryption.provider,
        "cipher": encryption.cipher,
        "key_size": encryption.key_size,
        "passphrase": passphrase.open(),
    }


def _reach(connection: Connection) -> dict[str, Any]:
    return {"protocol": connection.protocol, "data": connection.data.open()}


def _read(answer: bytes) -> Mapping[str, Any]:
    """Return the helper's answer; an incomplete line is none."""
    if not answer.endswith(b"\n"):
        return {}
    return dict(json.loads(answer))
