"""Speed: a row is looked up by its id, also where its user has many rows that are new"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

OF_USER = "created_at > '-infinity'"
BY_STATUS = "created_at < 'infinity'"

# Table, index, columns, of which rows, and the index that it takes the place of.
INDEXES = [
    ("orders", "ix_orders_of_user", "user_id created_at id", OF_USER),
    ("orders", "ix_orders_of_user_by_status", "user_id status created_at id", BY_STATUS),
    ("payments", "ix_payments_of_user", "user_id created_at id", OF_USER),
    ("payments", "ix_payments_of_user_by_status", "user_id status created_at id", BY_STATUS),
]
FORMER = [
    ("orders", "ix_orders_user_id_created_at_id", "user_id created_at id", "id <> 0"),
    ("orders", "ix_orders_user_id_status_created_at_id", "user_id status created_at id", None),
    ("payments", "ix_payments_user_id_created_at_id", "user_id created_at id", "id <> 0"),
    ("payments", "ix_payments_user_id_status_created_at_id", "user_id status created_at id", None),
]


def upgrade() -> None:
    # One after the other while writes go on, and again after a migration that was broken off.
    with op.get_context().autocommit_block():
        replace(INDEXES, FORMER)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        replace(FORMER, INDEXES)


def replace(
    new: list[tuple[str, str, str, str | None]], former: list[tuple[str, str, str, str | None]]
) -> None:
    for table, name, columns, where in new:
        found = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
        is_valid = op.get_bind().scalar(found, {"name": f"public.{name}"})
        if is_valid is False:
            op.execute(f"DROP INDEX CONCURRENTLY {name}")
        if not is_valid:
            op.create_index(
                name,
                table,
                columns.split(),
                postgresql_where=None if where is None else sa.text(where),
                postgresql_concurrently=True,
            )
    for _, name, *_ in former:
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
