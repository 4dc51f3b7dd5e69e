"""Alembic's entry: runs the revisions on the connection of `upgrade`."""

from alembic import context

from sharpzo_core.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite changes a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
