"""Operator commands. Each is one call into the service; reports go to standard output as JSON.

python cli.py token --user alice --scope "orders:manage payments:manage webhooks:manage"
"""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta

import auth
from config import ConfigurationError, get_settings


def token(arguments: argparse.Namespace) -> int:
    """Print a token for the running settings, and nothing else."""
    lifetime = timedelta(hours=arguments.hours)
    print(auth.mint(get_settings(), arguments.user, arguments.scope, lifetime))
    return 0


def parser() -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser(prog="cli.py", description="EStore Payment Service")
    subcommands = commands.add_subparsers(required=True, metavar="command")

    command = subcommands.add_parser("token", help="print a JWT for the running settings")
    command.add_argument("--user", required=True, help="the user id (`sub`)")
    command.add_argument("--scope", default="", help="space-separated scopes")
    command.add_argument("--hours", type=float, default=24, help="how long it is valid")
    command.set_defaults(run=token)
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
