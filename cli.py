"""Operator commands. Each is one call into the service; reports go to standard output as JSON.

python cli.py token --user alice --scope "orders:manage payments:manage webhooks:manage"
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy.orm import Session

import auth
import database
from config import ConfigurationError, get_settings
from gateways.registry import Gateways
from observability import logs
from services import invariants as invariant_checks
from services import reconcile as reconciling

MOST_HOURS = 24 * 365  # who needs a token for longer needs an issuer

# The guards of proof/guards.py, which a test compares with these.
GUARD_NAMES = [
    "unique-live-payment",
    "claim-before-call",
    "stored-key",
    "unknown-is-open",
    "idempotency",
    "refund-reservation",
    "reconciler",
]


def token(arguments: argparse.Namespace) -> int:
    """Print a token for the running settings, and nothing else."""
    if not 0 < arguments.hours <= MOST_HOURS:  # NaN is not, either
        raise ValueError(f"--hours is more than 0 and at most {MOST_HOURS}")
    lifetime = timedelta(hours=arguments.hours)
    print(auth.mint(get_settings(), arguments.user, arguments.scope, lifetime))
    return 0


def reconcile(_: argparse.Namespace) -> int:
    """Settle what is open once, compare the books, print the report."""
    with _service() as (session, gateways):
        report = reconciling.reconcile(session, gateways)
    print(json.dumps(report, indent=2))
    return 1 if report["mismatches"] or report["still_open"] else 0


def invariants(_: argparse.Namespace) -> int:
    """Check the money invariants, print the report."""
    with _service() as (session, gateways):
        violations = invariant_checks.check(session, gateways)
    print(json.dumps({"ok": not violations, "violations": violations}, indent=2))
    return 1 if violations else 0


def prove(arguments: argparse.Namespace) -> int:
    """Kill the service at every step, compare the books, print the report."""
    from proof.prove import prove as run  # needs nothing of what the other commands need

    report = run(arguments.crashes, arguments.seed, arguments.broken)
    print(report.text())
    return 0 if report.holds else 1


def check_gateway(arguments: argparse.Namespace) -> int:
    """Run the contract of gateways against one adapter, tell of each scenario."""
    try:
        from tests.gateways.check import check  # needs nothing of what the other commands need
    except ImportError as error:
        raise ConfigurationError(f"this needs the whole repository: {error}") from None
    return 0 if check(arguments.module, arguments.words).holds else 1


@contextmanager
def _service() -> Iterator[tuple[Session, Gateways]]:
    settings = get_settings()
    logs.configure(settings.log_level, json=settings.production)
    engine = database.open_database(settings)
    gateways = Gateways.from_settings(settings, engine)
    with database.new_session(engine) as session:
        yield session, gateways
    gateways.close()
    engine.dispose()


def parser() -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser(prog="cli.py", description="EStore Payment Service")
    subcommands = commands.add_subparsers(required=True, metavar="command")

    command = subcommands.add_parser("token", help="print a JWT for the running settings")
    command.add_argument("--user", required=True, help="the user id (`sub`)")
    command.add_argument("--scope", default="", help="space-separated scopes")
    command.add_argument("--hours", type=float, default=24, help="how long it is valid")
    command.set_defaults(run=token)

    command = subcommands.add_parser(
        "reconcile", help="settle what is open with the gateways once, and compare the books"
    )
    command.set_defaults(run=reconcile)

    command = subcommands.add_parser("invariants", help="check the money invariants")
    command.set_defaults(run=invariants)

    command = subcommands.add_parser(
        "prove", help="kill the service at every step of a payment, then compare the books"
    )
    command.add_argument("--crashes", type=int, default=40, help="how many times to kill it")
    command.add_argument("--seed", type=int, default=1, help="the same seed, the same plan")
    command.add_argument(
        "--break",
        dest="broken",
        choices=GUARD_NAMES,
        help="take one guard away: the proof must fail",
    )
    command.set_defaults(run=prove)

    command = subcommands.add_parser("gateway", help="about the adapters of gateways")
    about = command.add_subparsers(required=True, metavar="command")
    command = about.add_parser("check", help="run the contract of gateways against an adapter")
    command.add_argument(
        "module",
        help="the module of its bench (docs/add-a-gateway.md), module:Class, or"
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
    return status


if __name__ == "__main__":
    sys.exit(main())
