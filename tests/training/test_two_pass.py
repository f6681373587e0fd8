"""Two passes give the gradients, random states and buffers of one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from index.errors import InvalidArgumentError
from training.losses import DeepSpectralClusteringLoss
from training.two_pass import backward

Loss = Callable[[Tensor, Tensor], Tensor]


def build_network(
    *, frozen_statistics: bool = False, dtype: torch.dtype = torch.float64
) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(6 * 9, 8)),
        nn.Dropout(0.1),
        nn.Linear(8, 4),
    ).to(dtype)
    if frozen_statistics:
        network[1].eval()
    return network


def batch(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % 3
    images = torch.randn(n, 3, 8, 8, generator=generator, dtype=dtype)
    return images + labels[:, None, None, None], labels


def one_pass(
    network: nn.Module, images: Tensor, labels: Tensor, loss: Loss, chunk_size: int
) -> Tensor:
    """What two passes stand for: all activations of all chunks at once."""
    value = loss(torch.cat([network(chunk) for chunk in images.split(chunk_size)]), labels)
    value.backward()
    return value.detach()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert len(found) == len(list(module.parameters()))
    return found


def compare(
    network: nn.Module,
    n: int,
    chunk_size: int,
    *,
    loss: Loss | None = None,
    activation_bytes: int = 0,
    rtol: float = 1e-9,
    atol: float = 1e-11,
) -> None:
    """Values, gradients, buffers and random states after two passes and after one."""
    loss = loss or DeepSpectralClusteringLoss()
    images, labels = batch(n, next(network.parameters()).dtype)
    reference = copy.deepcopy(network)
    torch.manual_seed(2)
    expected = one_pass(reference, images, labels, loss, chunk_size)
    expected_random = torch.rand(3)
    torch.manual_seed(2)
    value = backward(
        network,
        images,
        labels,
        loss,
        chunk_size=chunk_size,
        device="cpu",
        activation_bytes=activation_bytes,
    )
    random = torch.rand(3)

    assert not value.requires_grad
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(gradients(network), gradients(reference), rtol=rtol, atol=atol)
    # Sums over chunks of the same size in the same order: equal to the last bit.
    torch.testing.assert_close(
        dict(network.named_buffers()), dict(reference.named_buffers()), rtol=0, atol=0
    )
    assert torch.equal(random, expected_random)


@given(
    n=st.integers(7, 30),
    chunk_size=st.integers(2, 32),
    frozen=st.booleans(),
    # A chunk of these takes some 20 to 100 KB.
    activation_bytes=st.sampled_from([0, 50_000, 100_000, 200_000, 10**9]),
)
@settings(max_examples=40, deadline=None)
def test_gradients_buffers_and_random_state_are_those_of_one_pass(
    n: int, chunk_size: int, frozen: bool, activation_bytes: int
) -> None:
    network = build_network(frozen_statistics=frozen)
    compare(network, n, chunk_size, activation_bytes=activation_bytes)


def test_gradients_of_float32_agree_up_to_rounding() -> None:
    compare(build_network(dtype=torch.float32), 30, 8, rtol=1e-4, atol=1e-6)


def test_batch_norm_counts_each_chunk_once() -> None:
    network = build_network()
    images, labels = batch(22)
    backward(network, images, labels, DeepSpectralClusteringLoss(), chunk_size=5, device="cpu")
    assert network[1].num_batches_tracked == 5  # 5 + 5 + 5 + 5 + 2


def test_frozen_batch_norm_stays_as_it_is() -> None:
    network = build_network(frozen_statistics=True)
    before = copy.deepcopy(network[1].state_dict())
    images, labels = batch(22)
    backward(network, images, labels, DeepSpectralClusteringLoss(), chunk_size=5, device="cpu")
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(network[1].state_dict()[name], before[name])


def test_a_loss_with_parameters_and_randomness_of_its_own_is_the_same_too() -> None:
    class Proxies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proxies = nn.Parameter(torch.eye(3, 4, dtype=torch.float64))

        def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
            kept = nn.functional.dropout(embeddings, 0.5)
            return nn.functional.cross_entropy(kept @ self.proxies.T, labels)

    loss, reference = Proxies(), Proxies()
    images, labels = batch(20)
    torch.manual_seed(3)
    one_pass(build_network(), images, labels, reference, 6)
    expected_random = torch.rand(3)
    torch.manual_seed(3)
    backward(build_network(), images, labels, loss, chunk_size=6, device="cpu")
    # build_network seeds the generator itself, so both runs start alike.
    assert torch.equal(torch.rand(3), expected_random)
    assert loss.proxies.grad is not None
    torch.testing.assert_close(loss.proxies.grad, reference.proxies.grad, rtol=1e-9, atol=1e-12)
    compare(build_network(), 20, 6, loss=Proxies())


def test_gradients_are_added_to_those_already_there() -> None:
    network = build_network(frozen_statistics=True)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    fresh = copy.deepcopy(network)
    fresh.zero_grad()
    images, labels = batch(16)
    for each in (network, fresh):
        torch.manual_seed(4)
        backward(each, images, labels, DeepSpectralClusteringLoss(), chunk_size=6, device="cpu")
    added = {name: gradient - 1 for name, gradient in gradients(network).items()}
    torch.testing.assert_close(added, gradients(fresh), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "pieces", "chunk_size", "expected"),
    [
        (8, None, 8, [8]),
        (8, None, 100, [8]),
        (8, [3, 3, 2], 8, [8]),
        # All but the first once more
        (9, None, 4, [4, 4, 1, 4, 1]),
        (9, [4, 5], 4, [4, 4, 1, 4, 1]),
        (9, [3, 6], 4, [3, 4, 2, 4, 2]),
        (9, [6, 3], 4, [4, 2, 3, 2, 3]),
    ],
)
def test_forward_passes_are_no_larger_than_asked_and_a_single_one_suffices_if_it_can(
    n: int, pieces: list[int] | None, chunk_size: int, expected: list[int]
) -> None:
    network = build_network(frozen_statistics=True)
    seen: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    images, labels = batch(n)
    given_images = images if pieces is None else images.split(pieces)
    backward(
        network,
        given_images,
        labels,
        lambda f, _: f.square().sum(),
        chunk_size=chunk_size,
        device="cpu",
    )
    assert seen == expected


@pytest.mark.parametrize(
    ("activation_bytes", "once"),
    [(0, 1), (19_999, 1), (20_000, 2), (35_000, 3), (39_999, 3), (40_000, 4), (10**9, 4)],
)
def test_chunks_are_embedded_once_as_far_as_their_activations_fit(
    activation_bytes: int, once: int
) -> None:
    # What the second layer keeps is its input: 5 × 250 numbers of 8 bytes a chunk.
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 250), nn.Linear(250, 4)).double()
    with_graph: list[bool] = []
    network.register_forward_hook(lambda _, __, output: with_graph.append(output.requires_grad))
    backward(
        network,
        torch.randn(20, 2, 4, dtype=torch.float64),
        torch.arange(20),
        lambda f, _: f.square().sum(),
        chunk_size=5,
        device="cpu",
        activation_bytes=activation_bytes,
    )
    again = 4 - once
    assert with_graph == [True] * once + [False] * again + [True] * again


def test_images_that_are_made_when_asked_for_are_made_at_most_twice() -> None:
    images, labels = batch(20)
    made: list[int] = []

    class Drawn(Sequence[Tensor]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: Any) -> Any:
            made.append(i)
            return images.split(7)[i]

    network = build_network(frozen_statistics=True)
    reference = copy.deepcopy(network)
    for each, given_images in ((network, Drawn()), (reference, images)):
        torch.manual_seed(5)
        backward(
            each, given_images, labels, DeepSpectralClusteringLoss(), chunk_size=7, device="cpu"
        )
    assert made == [0, 1, 2, 1, 2]
    torch.testing.assert_close(gradients(network), gradients(reference), rtol=0, atol=0)


@pytest.mark.parametrize("chunk_size", [7, 20], ids=["two passes", "one pass"])
def test_autocast_covers_the_network_and_not_the_loss(chunk_size: int) -> None:
    network = build_network(dtype=torch.float32)
    inside: list[torch.dtype] = []
    network.register_forward_hook(lambda _, __, output: inside.append(output.dtype))

    def loss(embeddings: Tensor, labels: Tensor) -> Tensor:
        assert embeddings.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        return DeepSpectralClusteringLoss()(embeddings, labels)

    images, labels = batch(20, torch.float32)
    backward(
        network, images, labels, loss, chunk_size=chunk_size, device="cpu", autocast=torch.bfloat16
    )
    assert set(inside) == {torch.bfloat16}
    assert all(gradient.dtype == torch.float32 for gradient in gradients(network).values())


@pytest.mark.parametrize(
    ("images", "labels", "chunk_size", "message"),
    [
        (torch.zeros(4, 3, 8, 8), torch.zeros(4), 0, "chunk_size is 0"),
        (torch.zeros(4, 3, 8, 8), torch.zeros(3), 2, r"\[3\] for 4 images"),
        ([torch.zeros(4, 3, 8, 8)] * 2, torch.zeros(4), 2, r"\[4\] for 8 images"),
        ([], torch.zeros(0), 2, "at least one image"),
        (torch.zeros(0, 3, 8, 8), torch.zeros(0), 2, "at least one image"),
    ],
)
def test_wrong_input_is_named(
    images: Tensor | list[Tensor], labels: Tensor, chunk_size: int, message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        backward(
            nn.Identity(), images, labels, lambda f, _: f.sum(), chunk_size=chunk_size, device="cpu"
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_dropout_on_a_gpu_is_replayed() -> None:
    network, reference = build_network().cuda(), build_network().cuda()
    images, labels = batch(20)
    torch.manual_seed(6)
    expected = one_pass(
        reference, images.cuda(), labels.cuda(), DeepSpectralClusteringLoss(), chunk_size=6
    )
    expected_random = torch.rand(3, device="cuda")
    torch.manual_seed(6)
    value = backward(
        network, images, labels, DeepSpectralClusteringLoss(), chunk_size=6, device="cuda"
    )
    assert torch.equal(torch.rand(3, device="cuda"), expected_random)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradients(network), gradients(reference), rtol=1e-8, atol=1e-10)
