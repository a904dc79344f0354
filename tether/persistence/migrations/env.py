"""Alembic's entry: runs the migrations on the connection that the caller brings."""

from __future__ import annotations

from alembic import context

from tether.persistence import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    version_table=schema.VERSION_TABLE,
    transactional_ddl=True,
    include_name=lambda name, kind, _parents: kind != "table" or name in schema.metadata.tables,
)
with context.begin_transaction():
    context.run_migrations()
