"""A Cinder driver of files exported by a userspace tgtd: real iSCSI with CHAP, without any kernel support.

It fails on demand. A file in ``tgt_faults`` named after a driver method, or ``<volume id>.<method>``, holds one of

* ``fail``: the method raises Cinder's VolumeBackendAPIException;
* ``boom``: it raises RuntimeError;
* ``sleep N``: it waits N seconds, and then works.

tgtd is found by TGT_IPC_SOCKET of the environment, so that no other tgtd of the machine is touched.
"""

import contextlib
import time
from pathlib import Path

from cinder import exception, interface
from cinder.common import constants
from cinder.volume import configuration, driver, volume_utils
from oslo_concurrency import lockutils, processutils
from oslo_config import cfg
from oslo_utils import units

OPTIONS = [
    cfg.StrOpt("tgt_volumes", help="Folder of the backing files, one per volume."),
    cfg.StrOpt("tgt_faults", help="Folder of the files that make methods fail."),
    cfg.BoolOpt("tgt_bind_initiator", default=False, help="Let in only the initiators of the volume's attachments."),
]
cfg.CONF.register_opts(OPTIONS, group=configuration.SHARED_CONF_GROUP)
ONE_AT_A_TIME = lockutils.synchronized("tether-live-tgt")


def tgtadm(*arguments):
    """Run tgtadm and return what it prints."""
    return processutils.execute("tgtadm", "--lld", "iscsi", *map(str, arguments))[0]


def forgiving(*arguments):
    """Run tgtadm where its refusal means that the thing is as wanted already."""
    with contextlib.suppress(processutils.ProcessExecutionError):
        tgtadm(*arguments)


def targets():
    """Return ``{iqn: (target id, has its LUN)}``."""
    found, iqn = {}, None
    for line in tgtadm("--op", "show", "--mode", "target").splitlines():
        if line.startswith("Target "):
            number, iqn = line.removeprefix("Target ").split(": ", 1)
            found[iqn] = (int(number), False)
        elif line.strip() == "LUN: 1":
            found[iqn] = (found[iqn][0], True)
    return found


@interface.volumedriver
class FileTgtDriver(driver.VolumeDriver):
    """One sparse file, one target and one CHAP account per volume; the account goes with the export."""

    VERSION = "1.0"
    CI_WIKI_NAME = "none"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(OPTIONS)

    @staticmethod
    def get_driver_options():
        return OPTIONS

    def do_setup(self, context):
        pass

    def check_for_setup_error(self):
        pass

    def _update_volume_stats(self):
        self._stats = {
            "volume_backend_name": self.configuration.volume_backend_name,
            "vendor_name": "tether",
            "driver_version": self.VERSION,
            "storage_protocol": constants.ISCSI,
            "pools": [
                {
                    "pool_name": "files",
                    "total_capacity_gb": "infinite",
                    "free_capacity_gb": "infinite",
                    "provisioned_capacity_gb": 0,
                    "reserved_percentage": 0,
                    "max_over_subscription_ratio": 100.0,
                    "thin_provisioning_support": True,
                    "multiattach": True,
                    "QoS_support": False,
                }
            ],
        }

    def _fault(self, method, volume=None):
        names = [method] if volume is None else [f"{volume.id}.{method}", method]
        for name in names:
            try:
                words = Path(self.configuration.tgt_faults, name).read_text().split()
            except FileNotFoundError:
                continue
            if words == ["fail"]:
                raise exception.VolumeBackendAPIException(data=f"scripted failure of {method}")
            if words == ["boom"]:
                raise RuntimeError(f"scripted failure of {method}")
            if len(words) == 2 and words[0] == "sleep":
                time.sleep(float(words[1]))
                return
            raise RuntimeError(f"{name} does not hold fail, boom or sleep N, but {words}")

    # files
    def local_path(self, volume):
        return str(Path(self.configuration.tgt_volumes, volume.name))

    def create_volume(self, volume):
        self._fault("create_volume", volume)
        with Path(self.local_path(volume)).open("wb") as file:
            file.truncate(volume.size * units.Gi)

    def extend_volume(self, volume, new_size):
        """Grow the file; tgtd, which has it open while it is exported, tells the new size from the next export on."""
        self._fault("extend_volume", volume)
        with Path(self.local_path(volume)).open("r+b") as file:
            file.truncate(new_size * units.Gi)

    def delete_volume(self, volume):
        self._fault("delete_volume", volume)
        Path(self.local_path(volume)).unlink(missing_ok=True)

    # export
    def _iqn(self, volume):
        return self.configuration.target_prefix + volume.name

    def _user(self, volume):
        """Return the account's name: the volume's own, so that one that was left behind is found again."""
        return volume.id.replace("-", "")

    def create_export(self, context, volume, connector):
        self._fault("create_export", volume)
        if volume.provider_auth:
            _method, user, secret = volume.provider_auth.split()
        else:
            # Nothing of ours is recorded: what a killed Cinder may have left has a secret that nobody knows.
            self._withdraw(volume)
            user, secret = self._user(volume), volume_utils.generate_password()
        number = self._export(volume, user, secret)
        portal = f"{self.configuration.target_ip_address}:{self.configuration.target_port}"
        return {
            "provider_location": f"{portal},{number} {self._iqn(volume)} 1",
            "provider_auth": f"CHAP {user} {secret}",
        }

    @ONE_AT_A_TIME
    def _export(self, volume, user, secret):
        have = targets()
        number, complete = have.get(self._iqn(volume), (None, False))
        if complete:
            return number
        if number is None:
            used = {number for number, _complete in have.values()}
            number = next(number for number in range(1, 65536) if number not in used)
            tgtadm("--op", "new", "--mode", "target", "--tid", number, "--targetname", self._iqn(volume))
        forgiving("--op", "new", "--mode", "account", "--user", user, "--password", secret)
        forgiving("--op", "bind", "--mode", "account", "--tid", number, "--user", user)
        if not self.configuration.tgt_bind_initiator:
            forgiving("--op", "bind", "--mode", "target", "--tid", number, "--initiator-address", "ALL")
        path = self.local_path(volume)
        tgtadm("--op", "new", "--mode", "logicalunit", "--tid", number, "--lun", 1, "--backing-store", path)
        return number

    def ensure_export(self, context, volume):
        """Bring back what was exported, after tgtd was started anew."""
        self._fault("ensure_export", volume)
        if not volume.provider_auth:
            return
        _method, user, secret = volume.provider_auth.split()
        number = self._export(volume, user, secret)
        if self.configuration.tgt_bind_initiator:
            for attachment in volume.volume_attachment:
                if attachment.connector:
                    self._admit(number, attachment.connector["initiator"])

    def remove_export(self, context, volume):
        self._fault("remove_export", volume)
        self._withdraw(volume)

    @ONE_AT_A_TIME
    def _withdraw(self, volume):
        number, _complete = targets().get(self._iqn(volume), (None, False))
        if number is not None:
            tgtadm("--op", "delete", "--force", "--mode", "target", "--tid", number)
        forgiving("--op", "delete", "--mode", "account", "--user", self._user(volume))

    # connection
    def validate_connector(self, connector):
        self._fault("validate_connector")
        if "initiator" not in connector:
            raise exception.InvalidConnectorException(missing="initiator")

    @staticmethod
    def _admit(number, initiator):
        forgiving("--op", "bind", "--mode", "target", "--tid", number, "--initiator-name", initiator)

    def initialize_connection(self, volume, connector):
        self._fault("initialize_connection", volume)
        portal, iqn, lun = volume.provider_location.split()
        method, user, secret = volume.provider_auth.split()
        if self.configuration.tgt_bind_initiator:
            self._admit(portal.split(",")[1], connector["initiator"])
        return {
            "driver_volume_type": "iscsi",
            "data": {
                "target_discovered": False,
                "target_portal": portal.split(",")[0],
                "target_iqn": iqn,
                "target_lun": int(lun),
                "volume_id": volume.id,
                "auth_method": method,
                "auth_username": user,
                "auth_password": secret,
            },
        }

    def terminate_connection(self, volume, connector, **kwargs):
        """Shut the initiator out; the answer tells Cinder to keep the export while others use it."""
        self._fault("terminate_connection", volume)
        connected = [row.connector for row in volume.volume_attachment or [] if row.connector]
        initiator = (connector or {}).get("initiator")
        same = [other for other in connected if other.get("initiator") == initiator]
        number, _complete = targets().get(self._iqn(volume), (None, False))
        if self.configuration.tgt_bind_initiator and number and initiator and len(same) <= 1:
            forgiving("--op", "unbind", "--mode", "target", "--tid", number, "--initiator-name", initiator)
        return len(connected) > 1
