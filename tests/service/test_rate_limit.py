from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.rate_limit import ROWS, RateLimiter
from tests.service.running import clean_environment


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bucket:
    """A bucket of tokens as one would explain it."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.size, self.tokens, self.now = per_minute, float(per_minute), now

    def take(self, now: float) -> bool:
        self.tokens = min(self.size, self.tokens + (now - self.now) * self.size / 60)
        self.now = now
        if self.tokens < 1 - 1e-6:
            return False
        self.tokens -= 1
        return True


@pytest.mark.parametrize("per_minute", [1, 7, 60, 1000])
def test_it_allows_what_a_bucket_of_tokens_allows(per_minute: int) -> None:
    clock = Clock()
    limiter, rng = RateLimiter(per_minute, clock=clock), np.random.default_rng(per_minute)
    buckets: dict[str, Bucket] = {}
    refused = 0
    for _ in range(4000):
        clock.now += rng.exponential(3 / per_minute)
        client = f"client {rng.integers(3)}"
        bucket = buckets.setdefault(client, Bucket(per_minute, clock.now))
        allowance = limiter.take(client)
        assert allowance.allowed == bucket.take(clock.now)
        assert allowance.remaining == int(bucket.tokens + 1e-6)
        assert allowance.full_in_s == pytest.approx(
            (per_minute - bucket.tokens) * 60 / per_minute, abs=1e-6
        )
        refused += not allowance.allowed
    assert refused > 100


def test_who_waits_as_long_as_told_is_allowed_and_not_before() -> None:
    clock = Clock()
    limiter = RateLimiter(30, clock=clock)
    while (allowance := limiter.take("shop")).allowed:
        assert allowance.retry_in_s == 0
    clock.now += allowance.retry_in_s - 0.01
    assert not limiter.take("shop").allowed
    clock.now += 0.011
    assert limiter.take("shop").allowed


def test_a_crowd_takes_nothing_from_the_one_who_asked_most() -> None:
    clock = Clock()
    limiter = RateLimiter(60, clock=clock)
    while limiter.take("greedy").allowed:
        pass
    for number in range(20 * ROWS):  # more than the table holds
        assert limiter.take(f"crowd {number}").allowed
        clock.now += 1e-6
    assert not limiter.take("greedy").allowed


def test_processes_share_the_buckets(tmp_path: Path) -> None:
    file, each = tmp_path / "buckets", 3000
    # Two that take as fast as they can; nothing is lost between them.
    code = (
        "import sys; from pathlib import Path; from service.rate_limit import RateLimiter\n"
        f"limiter = RateLimiter(1_000_000, Path({str(file)!r}), clock=lambda: 1000.0)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"for _ in range({each}): limiter.take('shop')\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    limiter = RateLimiter(1_000_000, file, clock=lambda: 1000.0)
    assert limiter.take("shop").remaining == 1_000_000 - 2 * each - 1
    limiter.close()


def test_no_requests_a_minute_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RateLimiter(0)
