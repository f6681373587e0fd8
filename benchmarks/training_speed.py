"""What DSCL, large batches and loading photos cost in training.

    python benchmarks/training_speed.py --data cars196 --weights mobilenet_v2-imagenet.pth

Three ratios, each of two things measured in turns in one run:

- a whole step with DSCL against one with Proxy-Anchor, at n = 512;
- peak memory of a run with batches of 4,096 against one with 256, both in chunks of 64, with
  nothing kept between the two passes;
- photos a second of a run against forward and backward passes on random tensors: in one pass, what
  no training can beat, and in the two passes that the same batch takes.

Writes training_speed.json beside the table that it prints.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import compare, in_turns
from torch import nn

from training.criteria import build_criterion
from training.machine import Machine
from training.memory import keep_freed_memory
from training.preparation import build_network
from training.scaled_convolutions import fold_batch_norm
from training.settings import TrainSettings
from training.two_pass import backward

CHUNK = 64
GOALS = {
    "step: DSCL / Proxy-Anchor": "<= 1.02",
    "peak memory: batch 4096 / 256": "<= 1.1",
    "photos/s: training / forward and backward once": ">= 0.9",
    "photos/s: training / the same two passes on random tensors": ">= 0.9",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="at least 4,000 training photos")
    parser.add_argument("--weights", type=Path, required=True, help="state dict of MobileNetV2")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--freeze-until", default="features.7")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    keep_freed_memory()
    settings = TrainSettings(
        data=str(arguments.data),
        weights=str(arguments.weights),
        size=arguments.size,
        freeze_until=arguments.freeze_until,
        chunk_size=CHUNK,
        batch_size=512,
        baseline=False,
        validation_classes=0,
        epochs=1,
    )
    machine = Machine.choose(settings)
    network = build_network(settings).to(machine.device, memory_format=torch.channels_last).eval()
    fold_batch_norm(network.backbone.network)

    ratios: dict[str, Any] = {}
    ratios |= losses(network, settings, machine, arguments.rounds)
    ratios |= memory(settings)
    ratios |= throughput(network, settings, machine, arguments.rounds)
    report = {
        "command": f"python {' '.join(Path(argument).name for argument in sys.argv)}",
        "machine": machine.describe(),
        "threads": torch.get_num_threads(),
        "ratios": ratios,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "training_speed.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{machine.describe()}, {torch.get_num_threads()} threads")
    print("| | measured | goal |\n|---|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio['ratio']:.3f} | {GOALS[name]} |")
    if machine.device.type != "cuda":
        print("| the same on a GPU | not measured | |")


def losses(
    network: nn.Module, settings: TrainSettings, machine: Machine, rounds: int
) -> dict[str, Any]:
    """A step of 512 photos, everything but loading them."""
    n, classes = 512, 64
    pieces = [
        torch.randint(0, 256, (CHUNK, 3, settings.size, settings.size), dtype=torch.uint8)  # type: ignore[arg-type]
        for _ in range(n // CHUNK)
    ]
    labels = torch.arange(n) % classes
    steps = {}
    for name in ("dscl", "proxy-anchor"):
        criterion = build_criterion(name, dim=settings.dim, classes=classes, ridge=settings.ridge)
        criterion.to(machine.device)
        parameters = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW([*parameters, *criterion.parameters()], lr=1e-6)
        steps[name] = (criterion, optimizer)

    def step(name: str) -> float:
        criterion, optimizer = steps[name]
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        backward(
            network,
            pieces,
            labels,
            criterion,
            chunk_size=CHUNK,
            device=machine.device,
            autocast=machine.autocast,
            activation_bytes=machine.activation_bytes,
        )
        optimizer.step()
        if machine.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    times = in_turns({name: lambda name=name: step(name) for name in steps}, rounds)
    return compare("step: DSCL / Proxy-Anchor", times["dscl"], times["proxy-anchor"], "s")


def memory(settings: TrainSettings) -> dict[str, Any]:
    """Peak resident memory of whole runs of one epoch.

    Without what a step keeps of its first pass for the second, as it does by default where there is
    memory to spare: a batch that fits in there needs no second pass.
    """
    peaks = {
        size: train(settings, batch_size=size, **{"activations-mb": 0})["peak_mb"]
        for size in (256, 4096)
    }
    return compare("peak memory: batch 4096 / 256", [peaks[4096]], [peaks[256]], "MB")


def throughput(
    network: nn.Module, settings: TrainSettings, machine: Machine, rounds: int
) -> dict[str, Any]:
    """Photos a second of training, and of the passes alone."""
    size = settings.size or 0
    chunk = torch.randint(0, 256, (CHUNK, 3, size, size), dtype=torch.uint8)
    labels = torch.arange(512) % 64
    criterion = build_criterion("dscl", dim=settings.dim, classes=64, ridge=settings.ridge)

    def once() -> float:
        began = time.perf_counter()
        for _ in range(512 // CHUNK):
            with torch.autocast(
                machine.device.type, machine.autocast, machine.autocast is not None
            ):
                embeddings = network(chunk.to(machine.device))
            embeddings.float().sum().backward()
        if machine.device.type == "cuda":
            torch.cuda.synchronize()
        return 512 / (time.perf_counter() - began)

    def twice() -> float:
        began = time.perf_counter()
        backward(
            network,
            [chunk] * (512 // CHUNK),
            labels,
            criterion,
            chunk_size=CHUNK,
            device=machine.device,
            autocast=machine.autocast,
            activation_bytes=machine.activation_bytes,
        )
        return 512 / (time.perf_counter() - began)

    rates = in_turns(
        {
            "once": once,
            "training": lambda: train(settings, batch_size=512)["images_per_s"],
            "twice": twice,
        },
        rounds,
    )
    return compare(
        "photos/s: training / forward and backward once", rates["training"], rates["once"], "1/s"
    ) | compare(
        "photos/s: training / the same two passes on random tensors",
        rates["training"],
        rates["twice"],
        "1/s",
    )


def train(settings: TrainSettings, *, batch_size: int, **more: object) -> dict[str, float]:
    """Two epochs in a process of its own, and no more; ``more`` are further settings.

    The rate is of the second: as in every epoch but the first, photos have been decoded. The peak
    is that of the epochs, without the figures and the export that follow.
    """
    folder = Path(tempfile.mkdtemp())
    try:
        command = [sys.executable, "-m", "training", "--out", str(folder / "run")]
        options = {
            "data": settings.data,
            "weights": settings.weights,
            "size": settings.size,
            "freeze-until": settings.freeze_until,
            "chunk-size": CHUNK,
            "batch-size": batch_size,
            "head-init": "orthogonal",
            "validation-classes": 0,
            "epochs": 2,
            **more,
        }
        for key, value in options.items():
            command += [f"--{key}", str(value)]
        metrics = folder / "run" / "metrics.jsonl"
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([*command, "--no-baseline"], stdout=log, stderr=log)
            peak_kb = 0
            ended = process.poll() is not None
            while not ended and not (
                metrics.exists() and len(metrics.read_text().splitlines()) == options["epochs"]
            ):
                time.sleep(0.2)
                peak_kb = max(peak_kb, _peak_kb(process.pid))
                ended = process.poll() is not None
            if not ended:
                process.terminate()  # what follows the epochs, figures and export, is not training
                process.wait()
        if not metrics.exists():
            raise SystemExit(f"{' '.join(command)} failed:\n{(folder / 'log').read_text()}")
        line = json.loads(metrics.read_text().splitlines()[-1])
        return {"images_per_s": line["images_per_s"], "peak_mb": peak_kb / 1024}
    finally:
        shutil.rmtree(folder)


def _peak_kb(pid: int) -> int:
    """Peak resident memory of a process so far; 0 of one that has ended."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


if __name__ == "__main__":
    main()
