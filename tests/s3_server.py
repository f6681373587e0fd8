"""An S3 API over HTTP for the tests: moto's server, a process of its own on the loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from s3fs import S3FileSystem

from index import stores

DEADLINE_S = 60

#: What must show up nowhere.
KEY, SECRET = "AKIATESTKEY", "a-secret-for-the-tests"


@contextmanager
def s3_server(output: Path) -> Iterator[str]:
    """The address of an S3 API that is empty at first."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + DEADLINE_S
        while (found := re.search(r"http://127\.0\.0\.1:\d+", output.read_text())) is None:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < end, f"not within {DEADLINE_S} s"
            time.sleep(0.01)
        yield found[0]
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def new_bucket(endpoint: str) -> str:
    name = f"cars-{uuid.uuid4().hex[:8]}"
    httpx.put(f"{endpoint}/{name}", trust_env=False).raise_for_status()
    return name


def environment_of(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def talking_to(endpoint: str) -> Iterator[None]:
    """The environment for ``endpoint``, with clients that were made in it and end with it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment_of(endpoint).items():
            patch.setenv(name, value)
        _forget_clients()
        yield
    _forget_clients()


def _forget_clients() -> None:
    stores._remote.cache_clear()
    S3FileSystem.clear_instance_cache()
