"""`python -m conformance my_adapter:MyTarget`: the same as `python cli.py gateway check`."""

from __future__ import annotations

import argparse
import sys

from config import ConfigurationError
from conformance import check


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m conformance",
        description="Run the contract of gateways against one adapter, report on each scenario.",
    )
    parser.add_argument("target", help="module or module:Class, or sandbox, stripe, paypal, adyen")
    parser.add_argument("-k", dest="words", default="", help="only scenarios with these words")
    arguments = parser.parse_args()
    try:
        return 0 if check(arguments.target, arguments.words).holds else 1
    except ConfigurationError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
