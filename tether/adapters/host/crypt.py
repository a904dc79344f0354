"""dm-crypt through cryptsetup. Passphrases travel on its standard input only."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NoReturn

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


def open_mapping(volume_id: str, device: str, *, provider: str, cipher: str, key_size: int, passphrase: str) -> None:
    """Open the volume's mapping over its device.

    A LUKS volume that Cinder has made empty carries no header yet. It is formatted here if its first
    16 MiB are zero, and refused otherwise: what is neither LUKS nor blank may be a wrong device
    (os_brick/encryptors/luks.py:attach_volume formats whatever is not LUKS).

    Args:
        device: the path of the volume's own device.
        provider: ``luks``, ``luks2`` or ``plain``.
        key_size: in bits.

    Raises:
        FinalError: a wrong passphrase, an unknown provider, or a device that is neither LUKS nor blank.
        UncertainError: cryptsetup failed otherwise.
    """
    kind = _TYPES.get(provider)
    if kind is None:
        _refuse(volume_id, f"its encryption provider {provider!r} is not known", "use luks, luks2 or plain")
    name = mapping_name(volume_id)
    options = [*(["--cipher", cipher] if cipher else []), *(["--key-size", str(key_size)] if key_size else [])]
    if kind == "plain":
        ended = _cryptsetup(["open", "--type", "plain", "--key-file=-", *options, device, name], passphrase)
    else:
        if _needs_format(volume_id, device):
            _format(volume_id, device, kind, options, passphrase)
        ended = _cryptsetup(["open", "--type", "luks", "--key-file=-", device, name], passphrase)
    if ended.returncode == WRONG_PASSPHRASE:
        _refuse(volume_id, "the passphrase does not open it", "check the volume's key in the key manager")
    if ended.returncode == NO_KEY:
        _refuse(volume_id, _told(ended), "see what its header holds: cryptsetup luksDump")
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


def close_mapping(volume_id: str) -> None:
    """Close the volume's mapping; one that is not there is fine.

    Raises:
        UncertainError: cryptsetup could not close it.
    """
    ended = _cryptsetup(["close", mapping_name(volume_id)])
    if ended.returncode not in (0, NO_DEVICE):
        _uncertain(volume_id, "close", ended)


def _needs_format(volume_id: str, device: str) -> bool:
    """Return True for a blank device, and for what a luksFormat of ours leaves that was killed halfway.

    The latter is a header with this volume's id and without any key.

    Raises:
        FinalError: the device is neither LUKS nor blank.
        UncertainError: its header cannot be read.
    """
    asked = _cryptsetup(["isLuks", device])
    if asked.returncode not in (0, NOT_LUKS):
        _uncertain(volume_id, "read", asked)
    if asked.returncode == 0:
        dumped = _cryptsetup(["luksDump", device])
        if dumped.returncode:
            _uncertain(volume_id, "read", dumped)
        has_key = ": ENABLED" in dumped.stdout or ": luks2" in dumped.stdout
        return not has_key and _cryptsetup(["luksUUID", device]).stdout.strip() == volume_id
    if not _is_blank(device):
        _refuse(
            volume_id,
            f"{device} is neither LUKS nor blank, so it is not formatted",
            "check that it is the right volume; if its content may be lost, zero its first 16 MiB",
        )
    return True


def _format(volume_id: str, device: str, kind: str, options: list[str], passphrase: str) -> None:
    # The header's UUID names the volume, so that a device found later tells which one it is.
    words = ["--batch-mode", "luksFormat", "--type", kind, "--key-file=-", "--uuid", volume_id, *options, device]
    ended = _cryptsetup(words, passphrase)
    if ended.returncode:
        _uncertain(volume_id, "format", ended)


def _is_blank(device: str) -> bool:
    with Path(device).open("rb") as handle:
        left = _LOOKED_AT
        while left and (piece := handle.read(min(_PIECE, left))):
            if piece.strip(b"\0"):
                return False
            left -= len(piece)
    return True


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
