"""Operator commands. Each is one call into the service; reports go to standard output as JSON.

python cli.py token --user alice --scope "orders:manage payments:manage webhooks:manage"
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import NamedTuple, get_args

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

import auth
import database
import schemas
from config import ConfigurationError, Settings, get_settings
from domain.states import ReviewResolution
from errors import ServiceError
from gateways.registry import Gateways
from observability import logs
from proof.guards import GUARDS
from services import audit as invariant_checks
from services import reconciliation, reviews
from services.lookups import LookupRules
from settlement.transitions import ChangedBy


def token(arguments: argparse.Namespace) -> int:
    """Print a token for the running settings, and nothing else."""
    settings = get_settings()
    most = settings.jwt_max_lifetime / 3600
    hours = min(24, most) if arguments.hours is None else arguments.hours
    if not 0 < hours <= most:  # NaN is not, either
        raise ValueError(f"--hours is more than 0 and at most {most:g} (JWT_MAX_LIFETIME)")
    print(auth.mint(settings, arguments.user, arguments.scope, timedelta(hours=hours)))
    return 0


def migrate(_: argparse.Namespace) -> int:
    """Bring the schema up to date, say in one line what was done."""
    done = database.migrate(database.database_url(get_settings()))
    newest = database.newest_revision()
    if done.before != done.after:
        print(f"The schema is at {done.after} now; it was {_named(done.before)}.")
    elif done.after == newest:
        print(f"The schema is up to date, at {newest}.")
    else:
        print(f"The schema is at {done.after}, newer than this release, which ends at {newest}.")
    return 0


def _named(revision: str | None) -> str:
    return "empty" if revision is None else f"at {revision}"


def reconcile(arguments: argparse.Namespace) -> int:
    """Settle what is open once, compare the books, print the report."""
    with _service() as service:
        rules = LookupRules.from_settings(service.settings, service.gateways)
        since = None if arguments.since is None else datetime.now(timezone.utc) - arguments.since
        report = reconciliation.reconcile(service.engine, rules, since, _progress)
    for name in report["not_compared"]:
        print(
            f"The books of {name} cannot be read, so they were not compared; see docs/{name}.md",
            file=sys.stderr,
        )
    print(json.dumps(report, indent=2))
    return 1 if report["mismatches"] or report["still_open"] else 0


def invariants(_: argparse.Namespace) -> int:
    """Check the money invariants, print the report."""
    with _service() as service, database.new_session(service.engine) as session:
        violations = invariant_checks.check(session, service.gateways, _progress)
    print(json.dumps({"ok": not violations, "violations": violations}, indent=2))
    return 1 if violations else 0


def prove(arguments: argparse.Namespace) -> int:
    """Kill the service at every step, compare the books, print the report."""
    from proof.prove import prove as run  # needs nothing of what the other commands need

    both = arguments.age == arguments.outside  # each by itself, or both
    report = run(
        arguments.crashes,
        arguments.seed,
        arguments.broken,
        age=arguments.age or both,
        outside=arguments.outside or both,
    )
    print(report.text())
    return 0 if report.holds else 1


def check_gateway(arguments: argparse.Namespace) -> int:
    """Run the contract of gateways against one adapter, report on each scenario."""
    from conformance import check  # needs nothing of what the other commands need

    return 0 if check(arguments.target, arguments.words).holds else 1


def end_review(arguments: argparse.Namespace) -> int:
    """End a review as `POST /payments/{id}/review` does, print the payment."""
    data = schemas.ReviewCreate(
        resolution=arguments.resolution,
        amount=arguments.amount,
        gateway_reference=arguments.gateway_reference,
        refund_id=arguments.refund_id,
        note=arguments.note,
    )
    with _service() as service, database.new_session(service.engine) as session:
        try:
            payment = reviews.resolve(session, ChangedBy.service("cli"), arguments.payment, data)
        except ServiceError as error:
            print(error.body("cli").decode(), file=sys.stderr)
            return 1
    print(payment.model_dump_json(indent=2))
    return 0


def _parse_timespan(text: str) -> timedelta:
    """ "7d", "36h" or "90m" as a time span. Raises ValueError."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([dhm])", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError("write it like 7d, 36h or 90m")
    return timedelta(**{{"d": "days", "h": "hours", "m": "minutes"}[found[2]]: int(found[1])})


def _progress(what: str, count: int) -> None:
    """Show progress on a terminal, in place of what was shown before."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}: {count}\r", end="", file=sys.stderr, flush=True)


class _Service(NamedTuple):
    settings: Settings
    engine: Engine
    gateways: Gateways


@contextmanager
def _service() -> Iterator[_Service]:
    settings = get_settings()
    logs.configure(settings.log_level, json=settings.production)
    engine = database.open_database(settings)
    if not database.is_migrated(engine):  # MIGRATE_ON_START is off
        raise ConfigurationError(
            "the schema is older than this release: run `python cli.py migrate`"
        )
    gateways = Gateways.from_settings(settings, engine)
    yield _Service(settings, engine, gateways)
    gateways.close()
    engine.dispose()


def parser() -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser(prog="cli.py", description="EStore Payment Service")
    subcommands = commands.add_subparsers(required=True, metavar="command")

    command = subcommands.add_parser("token", help="print a JWT for the running settings")
    command.add_argument("--user", required=True, help="the user id (`sub`)")
    command.add_argument("--scope", default="", help="space-separated scopes")
    command.add_argument("--hours", type=float, help="how long it is valid, 24 by default")
    command.set_defaults(run=token)

    command = subcommands.add_parser("migrate", help="bring the schema up to date")
    command.set_defaults(run=migrate)

    command = subcommands.add_parser(
        "reconcile", help="settle what is open with the gateways once, and compare the books"
    )
    command.add_argument(
        "--since",
        type=_parse_timespan,
        help="compare what was made or changed since then, such as 7d",
    )
    command.set_defaults(run=reconcile)

    command = subcommands.add_parser("review", help="end the review of a payment")
    command.add_argument("payment", type=int, help="its id")
    command.add_argument("--resolution", required=True, choices=get_args(ReviewResolution))
    command.add_argument("--note", required=True, help="where you looked and what you saw")
    command.add_argument("--amount", type=int, help="what was captured, in minor units")
    command.add_argument("--gateway-reference", help="the gateway's id of the charge")
    command.add_argument("--refund-id", type=int, help="which refund, if it is about one")
    command.set_defaults(run=end_review)

    command = subcommands.add_parser("invariants", help="check the money invariants")
    command.set_defaults(run=invariants)

    command = subcommands.add_parser(
        "prove", help="kill the service at every step of a payment, then compare the books"
    )
    command.add_argument("--crashes", type=int, default=40, help="how many times to kill it")
    command.add_argument("--seed", type=int, default=1, help="the same seed, the same plan")
    command.add_argument(
        "--age", action="store_true", help="let months pass between kills, and nothing else"
    )
    command.add_argument(
        "--outside", action="store_true", help="act in the gateway's dashboard, and nothing else"
    )
    command.add_argument(
        "--break",
        dest="broken",
        choices=list(GUARDS),
        help="take one guard away: the proof must fail",
    )
    command.set_defaults(run=prove)

    command = subcommands.add_parser("gateway", help="about the adapters of gateways")
    about = command.add_subparsers(required=True, metavar="command")
    command = about.add_parser("check", help="run the contract of gateways against an adapter")
    command.add_argument(
        "target",
        help="the target of its adapter (docs/add-a-gateway.md) as module or module:Class, or"
        " sandbox, stripe, paypal, adyen",
    )
    command.add_argument("-k", dest="words", default="", help="only scenarios with these words")
    command.set_defaults(run=check_gateway)
    return commands


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (ConfigurationError, ValueError) as error:
        print(f"cli.py: {error}", file=sys.stderr)
        return 2
    except OperationalError as error:  # not reached, or a time limit
        print(f"cli.py: the database: {str(error.orig).strip()}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
