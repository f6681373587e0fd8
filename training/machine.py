"""What a run computes with: device, number format, memory and processes, chosen by what is there.

Where settings leave it open, a GPU gets what makes it fast. Knows no networks and no data.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from index.errors import DsclError
from training.settings import TrainSettings

__all__ = ["Machine"]

#: Where the system does not tell how much memory is free.
DEFAULT_ACTIVATION_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The choices for one run on this machine.

    Attributes:
        device: where the network is.
        autocast: dtype of forward passes; None for that of the weights, float32.
        activation_bytes: for activations kept between the two passes of a step.
        workers: processes that decode photos; 0 decodes in the training process.
    """

    device: torch.device
    autocast: torch.dtype | None
    activation_bytes: int
    workers: int

    @classmethod
    def choose(cls, settings: TrainSettings, *, processes: int = 1) -> Machine:
        """Choose what ``settings`` leave open, for one of ``processes`` on this machine.

        Raises:
            DsclError: CUDA is asked for and not there, or bf16 on a GPU that lacks it.
        """
        device = _device(settings)
        autocast = _autocast(settings, device)
        cores = max(1, (os.cpu_count() or 1) // processes)
        workers = settings.workers
        if workers is None:
            # On a CPU they would take their time from the forward passes.
            workers = max(1, cores - 1) if device.type == "cuda" else 0
        if settings.activations_mb is None:
            # Processes share the system's memory, while each has a GPU of its own.
            share = 1 if device.type == "cuda" else processes
            activation_bytes = _free_bytes(device) // (4 * share)
        else:
            activation_bytes = settings.activations_mb * 2**20
        return cls(
            device=device, autocast=autocast, activation_bytes=activation_bytes, workers=workers
        )

    def describe(self) -> str:
        """The choices in one line."""
        name = str(self.device)
        if self.device.type == "cuda":
            name = f"{torch.cuda.get_device_name(self.device)} ({name})"
        numbers = "float32" if self.autocast is None else "bf16 autocast"
        decoding = f"{self.workers} decoding processes" if self.workers else "decoding in line"
        return (
            f"{name}, {numbers}, channels last, {decoding}, "
            f"{self.activation_bytes / 2**30:.1f} GB for activations"
        )


def _device(settings: TrainSettings) -> torch.device:
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise DsclError("--device is cuda, and torch finds no CUDA device: use --device cpu.")
    wanted = ("cuda" if available else "cpu") if settings.device == "auto" else settings.device
    return torch.device(wanted)


def _autocast(settings: TrainSettings, device: torch.device) -> torch.dtype | None:
    """bf16 keeps float32's range, so it needs no loss scaling."""
    has = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if settings.precision == "bf16" and not has:
        raise DsclError(
            f"--precision is bf16, which {torch.cuda.get_device_name(device)} does not compute: "
            "use --precision fp32."
        )
    # CPUs without instructions for bf16 are slower with it.
    wanted = settings.precision == "bf16" or (
        settings.precision == "auto" and device.type == "cuda" and has
    )
    return torch.bfloat16 if wanted else None


def _free_bytes(device: torch.device) -> int:
    """Memory that nobody uses: the GPU's, or the system's."""
    if device.type == "cuda":
        # This process's own GPU; whether there is one for each is found out when they join.
        own = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.cuda.mem_get_info(own if own < torch.cuda.device_count() else device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 4 * DEFAULT_ACTIVATION_BYTES
    free = next(line for line in lines if line.startswith("MemAvailable:"))
    return int(free.split()[1]) * 1024
