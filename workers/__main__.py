"""The background roles alone: `python -m workers`, for deployments with RUN_WORKERS=false."""

import signal
import sys
import threading

import database
from config import ConfigurationError, get_settings
from gateways.registry import Gateways
from observability import logs
from services.lookups import LookupRules
from workers.loop import Workers
from workers.roles import Resources


def main() -> None:
    settings = get_settings()
    logs.configure(settings.log_level, json=settings.production)
    engine = database.open_database(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    gateways = Gateways.from_settings(settings, engine)
    rules = LookupRules.from_settings(settings, gateways)
    workers = Workers(Resources(engine, gateways, rules, settings))
    workers.start()
    logs.get_logger().info("workers.started")
    stop.wait()
    workers.stop()
    gateways.close()
    engine.dispose()


if __name__ == "__main__":
    try:
        main()
    except ConfigurationError as error:
        sys.exit(f"The workers do not start: {error}")
