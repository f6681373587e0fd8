"""Stopping a run between two chunks, so that what was learned is saved first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from torch import nn

__all__ = ["Stopped", "stop_on_signals"]


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The user (Ctrl-C) or the system (SIGTERM) asked the run to stop."""


@contextmanager
def stop_on_signals(network: nn.Module) -> Iterator[None]:
    """Within, SIGINT or SIGTERM raises ``Stopped`` at the network's next forward pass.

    A step is never cut in its middle: weights are as the last complete step left them. A second
    SIGINT interrupts at once, as it would without this.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    def check(*_: object) -> None:
        if asked:
            raise Stopped

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = network.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()
        for number, handler in before.items():
            signal.signal(number, handler)
