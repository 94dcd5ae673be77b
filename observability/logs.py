"""Logs: dotted event names with fields, JSON in production, one redaction for all of them.

log = get_logger()
log.info("payment.captured", payment_id=7)
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from observability.redaction import redact, redact_value

# Of the request at hand: its id, and of its trace. Everything logged during it carries them.
_request: ContextVar[Mapping[str, str]] = ContextVar("request", default=MappingProxyType({}))
bind_request = _request.set
_access = logging.getLogger("access")


def get_bound(name: str) -> str:
    """The value bound under this name for the current request."""
    return _request.get().get(name, "")


def get_logger() -> Any:
    return structlog.get_logger()


def configure(level: str, *, json: bool) -> None:
    """Send the logs of every library through our format, and our redaction, to stderr."""
    global _access_line
    _access_line = _access_json if json else _access_text
    shared: list[structlog.typing.Processor] = [
        _add_request,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=28)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Formatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # Tracebacks become text first, so that redaction sees them too.
                structlog.processors.format_exc_info,
                _redact,
                renderer,
            ],
        )
    )
    # What a record would find out about itself, for no format of ours.
    logging.logProcesses = logging.logThreads = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # we write our own, with the request id
    for name in ("alembic", "httpx", "httpcore", "watchfiles"):
        logging.getLogger(name).setLevel(logging.WARNING)


def access(method: str, path: str, status: int, seconds: float) -> None:
    """Log a request that has been answered. Its parts hold nothing to redact: see the caller."""
    if not _access.isEnabledFor(logging.INFO):
        return
    fields = _request.get()
    now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    line = _access_line(now, method, path, status, round(seconds * 1000, 1), fields)
    _access.handle(logging.LogRecord("access", logging.INFO, "", 0, line, None, None))


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Access lines are written as they are; everything else is rendered and redacted."""

    def format(self, record: logging.LogRecord) -> str:
        return record.msg if record.name == "access" else super().format(record)


def _access_json(
    now: str, method: str, path: str, status: int, milliseconds: float, fields: Mapping[str, str]
) -> str:
    more = "".join(f', "{name}": "{value}"' for name, value in fields.items())
    return (
        f'{{"method": "{method}", "path": "{path}", "status": {status}, '
        f'"milliseconds": {milliseconds}, "event": "http.request"{more}, "level": "info", '
        f'"timestamp": "{now}"}}'
    )


def _access_text(
    now: str, method: str, path: str, status: int, milliseconds: float, fields: Mapping[str, str]
) -> str:
    more = " ".join(f"{name}={value}" for name, value in fields.items())
    event = f"{now} [info     ] {'http.request':28}"
    return f"{event} {method} {path} {status} {milliseconds} ms {more}"


_access_line = _access_text


def _add_request(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for name, value in _request.get().items():
        event.setdefault(name, value)
    return event


def _redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        event[name] = (
            redact(value)
            if name == "event" and isinstance(value, str)
            else (redact_value(name, value))
        )
    return event
