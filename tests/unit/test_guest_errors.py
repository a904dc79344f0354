"""Every error code of the installed libvirt is mapped on purpose."""

from __future__ import annotations

import libvirt
import pytest

from tether.adapters.guest import errors
from tether.adapters.guest.errors import kind_of, translate
from tether.errors import FinalError, NotFound, UncertainError

#: VIR_ERR_* of the other enumeration: how grave an error is.
LEVELS = {"NONE", "WARNING", "ERROR"}
GROUPS = (errors.NOT_FOUND, errors.FINAL, errors.UNCERTAIN, errors.BY_MESSAGE, errors.FOREIGN)
KNOWN = [name for group in GROUPS for name in group]
INSTALLED = sorted(name.removeprefix("VIR_ERR_") for name in dir(libvirt) if name.startswith("VIR_ERR_"))


class Raised:
    """Looks like a libvirtError."""

    def __init__(self, code: int | None, message: str) -> None:
        self._code = code
        self._message = message

    def get_error_code(self) -> int | None:
        return self._code

    def get_error_message(self) -> str:
        return self._message


def test_no_name_is_in_two_groups():
    assert len(KNOWN) == len(set(KNOWN))


@pytest.mark.parametrize("name", [name for name in INSTALLED if name not in LEVELS])
def test_every_installed_code_is_in_a_group_and_maps_to_it(name):
    assert name in KNOWN, f"VIR_ERR_{name} is new: decide what it says about the effect"
    expected = FinalError if name in errors.FINAL else NotFound if name in errors.NOT_FOUND else UncertainError
    assert kind_of(getattr(libvirt, f"VIR_ERR_{name}"), "") is expected


@pytest.mark.parametrize("code", [None, 4711])
def test_an_unknown_code_is_uncertain(code):
    assert kind_of(code, "unable to execute QEMU command 'blockdev-add'") is UncertainError


ISCSI = "internal error: unable to execute QEMU command 'blockdev-add': iSCSI: Failed to connect to LUN : "


@pytest.mark.parametrize(
    ("code", "message", "kind", "hint"),
    [
        (1, ISCSI + "Failed to log in to target. Status: Authentication failure(513)", FinalError, "CHAP"),
        (1, ISCSI + "Failed to log in to target. Status: Target not found(515)", FinalError, "not exported"),
        (1, ISCSI + "SENSE KEY:ILLEGAL_REQUEST(5) ASCQ:LOGICAL_UNIT_NOT_SUPPORTED(0x2500)", FinalError, "no such LUN"),
        (
            1,
            "unable to execute QEMU command 'blockdev-add': iscsi_service_reconnect_if_loggedin. Can not reconnect\n",
            FinalError,
            "cannot be reached",
        ),
        (1, "internal error: No more available PCI slots", FinalError, "pcie-root-port"),
        (1, "internal error: no device found with alias ua-1", FinalError, "ask again"),
        (1, "internal error: End of file from qemu monitor", UncertainError, "virsh list"),
        (1, "internal error: client socket is closed", UncertainError, "virsh list"),
        (38, "Cannot access storage file '/x': No such file or directory", FinalError, "connect the volume"),
        (38, "Failed to connect socket to '/x': No such file or directory", UncertainError, "start libvirtd"),
        (38, "Cannot recv data: Connection reset by peer", UncertainError, "virsh list"),
        (42, "Domain not found: no domain with matching uuid", NotFound, "migrated"),
        (55, "Requested operation is not valid: domain is not running", FinalError, "power state"),
        (68, "Timed out during operation: cannot acquire state change lock", UncertainError, "virsh domjobinfo"),
    ],
)
def test_messages_that_were_seen(code, message, kind, hint):
    error = translate(Raised(code, message), verb="attachDeviceFlags", resource="server 1")
    assert type(error) is kind
    assert hint in error.hint
    assert error.resource == "server 1"
    assert message.strip() in error.message
    assert "attachDeviceFlags of server 1" in error.message


def test_an_error_without_a_message_still_says_what_failed():
    assert "open failed" in translate(libvirt.libvirtError("open failed"), verb="open").message
