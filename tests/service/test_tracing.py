from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from service.tracing import TracingMissingError, record_stage, telemetry
from tests.service.guarded import guarded

pb = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Where spans are sent to, and what came."""
    came: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.path == "/v1/traces":
                came.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_request_is_a_span_with_its_stages_within(tmp_path: Path) -> None:
    caller = "0af7651916cd43dd8448eb211c80319c"
    with collector() as (url, came):
        with guarded(
            tmp_path,
            DSCL_TRACE="1",
            OTEL_EXPORTER_OTLP_ENDPOINT=url,
            OTEL_EXPORTER_OTLP_COMPRESSION="none",
        ) as server:
            server.client.get(
                "/search/staged", headers={"traceparent": f"00-{caller}-b7ad6b7169203331-01"}
            )
        # It has ended, and sent the rest.
        spans = {
            span.name: span
            for each in came
            for resource in pb.ExportTraceServiceRequest.FromString(each).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }
    request, stage = spans["GET /search/staged"], spans["embed"]
    assert request.trace_id.hex() == stage.trace_id.hex() == caller
    assert stage.parent_span_id == request.span_id
    assert (stage.end_time_unix_nano - stage.start_time_unix_nano) / 1e9 == pytest.approx(0.25)


def test_nothing_is_sent_unless_asked_for(tmp_path: Path) -> None:
    with collector() as (url, came):
        with guarded(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=url) as server:
            server.client.get("/search/staged")
        assert came == []


def test_a_stage_outside_any_request_is_nothing() -> None:
    record_stage("embed", 0.1)


def test_tracing_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.tracing.EXPORTER", "opentelemetry.exporter.nowhere.at.all")
    with pytest.raises(TracingMissingError, match=r"dscl-retrieval\[otel\]"):
        telemetry(True)
    telemetry(False)
