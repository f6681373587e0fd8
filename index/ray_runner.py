"""Shards embedded by a Ray cluster, through Ray Data.

Each shard is a task, not a call of an actor: a task whose machine is lost runs again on any other,
while the calls of an actor wait until there is room for that actor. Tasks run in processes that
stay, so that the model is loaded once in each all the same.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys
import uuid
from collections.abc import Generator, Sequence
from contextlib import ExitStack, redirect_stdout
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from index.errors import DsclError, InvalidArgumentError, ShardError
from index.parallel import check_workers
from index.shard_runner import ShardEmbedder
from index.shards import Work

__all__ = ["RayRunner", "check_ray"]

INSTALL_RAY = "pip install 'dscl-retrieval[ray]'"

#: Seconds in which a cluster's head answers.
PATIENCE = 10

#: How often a shard is begun, where what embeds it keeps dying. Ray itself would never give up, and
#: some photo may kill whatever decodes it.
ATTEMPTS = 6

#: Bytes that a local cluster keeps for objects: ours are numbers of shards.
OBJECT_STORE = 128 * 2**20


def check_ray() -> None:
    """Refuse to go on without Ray.

    Raises:
        ShardError: Ray, or what Ray Data needs, is not installed.
    """
    for module in ("ray", "pandas", "pyarrow"):
        if importlib.util.find_spec(module) is None:
            raise ShardError(
                f"engine ray needs {module}, which is not installed: {INSTALL_RAY}. "
                "Or use engine processes, which needs nothing more."
            )


class RayRunner:
    """Runs shards on a cluster, or on one that is started here.

    It is connected from the begin of a ``with`` block until one run is over, or the block. So long,
    what is printed goes to stderr: Ray reports there, not on stdout, that a machine is lost.
    """

    def __init__(
        self, *, address: str | None = None, workers: int | None = None, gpus: float = 0.0
    ) -> None:
        """Nothing is started yet.

        Args:
            address: HOST:PORT of the cluster's head; default: ``RAY_ADDRESS``, else a cluster of
                this machine alone.
            workers: shards at a time; default: the cluster's CPUs.
            gpus: of each shard: 0.25 lets four share one. Without, Ray shows a shard no GPU.

        Raises:
            ShardError: Ray is not installed.
            InvalidArgumentError: less than one worker, or a share of GPUs that Ray cannot give.
        """
        check_ray()
        if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
            raise InvalidArgumentError(
                f"gpus is {gpus:g}: expected a part of one, such as 0.25, or a whole number."
            )
        self._gpus = gpus
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._wanted = None if workers is None else check_workers(workers)
        #: How many shards are embedded at a time.
        self.workers = self._wanted or 1
        self._connected = ExitStack()

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            ShardError: the cluster cannot be reached or used.
        """
        _check_address(self._address)
        import ray

        settings: dict[str, Any] = {}
        if self._address == "local":
            # Nothing is sent anywhere, and nothing listens beyond what the work needs.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            settings = {
                "num_cpus": check_workers(self._wanted),
                "object_store_memory": OBJECT_STORE,
                "include_dashboard": False,
            }
        self._connected.enter_context(redirect_stdout(sys.stderr))
        self._connected.callback(ray.shutdown)
        try:
            ray.init(
                address=self._address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **settings,
            )
            cpus = ray.cluster_resources().get("CPU", 1)
            self.workers = self._wanted or max(1, int(cpus))
            self._expect_gpus(ray.cluster_resources().get("GPU", 0.0))
        except BaseException as error:
            self._connected.close()
            if isinstance(error, ShardError) or not isinstance(error, Exception):
                raise
            # Ray has no common class for what goes wrong here.
            raise ShardError(
                f"the Ray cluster at {self._address} cannot be used: {error}. Expected HOST:PORT "
                "of its head, with the same versions of Ray and Python, on a machine that belongs "
                "to it (`ray start`)."
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connected.close()

    def run(self, work: Work, numbers: Sequence[int]) -> Generator[int, None, None]:
        """See ``index.shard_runner.Runner``."""
        import ray
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        run = uuid.uuid4().hex
        # A block, and so a task, for each shard.
        shards = ray.data.from_items(
            [{"folder": str(work.path), "shard": number, "run": run} for number in numbers],
            override_num_blocks=len(numbers),
        )
        results = shards.map(
            _embed,
            compute=ray.data.TaskPoolStrategy(min(self.workers, len(numbers))),
            num_cpus=1,
            num_gpus=self._gpus or None,
        )
        try:
            for row in results.iter_rows():
                if row["error"]:
                    raise ShardError(row["error"])
                yield int(row["shard"])
        except ray.exceptions.RayError as error:
            last = str(error).strip().splitlines()[-1]
            raise ShardError(
                f"the Ray run failed ({type(error).__name__}: {last}). What was embedded is kept: "
                "the same command goes on."
            ) from error
        finally:
            self._connected.close()

    def _expect_gpus(self, there: float) -> None:
        """Refuse what Ray would wait for."""
        if self._gpus > there:
            raise ShardError(
                f"each shard is to have {self._gpus:g} GPUs, and the Ray cluster at "
                f"{self._address} has {there:g} in all: leave --gpus out, or start its machines "
                "with --num-gpus where Ray does not find them."
            )


def _check_address(address: str) -> None:
    """Refuse at once what Ray would wait for."""
    host, colon, port = address.rpartition(":")
    if address in ("local", "auto"):
        return
    if not (colon and host and port.isdecimal()) or "/" in host:
        raise ShardError(
            f"the address of the Ray cluster is {address!r}: expected HOST:PORT of its head, such "
            "as 10.0.0.1:6379, or auto for the cluster that this machine belongs to."
        )
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ShardError(
            f"no Ray cluster answers at {address}: {error}. Start its head by `ray start --head "
            "--port 6379`, or leave --address and RAY_ADDRESS out for a local one."
        ) from error


@lru_cache(maxsize=1)
def _embedder(folder: str) -> ShardEmbedder:
    return ShardEmbedder(Path(folder))


def _embed(row: dict[str, Any]) -> dict[str, Any]:
    """In a process of the cluster: embed the shard that the row names."""
    number, folder = row["shard"], row["folder"]
    try:
        embedder = _embedder(folder)
        if embedder.work.begin(embedder.work.shard(number), row["run"]) > ATTEMPTS:
            raise ShardError(
                f"shard {number} was begun {ATTEMPTS} times, and each time the process or its "
                f"machine was lost. `dscl index embed-shard {folder} {number}` shows what happens."
            )
        embedder.embed(number)
    except DsclError as error:
        return {"shard": number, "error": f"on {socket.gethostname()}: {error}"}
    return {"shard": number, "error": ""}
