"""The one map from libvirt's errors to tether's tree.

libvirt's error codes say *what* was wrong, seldom whether the call had an effect; the lists below are by that
second question. A code that nobody has looked at is uncertain.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tether.errors import FinalError, NotFound, TetherError, UncertainError

#: The domain itself is not there. A migration may have taken it to another host.
NOT_FOUND = ("NO_DOMAIN",)

#: Refused before anything was changed: the request does not fit, or may not be made.
FINAL = (
    "ACCESS_DENIED",
    "ARGUMENT_UNSUPPORTED",
    "BLOCK_COPY_ACTIVE",
    "CONFIG_UNSUPPORTED",
    "DEVICE_MISSING",
    "DOM_EXIST",
    "INVALID_ARG",
    "INVALID_DOMAIN",
    "INVALID_SECRET",
    "MULTIPLE_DOMAINS",
    "NO_DOMAIN_METADATA",
    "NO_DOMAIN_SNAPSHOT",
    "NO_SECRET",
    "NO_SOURCE",
    "NO_SUPPORT",
    "NO_TARGET",
    "OPERATION_DENIED",
    "OPERATION_INVALID",
    "OPERATION_UNSUPPORTED",
    "OVERFLOW",
    "RESOURCE_BUSY",
    "XML_DETAIL",
    "XML_ERROR",
    "XML_INVALID_SCHEMA",
)

#: The connection, the daemon or QEMU failed somewhere on the way: it may have been carried out.
#: AUTH_* belong here, since a reader that may not look has not seen that something is absent.
UNCERTAIN = (
    "AGENT_UNRESPONSIVE",
    "AGENT_UNSYNCED",
    "AUTH_CANCELLED",
    "AUTH_FAILED",
    "AUTH_UNAVAILABLE",
    "CALL_FAILED",
    "DBUS_SERVICE",
    "GET_FAILED",
    "GNUTLS_ERROR",
    "HOOK_SCRIPT_FAILED",
    "HTTP_ERROR",
    "INVALID_CONN",
    "LIBSSH",
    "NO_CLIENT",
    "NO_CONNECT",
    "NO_HOSTNAME",
    "NO_MEMORY",
    "NO_SERVER",
    "OPEN_FAILED",
    "OPERATION_ABORTED",
    "OPERATION_FAILED",
    "OPERATION_TIMEOUT",
    "PARSE_FAILED",
    "POST_FAILED",
    "READ_FAILED",
    "RPC",
    "SSH",
    "UNKNOWN_HOST",
    "WRITE_FAILED",
)

#: Decided by the text, since libvirt uses one code for many things.
BY_MESSAGE = ("INTERNAL_ERROR", "SYSTEM_ERROR")

#: Errors of other parts of libvirt (networks, storage pools, Xen, checkpoints, …) that no call of tether's can
#: give. Should one come, it says nothing about the effect: uncertain.
FOREIGN = (
    "BUILD_FIREWALL",
    "CHECKPOINT_INCONSISTENT",
    "CONF_SYNTAX",
    "CPU_INCOMPATIBLE",
    "DRIVER_FULL",
    "INVALID_DOMAIN_CHECKPOINT",
    "INVALID_DOMAIN_SNAPSHOT",
    "INVALID_INTERFACE",
    "INVALID_MAC",
    "INVALID_NETWORK",
    "INVALID_NETWORK_PORT",
    "INVALID_NODE_DEVICE",
    "INVALID_NWFILTER",
    "INVALID_NWFILTER_BINDING",
    "INVALID_STORAGE_POOL",
    "INVALID_STORAGE_VOL",
    "INVALID_STREAM",
    "MIGRATE_FINISH_OK",
    "MIGRATE_PERSIST_FAILED",
    "MIGRATE_UNSAFE",
    "MULTIPLE_INTERFACES",
    "NETWORK_EXIST",
    "NETWORK_PORT_EXIST",
    "NO_DEVICE",
    "NO_DOMAIN_BACKUP",
    "NO_DOMAIN_CHECKPOINT",
    "NO_INTERFACE",
    "NO_KERNEL",
    "NO_NAME",
    "NO_NETWORK",
    "NO_NETWORK_PORT",
    "NO_NODE_DEVICE",
    "NO_NWFILTER",
    "NO_NWFILTER_BINDING",
    "NO_OS",
    "NO_ROOT",
    "NO_SECURITY_MODEL",
    "NO_STORAGE_POOL",
    "NO_STORAGE_VOL",
    "NO_XEN",
    "NO_XENSTORE",
    "OK",
    "OS_TYPE",
    "SEXPR_SERIAL",
    "SNAPSHOT_REVERT_RISKY",
    "STORAGE_POOL_BUILT",
    "STORAGE_PROBE_FAILED",
    "STORAGE_VOL_EXIST",
    "XEN_CALL",
)

#: Texts of INTERNAL_ERROR and SYSTEM_ERROR that mean "refused, nothing changed", each seen on libvirt 9.0:
#: QEMU's own refusal of a command (blockdev-add, device_add: libvirt undoes what it had added), an alias that is
#: not there, no free slot, an image that cannot be opened.
REFUSED_TEXTS = (
    "unable to execute QEMU command",
    "no device found with alias",
    "No more available PCI slots",
    "Cannot access storage file",
)

#: Part of the text -> what to do. The iSCSI texts are libiscsi's, through QEMU's block driver.
HINTS = (
    (
        "Authentication failure",
        "check the CHAP user and password that Cinder gave; a stale secret is set anew by each attempt",
    ),
    ("Target not found", "the target is not exported: look at the volume's attachment and the backend in Cinder"),
    ("cannot unlock any keyslot", "the key that the key manager gave is not the volume's"),
    (
        "Volume is not in LUKS format",
        "QEMU formats none: attach it once with data_path = host, which does if it is new",
    ),
    ("LOGICAL_UNIT_NOT_SUPPORTED", "the target has no such LUN: look at the volume's attachment in Cinder"),
    ("iscsi_service_reconnect", "the target's portal cannot be reached from here: check the storage network"),
    ("Connection refused", "nothing listens there: check that the service runs"),
    ("Failed to connect socket", "start libvirtd (or virtqemud), or correct [libvirt]libvirt_uri"),
    ("Unable to parse URI", "correct [libvirt]libvirt_uri"),
    ("Cannot access storage file", "the host's device is not there: connect the volume again"),
    ("No more available PCI slots", "add pcie-root-port controllers to the domain and restart it"),
    ("domain is not running", "read the server again: its power state has changed"),
    ("state change lock", "another libvirt job holds the domain: see `virsh domjobinfo`"),
    ("authentication failed", "this user may not use libvirt: check its groups, polkit and SASL"),
)

_DEFAULT_HINTS: dict[type[TetherError], str] = {
    NotFound: "see `virsh list --all`; the server may have migrated to another host",
    FinalError: "correct what libvirt names, and ask again",
    UncertainError: "check that libvirtd answers (`virsh list`)",
}


@cache
def _codes(names: tuple[str, ...]) -> frozenset[int]:
    """Return the codes of these names; an older libvirt-python lacks the newer ones."""
    import libvirt

    return frozenset(getattr(libvirt, f"VIR_ERR_{name}") for name in names if hasattr(libvirt, f"VIR_ERR_{name}"))


def kind_of(code: int | None, message: str) -> type[TetherError]:
    """Return the class of error for libvirt's code and message; uncertain where neither tells."""
    if code in _codes(NOT_FOUND):
        return NotFound
    if code in _codes(FINAL):
        return FinalError
    if code in _codes(BY_MESSAGE) and any(part in message for part in REFUSED_TEXTS):
        return FinalError
    return UncertainError


def translate(error: Any, *, verb: str, resource: str = "") -> TetherError:
    """Return tether's error for a ``libvirt.libvirtError``.

    Args:
        verb: libvirt's own name of the call, such as ``attachDeviceFlags``.
        resource: what it was called for, as ``server UUID``.
    """
    message = str(error.get_error_message() or error)
    kind = kind_of(error.get_error_code(), message)
    hint = next((hint for part, hint in HINTS if part in message), _DEFAULT_HINTS[kind])
    about = f" of {resource}" if resource else ""
    return kind(f"libvirt's {verb}{about} failed: {message.strip()}", resource=resource, hint=hint)
