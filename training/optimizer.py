"""Which parameters learn at which rate and with which weight decay."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn

from index.errors import InvalidArgumentError
from training.network import EmbeddingNetwork

__all__ = ["parameter_groups"]


def parameter_groups(
    network: EmbeddingNetwork,
    *,
    lr: float,
    backbone_lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """The trainable parameters as an optimizer of torch takes them, each in exactly one group.

    The head learns at ``lr``, block i of the backbone's L blocks at backbone_lr ·
    layer_decay^(L−1−i): blocks near the photo, which hold what is common to all photos, change
    least (layer-wise learning-rate decay: Clark et al., "ELECTRA", ICLR 2020, appendix B; for
    vision Bao et al., "BEiT", ICLR 2022). Biases, normalisation, position
    embeddings and class tokens do not decay.

    Args:
        network: backbone and head; frozen parameters are left out.
        lr: of the head.
        backbone_lr: of the backbone's last block.
        weight_decay: of all that decays.
        layer_decay: factor of the rate from a block to the one before it, in (0, 1]; 1: all the
            same.

    Returns:
        Dictionaries with ``params``, ``lr`` and ``weight_decay``, from the head to the photo.

    Raises:
        InvalidArgumentError: ``layer_decay`` out of range.
    """
    if not 0 < layer_decay <= 1:
        raise InvalidArgumentError(
            f"--layer-decay is {layer_decay}: expected a factor above 0 and up to 1 (1: all blocks "
            "of the backbone learn at the same rate; 0.65 to 0.9 is usual for transformers)."
        )
    backbone = network.backbone
    undecayed = {id(parameter) for parameter in backbone.undecayed()}
    undecayed |= {id(parameter) for parameter in network.head.parameters() if parameter.ndim <= 1}

    head = [parameter for parameter in network.head.parameters() if parameter.requires_grad]
    rated = [("head", lr, head)]
    for steps, block in enumerate(reversed(backbone.layers())):
        rated.append(("backbone", backbone_lr * layer_decay**steps, block))

    # Blocks of one rate share their groups: optimizers step through few large groups faster.
    groups: defaultdict[tuple[str, float, float], list[nn.Parameter]] = defaultdict(list)
    for part, rate, parameters in rated:
        for parameter in parameters:
            decay = 0.0 if id(parameter) in undecayed else weight_decay
            groups[part, rate, decay].append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (_, rate, decay), parameters in groups.items()
    ]
