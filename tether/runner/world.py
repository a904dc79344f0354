"""Opens the world that a command works in: the real one, or the embedded one of ``--sim``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tether.adapters.cinder.model import Cinder, Encryption
from tether.adapters.guest.model import Guest
from tether.adapters.host.model import Host, Keys
from tether.clock import Clock, SystemClock
from tether.errors import ConfigError
from tether.persistence.database import Database
from tether.persistence.keys import KeyRing, key_source
from tether.persistence.leases import Leases
from tether.persistence.ledger import Job, Ledger
from tether.persistence.logbook import Logbook
from tether.persistence.migrations import upgrade
from tether.persistence.owner import Owner
from tether.persistence.vault import Vault
from tether.sealed import Sealed
from tether.settings import Settings
from tether.tasks.run import Toolbox


@dataclass(frozen=True)
class World:
    """Everything a command needs, opened."""

    settings: Settings
    database: Database
    tools: Toolbox
    logbook: Logbook


@dataclass(frozen=True)
class Books:
    """The database's side alone, for commands that only read it."""

    ledger: Ledger
    logbook: Logbook
    clock: Clock
    database: Database

    def is_live(self, job: Job) -> bool:
        """Return True while a runner works on the job."""
        return job.is_live(self.clock.time())


@contextmanager
def open_ledger(settings: Settings, *, sim: Path | None = None) -> Iterator[Books]:
    """Open the database alone."""
    clock = SystemClock()
    with open_database(settings, sim=sim) as database:
        yield Books(Ledger(database, clock), Logbook(database, clock), clock, database)


@contextmanager
def open_vault(settings: Settings, *, sim: Path | None = None) -> Iterator[Vault]:
    """Open the database and its keys, for commands that work on these alone."""
    with open_database(settings, sim=sim) as database:
        yield Vault(database, KeyRing(key_source(settings)))


@contextmanager
def open_database(settings: Settings, *, sim: Path | None = None) -> Iterator[Database]:
    """Open the database and check its schema; an embedded world's is made on first use."""
    database = Database(settings.database)
    try:
        if sim:
            upgrade_once(database)
        database.check()
        yield database
    finally:
        database.close()


@contextmanager
def open_world(settings: Settings, *, sim: Path | None = None, request_id: str = "") -> Iterator[World]:
    """Open the adapters and the database.

    Args:
        sim: the directory of an embedded world; it is made, and its database with it, on first use.
        request_id: the ``global_request_id`` of every call to Cinder.

    Raises:
        ConfigError: something that it needs is not set up.
    """
    clock = SystemClock()
    cinder, host, guest, keys = _embedded(settings, sim, request_id) if sim else _real(settings, request_id)
    with open_database(settings, sim=sim) as database:
        leases = Leases(database, clock, settings.lease_ttl, Owner.current())
        vault = Vault(database, KeyRing(key_source(settings)))
        tools = Toolbox(cinder, host, guest, keys, Ledger(database, clock), leases, clock, settings, vault)
        yield World(settings, database, tools, Logbook(database, clock))


def upgrade_once(database: Database) -> None:
    """Make the schema of an embedded world's database, if it has none."""
    if database.version() is None:
        upgrade(database)


def _embedded(settings: Settings, directory: Path, request_id: str) -> tuple[Cinder, Host, Guest, Keys]:
    from tether.adapters.cinder.session import open_cinder
    from tether.sim.cinder.transport import SimTransport
    from tether.sim.guest import SimGuest
    from tether.sim.host import SimHost
    from tether.sim.keys import SimKeys
    from tether.sim.store import Store

    store = Store(directory)
    cinder = open_cinder(settings, global_request_id=request_id, transport=SimTransport(store))
    return cinder, SimHost(store, run_dir=settings.run_dir), SimGuest(store), SimKeys(store)


def _real(settings: Settings, request_id: str) -> tuple[Cinder, Host, Guest, Keys]:
    from tether.adapters.cinder.session import open_cinder
    from tether.adapters.guest.libvirt_guest import open_guest

    host: Host
    if settings.data_path == "network":
        from tether.adapters.host.network import NetworkHost

        host = NetworkHost(settings)
    else:
        from tether.adapters.host.brick import open_host

        host = open_host(settings)
    return open_cinder(settings, global_request_id=request_id), host, open_guest(settings), NoKeys()


class NoKeys:
    """Stands where no key manager is configured: encrypted volumes are refused."""

    def passphrase(self, encryption: Encryption) -> Sealed[str]:
        raise ConfigError(
            f"the volume is encrypted with key {encryption.key_id}, and no key manager is configured",
            hint="encrypted volumes are not supported outside the embedded world yet",
        )
