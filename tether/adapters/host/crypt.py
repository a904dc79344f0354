"""dm-crypt through cryptsetup. Passphrases travel on its standard input only."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NoReturn

from tether.adapters.host.model import Header
from tether.adapters.host.probes import mapping_name
from tether.errors import ConfigError, FinalError, UncertainError

#: cryptsetup(8), RETURN CODES: 1 is also what isLuks says of another device, and open of a header without keys.
NOT_LUKS = NO_KEY = 1
WRONG_PASSPHRASE = 2
NO_DEVICE = 4

_TYPES = {"luks": "luks1", "luks2": "luks2", "plain": "plain"}
#: A blank volume is formatted at its first use, as Nova does; this much of it has to be zero.
_LOOKED_AT = 16 * 1024 * 1024
_PIECE = 1024 * 1024


def read_header(volume_id: str, device: str) -> Header:
    """Return what the first 16 MiB of a volume's own device hold.

    They are read here before cryptsetup is asked: it says "not LUKS" of a device that it cannot read, too
    (os_brick/encryptors/luks.py:is_luks takes that for an answer, and Nova then formats).

    Args:
        device: the path of the volume's own device.

    Raises:
        UncertainError: they cannot be read, or cryptsetup does not answer; that says nothing about the content.
    """
    blank = _is_blank(volume_id, device)
    asked = _cryptsetup(["isLuks", device])
    if asked.returncode not in (0, NOT_LUKS):
        _uncertain(volume_id, "read", asked)
    if asked.returncode:
        return Header.BLANK if blank else Header.OTHER
    dumped = _cryptsetup(["luksDump", device])
    if dumped.returncode:
        _uncertain(volume_id, "read", dumped)
    has_key = ": ENABLED" in dumped.stdout or ": luks2" in dumped.stdout
    return Header.LUKS if has_key or _header_uuid(device) != volume_id else Header.HALF


def format_device(volume_id: str, device: str, *, provider: str, cipher: str, key_size: int, passphrase: str) -> None:
    """Write a LUKS header that names the volume, so that a device found later tells which one it is.

    Args:
        device: the path of the volume's own device, which nothing uses.
        provider: ``luks`` (LUKS1, as in Nova) or ``luks2``.
        key_size: in bits.

    Raises:
        FinalError: it is LUKS already, or cryptsetup refuses and has written nothing.
        UncertainError: it cannot be read, or cryptsetup has failed and may have written something.
    """
    kind = _type_of(volume_id, provider)
    before = read_header(volume_id, device)
    if before is Header.LUKS or kind == "plain":
        _refuse(volume_id, f"{device} is not formatted: it is {before}, its provider {provider}", "attach it as it is")
    words = ["--batch-mode", "luksFormat", "--type", kind, "--key-file=-", "--uuid", volume_id]
    ended = _cryptsetup([*words, *_options(cipher, key_size), device], passphrase)
    if not ended.returncode:
        return
    if before is Header.BLANK and read_header(volume_id, device) is Header.BLANK:
        _refuse(
            volume_id,
            f"cryptsetup does not format it with cipher {cipher or 'by default'} and {key_size} bits: {_told(ended)}",
            "correct the encryption of its volume type, or load the kernel's module for the cipher",
        )
    _uncertain(volume_id, "format", ended)


def open_mapping(volume_id: str, device: str, *, provider: str, cipher: str, key_size: int, passphrase: str) -> None:
    """Open the volume's mapping over its device. What has no LUKS header is refused, never formatted.

    Args:
        device: the path of the volume's own device.
        provider: ``luks``, ``luks2`` or ``plain``.
        key_size: in bits.

    Raises:
        FinalError: a wrong passphrase, an unknown provider, no header, or a cipher that this host lacks.
        UncertainError: cryptsetup failed otherwise.
    """
    kind = _type_of(volume_id, provider)
    name = mapping_name(volume_id)
    if kind == "plain":
        options = _options(cipher, key_size)
        ended = _cryptsetup(["open", "--type", "plain", "--key-file=-", *options, device, name], passphrase)
    else:
        if (found := read_header(volume_id, device)) is not Header.LUKS:
            _refuse(
                volume_id,
                f"{device} has no LUKS header (it is {found})",
                "check that it is the right volume; a new attach tells whether it may be formatted",
            )
        ended = _cryptsetup(["open", "--type", "luks", "--key-file=-", device, name], passphrase)
    if ended.returncode == WRONG_PASSPHRASE:
        _refuse(volume_id, "the passphrase does not open it", "check the volume's key in the key manager")
    if ended.returncode == NO_KEY:
        _refuse(volume_id, _told(ended), "see what its header holds: cryptsetup luksDump")
    if ended.returncode and "cipher" in ended.stderr:
        _refuse(volume_id, _told(ended), "load the kernel's module for the cipher: see /proc/crypto")
    if ended.returncode:
        _uncertain(volume_id, "open", ended)


def resize_mapping(volume_id: str, passphrase: str) -> None:
    """Let the volume's open mapping take up all that its device has, less the header.

    Raises:
        FinalError: a wrong passphrase, or the mapping is not there.
        UncertainError: cryptsetup failed otherwise.
    """
    ended = _cryptsetup(["resize", "--key-file=-", mapping_name(volume_id)], passphrase)
    if ended.returncode == WRONG_PASSPHRASE:
        _refuse(volume_id, "the passphrase does not open it", "check the volume's key in the key manager")
    if ended.returncode == NO_DEVICE:
        _refuse(volume_id, f"{mapping_name(volume_id)} is not open", "look at: dmsetup ls")
    if ended.returncode:
        _uncertain(volume_id, "resize", ended)


def is_over(volume_id: str, device: str, uuid: str) -> bool:
    """Return True if a mapping with this UUID was opened with the header that the device has now.

    Args:
        uuid: device-mapper's: ``CRYPT-LUKS2-<the header's UUID without dashes>-<name>``, ``CRYPT-PLAIN-<name>``.
    """
    if uuid.startswith("CRYPT-PLAIN-"):
        return uuid == f"CRYPT-PLAIN-{mapping_name(volume_id)}"
    header = _header_uuid(device).replace("-", "")
    return bool(header) and f"-{header}-" in uuid


def close_mapping(volume_id: str) -> None:
    """Close the volume's mapping; one that is not there is fine.

    Raises:
        UncertainError: cryptsetup could not close it.
    """
    ended = _cryptsetup(["close", mapping_name(volume_id)])
    if ended.returncode not in (0, NO_DEVICE):
        _uncertain(volume_id, "close", ended)


def _type_of(volume_id: str, provider: str) -> str:
    kind = _TYPES.get(provider)
    if kind is None:
        _refuse(volume_id, f"its encryption provider {provider!r} is not known", "use luks, luks2 or plain")
    return kind


def _options(cipher: str, key_size: int) -> list[str]:
    return [*(["--cipher", cipher] if cipher else []), *(["--key-size", str(key_size)] if key_size else [])]


def _header_uuid(device: str) -> str:
    """Return the UUID in the device's LUKS header; empty where it has none."""
    return _cryptsetup(["luksUUID", device]).stdout.strip()


def _is_blank(volume_id: str, device: str) -> bool:
    """Return True if the first 16 MiB were read, all of them, and are zero."""
    blank, left = True, _LOOKED_AT
    why = f"it ends before {_LOOKED_AT} bytes"
    try:
        with Path(device).open("rb") as handle:
            while left and (piece := handle.read(min(_PIECE, left))):
                blank = blank and not piece.strip(b"\0")
                left -= len(piece)
    except OSError as error:
        why = error.strerror or type(error).__name__
    if left:
        raise UncertainError(
            f"{device} of volume {volume_id} cannot be read: {why}; whether it is LUKS or blank is not known, so it is"
            " not formatted",
            resource=f"volume {volume_id}",
            hint="see the kernel's log for errors of the device; once it can be read, attach the volume again",
        )
    return blank


def _cryptsetup(words: list[str], passphrase: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["cryptsetup", *words], input=passphrase, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError("cryptsetup is not installed on this host", hint="install cryptsetup") from error


def _refuse(volume_id: str, why: str, hint: str) -> NoReturn:
    raise FinalError(
        f"the encryption of volume {volume_id} cannot be used: {why}",
        resource=f"volume {volume_id}",
        hint=hint,
    )


def _uncertain(volume_id: str, verb: str, ended: subprocess.CompletedProcess[str]) -> NoReturn:
    raise UncertainError(
        f"cryptsetup could not {verb} the encryption of volume {volume_id}:"
        f" exit status {ended.returncode}: {_told(ended)}",
        resource=f"volume {volume_id}",
        hint=f"look at: cryptsetup status {mapping_name(volume_id)}",
    )


def _told(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of what cryptsetup said."""
    return (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
