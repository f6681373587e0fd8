"""When a call is made again, and after how long. Knows no endpoint."""

from __future__ import annotations

import random
from dataclasses import dataclass
from http import HTTPStatus

import httpx

from index.errors import InvalidArgumentError
from service.client.errors import problem_code

__all__ = ["Outcome", "Retries"]

#: What came of an attempt.
Outcome = httpx.Response | httpx.TransportError

#: Errors before anything was sent: the service has not begun on the call.
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

#: The service did nothing and says when to come again.
COME_AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)

#: The code of the one answer that says so although the service may have begun on the call.
TIMED_OUT = "request_timeout"

#: A proxy's word for a service that is just being restarted; it may have begun on the call.
BROKEN_PROXY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)


@dataclass(frozen=True)
class Retries:
    """Calls that a busy, starting or restarted service did not take are made again.

    The pause doubles from ``first_s`` up to ``longest_s``, shortened at random so that many clients
    do not come back at once, and is at least what the service asks for. One that asks for more than
    ``longest_s`` is not waited for.
    """

    attempts: int = 6  #: in all; 1 never repeats
    first_s: float = 0.2
    longest_s: float = 10.0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.attempts < 1 or not 0 < self.first_s <= self.longest_s:
            raise InvalidArgumentError(
                f"{self}: expected attempts of at least 1 and 0 < first_s <= longest_s."
            )

    def pause(self, made: int, outcome: Outcome, *, repeatable: bool) -> float | None:
        """Seconds until the next attempt; None if ``outcome`` is final.

        Args:
            made: attempts so far, at least 1.
            outcome: of the last one.
            repeatable: whether doing the call twice does no harm.
        """
        if made >= self.attempts or not _may_pass(outcome, repeatable):
            return None
        asked = _retry_after(outcome)
        if asked > self.longest_s:
            return None
        doubled = min(self.longest_s, self.first_s * 2.0 ** (made - 1))
        return max(asked, doubled * random.uniform(0.5, 1))


def _may_pass(outcome: Outcome, repeatable: bool) -> bool:
    if isinstance(outcome, httpx.TransportError):
        return repeatable or isinstance(outcome, NOT_SENT)
    if outcome.status_code in COME_AGAIN:
        # Without Retry-After the service has a lasting fault, such as a damaged gallery.
        begun = problem_code(outcome) == TIMED_OUT
        return "Retry-After" in outcome.headers and (repeatable or not begun)
    return repeatable and outcome.status_code in BROKEN_PROXY


def _retry_after(outcome: Outcome) -> float:
    """Seconds the service asks for; a proxy's date counts as none."""
    if isinstance(outcome, httpx.Response):
        seconds: str = outcome.headers.get("Retry-After", "")
        if seconds.isdecimal():
            return float(seconds)
    return 0.0
