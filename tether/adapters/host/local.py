"""The host's verbs as the helper carries them out, in its own process."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tether.adapters.host import brick_calls, crypt, fabrics, files
from tether.adapters.host.errors import mapped
from tether.adapters.host.files import FileHost
from tether.adapters.host.links import Links
from tether.adapters.host.model import Device, Holding, HostSurvey
from tether.adapters.host.places import Places
from tether.adapters.host.probes import Probes, mapping_name
from tether.errors import FinalError, TetherError, UncertainError
from tether.settings import Settings

LOG = logging.getLogger(__name__)

#: os-brick needs its own device info to disconnect these.
_NEEDS_INFO = ("nvmeof", "nvme", "storpool")
#: Of which it is the device's path alone: one that is dead cannot be connected anew to learn it.
_PATH_IS_ENOUGH = ("nvmeof", "nvme")


class LocalHost:
    """Carries out one verb; os-brick is set up only where the verb needs it.

    Args:
        settings: of the host section.
        places: the host's file systems.
    """

    def __init__(self, settings: Settings, places: Places) -> None:
        self._settings = settings
        self._places = places
        self._probes = Probes(places)
        self._links = Links(settings.run_dir)
        self._files = FileHost(settings, places, self._links, self._probes)

    def connector(self) -> dict[str, Any]:
        """Return the connector properties."""
        # It changes nothing on the host, so there is nothing to clean.
        with mapped("reading the connector properties of", clean=lambda: True):
            brick_calls.set_up(self._settings)
            return brick_calls.connector_properties(self._settings)

    def connect(self, volume_id: str, protocol: str, data: Mapping[str, Any]) -> Device:
        """Log in, find the device, make the link."""
        self._check_handled(volume_id, protocol, data)
        if protocol == files.PROTOCOL:
            return self._files.connect(volume_id, data)
        # A volume that is in use, or already linked, is not torn down because a second login fails.
        established = bool(self._links.target(volume_id)) or bool(self._users(volume_id, protocol, data))

        def clean() -> bool:
            return not established and self._cleaned_up(volume_id, protocol, data)

        with mapped("connecting", volume_id, clean=clean):
            brick_calls.set_up(self._settings)
            info = brick_calls.connect(self._settings, protocol, data)
        block = self._probes.block_of(info["path"])
        if not block:
            raise UncertainError(
                f"volume {volume_id} was connected as {info['path']}, which is not a block device",
                resource=f"volume {volume_id}",
                hint="look at the host's devices (lsblk)",
            )
        identities = set(self._probes.identities(block))
        self._links.remember(volume_id, identities.pop() if len(identities) == 1 else "")
        # The device itself: udev may point a link elsewhere.
        path = str(Path(self._places.dev) / block)
        self._links.point(volume_id, self._mapper(volume_id) if self._probes.crypt_of(volume_id) else path)
        return self._present(volume_id)

    def find(self, volume_id: str) -> Device | None:
        """Return the device behind the link."""
        self._probes.check_eyesight()
        target = self._links.target(volume_id)
        return self._present(volume_id) if target and self._probes.block_of(target) else self._files.find(volume_id)

    def device_at(self, volume_id: str, path: str, protocol: str, data: Mapping[str, Any]) -> Device | None:
        """Return the device at a path if it, or what is below it, is one of the connection's disks."""
        self._check_handled(volume_id, protocol, data)
        self._probes.check_eyesight()
        if protocol == files.PROTOCOL:
            return self._files.device_at(volume_id, path, data)
        block = self._probes.block_of(path)
        if not block:
            return None
        own = self._probes.below_crypt(block)
        if not {own, *self._probes.slaves(own)} & set(self._probes.disks(protocol, data)):
            return None
        if own != block:
            path = str(Path(self._places.dev) / own)
        elif path == str(self._links.path(volume_id)):
            path = self._links.target(volume_id)
        return self._device(volume_id, path)

    def link(self, volume_id: str, path: str) -> Device:
        """Make the link to a device that is there, and remember what the device reports."""
        self._probes.check_eyesight()
        block = self._probes.block_of(path)
        if not block:
            raise FinalError(
                f"volume {volume_id}: {path} is not a block device of this host",
                resource=f"volume {volume_id}",
                hint="look at the host's devices (lsblk)",
            )
        identities = set(self._probes.identities(self._probes.below_crypt(block)))
        self._links.remember(volume_id, identities.pop() if len(identities) == 1 else "")
        self._links.point(volume_id, self._mapper(volume_id) if self._probes.crypt_of(volume_id) else path)
        return self._present(volume_id)

    def unlink(self, volume_id: str) -> None:
        """Remove the link."""
        self._links.remove(volume_id)

    def disconnect(
        self,
        volume_id: str,
        protocol: str,
        data: Mapping[str, Any],
        others: Collection[str] = (),
        *,
        force: bool = False,
    ) -> list[str]:
        """Log out, prove that nothing is left, then remove the link; return what ``force`` has passed over."""
        if self._never_connected(volume_id, protocol, data):
            return []
        if protocol == files.PROTOCOL:
            self._files.disconnect(volume_id, data, others)
            return []
        if self._probes.map_named(mapping_name(volume_id)):
            raise FinalError(
                f"volume {volume_id} cannot be disconnected: dm-crypt {mapping_name(volume_id)} is open on it",
                resource=f"volume {volume_id}",
                hint=f"close it first: cryptsetup close {mapping_name(volume_id)}",
            )
        if users := self._users(volume_id, protocol, data):
            # os-brick says OK to this for a single path, and takes the disk away under its user.
            raise FinalError(
                f"volume {volume_id} cannot be disconnected: its device is open: {', '.join(users)}",
                resource=f"volume {volume_id}",
                hint="detach the disk from the guest, or end what uses the device",
            )
        failed: list[str] = []
        try:
            with mapped("disconnecting", volume_id):
                brick_calls.set_up(self._settings)
                self._log_out(volume_id, protocol, data, force=force)
        except UncertainError as error:
            if not force:
                raise
            failed.append(error.message)
        if left := self._left(volume_id, protocol, data):
            raise UncertainError(
                f"volume {volume_id} was disconnected, but this is left: {', '.join(left)}"
                + "".join(f"; {each}" for each in failed),
                resource=f"volume {volume_id}",
                hint="see what holds them (lsblk, iscsiadm -m session): disconnecting may be repeated",
            )
        self._links.remove(volume_id)
        return failed

    def residue(self, volume_id: str, protocol: str, data: Mapping[str, Any]) -> list[str]:
        """Return what is left of the volume, its link included."""
        if self._never_connected(volume_id, protocol, data):
            return []
        link = [f"link {self._links.path(volume_id)}"] if self._links.target(volume_id) else []
        return self._left(volume_id, protocol, data) + link

    def survey(self) -> HostSurvey:
        """Return all that this host holds."""
        self._probes.check_eyesight()
        links = self._links.all()
        return HostSurvey(
            holdings=(*(Holding("link", path, volume_id) for volume_id, path in links), *self._probes.holdings()),
            devices={volume_id: device for volume_id, _ in links if (device := self.find(volume_id))},
        )

    def extend(self, volume_id: str, protocol: str, data: Mapping[str, Any]) -> Device:
        """Rescan the volume's paths, resize their map, and return the device as sysfs has it then."""
        self._check_handled(volume_id, protocol, data)
        self._own_block(volume_id, "it cannot be extended here")
        # A rescan makes nothing that could be left behind.
        with mapped("extending", volume_id, clean=lambda: True):
            brick_calls.set_up(self._settings)
            brick_calls.extend(self._settings, protocol, data)
        return self._present(volume_id)

    def usable_size(self, volume_id: str) -> int:
        """Return the bytes of what the link leads to."""
        self._own_block(volume_id, "it has no size here")
        return self._probes.size(self._probes.block_of(self._links.target(volume_id)))

    def resize_encryption(self, volume_id: str, *, passphrase: str) -> None:
        """Let the open mapping take up all of its device."""
        self._probes.check_eyesight()
        if not self._probes.crypt_of(volume_id):
            raise FinalError(
                f"dm-crypt {mapping_name(volume_id)} of volume {volume_id} is not open, so it cannot be resized",
                resource=f"volume {volume_id}",
                hint="see what the host has of it: tether explain " + volume_id,
            )
        crypt.resize_mapping(volume_id, passphrase)

    def read_header(self, volume_id: str) -> str:
        """Return what the beginning of the volume's own device holds."""
        return crypt.read_header(
            volume_id, str(Path(self._places.dev) / self._own_block(volume_id, "its header cannot be read"))
        )

    def format_encryption(self, volume_id: str, *, provider: str, cipher: str, key_size: int, passphrase: str) -> None:
        """Write a LUKS header onto the volume's own device, unless something uses it."""
        own = self._own_block(volume_id, "it cannot be formatted")
        name = mapping_name(volume_id)
        mapped_now = [f"dm-crypt {name}"] if self._probes.map_named(name) else []
        if users := mapped_now + self._probes.users(volume_id, own):
            raise FinalError(
                f"volume {volume_id} is not formatted: its device is open: {', '.join(users)}",
                resource=f"volume {volume_id}",
                hint="see what uses it: lsblk, cryptsetup status " + name,
            )
        crypt.format_device(
            volume_id,
            str(Path(self._places.dev) / own),
            provider=provider,
            cipher=cipher,
            key_size=key_size,
            passphrase=passphrase,
        )

    def open_encryption(self, volume_id: str, *, provider: str, cipher: str, key_size: int, passphrase: str) -> Device:
        """Open dm-crypt over the volume's own device and point the link at it."""
        own = self._own_block(volume_id, "its encryption cannot be opened")
        device = str(Path(self._places.dev) / own)
        if mapping := self._probes.map_named(mapping_name(volume_id)):
            over = mapping == self._probes.crypt_of(volume_id) and self._probes.slaves(mapping) == [own]
            if not over or not crypt.is_over(volume_id, device, self._probes.map_uuid(mapping)):
                raise FinalError(
                    f"dm-crypt {mapping_name(volume_id)} exists, but not over the device of volume {volume_id}",
                    resource=f"volume {volume_id}",
                    hint=f"see what it is (dmsetup table), then: cryptsetup close {mapping_name(volume_id)}",
                )
        else:
            try:
                crypt.open_mapping(
                    volume_id, device, provider=provider, cipher=cipher, key_size=key_size, passphrase=passphrase
                )
            except FinalError as error:
                # cryptsetup gives one exit status for several things: the mapping's absence is the proof.
                if self._probes.map_named(mapping_name(volume_id)):
                    raise UncertainError(error.message, resource=error.resource, hint=error.hint) from error
                raise
        self._links.point(volume_id, self._mapper(volume_id))
        return self._present(volume_id)

    def encryption_open(self, volume_id: str) -> bool:
        """Return True if the mapping is there."""
        self._probes.check_eyesight()
        return bool(self._probes.crypt_of(volume_id))

    def close_encryption(self, volume_id: str) -> None:
        """Close the mapping and point the link back."""
        self._probes.check_eyesight()
        mapping = self._probes.crypt_of(volume_id)
        own = self._probes.below_crypt(mapping) if mapping else ""
        if own and (users := self._probes.users(volume_id, own)):
            raise FinalError(
                f"dm-crypt {mapping_name(volume_id)} of volume {volume_id} is open: {', '.join(users)}",
                resource=f"volume {volume_id}",
                hint="detach the disk from the guest",
            )
        if own and self._links.target(volume_id):
            # First the link: a crash between the two leaves a mapping, which is found by its name.
            self._links.point(volume_id, str(Path(self._places.dev) / own))
        if mapping:
            crypt.close_mapping(volume_id)

    def _check_handled(self, volume_id: str, protocol: str, data: Mapping[str, Any]) -> None:
        """Raise FinalError for a connection whose absence could not be proven later."""
        if refusal := fabrics.refusal(protocol, data):
            raise FinalError(
                f"volume {volume_id} {refusal}",
                resource=f"volume {volume_id}",
                hint="use a volume type of another backend; of those that QEMU reaches by itself set data_path ="
                " network (rbd volumes need no setting)",
            )

    def _never_connected(self, volume_id: str, protocol: str, data: Mapping[str, Any]) -> bool:
        """Return True for a connection that :meth:`connect` refuses, so that there is nothing to disconnect.

        Raises:
            FinalError: it would be refused, and yet tether's link is there.
        """
        if not fabrics.refusal(protocol, data):
            return False
        if self._links.target(volume_id):
            self._check_handled(volume_id, protocol, data)
        return True

    def _left(self, volume_id: str, protocol: str, data: Mapping[str, Any]) -> list[str]:
        if protocol == files.PROTOCOL:
            return self._files.left(volume_id, data)
        return self._probes.left(volume_id, protocol, data, self._links.identity(volume_id))

    def _users(self, volume_id: str, protocol: str, data: Mapping[str, Any]) -> list[str]:
        """Return who uses the volume's device, whether or not the link is there."""
        self._probes.check_eyesight()
        linked = self._probes.block_of(self._links.target(volume_id)) if self._links.target(volume_id) else ""
        disks = set(self._probes.disks(protocol, data))
        ours = bool({linked, *self._probes.slaves(linked)} & disks) if linked else False
        # Fibre Channel disks are known by udev's links alone; where those are missing, the link is believed.
        if ours or (linked and not disks and protocol == "fibre_channel"):
            return self._probes.users(volume_id, linked)
        # Without the link: the multipath map over the disks counts as os-brick's, not as a user.
        maps = {
            block
            for block, _, uuid in self._probes.maps()
            if uuid.startswith("mpath-") and set(self._probes.slaves(block)) & disks
        }
        return [user for block in sorted(maps or disks) for user in self._probes.users(volume_id, block)]

    def _log_out(self, volume_id: str, protocol: str, data: Mapping[str, Any], *, force: bool = False) -> None:
        info: dict[str, Any] | None = None
        if protocol in _NEEDS_INFO:
            if not self._probes.disks(protocol, data) and not self._left(volume_id, protocol, data):
                return
            path = self._path_of(volume_id, protocol, data) if force and protocol in _PATH_IS_ENOUGH else ""
            info = {"path": path} if path else brick_calls.connect(self._settings, protocol, data)
        brick_calls.disconnect(self._settings, protocol, data, info, force=force)

    def _path_of(self, volume_id: str, protocol: str, data: Mapping[str, Any]) -> str:
        """Return the path of the volume's device, or empty if there is none."""
        disks = self._probes.disks(protocol, data)
        return str(Path(self._places.dev) / disks[0]) if disks else ""

    def _cleaned_up(self, volume_id: str, protocol: str, data: Mapping[str, Any]) -> bool:
        """Return True once nothing is left of a connect that failed."""
        try:
            with mapped("cleaning up after", volume_id):
                self._log_out(volume_id, protocol, data)
        except TetherError as error:
            # The caller is told of the connect's own error; what counts here is what is left.
            LOG.warning("%s", error)
        return not self._left(volume_id, protocol, data)

    def _own_block(self, volume_id: str, so: str) -> str:
        """Return the volume's own device.

        Args:
            so: what cannot be done without one.
        """
        self._probes.check_eyesight()
        target = self._links.target(volume_id)
        block = self._probes.block_of(target) if target else ""
        if not block and self._files.find(volume_id):
            raise FinalError(
                f"volume {volume_id} is a file, whose encryption dm-crypt does not open",
                resource=f"volume {volume_id}",
                hint="use a volume type without encryption, or one of another backend",
            )
        if not block:
            raise FinalError(
                f"volume {volume_id} is not connected, so {so}",
                resource=f"volume {volume_id}",
                hint="connect it first: the job that attaches it does",
            )
        return self._probes.below_crypt(block)

    def _mapper(self, volume_id: str) -> str:
        return str(Path(self._places.dev) / "mapper" / mapping_name(volume_id))

    def _present(self, volume_id: str) -> Device:
        """Return the device behind the link."""
        return self._device(volume_id, self._links.target(volume_id))

    def _device(self, volume_id: str, path: str) -> Device:
        """Return the device at a path; size and identity are those of the volume, below any dm-crypt."""
        own = self._probes.below_crypt(self._probes.block_of(path))
        identities = set(self._probes.identities(own))
        return Device(
            link=str(self._links.path(volume_id)),
            path=path,
            kind="block",
            size=self._probes.size(own),
            identity=identities.pop() if len(identities) == 1 else "",
            identities_differ=len(identities) > 1,
            open_count=len(self._probes.users(volume_id, own)),
            paths=len(self._probes.slaves(own)) or 1,
        )
