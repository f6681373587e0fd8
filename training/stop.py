"""Stopping a run between two chunks, so that what was learned is saved first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from torch import nn

__all__ = ["StopRequest", "Stopped", "stop_on_signals"]


class Stopped(BaseException):
    """The user (Ctrl-C) or the system (SIGTERM) asked the run to stop.

    Like KeyboardInterrupt it is no ``Exception``: torch's exporter, which runs the network, would
    take it for a network that cannot be exported.
    """


@dataclass
class StopRequest:
    """Whether the run has been asked to stop."""

    asked: bool = False


@contextmanager
def stop_on_signals(network: nn.Module | None) -> Iterator[StopRequest]:
    """Within, SIGINT or SIGTERM raises ``Stopped`` at the network's next forward pass.

    A step is never cut in its middle: weights are as the last complete step left them. A second
    SIGINT interrupts at once, as it would without this.

    Without a network nothing is raised, and the request is only noted: processes that train
    together have to stop at the same step.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.asked = True

    def check(*_: object) -> None:
        if request.asked:
            raise Stopped

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = None if network is None else network.register_forward_pre_hook(check)
    try:
        yield request
    finally:
        if hook is not None:
            hook.remove()
        for number, handler in before.items():
            signal.signal(number, handler)
