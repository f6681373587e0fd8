"""Gradients of a batch loss over more images than fit in memory at once.

A loss over a whole batch, such as DSCL, is not a sum over images, so accumulating the gradients of
small batches computes something else: each small batch would get its own subspaces, and one with
no more images than dimensions none at all. Two passes give the exact gradient instead, after the
gradient cache of Gao, Zhang, Han and Callan, "Scaling Deep Contrastive Learning Batch Size under
Memory Limited Setup" (RepL4NLP 2021). The first embeds all images without keeping activations; the
loss then says how each embedding should move; the second embeds chunk by chunk once more and sends
that down the network. Memory is that of one chunk, plus n × d numbers; the price is one more
forward pass.

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
) -> Tensor:
    """Add the gradient of ``loss(network(images), labels)`` to the parameters of both.

    The result is that of embedding the chunks one after another and calling ``backward`` on the
    loss of them all: both passes draw the same dropout masks, PyTorch's random state afterwards (of
    the CPU and of ``device``) is that of a single pass, and buffers such as BatchNorm's running
    statistics are updated once. BatchNorm in training mode normalises by chunk. With n <=
    chunk_size there is one chunk, and one pass.

    Args:
        network: maps images [m, 3, h, w] to embeddings [m, d].
        images: [n, 3, h, w] on any device, or several such tensors; each forward pass gets at most
            ``chunk_size`` of them, on ``device``.
        labels: [n], in the order of the images.
        loss: maps embeddings [n, d] and labels [n], both on ``device``, to a scalar. Any
            differentiable function, with parameters of its own or without; scaled by a
            ``GradScaler`` if ``autocast`` is float16.
        chunk_size: images whose activations fit in memory; >= 1.
        device: where the network is.
        autocast: dtype of the network's forward pass; the loss then gets float32 embeddings. None
            for the dtype of the weights.

    Returns:
        The loss, a detached scalar. It may be NaN; whether to step is up to the caller.

    Raises:
        InvalidArgumentError: ``chunk_size`` below 1, no images, or not one label per image.
    """
    device = torch.device(device)
    chunks = _chunks(images, chunk_size)
    n = sum(map(len, chunks))
    if n == 0 or labels.shape != (n,):
        raise InvalidArgumentError(
            f"labels have shape {list(labels.shape)} for {n} images: expected one label per image, "
            "and at least one image."
        )
    labels = labels.to(device)

    if len(chunks) == 1:
        value = loss(_embed(network, chunks[0], device, autocast), labels)
        value.backward()
        return value.detach()

    # Pass 1: all embeddings, no activations
    states: list[_RandomState] = []
    parts: list[Tensor] = []
    with torch.no_grad(), _unchanged_buffers(network):
        for chunk in chunks:
            states.append(_RandomState.capture(device))
            parts.append(_embed(network, chunk, device, autocast))

    # The loss, and where it wants each embedding to go
    embeddings = torch.cat(parts).requires_grad_()
    value = loss(embeddings, labels)
    value.backward()
    assert embeddings.grad is not None
    end = _RandomState.capture(device)

    # Pass 2: the same embeddings again, each sending its gradient down the network
    gradients = embeddings.grad.split([len(chunk) for chunk in chunks])
    for chunk, state, gradient in zip(chunks, states, gradients, strict=True):
        state.restore(device)
        _embed(network, chunk, device, autocast).backward(gradient)
    end.restore(device)
    return value.detach()


def _chunks(images: Tensor | Sequence[Tensor], chunk_size: int) -> list[Tensor]:
    """Cut into pieces of at most ``chunk_size`` images; into a single one if that holds all."""
    if chunk_size < 1:
        raise InvalidArgumentError(
            f"chunk_size is {chunk_size}: it must be at least 1, the number of images whose "
            "activations fit in memory."
        )
    pieces = [images] if isinstance(images, Tensor) else list(images)
    if len(pieces) > 1 and sum(map(len, pieces)) <= chunk_size:
        return [torch.cat(pieces)]
    return [chunk for piece in pieces for chunk in piece.split(chunk_size)]


def _embed(
    network: nn.Module, images: Tensor, device: torch.device, autocast: torch.dtype | None
) -> Tensor:
    images = images.to(device, non_blocking=True)
    with torch.autocast(device.type, autocast, autocast is not None):
        embeddings: Tensor = network(images)
    return embeddings if autocast is None else embeddings.float()


@contextmanager
def _unchanged_buffers(network: nn.Module) -> Iterator[None]:
    """Give every buffer its old value back at the end, whatever forward passes did to it."""
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])


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
