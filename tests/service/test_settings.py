from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from service.settings import Settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DSCL_")]:
        monkeypatch.delenv(name)


def test_the_defaults_reach_this_machine_only() -> None:
    settings = Settings(gallery=Path("cars"))
    assert (settings.host, settings.port, settings.insecure) == ("127.0.0.1", 8000, False)


def test_the_environment_sets_what_the_call_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSCL_GALLERY", "from-environment")
    monkeypatch.setenv("DSCL_PORT", "9000")
    monkeypatch.setenv("DSCL_QUEUE_LIMIT", "3")
    settings = Settings(port=9001)  # type: ignore[call-arg]
    assert settings.gallery == Path("from-environment")
    assert (settings.port, settings.queue_limit) == (9001, 3)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_consent(host: str) -> None:
    assert Settings(gallery=Path("cars"), host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "localhost.evil"])
def test_a_host_that_others_reach_needs_consent(host: str) -> None:
    with pytest.raises(ValidationError, match="--insecure"):
        Settings(gallery=Path("cars"), host=host)
    assert Settings(gallery=Path("cars"), host=host, insecure=True).host == host


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("workers", 0),
        ("threads", 0),
        ("max_pixels", 50_000_001),
        ("header_timeout_s", 0),
        ("rate_limit", -1),
        ("queue_limit", -1),
        ("max_results", 0),
        ("max_results", 10_001),
        ("max_upload_bytes", 0),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(gallery=Path("cars"), **{name: value})  # type: ignore[arg-type]


def test_keys_are_consent_to_other_hosts_and_are_not_shown() -> None:
    settings = Settings(gallery=Path("cars"), host="0.0.0.0", keys=SecretStr("shop read abc"))
    assert "abc" not in repr(settings) + str(settings.model_dump())
    Settings(gallery=Path("cars"), host="0.0.0.0", keys_file=Path("keys.txt"))


def test_the_cores_are_shared_out_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    threads = {n: Settings(gallery=Path("cars"), workers=n).threads for n in (1, 3, 8, 20)}
    assert threads == {1: 8, 3: 2, 8: 1, 20: 1}
    assert Settings(gallery=Path("cars"), workers=4, threads=5).threads == 5
