"""Jobs, mappings, devices, leases, the logbook and sealed secrets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "tether_jobs",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("volume_id", sa.String(36), nullable=False),
        sa.Column("volume_name", sa.String(255), nullable=False),
        sa.Column("server_id", sa.String(36), nullable=False),
        sa.Column("server_name", sa.String(255), nullable=False),
        sa.Column("open_volume", sa.String(36)),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("params", sa.Text, nullable=False),
        sa.Column("place", sa.Text, nullable=False),
        sa.Column("step", sa.String(64), nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("exit_code", sa.Integer),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("quiet_at", sa.Text),
        sa.Column("runner", sa.Text),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.Column("asked", sa.String(16)),
        sa.Column("settled", sa.Text),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.Column("finished_at", sa.Float),
    )
    op.create_index("tether_jobs_pair", "tether_jobs", ["volume_id", "server_id"])
    op.create_index("tether_jobs_created", "tether_jobs", ["created_at"])
    for name, column in (("tether_jobs_open", "open_volume"), ("tether_jobs_key", "idempotency_key")):
        where = sa.text(f"{column} IS NOT NULL")
        op.create_index(name, "tether_jobs", [column], unique=True, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "tether_mappings",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("job_id", sa.String(36), nullable=False, unique=True),
        sa.Column("volume_id", sa.String(36), nullable=False),
        sa.Column("server_id", sa.String(36), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("target", sa.String(16), nullable=False),
        sa.Column("bus", sa.String(16), nullable=False),
        sa.Column("address", sa.String(255), nullable=False),
        sa.Column("mode", sa.String(2), nullable=False),
        sa.Column("dialect", sa.String(16), nullable=False),
        sa.Column("data_path", sa.String(16), nullable=False),
        sa.Column("machine_id", sa.String(64), nullable=False),
        sa.Column("owner_mark", sa.String(36), nullable=False),
        sa.Column("attachment_id", sa.String(36), nullable=False),
        sa.Column("encrypted", sa.Boolean, nullable=False),
        sa.Column("pending_unplug", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.UniqueConstraint("volume_id", "server_id", name="tether_mappings_pair"),
        sa.UniqueConstraint("server_id", "target", name="tether_mappings_target"),
        sa.UniqueConstraint("server_id", "address", name="tether_mappings_address"),
    )
    op.create_table(
        "tether_connections",
        sa.Column("machine_id", sa.String(64), primary_key=True),
        sa.Column("volume_id", sa.String(36), primary_key=True),
        sa.Column("identity", sa.String(255)),
        sa.Column("path", sa.String(255), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.UniqueConstraint("machine_id", "identity", name="tether_connections_identity"),
    )
    op.create_table(
        "tether_leases",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("token", sa.String(36), nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_table(
        "tether_flows",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("meta", sa.Text, nullable=False),
        sa.Column("steps", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_index("ix_tether_flows_job_id", "tether_flows", ["job_id"])
    op.create_table(
        "tether_secrets",
        sa.Column("job_id", sa.String(36), primary_key=True),
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("sealed", sa.Text, nullable=False),
    )
