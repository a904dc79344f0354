"""The identities of block devices, in one form, so that two sources can be compared as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Where connection data name the volume's own identity: Pure and others give ``wwn``, NVMe targets the
#: namespace's NGUID (os-brick: NVMeOFConnProps reads ``volume_nguid``), LightOS the namespace's ``uuid``.
_NAMED_BY = ("wwn", "volume_nguid")

_PREFIXES = ("naa.", "eui.", "uuid.", "nguid.", "0x")

#: A SCSI id as scsi_id and multipath print it: the designator type 3 (NAA), then 32 or 16 hex digits.
_NAA_LENGTHS = (33, 17)


def normalise(text: str) -> str:
    """Return an identity in one form: bare lower-case hex digits where it is a NAA, NGUID, EUI or UUID.

    ``naa.6001405…`` (sysfs), ``36001405…`` (scsi_id, multipath) and ``0x6001405…`` are one identity; so are
    an NGUID with and without dashes. Anything else (``t10.…``) is only stripped.
    """
    bare = text.strip()
    lowered = bare.lower()
    for prefix in _PREFIXES:
        lowered = lowered.removeprefix(prefix)
    digits = lowered.replace("-", "")
    if not digits or any(letter not in "0123456789abcdef" for letter in digits):
        return bare
    if len(digits) in _NAA_LENGTHS and digits[0] == "3":
        return digits[1:]
    return digits


def named_by(protocol: str, data: Mapping[str, Any]) -> str:
    """Return the identity that connection data name, or empty where they name none.

    Args:
        protocol: Cinder's ``driver_volume_type``.
        data: the connection data.
    """
    if protocol.lower() == "lightos":
        return normalise(str(data.get("uuid") or ""))
    for key in _NAMED_BY:
        if data.get(key):
            return normalise(str(data[key]))
    return ""
