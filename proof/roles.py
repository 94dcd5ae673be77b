"""The background roles without a service, as the proof runs them: so many passes on request.

    python -m proof.roles

Each line of standard input is a number of passes over all roles; then it goes on for as long as
there is something to do, and answers with the number of passes that it made.
"""

import sys

from proof.fault_injection import prepare
from proof.guards import take_away_named

LONGEST = 2_000  # passes more, while there is something to do


def main() -> None:
    prepare()
    take_away_named()

    import database
    from config import get_settings
    from gateways.registry import Gateways
    from observability import logs
    from services.lookups import LookupRules
    from workers.roles import Resources, roles

    settings = get_settings()
    logs.configure(settings.log_level, json=settings.production)
    log = logs.get_logger()
    engine = database.open_database(settings)
    gateways = Gateways.from_settings(settings, engine)
    rules = LookupRules.from_settings(settings, gateways)
    resources = Resources(engine, gateways, rules, settings)
    every = roles(resources)
    for line in sys.stdin:
        asked, made, done = int(line), 0, 0
        while made < asked or (done and made < asked + LONGEST):
            done = 0
            for name, role in every.items():
                try:
                    done += role.run_once(resources)
                except Exception as error:  # as in workers/loop.py: it is tried again
                    log.error("worker.failed", role=name, error=type(error).__name__)
            made += 1
        sys.stdout.write(f"{made}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
