"""OpenTelemetry: spans of requests, and of the stages of a search within them.

The framework makes the spans of requests itself and knows the ``OTEL_…`` variables that say where
they go. Without ``trace`` nothing is made and nothing is sent.
"""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING

from opentelemetry import trace

from index.errors import DsclError

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig

__all__ = ["TracingMissingError", "record_stage", "telemetry"]

#: What sends spans; comes with the extra.
EXPORTER = "opentelemetry.exporter.otlp.proto.http"


class TracingMissingError(DsclError):
    """Tracing was asked for where it is not installed."""

    code = "tracing_missing"


def telemetry(on: bool) -> TelemetryConfig:
    """The ``telemetry`` argument of the application.

    Raises:
        TracingMissingError: the extra ``otel`` is not installed.
    """
    if on and not _installed(EXPORTER):
        raise TracingMissingError(
            "tracing is on (DSCL_TRACE) and OpenTelemetry is not installed: "
            "pip install 'dscl-retrieval[otel]', or leave tracing off."
        )
    # Figures and the log are told elsewhere. Bodies and errors stay in the service.
    return {
        "tracing": on,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": on,
    }


def record_stage(stage: str, seconds: float) -> None:
    """Add a stage that has just ended to the span of the request, if there is one."""
    if not trace.get_current_span().is_recording():
        return
    now = time.time_ns()
    trace.get_tracer("dscl").start_span(stage, start_time=now - round(seconds * 1e9)).end(now)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it lies in is not there
        return False
