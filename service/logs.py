"""How the service's log is written: as text for people, or as a JSON object a line for programs.

Every line that belongs to a request carries its id, which the client has too.
"""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

__all__ = [
    "ACCESS_LOGGER",
    "AccessLine",
    "JsonFormatter",
    "TextFormatter",
    "current_request",
    "log_access",
    "logging_config",
]

#: Of requests: one line each, when asked for.
ACCESS_LOGGER = "service.access_log"

access_logger = logging.getLogger(ACCESS_LOGGER)

#: The id of the request that this task works on.
current_request: ContextVar[str | None] = ContextVar("current_request", default=None)

#: What a client sends may stand in a message, and must not begin a line of its own.
ESCAPED = {code: f"\\x{code:02x}" for code in [*range(32), 127]} | {10: "\\n", 13: "\\r", 9: "\\t"}


@dataclass(frozen=True)
class AccessLine:
    """A request as the log tells it."""

    client: str  #: the key's name, or an address
    method: str
    path: str  #: as it was sent, percent-encoded, without the query
    route: str  #: the template that answered
    status: int
    ms: float


def log_access(line: AccessLine) -> None:
    """Write a request into the log, if requests are logged."""
    access_logger.info(
        "%s %s %s %d %.1f ms",
        line.client,
        line.method,
        line.path,
        line.status,
        line.ms,
        extra={"access": line},
    )


class TextFormatter(logging.Formatter):
    """``time level logger [request id] message``, one line, and the traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        request = current_request.get()
        where = f" [{request}]" if request else ""
        message = record.getMessage().translate(ESCAPED)
        text = f"{_time(record)} {record.levelname} {record.name}{where} {message}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class JsonFormatter(logging.Formatter):
    """A JSON object a line: ``time``, ``level``, ``logger``, ``message``, ``request_id`` and more.

    Requests add the fields of ``AccessLine``, errors add ``exception``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := current_request.get():
            line["request_id"] = request
        if (access := getattr(record, "access", None)) is not None:
            line |= asdict(access)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def logging_config(log_format: str, *, access_log: bool) -> dict[str, Any]:
    """What ``logging.config.dictConfig`` and uvicorn take.

    Args:
        log_format: "text" or "json".
        access_log: a line for every request.
    """
    formatter = JsonFormatter if log_format == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"default": {"()": formatter}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "default",
                "stream": "ext://sys.stderr",
            }
        },
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        # uvicorn writes a warning of its own for each request that is not HTTP: anyone could fill
        # the disk with those.
        "loggers": {
            "uvicorn": {"level": "ERROR"},
            ACCESS_LOGGER: {"level": "INFO" if access_log else "WARNING"},
        },
    }


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
