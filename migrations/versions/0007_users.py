"""Users: every row of a user names them, and so does what triggers write"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Tables whose user is that of their payment. A gateway's event may be about none.
REQUIRED = {
    "refunds": "user_id IS NOT NULL",
    "disputes": "user_id IS NOT NULL",
    "gateway_events": "payment_id IS NULL OR user_id IS NOT NULL",
}
OF_PAYMENTS = tuple(REQUIRED)
MOVED = ("orders", "payments", "refunds")  # guarded by the table of moves
BATCH = 10_000  # rows; a tenth of a second

# The previous release inserts them without their user; they get that of their payment.
NAME_USER = """
CREATE OR REPLACE FUNCTION name_user() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.user_id IS NULL THEN
        SELECT user_id INTO NEW.user_id FROM payments WHERE id = NEW.payment_id;
    END IF;
    RETURN NEW;
END
$$
"""
LACKING = "SELECT min(id), max(id) FROM {table} WHERE user_id IS NULL AND payment_id IS NOT NULL"
FILL = """
UPDATE {table} SET user_id = payments.user_id FROM payments
WHERE payments.id = {table}.payment_id AND {table}.user_id IS NULL
AND {table}.id > :after AND {table}.id <= :until
"""

RESERVE_REFUND = """
CREATE OR REPLACE FUNCTION reserve_refund() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE payments SET refund_reserved = refund_reserved + NEW.amount
        WHERE {of_user}id = NEW.payment_id;
    ELSIF OLD.status <> 'failed' AND NEW.status = 'failed' THEN
        UPDATE payments SET refund_reserved = refund_reserved - NEW.amount
        WHERE {of_user}id = NEW.payment_id;
    END IF;
    RETURN NULL;
END
$$
"""
GUARD_STATUS = """
CREATE OR REPLACE FUNCTION guard_status() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.status <> 'pending' THEN
            RAISE EXCEPTION '% begin as pending', {entity} USING ERRCODE = 'check_violation';
        END IF;
    ELSIF NEW.status <> OLD.status AND NOT EXISTS (
        SELECT FROM status_moves
        WHERE entity = {entity} AND from_status = OLD.status AND to_status = NEW.status
    ) THEN
        RAISE EXCEPTION '% cannot move from % to %', {entity}, OLD.status, NEW.status
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$
"""

# Table, name, columns, and whether it is unique.
INDEXES = [
    ("payments", "uq_payments_id_user_id", "id user_id", True),
    ("payment_methods", "ix_payment_methods_user_id_first", "user_id id", False),
    ("disputes", "ix_disputes_created_at_id", "created_at id", False),
    ("disputes", "ix_disputes_status_created_at_id", "status created_at id", False),
]


def upgrade() -> None:
    # Each statement is a transaction of its own, so that nobody waits for long and no two tables
    # are locked at once, and can be done again after a migration that was broken off.
    with op.get_context().autocommit_block():
        op.execute(NAME_USER)
        for table in OF_PAYMENTS:
            user_id = sa.Column("user_id", sa.String(length=255), nullable=True)
            op.add_column(table, user_id, if_not_exists=True)
            op.execute(
                f"CREATE OR REPLACE TRIGGER name_user BEFORE INSERT ON {table} "
                "FOR EACH ROW EXECUTE FUNCTION name_user()"
            )
            fill(table)
        for table, name, columns, unique in INDEXES:
            make_index(table, name, columns.split(), unique=unique)
        if not op.get_bind().scalar(
            sa.text("SELECT count(*) FROM pg_constraint WHERE conname = 'uq_payments_id_user_id'")
        ):
            op.execute(
                "ALTER TABLE payments ADD CONSTRAINT uq_payments_id_user_id"
                " UNIQUE USING INDEX uq_payments_id_user_id"
            )
        for table in OF_PAYMENTS:
            require_user(table)
        op.execute(RESERVE_REFUND.format(of_user="user_id = NEW.user_id AND "))
        # On a shard of a distributed table TG_TABLE_NAME is the shard's name.
        op.execute(GUARD_STATUS.format(entity="coalesce(TG_ARGV[0], TG_TABLE_NAME)"))
        for table in MOVED:
            op.execute(guarding(table, f"'{table}'"))


def require_user(table: str) -> None:
    """From now on a row has the user of its payment, by the database's own word.

    What is there already is looked at while writes go on; before that it is not read at all.
    """
    key, check = f"fk_{table}_payment_id_user_id", f"ck_{table}_user_id"
    # The payment's table is locked first, as the service does.
    alter(
        "EXCLUSIVE",
        f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {key}, DROP CONSTRAINT IF EXISTS {check},"
        f" ADD CONSTRAINT {key} FOREIGN KEY (payment_id, user_id)"
        " REFERENCES payments (id, user_id) NOT VALID,"
        f" ADD CONSTRAINT {check} CHECK ({REQUIRED[table]}) NOT VALID",
    )
    op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {key}")
    op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {check}")
    alter("ACCESS EXCLUSIVE", f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {old_key(table)}")
    if table != "gateway_events":
        # The CHECK spares it the reading.
        op.execute(f"ALTER TABLE {table} ALTER user_id SET NOT NULL")
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {check}")


def alter(mode: str, statement: str) -> None:
    """Change a table whose key refers to payments."""
    op.execute(f"DO $$ BEGIN LOCK TABLE payments IN {mode} MODE; {statement}; END $$")


def downgrade() -> None:
    for table in MOVED:
        op.execute(guarding(table, ""))
    op.execute(GUARD_STATUS.format(entity="TG_TABLE_NAME"))
    op.execute(RESERVE_REFUND.format(of_user=""))
    for table in OF_PAYMENTS:
        op.create_foreign_key(op.f(old_key(table)), table, "payments", ["payment_id"], ["id"])
        op.execute(f"DROP TRIGGER name_user ON {table}")
        op.drop_constraint(op.f(f"fk_{table}_payment_id_user_id"), table)
        op.drop_column(table, "user_id")
    op.execute("DROP FUNCTION name_user()")
    op.drop_constraint("uq_payments_id_user_id", "payments", type_="unique")
    for table, name, *_ in INDEXES[1:]:
        op.drop_index(name, table_name=table)


def old_key(table: str) -> str:
    return f"fk_{table}_payment_id"


def guarding(table: str, entity: str) -> str:
    return (
        f"CREATE OR REPLACE TRIGGER guard_status BEFORE INSERT OR UPDATE OF status ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION guard_status({entity})"
    )


def fill(table: str) -> None:
    """Name the user of every row that lacks it, a range of ids at a time."""
    connection = op.get_bind()
    first, last = connection.execute(sa.text(LACKING.format(table=table))).one()
    if first is None:
        return
    for after in range(first - 1, last, BATCH):
        bounds = {"after": after, "until": after + BATCH}
        connection.execute(sa.text(FILL.format(table=table)), bounds)


def make_index(table: str, name: str, columns: list[str], *, unique: bool) -> None:
    """An index that is there already is left, if it was finished."""
    found = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
    is_valid = op.get_bind().scalar(found, {"name": f"public.{name}"})
    if is_valid is False:
        op.execute(f"DROP INDEX CONCURRENTLY {name}")
    if not is_valid:
        op.create_index(name, table, columns, unique=unique, postgresql_concurrently=True)
