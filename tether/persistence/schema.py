"""The tables. Names of steps, flows and states in them are explicit and versioned, never class paths."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text, UniqueConstraint

#: The migration that this code needs; see :mod:`tether.persistence.migrations`.
HEAD = "0001"

#: TaskFlow's own backend owns ``alembic_version``, so ours has another name.
VERSION_TABLE = "tether_schema_version"

metadata = MetaData()

#: One row a job. ``open_volume`` is the volume's id until the job is finished: its uniqueness is the lease of
#: a job on its volume, and a blocked job keeps it.
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
    Column("open_volume", String(36), unique=True),
    Column("request_id", String(64), nullable=False),
    Column("idempotency_key", String(255), unique=True),
    Column("params", Text, nullable=False),
    Column("place", Text, nullable=False),
    Column("step", String(64), nullable=False),
    Column("error", Text),
    Column("exit_code", Integer),
    Column("attempts", Integer, nullable=False),
    Column("quiet_at", Text),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("finished_at", Float),
    Index("tether_jobs_pair", "volume_id", "server_id"),
    Index("tether_jobs_created", "created_at"),
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

#: One row a lease: on a job (``job:ID``) or a server (``server:UUID``). A higher generation fences the lower.
leases = Table(
    "tether_leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("token", String(36), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("expires_at", Float, nullable=False),
)

#: The logbook: one row a flow of a job, and one a step that has begun.
flows = Table(
    "tether_flows",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("job_id", String(36), nullable=False, index=True),
    Column("name", String(64), nullable=False),
    Column("state", String(16)),
    Column("meta", Text),
    Column("updated_at", Float, nullable=False),
)

steps = Table(
    "tether_steps",
    metadata,
    Column("flow_id", String(36), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16)),
    Column("detail", Text, nullable=False),
    Column("updated_at", Float, nullable=False),
)
