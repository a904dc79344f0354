"""Keys from a key manager, such as Barbican or Vault, by castellan. Imported only where the settings ask for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tether.adapters.cinder.model import Encryption
from tether.errors import ConfigError, NotFound, TetherError, UncertainError
from tether.sealed import Sealed

KEY_BYTES = 32
_HINT = (
    "see that it answers; [secrets] castellan_config names the file with castellan's own [key_manager] section, in"
    " which auth_type is needed"
)
_FILE_LINE = re.compile(r"(?P<id>\S+)\s+(?P<key>(?:[0-9a-fA-F]{2})+)")


def read_keys(key_ids: Sequence[str], config_file: str) -> list[bytes]:
    """Return symmetric keys of 256 bits by their ids.

    Args:
        config_file: castellan's own settings: an oslo.config file with its ``[key_manager]`` section.

    Raises:
        ConfigError: castellan is not installed, its settings are wrong, or it does not give such a key.
    """
    manager = _Manager("key_source is castellan", config_file)
    keys = []
    for key_id in key_ids:
        try:
            keys.append(_checked(manager.get(key_id), key_id))
        except TetherError:
            raise
        except Exception as error:  # castellan's drivers let through whatever their libraries raise
            raise ConfigError(f"the key manager does not give key {key_id}: {_told(error)}", hint=_HINT) from error
    return keys


class ManagedVolumeKeys:
    """Passphrases of encrypted volumes, of the key manager that Cinder makes their keys in.

    Args:
        config_file: castellan's own settings.
    """

    def __init__(self, config_file: str) -> None:
        self._config_file = config_file

    def passphrase(self, encryption: Encryption) -> Sealed[str]:
        """Return the key in hexadecimal, which is what Nova and os-brick open volumes with.

        Source: os_brick/encryptors/cryptsetup.py:_get_passphrase.

        Raises:
            NotFound: the key manager has no such key.
            UncertainError: it does not answer, or refuses.
            ConfigError: castellan is not installed, or its settings are wrong.
        """
        manager = _Manager(f"the volume is encrypted with key {encryption.key_id}", self._config_file)
        try:
            return Sealed(manager.get(encryption.key_id).hex())
        except manager.missing as error:
            raise _no_key("key manager", encryption) from error
        except Exception as error:  # castellan's drivers let through whatever their libraries raise
            raise UncertainError(
                f"the key manager does not give key {encryption.key_id}: {_told(error)}",
                resource=f"key {encryption.key_id}",
                hint=_HINT,
            ) from error


class FileVolumeKeys:
    """Passphrases of encrypted volumes, of a file: for labs, where Cinder has one fixed key (its ConfKeyManager).

    Args:
        path: a line for each key: its id, and the key in hexadecimal.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def passphrase(self, encryption: Encryption) -> Sealed[str]:
        """Return the key in hexadecimal.

        Raises:
            NotFound: the file has no such key.
            ConfigError: it cannot be read, or holds something else.
        """
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the file of volume keys {self._path} cannot be read: {_told(error)}",
                hint="[secrets] volume_key_file names it; a line for each key: its id, and the key in hexadecimal",
            ) from error
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("#"):
                continue
            found = _FILE_LINE.fullmatch(line.strip())
            if found is None:
                raise ConfigError(
                    f"line {number} of {self._path} is no volume key",
                    hint="give the key's id and the key in hexadecimal, with a space between",
                )
            if found["id"] == encryption.key_id:
                return Sealed(found["key"].lower())
        raise _no_key(f"file {self._path}", encryption)


class _Manager:
    """castellan, set up by its own settings.

    Args:
        why: what it is needed for, for the error if it is not installed.
        config_file: an oslo.config file with its ``[key_manager]`` section.

    Raises:
        ConfigError: castellan is not installed, or its settings are wrong.
    """

    def __init__(self, why: str, config_file: str) -> None:
        try:
            from castellan import key_manager
            from castellan.common import exception, utils
            from oslo_config import cfg
        except ImportError as error:
            raise ConfigError(
                f"{why}, and castellan is not installed", hint="pip install 'tether[castellan]'"
            ) from error
        self.missing = exception.ManagedObjectNotFoundError
        try:
            conf = cfg.ConfigOpts()
            conf([], project="castellan", default_config_files=[config_file] if config_file else [])
            self._context = utils.credential_factory(conf)
            self._manager: Any = key_manager.API(conf)
        except Exception as error:  # castellan's drivers let through whatever their libraries raise
            raise ConfigError(
                f"castellan cannot be set up with {config_file or 'no file'}: {_told(error)}", hint=_HINT
            ) from error

    def get(self, key_id: str) -> bytes:
        """Return a key's bytes, or raise whatever the driver's libraries do."""
        return bytes(self._manager.get(self._context, key_id).get_encoded())


def _told(error: Exception) -> str:
    """Return an error's kind alone: its text may repeat what was given, a token or a key."""
    return type(error).__name__


def _no_key(where: str, encryption: Encryption) -> NotFound:
    return NotFound(
        f"the {where} has no key {encryption.key_id}",
        resource=f"key {encryption.key_id}",
        hint="check the volume's encryption: openstack volume show; and that this is the key manager that Cinder uses",
    )


def _checked(secret: bytes, key_id: str) -> bytes:
    if len(secret) != KEY_BYTES:
        raise ConfigError(
            f"key {key_id} of the key manager is no symmetric key of {8 * KEY_BYTES} bits",
            hint="name another one in [secrets] castellan_key_id",
        )
    return secret
