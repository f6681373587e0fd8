"""Gradients of a batch loss over more images than fit in memory at once.

A loss over a whole batch, such as DSCL, is not a sum over images, so accumulating the gradients of
small batches computes something else: each small batch would get its own subspaces, and one with
no more images than dimensions none at all. Two passes give the exact gradient instead, after the
gradient cache of Gao, Zhang, Han and Callan, "Scaling Deep Contrastive Learning Batch Size under
Memory Limited Setup" (RepL4NLP 2021). The first embeds all images; the loss then says how each
embedding should move; the second sends that down the network. Activations are kept between the two
as far as memory for them is given; chunks beyond it are embedded once more. The result is the same.

Knows neither optimizers nor data sets: it leaves gradients in ``parameter.grad``, as
``Tensor.backward`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from index.errors import InvalidArgumentError

__all__ = ["backward"]


def backward(
    network: nn.Module,
    images: Tensor | Sequence[Tensor],
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    chunk_size: int,
    device: torch.device | str,
    autocast: torch.dtype | None = None,
    activation_bytes: int = 0,
) -> Tensor:
    """Add the gradient of ``loss(network(images), labels)`` to the parameters of both.

    The result is that of embedding the chunks one after another and calling ``backward`` on the
    loss of them all: both passes draw the same dropout masks, PyTorch's random state afterwards (of
    the CPU and of ``device``) is that of a single pass, and buffers such as BatchNorm's running
    statistics are updated once. BatchNorm in training mode normalises by chunk.

    Args:
        network: maps images [m, 3, h, w] to embeddings [m, d].
        images: [n, 3, h, w] on any device, or a sequence of such tensors; a sequence that makes
            them when they are asked for must make the same ones twice. Each forward pass gets at
            most ``chunk_size`` images, on ``device``.
        labels: [n], in the order of the images.
        loss: maps embeddings [n, d] and labels [n], both on ``device``, to a scalar. Any
            differentiable function, with parameters of its own or without; scaled by a
            ``GradScaler`` if ``autocast`` is float16.
        chunk_size: images whose activations fit in memory; >= 1.
        device: where the network is.
        autocast: dtype of the network's forward pass; the loss then gets float32 embeddings. None
            for the dtype of the weights.
        activation_bytes: memory for activations kept from the first pass to the second. One chunk's
            are kept even with 0, as the second pass needs room for one anyway.

    Returns:
        The loss, a detached scalar. It may be NaN; whether to step is up to the caller.

    Raises:
        InvalidArgumentError: ``chunk_size`` below 1, no images, or not one label per image.
    """
    device = torch.device(device)
    if chunk_size < 1:
        raise InvalidArgumentError(
            f"chunk_size is {chunk_size}: it must be at least 1, the number of images whose "
            "activations fit in memory."
        )
    pieces = [images] if isinstance(images, Tensor) else images
    if len(pieces) > 1 and len(labels) <= chunk_size:
        pieces = [torch.cat(tuple(pieces))]
    labels = labels.to(device)

    # Pass 1: all embeddings, and activations as far as there is room
    kept: list[Tensor] = []
    states: list[_RandomState] = []
    parts: list[Tensor] = []
    chunks = _chunks(pieces, chunk_size)
    for _, chunk in chunks:
        if not kept:
            with _saved_bytes(network, chunk, device) as saved:
                kept.append(_embed(network, chunk, device, autocast))
        else:
            kept.append(_embed(network, chunk, device, autocast))
        parts.append(kept[-1].detach())
        if (len(kept) + 1) * saved.bytes > activation_bytes:
            break
    first_again = None
    with torch.no_grad(), _unchanged_buffers(network):
        for place, chunk in chunks:
            first_again = first_again or place
            states.append(_RandomState.capture(device))
            parts.append(_embed(network, chunk, device, autocast))
    n = sum(map(len, parts))
    if n == 0 or labels.shape != (n,):
        raise InvalidArgumentError(
            f"labels have shape {list(labels.shape)} for {n} images: expected one label per image, "
            "and at least one image."
        )

    # The loss, and where it wants each embedding to go
    embeddings = torch.cat(parts).requires_grad_()
    value = loss(embeddings, labels)
    value.backward()
    assert embeddings.grad is not None
    end = _RandomState.capture(device)

    # Pass 2: each embedding sends its gradient down the network
    gradients = embeddings.grad.split([len(part) for part in parts])
    # In the order of chunks, however many were kept: sums are then the same to the last bit.
    for gradient in gradients[: len(kept)]:
        kept.pop(0).backward(gradient)  # which frees its activations
    if first_again is not None:
        again = _chunks(pieces, chunk_size, first=first_again)
        rest = gradients[-len(states) :]
        for (_, chunk), state, gradient in zip(again, states, rest, strict=True):
            state.restore(device)
            _embed(network, chunk, device, autocast).backward(gradient)
    end.restore(device)
    return value.detach()


#: A chunk's piece, and its number within it.
_Place = tuple[int, int]


def _chunks(
    pieces: Sequence[Tensor], chunk_size: int, first: _Place = (0, 0)
) -> Iterator[tuple[_Place, Tensor]]:
    """Cut pieces into chunks of at most ``chunk_size`` images; those from ``first`` on."""
    for i in range(first[0], len(pieces)):
        for j, chunk in enumerate(pieces[i].split(chunk_size)):
            if (i, j) >= first:
                yield (i, j), chunk


def _embed(
    network: nn.Module, images: Tensor, device: torch.device, autocast: torch.dtype | None
) -> Tensor:
    images = images.to(device, non_blocking=True)
    with torch.autocast(device.type, autocast, autocast is not None):
        embeddings: Tensor = network(images)
    return embeddings if autocast is None else embeddings.float()


@dataclass
class _Saved:
    """What autograd keeps of a forward pass."""

    bytes: int = 0


@contextmanager
def _saved_bytes(network: nn.Module, images: Tensor, device: torch.device) -> Iterator[_Saved]:
    """Count the memory that a forward pass within leaves to its backward pass.

    Weights and ``images`` lie in memory anyway.
    """
    saved = _Saved()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        yield saved
        saved.bytes = torch.cuda.memory_allocated(device) - before
        return
    there = {t.untyped_storage().data_ptr() for t in (images, *network.parameters())}
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield saved
    saved.bytes = sum(storages.values())


@contextmanager
def _unchanged_buffers(network: nn.Module) -> Iterator[None]:
    """Give every buffer its old value back at the end, whatever forward passes did to it."""
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in network.named_buffers():
            # By way of ``data``, as autograd would take kept activations for outdated: what layers
            # keep for the backward pass is either not changed by a forward pass, or not used.
            buffer.data.copy_(before[name])


@dataclass(frozen=True)
class _RandomState:
    """State of PyTorch's random generators: the CPU's and that of the device in use."""

    cpu: Tensor
    accelerator: Tensor | None

    @classmethod
    def capture(cls, device: torch.device) -> _RandomState:
        if device.type == "cpu":
            return cls(torch.get_rng_state(), None)
        accelerator = torch.get_device_module(device).get_rng_state(device)
        return cls(torch.get_rng_state(), accelerator)

    def restore(self, device: torch.device) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.get_device_module(device).set_rng_state(self.accelerator, device)
