"""Starting several training processes on this machine, as ``torchrun --standalone`` does.

What they do together is the business of ``training.distributed``.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import click

from index.errors import InvalidArgumentError

__all__ = ["launch", "launched", "report_mistake"]

#: Names the folder in which processes leave what is to be printed once.
MISTAKES = "DSCL_MISTAKES"

#: What ``dscl train`` exits with when it is stopped by a signal.
STOPPED = 130


def launched() -> bool:
    """Whether ``launch`` or ``torchrun`` started this process."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def report_mistake(error: Exception) -> None:
    """Print a mistake in the input, or leave that to ``launch`` where it started this process.

    Most mistakes are met by all processes alike, and are to be read once.
    """
    if MISTAKES in os.environ:
        name = f"{os.environ['RANK']}.txt"
        (Path(os.environ[MISTAKES]) / name).write_text(str(error), encoding="utf-8")
    else:
        click.secho(f"Error: {error}", err=True, fg="red")


def launch(nproc: int, arguments: Sequence[str]) -> int:
    """Run ``python ARGUMENTS`` in ``nproc`` processes at a time and wait for them all.

    The first that fails ends the others; what they say by ``report_mistake`` is printed once. A
    signal (SIGINT, SIGTERM, SIGHUP, SIGQUIT) is passed on to each process once; they run in
    sessions of their own, so Ctrl-C in a terminal reaches them by this way alone. A process that
    has not ended a minute later is killed.

    Must be called from the main thread.

    Args:
        nproc: processes, at least 1.
        arguments: such as ``["-m", "training", "--data", "cars"]``.

    Returns:
        The status to exit with: 0; that of the first process that failed, 128 + s where signal s
        killed it; or 130 after a signal to this process.

    Raises:
        InvalidArgumentError: ``nproc`` below 1.
    """
    if nproc < 1:
        raise InvalidArgumentError(f"--nproc is {nproc}: expected at least 1 process.")

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It would add a page about processes to one line about the user's mistake.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Each process would otherwise start as many threads as there are cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    # Time to end a forward pass and to write a checkpoint; the default is 30 s.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "60")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    with tempfile.TemporaryDirectory(prefix="dscl-") as folder:
        os.environ[MISTAKES] = folder
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except ChildFailedError as error:
            files = sorted(Path(folder).iterdir(), key=lambda file: int(file.stem))
            for mistake in dict.fromkeys(file.read_text(encoding="utf-8") for file in files):
                click.secho(f"Error: {mistake}", err=True, fg="red")
            _, failure = error.get_first_failure()
            return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        except SignalException:
            return STOPPED
        finally:
            del os.environ[MISTAKES]
    return 0
