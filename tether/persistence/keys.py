"""The keys that secrets are sealed with: a file that only its owner may read, or a key manager.

``cryptography`` is imported only once a key is needed, castellan only where the settings name it.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tether import faults
from tether.errors import ConfigError
from tether.settings import Settings

#: Bytes of a key: half of them sign, half of them encrypt (Fernet).
KEY_BYTES = 32
#: Keys as Fernet has them, in base64, the newest first: that one seals, all of them open.
Keys = tuple[bytes, ...]


class KeySource(Protocol):
    """Where the keys come from; ``where`` is what a message calls it."""

    where: str

    def load(self) -> Keys | None:
        """Return the keys; None if there is no key yet.

        Raises:
            ConfigError: they cannot be used.
        """

    def create(self) -> None:
        """Make the first key, unless there is one, and make it durable.

        Raises:
            ConfigError: none can be made here.
        """

    def changed(self) -> bool:
        """Return True if the keys may be others than those that :meth:`load` has returned last."""

    def restore(self) -> str:
        """Return what to do where the keys do not fit, as the beginning of a hint."""


def fingerprint(key: bytes) -> str:
    """Return a name for a key that does not give it away."""
    return hashlib.sha256(b"tether key " + base64.urlsafe_b64decode(key)).hexdigest()[:16]


def new_key() -> bytes:
    """Return a new random key."""
    from cryptography.fernet import Fernet

    return Fernet.generate_key()


class KeyFile:
    """A file with one key a line, the newest first, that only its owner may read.

    It is replaced in one step and never changed in place: whoever reads it finds all of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = f"the key file {path}"
        self._seen: tuple[int, ...] = ()

    def load(self) -> Keys | None:
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                self._check(status)
                text = file.read(1 << 20)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(
                f"{self.where} cannot be read: {error.strerror}", hint=f"give {self.path} to the user that runs tether"
            ) from error
        lines = [line.strip() for line in text.splitlines()]
        keys = tuple(line for line in lines if line and not line.startswith(b"#"))
        for number, key in enumerate(keys, 1):
            if not _is_key(key):
                raise ConfigError(
                    f"key {number} in {self.where} is none: a key is 32 bytes in base64", hint=self.restore()
                )
        if not keys:
            raise ConfigError(f"{self.where} holds no key", hint=self.restore())
        self._seen = _identity(status)
        return keys

    def create(self) -> None:
        with self.locked():
            if self.load() is None:
                self._put((new_key(),), replace=False)
            else:  # who made it may have been killed before its name was durable; what it seals must not outlive it
                _sync_directory(self.path.parent)

    def changed(self) -> bool:
        try:
            return _identity(self.path.stat()) != self._seen
        except OSError:
            return True

    def restore(self) -> str:
        return f"put back {self.path}, from a backup or from a host that works with this database"

    def replace(self, keys: Keys) -> None:
        """Put other keys in the place of these; only under :meth:`locked`.

        Raises:
            ConfigError: the file cannot be written.
        """
        self._put(keys, replace=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who writes the file, on this host."""
        directory = self.path.parent
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _put(self, keys: Sequence[bytes], *, replace: bool) -> None:
        new = self.path.with_name(f".{self.path.name}.new")
        try:
            new.unlink(missing_ok=True)  # what a killed process has left: nobody else writes it now
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(b"".join(key + b"\n" for key in keys))
                file.flush()
                os.fsync(file.fileno())
            if replace:
                new.replace(self.path)
            else:
                os.link(new, self.path)  # fails if it is there: a key is never overwritten
                new.unlink()
            _sync_directory(self.path.parent)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self.where} cannot be written: {error.strerror}: {error.filename}",
            hint="make its directory writable for the user that runs tether, or set [secrets] key_file",
        )

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{self.where} is no file", hint="set [secrets] key_file to a file")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise ConfigError(
                f"{self.where} is open to others: its mode is {stat.S_IMODE(status.st_mode):04o}",
                hint=f"chmod 0600 {self.path}; if somebody else may have read it, then also: tether key rotate",
            )


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def _is_key(text: bytes) -> bool:
    try:
        return len(base64.b64decode(text, altchars=b"-_", validate=True)) == KEY_BYTES
    except ValueError:
        return False


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ManagedKeys:
    """Keys of a key manager: symmetric ones of 256 bits, made there and never by tether.

    Args:
        key_ids: the keys' ids, the newest first.
        config_file: castellan's own settings.
    """

    def __init__(self, key_ids: Sequence[str], config_file: str) -> None:
        self.key_ids = tuple(key_ids)
        self._config_file = config_file
        self.where = f"the key manager (castellan_key_id = {','.join(self.key_ids)})"

    def load(self) -> Keys | None:
        from tether.adapters.key_manager import read_keys

        if not self.key_ids:
            raise ConfigError(
                "key_source is castellan, and no key is named",
                hint="make a symmetric key of 256 bits in the key manager and set [secrets] castellan_key_id to its id",
            )
        return tuple(base64.urlsafe_b64encode(key) for key in read_keys(self.key_ids, self._config_file))

    def create(self) -> None:
        """Nothing is made here."""

    def changed(self) -> bool:
        return False

    def restore(self) -> str:
        return "add the key that this database was sealed with to [secrets] castellan_key_id"


def key_source(settings: Settings) -> KeySource:
    """Return where the settings say that the keys are."""
    if settings.key_source == "castellan":
        ids = [word.strip() for word in settings.castellan_key_id.split(",")]
        return ManagedKeys([word for word in ids if word], settings.castellan_config)
    return KeyFile(Path(settings.key_file))


class KeyRing:
    """The keys as this process has them; a key file that has changed is read again.

    Other processes rotate keys while this one runs: what they seal with a newer key it can open, and what it seals
    itself they can open, since a rotation keeps the key before.
    """

    def __init__(self, source: KeySource) -> None:
        self.source = source
        self._lock = threading.Lock()
        self._keys: Keys = ()
        self._fernet: Any = None

    def create(self) -> None:
        """Make the first key, if there is none."""
        faults.point("key.create.before")
        self.source.create()
        faults.point("key.create.after")

    def keys(self, *, again: bool = False) -> Keys:
        """Return the keys, as they are now.

        Args:
            again: read them again, also if they seem unchanged.

        Raises:
            ConfigError: there are none, or they cannot be used.
        """
        with self._lock:
            if again or not self._keys or self.source.changed():
                keys = self.source.load()
                if keys is None and not self._keys:
                    raise ConfigError(f"there is no key: {self.source.where} is missing", hint=self.source.restore())
                if keys is not None:
                    self._keys = keys
            return self._keys

    def seal(self, text: bytes) -> bytes:
        """Encrypt with the newest key."""
        token: bytes = self._multi().encrypt(text)
        return token

    def open(self, token: bytes) -> bytes | None:
        """Decrypt with whichever key fits; None if none does, also after they were read again."""
        from cryptography.fernet import InvalidToken

        for again in (False, True):
            try:
                text: bytes = self._multi(again=again).decrypt(token)
            except InvalidToken:
                continue
            return text
        return None

    def renew(self, token: bytes) -> bytes | None:
        """Return the token sealed with the newest key: itself if it is so already; None if no key opens it."""
        from cryptography.fernet import Fernet, InvalidToken

        try:
            Fernet(self.keys()[0]).decrypt(token)
        except InvalidToken:
            text = self.open(token)
            return None if text is None else self.seal(text)
        return token

    def _multi(self, *, again: bool = False) -> Any:
        from cryptography.fernet import Fernet, MultiFernet

        keys = self.keys(again=again)
        known = self._fernet
        if known is None or known[0] != keys:
            known = self._fernet = keys, MultiFernet([Fernet(key) for key in keys])
        return known[1]
