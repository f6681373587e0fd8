"""Network → what each position of its last feature map adds to the embedding.

After the last map most networks average over its positions and apply a linear layer: then the
embedding is a sum over positions as it stands. Some go on with a few layers more. Those are taken
as linear at the photo at hand: an activation or normalisation multiplies each share by the factor
that it multiplied the whole by, so that the shares add up to the very same embedding. Biases belong
to no position and are spread evenly.

Nothing is assumed of a network by name, transformers with a class token aside. Its last layers are
watched while it sees some photos, and what is made of them must add up to its features; a network
that does anything else has no shares. What reads them is ``index.regions``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.inference import InferenceNetwork

__all__ = ["LastMap", "Shares", "WithMaps", "find_shares"]

#: x · g(x): what a photo's shares are multiplied by is g at the sum of them.
GATES = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Tanh)

#: Layers that change nothing about the numbers of a photo once it is judged.
PASSIVE = (nn.Identity, nn.Dropout, nn.Flatten)

#: Calls before the last layers among which the map is sought.
DEPTH = 8

#: Values nearer to zero have no factor: their shares cancel, and so they stay.
TINY = 1e-12


@dataclass(frozen=True)
class LastMap:
    """Where in a network the map is: a call of a leaf module, in the order of calls."""

    call: int
    given: bool  #: what the module is given, rather than what it gives
    rectified: bool = False  #: the network goes on with its ReLU, which is no module
    channels_last: bool = False


class Shares(nn.Module):
    """Map → shares, float [n, h, w, m]; summed over h and w they are the embedding, unscaled."""

    def __init__(self, layers: Sequence[nn.Module], *, pooled: bool) -> None:
        """What follows the map.

        Args:
            layers: in order: linear ones, ``GATES``, ``Power``, and normalisations.
            pooled: the map is averaged over positions; else its values are strung together.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.pooled = pooled

    def forward(self, feature_map: Tensor) -> Tensor:
        """Float [n, c, h, w] → [n, h, w, m]."""
        _, c, h, w = feature_map.shape
        layers: list[Any] = list(self.layers)
        if self.pooled:
            shares = feature_map.movedim(1, -1) / (h * w)
        else:
            first = layers.pop(0)
            weight = first.weight.reshape(-1, c, h, w)
            shares = torch.einsum("nchw,kchw->nhwk", feature_map, weight)
            shares = shares + first.bias / (h * w)
        for layer in layers:
            shares = _through(layer, shares)
        return shares


class TokenShares(nn.Module):
    """As ``Shares``, for torchvision's vision transformers: what each patch hands to the class.

    In the last block the class token gathers from the patches, weighted by attention, whose weights
    are taken as they are. What it had gathered in earlier blocks belongs to no position.
    """

    def __init__(self, transformer: Any, layers: Sequence[nn.Module]) -> None:
        """``transformer``: torchvision's ``VisionTransformer``; ``layers``: what follows it."""
        super().__init__()
        self.block = transformer.encoder.layers[-1]
        self.norm = transformer.encoder.ln
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Input of the last block, float [n, 1 + h · w, c], h = w → [n, h, w, m]."""
        n, t, c = tokens.shape
        side = int((t - 1) ** 0.5)
        attention = self.block.self_attention
        heads = attention.num_heads
        query, key, value = F.linear(
            self.block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias
        ).chunk(3, dim=-1)
        query, key, value = (x.reshape(n, -1, heads, c // heads) for x in (query, key, value))
        scores = torch.einsum("nhe,nthe->nth", query[:, 0], key) / (c // heads) ** 0.5
        gathered = (scores.softmax(dim=1)[..., None] * value).reshape(n, t, c)
        patches = F.linear(gathered[:, 1:], attention.out_proj.weight)
        # The class token's own: what it was, what it kept of itself, and the bias.
        own = tokens[:, 0] + attention.out_proj(gathered[:, 0])
        shares = patches + own[:, None] / (t - 1)
        shares = shares.reshape(n, side, side, c)
        within = _through(self.block.ln_2, shares)
        for layer in self.block.mlp:
            within = _through(layer, within)
        shares = _through(self.norm, shares + within)
        for layer in self.layers:
            shares = _through(layer, shares)
        return shares


class WithMaps(nn.Module):
    """A network that also gives away its last map: (embedding, map, that of the mirror image)."""

    def __init__(self, network: InferenceNetwork, where: LastMap) -> None:
        super().__init__()
        self.network = network
        self.where = where

    @property
    def names(self) -> list[str]:
        """Of the maps, as tensors of the graph."""
        return ["map", "mirrored_map"] if self.network.features.mirror else ["map"]

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Uint8 [n, 3, height, width] → those."""
        with _watched(self.network.backbone) as calls:
            embedding = self.network(pixels)
        once = len(calls) // len(self.names)
        maps = (_map_at(self.where, calls, run * once) for run in range(len(self.names)))
        return (embedding, *maps)


def find_shares(network: InferenceNetwork, pixels: Tensor) -> tuple[LastMap, nn.Module] | None:
    """The last map of a network in evaluation mode, and what makes shares of it.

    Args:
        network: the network.
        pixels: uint8 [n, 3, height, width], photos to watch it with.

    Returns:
        None if the embedding does not add up over the positions of any map that it looks at.
    """
    backbone = network.backbone
    after: list[nn.Module] = [network.features.power]
    if network.projection is not None:
        after.append(network.projection)
    with torch.inference_mode():
        with _watched(backbone) as calls:
            features = backbone(pixels)
        for where, backbone_shares in _candidates(backbone, calls):
            feature_map = _map_at(where, calls)
            if not _adds_up(backbone_shares, feature_map, features):
                continue
            if isinstance(backbone_shares, TokenShares):
                return where, TokenShares(backbone.network, after)
            layers = [*backbone_shares.layers, *after]
            return where, Shares(layers, pooled=backbone_shares.pooled)
    return None


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    given: Tensor
    gave: Tensor


@contextmanager
def _watched(network: nn.Module) -> Iterator[list[_Call]]:
    """The calls of modules without modules in them, and of transformer blocks, as they happen."""
    calls: list[_Call] = []

    def note(module: nn.Module, given: tuple[Any, ...], gave: Any) -> None:
        if given and isinstance(given[0], Tensor) and isinstance(gave, Tensor):
            calls.append(_Call(module, given[0], gave))

    watched = [
        module.register_forward_hook(note)
        for module in network.modules()
        if _is_block(module) or not any(True for _ in module.children())
    ]
    try:
        yield calls
    finally:
        for each in watched:
            each.remove()


def _is_block(module: nn.Module) -> bool:
    return type(module).__name__ == "EncoderBlock" and hasattr(module, "self_attention")


def _candidates(
    backbone: nn.Module, calls: Sequence[_Call]
) -> Iterator[tuple[LastMap, Shares | TokenShares]]:
    """Places where the map may be, from the end, with what would make shares of it."""
    blocks = [i for i, call in enumerate(calls) if _is_block(call.module)]
    if blocks:
        yield LastMap(blocks[-1], given=True), TokenShares(backbone.network, [])
        return
    layers: list[nn.Module] = []
    end = len(calls)
    while end and _is_vector(calls[end - 1]):
        end -= 1
        module = calls[end].module
        if isinstance(module, (nn.Linear, nn.LayerNorm, *GATES)):
            layers.insert(0, module)
        elif not isinstance(module, (*PASSIVE, nn.AdaptiveAvgPool2d)):
            break
    for call in range(min(end + 1, len(calls)) - 1, max(end - DEPTH, -1), -1):
        for given, tensor in ((False, calls[call].gave), (True, calls[call].given)):
            if tensor.ndim != 4:
                continue
            for rectified in (False, True):
                yield LastMap(call, given, rectified), Shares(layers, pooled=True)
                if layers and isinstance(layers[0], nn.Linear):
                    yield LastMap(call, given, rectified), Shares(layers, pooled=False)
            yield LastMap(call, given, channels_last=True), Shares(layers, pooled=True)


def _is_vector(call: _Call) -> bool:
    """Whether what a call gives has no positions."""
    return call.gave.ndim >= 2 and call.gave.shape[2:].numel() == 1


def _map_at(where: LastMap, calls: Sequence[_Call], start: int = 0) -> Tensor:
    call = calls[start + where.call]
    tensor = call.given if where.given else call.gave
    if where.rectified:
        tensor = tensor.relu()
    return tensor.movedim(-1, 1) if where.channels_last else tensor


def _adds_up(shares: nn.Module, feature_map: Tensor, features: Tensor) -> bool:
    if feature_map.ndim == 4 and feature_map.shape[2:].numel() == 1:
        return False  # one position explains nothing
    try:
        total = shares(feature_map).sum(dim=(1, 2))
    except RuntimeError:  # its shapes are others: not the map that these layers follow
        return False
    tolerance = 1e-4 * float(features.abs().max())
    return total.shape == features.shape and torch.allclose(
        total, features, rtol=1e-3, atol=tolerance
    )


def _through(layer: Any, shares: Tensor) -> Tensor:
    """Shares [n, h, w, k] of what goes into a layer → of what comes out."""
    positions = shares.shape[1] * shares.shape[2]
    if isinstance(layer, nn.Linear):
        out = F.linear(shares, layer.weight)
        return out if layer.bias is None else out + layer.bias / positions
    if isinstance(layer, PASSIVE):
        return shares
    total = shares.sum(dim=(1, 2), keepdim=True)
    if isinstance(layer, nn.LayerNorm):
        centred = shares - shares.mean(dim=-1, keepdim=True)
        deviation = (total.var(dim=-1, correction=0, keepdim=True) + layer.eps).sqrt()
        out = centred / deviation
        if layer.weight is not None:
            out = out * layer.weight
        return out if layer.bias is None else out + layer.bias / positions
    small = total.abs() < TINY
    after = layer(total.clone())  # some layers work in place
    factor = torch.where(small, 0.0, after / torch.where(small, 1.0, total))
    return shares * factor
