"""The tables. Names of steps, flows and states in them are explicit and versioned, never class paths."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text, UniqueConstraint, text

#: The migration that this code needs; see :mod:`tether.persistence.migrations`.
HEAD = "0002"

#: TaskFlow's own backend owns ``alembic_version``, so ours has another name.
VERSION_TABLE = "tether_schema_version"

metadata = MetaData()


def _partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """Return an index over the rows that ``where`` selects; finished jobs, which are nearly all, cost it nothing."""
    condition: dict[str, Any] = {f"{dialect}_where": text(where) for dialect in ("sqlite", "postgresql")}
    return Index(name, *columns, unique=unique, **condition)


#: One row a job, and the lease on it. ``open_volume`` is the volume's id until the job is finished: its uniqueness is
#: the lease of a job on its volume, and a blocked job keeps it. ``runner`` is the process that works on it, and every
#: write of it names its ``generation``: a later one has a higher one. ``asked`` is what another command
#: asks of the runner.
jobs = Table(
    "tether_jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("volume_id", String(36), nullable=False),
    Column("volume_name", String(255), nullable=False),
    Column("server_id", String(36), nullable=False),
    Column("server_name", String(255), nullable=False),
    Column("open_volume", String(36)),
    Column("request_id", String(64), nullable=False),
    Column("idempotency_key", String(255)),
    Column("params", Text, nullable=False),
    Column("place", Text, nullable=False),
    Column("step", String(64), nullable=False),
    Column("error", Text),
    Column("exit_code", Integer),
    Column("attempts", Integer, nullable=False),
    Column("quiet_at", Text),
    Column("runner", Text),
    Column("generation", Integer, nullable=False),
    Column("expires_at", Float),
    Column("asked", String(16)),
    Column("settled", Text),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("finished_at", Float),
    Index("tether_jobs_pair", "volume_id", "server_id"),
    Index("tether_jobs_created", "created_at"),
    _partial("tether_jobs_open", "open_volume", where="open_volume IS NOT NULL", unique=True),
    _partial("tether_jobs_key", "idempotency_key", where="idempotency_key IS NOT NULL", unique=True),
)

#: One row a mapping: Nova's block device mapping. It holds its device name and address on the server.
mappings = Table(
    "tether_mappings",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("job_id", String(36), nullable=False, unique=True),
    Column("volume_id", String(36), nullable=False),
    Column("server_id", String(36), nullable=False),
    Column("state", String(16), nullable=False),
    Column("target", String(16), nullable=False),
    Column("bus", String(16), nullable=False),
    Column("address", String(255), nullable=False),
    Column("mode", String(2), nullable=False),
    Column("dialect", String(16), nullable=False),
    Column("data_path", String(16), nullable=False),
    Column("machine_id", String(64), nullable=False),
    Column("owner_mark", String(36), nullable=False),
    Column("attachment_id", String(36), nullable=False),
    Column("encrypted", Boolean, nullable=False),
    Column("pending_unplug", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("volume_id", "server_id", name="tether_mappings_pair"),
    UniqueConstraint("server_id", "target", name="tether_mappings_target"),
    UniqueConstraint("server_id", "address", name="tether_mappings_address"),
)

#: One row a mapping that is being handed over from one host to another: its other end, of which the mapping's own
#: columns say nothing. *incoming* before the server has moved: the mapping is the source's, this row the destination's;
#: *outgoing* afterwards, the other way round. ``job_id`` is the one whose sealed secrets are this end's.
handovers = Table(
    "tether_handovers",
    metadata,
    Column("volume_id", String(36), primary_key=True),
    Column("server_id", String(36), primary_key=True),
    Column("job_id", String(36), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("host", String(255), nullable=False),
    Column("machine_id", String(64), nullable=False),
    Column("attachment_id", String(36), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)

#: The device ledger: which device of which host is which volume.
connections = Table(
    "tether_connections",
    metadata,
    Column("machine_id", String(64), primary_key=True),
    Column("volume_id", String(36), primary_key=True),
    Column("identity", String(255)),
    Column("path", String(255), nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("machine_id", "identity", name="tether_connections_identity"),
)

#: One row a lease on a server (``server:UUID``), held while its disks change.
leases = Table(
    "tether_leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("token", String(36), nullable=False),
    Column("expires_at", Float, nullable=False),
)

#: The logbook: one row a flow of a job, with its steps as one JSON document, so that a barrier writes one row.
flows = Table(
    "tether_flows",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("job_id", String(36), nullable=False, index=True),
    Column("name", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("meta", Text, nullable=False),
    Column("steps", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)

#: Secrets of a mapping by its job, sealed with a key that is not in this database. One row belongs to no job: the
#: canary, by which it shows whether a key is the right one (see :mod:`.vault`).
secrets = Table(
    "tether_secrets",
    metadata,
    Column("job_id", String(36), primary_key=True),
    Column("name", String(32), primary_key=True),
    Column("sealed", Text, nullable=False),
)
