"""The host where QEMU reaches the storage by itself: nothing is connected here."""

from __future__ import annotations

import os
import platform
import sys
import uuid
from collections.abc import Collection
from typing import NoReturn

from tether.adapters.cinder.model import Connection, Connector, Encryption
from tether.adapters.host import wwid
from tether.adapters.host.links import Links
from tether.adapters.host.model import Device, Header, Holding, HostIdentity, HostSurvey
from tether.adapters.host.places import Places, read_identity
from tether.errors import ConfigError, FinalError
from tether.sealed import Sealed
from tether.settings import Settings


class NetworkHost:
    """The host protocol without a data path on the host: it says who this host is, and has no devices.

    Args:
        settings: ``initiator_name``, ``my_ip`` and ``host_name`` name this host to Cinder.
        places: the host's file systems.
    """

    def __init__(self, settings: Settings, places: Places | None = None) -> None:
        self._settings = settings
        self._places = places or Places()

    def identity(self) -> HostIdentity:
        return read_identity(self._settings, self._places)

    def connector(self) -> Connector:
        known = self.identity()
        if not known.initiator:
            raise ConfigError(
                "this host has no iSCSI initiator name to give to Cinder",
                hint="set initiator_name in [host], or install open-iscsi",
            )
        system = str(uuid.UUID(known.machine_id))
        return {
            "platform": platform.machine(),
            "os_type": sys.platform,
            "host": known.name,
            "ip": self._settings.my_ip,
            "initiator": known.initiator,
            "multipath": False,
            "enforce_multipath": False,
            "do_local_attach": False,
            "uuid": system,
            "system uuid": system,
            **({"nqn": known.nqn} if known.nqn else {}),
        }

    def scans_manually(self) -> bool:
        return True

    def connect(self, volume_id: str, connection: Connection) -> Device:
        self._refuse(volume_id)

    def find(self, volume_id: str) -> Device | None:
        return None

    def device_at(self, volume_id: str, path: str, connection: Connection) -> Device | None:
        return None

    def link(self, volume_id: str, path: str) -> Device:
        self._refuse(volume_id)

    def unlink(self, volume_id: str) -> None:
        Links(self._settings.run_dir).remove(volume_id)

    def disconnect(
        self, volume_id: str, connection: Connection, others: Collection[str] = (), *, force: bool = False
    ) -> list[str]:
        self._refuse(volume_id)

    def residue(self, volume_id: str, connection: Connection) -> list[str]:
        link = os.path.join(self._settings.run_dir, "volumes", volume_id)  # noqa: PTH118  text, as in Device.link
        return [f"link {link}"] if os.path.lexists(link) else []

    def survey(self) -> HostSurvey:
        links = Links(self._settings.run_dir).all()
        return HostSurvey(tuple(Holding("link", path, volume_id) for volume_id, path in links), sees_devices=False)

    def expected_identity(self, connection: Connection) -> str:
        return wwid.named_by(connection.protocol, connection.data.open())

    def expected_paths(self, connection: Connection) -> int:
        return 1

    def extend(self, volume_id: str, connection: Connection) -> Device:
        self._refuse(volume_id)

    def usable_size(self, volume_id: str) -> int:
        self._refuse(volume_id)

    def resize_encryption(self, volume_id: str, passphrase: Sealed[str]) -> None:
        self._refuse(volume_id)

    def read_header(self, volume_id: str) -> Header:
        self._refuse(volume_id)

    def format_encryption(self, volume_id: str, encryption: Encryption, passphrase: Sealed[str]) -> None:
        self._refuse(volume_id)

    def open_encryption(self, volume_id: str, encryption: Encryption, passphrase: Sealed[str]) -> Device:
        self._refuse(volume_id)

    def encryption_open(self, volume_id: str) -> bool:
        return False

    def close_encryption(self, volume_id: str) -> None:
        self._refuse(volume_id)

    @staticmethod
    def _refuse(volume_id: str) -> NoReturn:
        raise FinalError(
            f"volume {volume_id}: not on the network data path, where QEMU connects by itself",
            resource=f"volume {volume_id}",
            hint="set data_path = host to have os-brick connect volumes",
        )
