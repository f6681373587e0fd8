"""Two processes get the losses, gradients and weights of one.

Run as a module under the launcher, this file is each of the two processes as well: all scenarios
run in one pair, whose results the tests then look at.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils import parameters_to_vector

from index.errors import DsclError, InvalidArgumentError
from training.criteria import Criterion, build_criterion
from training.distributed import World
from training.losses import NonFiniteEmbeddingsError
from training.two_pass import backward

D, C, STEPS = 4, 5, 4
EXPRESSIONS = [
    "dscl",
    "proxy-anchor",
    "multi-similarity",
    "dscl+0.2*multi-similarity+0.1*soft-triple(centers=2)",
]
DTYPES = {"float64": torch.float64, "float32": torch.float32}
SIZES = [24, 23]  #: shares of 12 and 12, of 11 and 12
SCENARIOS = [(e, dtype, n) for e in EXPRESSIONS for dtype in DTYPES for n in SIZES]


def build(expression: str, dtype: torch.dtype) -> tuple[nn.Module, Criterion]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, D))
    criterion = build_criterion(expression, dim=D, classes=C, ridge=1e-3)
    return network.to(dtype), criterion.to(dtype)


def batch(step: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Classes take turns; with an even number of images the last class is in one share only."""
    labels = torch.arange(n) % (C - 1)
    labels[0] = C - 1
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(n, 12, generator=generator, dtype=torch.float64)
    return (images + one_hot(labels, 12)).to(dtype).reshape(n, 3, 2, 2), labels


def step_down(modules: nn.Module) -> None:
    """Plain gradient descent; torch.optim takes seconds to import what it never uses here."""
    with torch.no_grad():
        for parameter in modules.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad


def state(losses: list[Tensor], modules: nn.Module) -> dict[str, Tensor]:
    gradients = [p.grad for p in modules.parameters() if p.grad is not None]
    return {
        "losses": torch.stack(losses),
        "weights": parameters_to_vector(modules.parameters()).detach(),
        "gradients": parameters_to_vector(gradients),
    }


def train_alone(expression: str, dtype: torch.dtype, n: int) -> dict[str, Tensor]:
    """What several processes stand for: one backward pass over the whole batch."""
    network, criterion = build(expression, dtype)
    modules = nn.ModuleList([network, criterion])
    losses = []
    for step in range(STEPS):
        images, labels = batch(step, n, dtype)
        modules.zero_grad()
        loss = criterion(network(images), labels)
        loss.backward()
        step_down(modules)
        losses.append(loss.detach())
    return state(losses, modules)


def train_shared(world: World, expression: str, dtype: torch.dtype, n: int) -> dict[str, Tensor]:
    network, criterion = build(expression, dtype)
    criterion = criterion.over(world)
    modules = nn.ModuleList([network, criterion])
    losses = []
    for step in range(STEPS):
        images, labels = batch(step, n, dtype)
        part = world.share(n)
        modules.zero_grad()
        loss = backward(
            network, images[part], labels[part], criterion, chunk_size=5, device=world.device
        )
        world.sum_gradients(network.parameters())
        world.average_gradients(criterion.parameters())
        step_down(modules)
        losses.append(loss)
    return state(losses, modules)


# In each of the two processes


def run(out: Path) -> None:
    with World.join(torch.device("cpu")) as world:
        results: dict[str, Any] = {
            f"{expression} {dtype} {n}": train_shared(world, expression, DTYPES[dtype], n)
            for expression, dtype, n in SCENARIOS
        }
        results["world"] = (world.rank, world.size, world.main, dist.get_backend())
        results["operations"] = use_operations(world)
        results["not finite"] = diverge(world)
        world.barrier()
    results["left"] = not dist.is_initialized()
    torch.save(results, out / f"{world.rank}.pt")


def use_operations(world: World) -> dict[str, Any]:
    rows = (torch.arange(2.0 * (world.rank + 2)).reshape(-1, 2) + 10 * world.rank).requires_grad_()
    gathered = world.gather(rows)
    (gathered * torch.arange(10.0).reshape(5, 2)).sum().backward()
    big = torch.full((5_000_000,), 1.0 + world.rank, dtype=torch.float64)  # more than one bucket
    strided = torch.arange(6.0).reshape(2, 3).T * (1 + world.rank)
    count = torch.tensor([world.rank + 1])
    tensors = [torch.tensor(1.0 + world.rank), strided, count, big, torch.tensor([0.5])]
    world.sum_(tensors)
    used, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    used.grad = torch.full((2,), 1.0 + world.rank)
    world.sum_gradients([unused, used])
    averaged = nn.Parameter(torch.zeros(1))
    averaged.grad = torch.tensor([3.0 * world.rank])
    world.average_gradients([averaged])
    return {
        "gathered": gathered.detach(),
        "gathered labels": world.gather(torch.tensor([7, 8, 9][: world.rank + 1])),
        "gradient": rows.grad,
        "sums": [*tensors[:3], tensors[3][[0, -1]], tensors[4]],
        "used": used.grad,
        "unused": unused.grad,
        "averaged": averaged.grad,
        "any": [world.any(False), world.any(world.rank == 1), world.any(True)],
        "share": [world.share(n) for n in (2, 7, 8)],
    }


def diverge(world: World) -> str:
    """An embedding of the second process is NaN: both must stop, or one would wait for ever."""
    network, criterion = build("dscl", torch.float64)
    images, labels = batch(0, 24, torch.float64)
    images[20] = math.nan
    part = world.share(24)
    try:
        criterion.over(world)(network(images[part]), labels[part])
    except NonFiniteEmbeddingsError as error:
        return str(error)
    return "no error"


# In the process of the tests


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saved."""
    out = tmp_path_factory.mktemp("two-processes")
    code = (
        "import sys; from training.launch import launch;"
        f"sys.exit(launch(2, ['-m', {__name__!r}, {str(out)!r}]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize(("expression", "dtype", "n"), SCENARIOS)
def test_two_processes_get_the_losses_gradients_and_weights_of_one(
    results: list[dict[str, Any]], expression: str, dtype: str, n: int
) -> None:
    first, second = (result[f"{expression} {dtype} {n}"] for result in results)
    alone = train_alone(expression, DTYPES[dtype], n)
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    for key, expected in alone.items():
        assert torch.equal(first[key], second[key]), key
        assert (first[key] - expected).abs().max() < tolerance * expected.abs().max(), key
    start = parameters_to_vector(nn.ModuleList(build(expression, DTYPES[dtype])).parameters())
    # DSCL does not see the bias of the last layer.
    assert ((alone["weights"] - start).abs() > 1e-6).double().mean() > 0.95


def test_each_process_knows_its_place_and_leaves_the_group(results: list[dict[str, Any]]) -> None:
    assert results[0]["world"] == (0, 2, True, "gloo")
    assert results[1]["world"] == (1, 2, False, "gloo")
    assert all(result["left"] for result in results)


def test_gathered_rows_are_in_order_of_rank_with_the_gradient_of_ones_own(
    results: list[dict[str, Any]],
) -> None:
    everything = torch.tensor([[0, 1], [2, 3], [10, 11], [12, 13], [14, 15]]).float()
    weights = torch.arange(10.0).reshape(5, 2)
    for result, own in zip(results, (weights[:2], weights[2:]), strict=True):
        assert torch.equal(result["operations"]["gathered"], everything)
        assert torch.equal(result["operations"]["gradient"], own)
        assert result["operations"]["gathered labels"].tolist() == [7, 7, 8]


def test_sums_go_over_all_processes_whatever_the_dtype_size_and_layout(
    results: list[dict[str, Any]],
) -> None:
    for result in results:
        scalar, strided, count, big, last = result["operations"]["sums"]
        assert scalar == 3
        assert torch.equal(strided, 3 * torch.arange(6.0).reshape(2, 3).T)
        assert count.dtype == torch.int64
        assert count.tolist() == [3]
        assert big.tolist() == [3, 3]
        assert last.tolist() == [1]


def test_gradients_are_summed_or_averaged_and_parameters_without_one_left_out(
    results: list[dict[str, Any]],
) -> None:
    for result in results:
        assert result["operations"]["used"].tolist() == [3, 3]
        assert result["operations"]["unused"] is None
        assert result["operations"]["averaged"].tolist() == [1.5]


def test_a_flag_of_one_process_is_known_to_all(results: list[dict[str, Any]]) -> None:
    assert [result["operations"]["any"] for result in results] == [[False, True, True]] * 2


def test_shares_follow_one_another_and_cover_the_batch(results: list[dict[str, Any]]) -> None:
    first, second = (result["operations"]["share"] for result in results)
    assert first == [slice(0, 1), slice(0, 3), slice(0, 4)]
    assert second == [slice(1, 2), slice(3, 7), slice(4, 8)]


def test_embeddings_that_are_not_finite_stop_all_processes(results: list[dict[str, Any]]) -> None:
    assert results[0]["not finite"].startswith("0 of 12 embeddings of this process hold NaN")
    assert results[1]["not finite"].startswith("1 of 12 embeddings of this process hold NaN")


# One process


def test_one_process_is_a_world_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with World.join(torch.device("cpu")) as world:
        assert (world.rank, world.size, world.main) == (0, 1, True)
        assert not dist.is_initialized()
        rows = torch.randn(3, 2, requires_grad=True)
        assert world.gather(rows) is rows
        assert world.share(7) == slice(0, 7)
        assert world.any(True)
        assert not world.any(False)
        value = torch.ones(2)
        world.sum_([value])
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.tensor([3.0])
        world.average_gradients([parameter])
        assert (value.tolist(), parameter.grad.tolist()) == ([1, 1], [3])


def test_fewer_images_than_processes_are_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="2 images cannot be shared by 3 processes"):
        World(rank=0, size=3).share(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": None}, "WORLD_SIZE is 2, but RANK is not set: .*torchrun or dscl train --nproc"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x', expected a whole number"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a whole number"),
    ],
)
def test_an_incomplete_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], message: str
) -> None:
    complete = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**complete, "MASTER_PORT": "1", **changes}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(DsclError, match=message), World.join(torch.device("cpu")):
        pass


def test_more_processes_than_gpus_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = torch.cuda.device_count()
    environment = {"WORLD_SIZE": str(gpus + 1), "RANK": str(gpus), "LOCAL_RANK": str(gpus)}
    for name, value in {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    if gpus == 0:
        monkeypatch.setenv("WORLD_SIZE", "2")
    message = rf"process {gpus + 1} on this machine has no GPU, as there are {gpus}"
    with pytest.raises(DsclError, match=message), World.join(torch.device("cuda")):
        pass


if __name__ == "__main__":
    run(Path(sys.argv[1]))
