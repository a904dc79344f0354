"""The calls that each step makes, as a person would type them: Cinder's requests, virsh, the host's tools.

Reads are named where they are all that a step does. ``<…>`` stands for what an earlier step brings. A test holds
Cinder's requests here against those that a real run sends.
"""

from __future__ import annotations

from dataclasses import dataclass

from tether.persistence.params import Params

ATTACHMENT = "<attachment>"
OWNER = "<owner mark>"
CONNECTOR = '{"connector": {"host": …, "initiator": …, …}}'


@dataclass(frozen=True)
class Case:
    """What is known before a job starts.

    Args:
        attachment: the attachment's id, or a word in its place while there is none.
        live: the server has a live definition.
        link: tether's own link to the volume on the host.
        target: the device name in the guest, or a word in its place.
    """

    params: Params
    volume_id: str
    server: str
    live: bool
    link: str
    target: str = "<target>"
    attachment: str = ATTACHMENT


def calls_of(step: str, case: Case) -> tuple[str, ...]:
    """Return the calls of the step with this name (without its version)."""
    table = _cinder(case) | _guest(case) | _host(case) | _ledger(case)
    return table[step]


def _cinder(case: Case) -> dict[str, tuple[str, ...]]:
    volume = f"/volumes/{case.volume_id}"
    action = f"POST {volume}/action"
    owner = f', "instance_uuid": "{OWNER}"' if case.params.owner_mark else ""
    mode = f', "mode": "{case.params.mode}"'
    begin = (f'{action} {{"os-begin_detaching": {{}}}}',)
    return {
        "read-volume": (f"GET {volume}",),
        "reexport-volume": (f"PUT /attachments/{case.attachment} {CONNECTOR}",),
        "extend-volume": (f'{action} {{"os-extend": {{"new_size": {case.params.size or "<size>"}}}}}', f"GET {volume}"),
        "check-reachable": (f"GET /attachments/{case.attachment}",),
        "check-lost": (f"GET /attachments?volume_id={case.volume_id}",),
        "check-status": (f"GET {volume}", f"GET /attachments?volume_id={case.volume_id}"),
        "settle-status": (
            f'{action} {{"os-roll_detaching": {{}}}} (if it is detaching)',
            f'POST /attachments/{case.attachment}/action {{"os-complete": …}} (otherwise)',
        ),
        "clear-rows": (f"DELETE /attachments/{case.attachment}",),
        "check-adoptable": (f"GET {volume}", f"GET /attachments/{case.attachment}"),
        "check-movable": (f"GET /attachments?volume_id={case.volume_id}",),
        "second-attachment": (
            (
                f'POST /attachments {{"attachment": {{"volume_uuid": "{case.volume_id}", "instance_uuid": "<the first'
                f" one's>\", {CONNECTOR[1:-1]}{mode}}}}}"
            ),
        ),
        "read-export": (f"GET /attachments/{case.attachment}",),
        "reserve-volume": (f'POST /attachments {{"attachment": {{"volume_uuid": "{case.volume_id}"{owner}{mode}}}}}',),
        "export-volume": (f"PUT /attachments/{case.attachment} {CONNECTOR}",),
        "complete-attachment": (f'POST /attachments/{case.attachment}/action {{"os-complete": …}}',),
        "release-attachment": (f"DELETE /attachments/{case.attachment}",),
        "begin-detaching": () if case.params.multiattach else begin,
        "reserve-volume-legacy": (f'{action} {{"os-reserve": {{}}}}',),
        "export-volume-legacy": (f'{action} {{"os-initialize_connection": {CONNECTOR}}}',),
        "complete-attachment-legacy": (
            f'{action} {{"os-attach": {{"instance_uuid": "{OWNER}", "mountpoint": "/dev/{case.target}"{mode}}}}}',
        ),
        "release-attachment-legacy": (
            f'{action} {{"os-terminate_connection": {CONNECTOR}}}',
            f'{action} {{"os-detach": {{"attachment_id": "{case.attachment}"}}}}',
        ),
    }


def _guest(case: Case) -> dict[str, tuple[str, ...]]:
    read = (f"virsh dumpxml {case.server}", f"virsh dumpxml --inactive {case.server}")
    network = case.params.data_path == "network"
    usage = f"--usage {case.volume_id}"
    encrypted = (f"virsh secret-define, secret-set-value (type volume, {usage})",) if case.params.encrypted else ()
    chap = (f"virsh secret-define, secret-set-value (type iscsi, {usage}), if the target wants CHAP",)
    undefine = (f"virsh secret-undefine ({usage})",)

    def plug(scope: str) -> tuple[str, ...]:
        return (
            f"virsh metadata {case.server} --{scope} (tether's mark)",
            f"virsh attach-device {case.server} disk.xml --{scope}",
        )

    def limit(scope: str) -> tuple[str, ...]:
        return (f"virsh blkdeviotune {case.server} {case.target} {case.params.limits or '<limits>'} --{scope}",)

    def unplug(scope: str) -> tuple[str, ...]:
        return (
            f"virsh detach-device-alias {case.server} ua-{case.volume_id} --{scope}",
            f"virsh metadata {case.server} --{scope} (tether's mark goes)",
        )

    return {
        "read-server": read,
        "check-attachable": read,
        "check-detachable": read,
        "define-secret": chap + encrypted if network else (),
        "undefine-secret": undefine if network else (),
        "plug-persistent": plug("config"),
        "plug-live": plug("live") if case.live else (),
        "unplug-persistent": unplug("config"),
        "unplug-live": unplug("live") if case.live else (),
        "check-extendable": read,
        "resize-guest": (f"virsh blockresize {case.server} {case.target} <bytes>B",) if case.live else (),
        "check-limits": read,
        "limit-persistent": limit("config"),
        "limit-live": limit("live") if case.live else (),
        "check-half": read,
        "check-unused": ("virsh dumpxml of every domain",),
        "check-arrived": ("virsh dumpxml of every domain",),
        "check-left": ("virsh dumpxml of every domain",),
        "check-stray": ("virsh dumpxml of every domain",),
        "plug-half": plug("live or --config, whichever lacks it"),
        "renew-secret": chap,
        "clear-mark": ("virsh metadata of every domain without the disk, --live and --config (tether's mark goes)",),
        "clear-secret": undefine,
        "adopt-disk": tuple(
            f"virsh metadata {case.server} --{scope} (tether's mark)"
            for scope in ("config", *(["live"] if case.live else []))
        ),
    }


def _host(case: Case) -> dict[str, tuple[str, ...]]:
    crypt = f"tether-{case.volume_id}"
    network = case.params.data_path == "network"
    return {
        "read-connector": ("/etc/iscsi/initiatorname.iscsi",) if network else ("os-brick: get_connector_properties",),
        "connect-host": ("os-brick: connect_volume", f"ln -s <device> {case.link}"),
        "verify-device": (f"size and identity of {case.link}",),
        "open-encryption": (
            "cryptsetup luksFormat <device>, if the volume is provably new",
            f"cryptsetup open <device> {crypt}",
            f"ln -s /dev/mapper/{crypt} {case.link}",
        ),
        "extend-device": ("os-brick: extend_volume",),
        "resize-encryption": (f"cryptsetup resize {crypt}",),
        "close-encryption": (f"cryptsetup close {crypt}",),
        "reconnect-host": ("os-brick: connect_volume", f"ln -s <device> {case.link}"),
        "verify-reconnected": (f"size and identity of {case.link}",),
        "verify-same": (f"where {case.link} leads",),
        "reopen-encryption": (f"cryptsetup open <device> {crypt}", f"ln -s /dev/mapper/{crypt} {case.link}"),
        "clear-host": (f"cryptsetup close {crypt}", "os-brick: disconnect_volume", f"rm {case.link}"),
        "adopt-device": (f"ln -s <device> {case.link}",),
        "disconnect-host": (
            "os-brick: disconnect_volume" + ("(force=True)" if case.params.force else ""),
            f"rm {case.link}",
        ),
    }


def _ledger(case: Case) -> dict[str, tuple[str, ...]]:
    row = f"{case.target} of {case.server}"
    return {
        "attach-all": ("INSERT INTO tether_jobs (an attach for each volume)",),
        "create-mapping": (f"INSERT INTO tether_mappings ({row})",),
        "create-handover": (f"INSERT INTO tether_handovers ({row}: preparing)",),
        "finish-handover": (f"UPDATE tether_handovers ({row}: incoming)",),
        "take-mapping": (f"UPDATE tether_mappings, tether_handovers ({row}: they change places)",),
        "forget-handover": (f"DELETE FROM tether_handovers ({row})",),  # noqa: S608 - words to show, never run
        "adopt-mapping": (f"INSERT INTO tether_mappings ({row})",),
        "claim-mapping": (f"UPDATE tether_mappings ({row}: its job)",),
        "finish-repair": ("DELETE FROM tether_secrets (of the former job)",),
        "hold-attachment": (f"UPDATE tether_mappings ({row}: its attachment)",),
        "read-attachment": (f"SELECT FROM tether_mappings ({row})",),
        "finish-adoption": (f"UPDATE tether_mappings ({row}: attached)",),
        "finish-mapping": (f"UPDATE tether_mappings ({row}: attached)",),
        "finish-mapping-legacy": (f"UPDATE tether_mappings ({row}: attached)",),
        "delete-mapping": (f"DELETE FROM tether_mappings ({row})",),  # noqa: S608 - words to show, never run
    }
