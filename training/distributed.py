"""The processes that train together, and the few things they tell each other.

One process is the rule, and then every operation here does nothing. What is computed from the sums
is the business of others; starting the processes is that of ``training.launch``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from index.errors import DsclError, InvalidArgumentError

__all__ = ["World"]

# The other processes wait while the main one measures recall, however long that takes. One that
# has died does not make them wait: its connections close, and the launcher ends the others.
_PATIENCE = timedelta(days=1)

_BUCKET_BYTES = 32 * 2**20


@dataclass(frozen=True)
class World:
    """The processes of one training run, seen from one of them; by default there is only one.

    All of them must call the operations in the same order, with the same number of tensors.
    """

    rank: int = 0  #: this process, 0 … size − 1
    size: int = 1
    device: torch.device = torch.device("cpu")  #: this process's own

    @classmethod
    @contextmanager
    def join(cls, device: torch.device) -> Iterator[World]:
        """Join the processes that ``torchrun`` or ``dscl train --nproc`` started, and leave again.

        They talk by NCCL on GPUs, a GPU each, and by gloo on CPUs. Without such a launcher there is
        a single process, and no group.

        Args:
            device: cpu, or cuda for the GPU that the launcher's LOCAL_RANK gives this process.

        Raises:
            DsclError: the launcher's environment variables are incomplete, or this process has no
                GPU of its own.
        """
        size = _variable("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
        if size == 1:
            yield cls(device=device)
            return
        rank, local_rank = _variable("RANK"), _variable("LOCAL_RANK")
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise _incomplete(name, "is not set")
        if device.type == "cuda":
            gpus = torch.cuda.device_count()
            if local_rank >= gpus:
                raise DsclError(
                    f"process {local_rank + 1} on this machine has no GPU, as there are {gpus}: "
                    "start at most one process for each GPU, or use --device cpu."
                )
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", timeout=_PATIENCE, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        try:
            yield cls(rank, size, device)
        finally:
            dist.destroy_process_group()

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This process's part of a batch of n images: contiguous, of equal length or one less.

        Parts follow one another in the order of rank, as ``gather`` returns them. Classes take
        turns in a class-balanced batch, so each part is balanced as well.

        Raises:
            InvalidArgumentError: fewer images than processes.
        """
        if n < self.size:
            raise InvalidArgumentError(
                f"a batch of {n} images cannot be shared by {self.size} processes: raise "
                "--batch-size or start fewer."
            )
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes [N, …] in the order of rank; only this one's have a gradient.

        Args:
            rows: [n, …] on ``device``, in any number, of the same dtype and shape otherwise.
        """
        if self.size == 1:
            return rows
        lengths = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        lengths[self.rank] = len(rows)
        dist.all_reduce(lengths)
        padded = rows.new_zeros(int(lengths.max()), *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        parts = [part[:length] for part, length in zip(parts, lengths.tolist(), strict=True)]
        parts[self.rank] = rows
        return torch.cat(parts)

    @torch.no_grad()
    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor, on ``device``, by its sum over the processes: the same in each."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients to which each process has contributed those of its own images.

        Parameters without a gradient are left out: they must be so in all processes.
        """
        self.sum_([p.grad for p in parameters if p.grad is not None])

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients that are the same in all processes but for rounding.

        Rounding differs where additions come in a random order, as on a GPU, and would let the
        processes' copies of a parameter drift apart.
        """
        self.average([p.grad for p in parameters if p.grad is not None])

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each floating-point tensor by its mean over the processes; leave others alone.

        BatchNorm's running statistics, for instance, which each process takes of its own images.
        """
        floating = [tensor for tensor in tensors if tensor.is_floating_point()]
        self.sum_(floating)
        for tensor in floating:
            tensor.div_(self.size)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process: for what all must do in the same step."""
        count = torch.tensor([float(flag)], device=self.device)
        self.sum_([count])
        return bool(count > 0)

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        self.any(False)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype, as many as fit into ``_BUCKET_BYTES``, or one alone."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or size + tensor.nbytes > _BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def _variable(name: str) -> int:
    value = os.environ.get(name)
    if value is None:
        raise _incomplete(name, "is not set")
    if not value.isdecimal():
        raise _incomplete(name, f"is {value!r}, expected a whole number")
    return int(value)


def _incomplete(name: str, problem: str) -> DsclError:
    return DsclError(
        f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {name} {problem}: start several processes "
        "with torchrun or dscl train --nproc, or unset WORLD_SIZE."
    )
