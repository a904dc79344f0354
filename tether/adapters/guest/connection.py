"""The connection to libvirtd: event loop, keep-alive, time limits, and one way for every call.

libvirt's calls block without a limit, and a detach with a dead target blocks until the target is back.
So each runs in a thread of its own, which is left behind if it outlasts its time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tether.adapters.guest.errors import translate
from tether.errors import TetherError, UncertainError
from tether.settings import Settings

T = TypeVar("T")
log = logging.getLogger(__name__)

#: A dead libvirtd is noticed after interval x count seconds.
KEEPALIVE_INTERVAL = 5
KEEPALIVE_COUNT = 3

_loop_lock = threading.Lock()
_loop_started = False


def _start_event_loop(libvirt: Any) -> None:
    """Start libvirt's default event loop in one daemon thread; must precede the first connection."""
    global _loop_started  # noqa: PLW0603 - libvirt has one event implementation in a process
    with _loop_lock:
        if _loop_started:
            return
        # Without this, libvirt prints every error on stderr besides raising it.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()

        def run() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        threading.Thread(target=run, name="libvirt-events", daemon=True).start()
        _loop_started = True


class Waiter:
    """Waits for what QEMU says about the unplug of one disk."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.removed = False
        self.refused = False

    def forget(self) -> None:
        """Forget a refusal, before the next request."""
        self._event.clear()
        self.refused = False

    def tell(self, *, removed: bool) -> None:
        """Called by the event loop."""
        self.removed = self.removed or removed
        self.refused = not removed
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Return True as soon as there is an answer, False after ``seconds``."""
        return self._event.wait(seconds)


class Libvirtd:
    """A connection that is opened when first needed, and again when found dead.

    Args:
        libvirt: the module, which is an optional extra.
    """

    def __init__(self, libvirt: Any, settings: Settings) -> None:
        self.libvirt = libvirt
        self._uri = settings.libvirt_uri
        self._timeout = settings.libvirt_timeout
        self._lock = threading.Lock()
        self._connection: Any = None
        self._waiters: dict[tuple[str, str], list[Waiter]] = {}

    def call(self, verb: str, function: Callable[..., T], *arguments: Any, resource: str = "") -> T:
        """Call libvirt with a time limit, and translate its error.

        Raises:
            UncertainError: no answer within ``libvirt_timeout``; the call may still be carried out.
            TetherError: whatever libvirt's own error means.
        """
        results: list[T] = []
        errors: list[TetherError] = []
        libvirt_error = self.libvirt.libvirtError

        def run() -> None:
            try:
                results.append(function(*arguments))
            except libvirt_error as error:
                translated = translate(error, verb=verb, resource=resource)
                translated.__cause__ = error
                errors.append(translated)
            except TetherError as error:
                errors.append(error)

        started = time.monotonic()
        thread = threading.Thread(target=run, name=f"libvirt-{verb}", daemon=True)
        thread.start()
        thread.join(self._timeout)
        seconds = time.monotonic() - started
        if results:
            log.info("libvirt.%s %s %.3f s ok", verb, resource, seconds)
            return results[0]
        if errors:
            log.info("libvirt.%s %s %.3f s %s", verb, resource, seconds, errors[0].code)
            raise errors[0]
        log.info("libvirt.%s %s %.3f s no answer", verb, resource, seconds)
        raise UncertainError(
            f"libvirt did not answer {verb} within {self._timeout:g} s",
            resource=resource,
            hint="check libvirtd and QEMU's storage: the call may still be carried out",
        )

    def read(self, verb: str, function: Callable[[Any], T], *, resource: str = "") -> T:
        """Call a function of the connection that only reads; once more if the connection turns out to be dead."""
        connection = self.connection()
        try:
            return self.call(verb, function, connection, resource=resource)
        except UncertainError:
            if self._alive(connection):
                raise
        return self.call(verb, function, self.connection(), resource=resource)

    def connection(self) -> Any:
        """Return the open connection; a dead one is replaced.

        Raises:
            UncertainError: libvirtd cannot be reached.
        """
        with self._lock:
            if self._connection is None or not self._alive(self._connection):
                self._connection = self.call("open", self._open)
            return self._connection

    def _open(self) -> Any:
        _start_event_loop(self.libvirt)
        connection = self.libvirt.open(self._uri)
        connection.setKeepAlive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT)
        for event, removed in (
            (self.libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, True),
            (self.libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, False),
        ):
            connection.domainEventRegisterAny(None, event, self._on_event, removed)
        return connection

    def _alive(self, connection: Any) -> bool:
        # Looks at the socket's state only, without a message: it cannot block.
        try:
            return bool(connection.isAlive())
        except self.libvirt.libvirtError:
            return False

    def _on_event(self, _connection: Any, domain: Any, alias: str, removed: Any) -> None:
        for waiter in list(self._waiters.get((domain.UUIDString(), alias), ())):
            waiter.tell(removed=bool(removed))

    @contextmanager
    def watch(self, uuid: str, alias: str) -> Iterator[Waiter]:
        """Listen for the device's removal from here on."""
        waiter = Waiter()
        with self._lock:
            self._waiters.setdefault((uuid, alias), []).append(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                self._waiters[uuid, alias].remove(waiter)
                if not self._waiters[uuid, alias]:
                    del self._waiters[uuid, alias]
