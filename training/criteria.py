"""What training minimises: DSCL, one of its peers, or a weighted sum, made from an expression.

The peers are those of pytorch-metric-learning; a function for each says how its paper sets it up.
Names, hyper-parameters and the grammar of expressions are in ``training.loss_expression``, DSCL
itself in ``training.losses``. Nothing here knows images, networks or optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from training.distributed import World
from training.loss_expression import Term, format_loss, parse_loss
from training.losses import BatchStatistics, DeepSpectralClusteringLoss

__all__ = ["Criterion", "build_criterion"]

Pairs = tuple[Tensor, ...]  #: indices (anchor, positive, negative) or (a, positive, a, negative)
Miner = Callable[[Tensor, Tensor], Pairs]


def build_criterion(expression: str, *, dim: int, classes: int, ridge: float) -> Criterion:
    """Make the loss that ``expression`` names, such as ``dscl`` or ``dscl+0.2*multi-similarity``.

    Proxies are drawn from torch's random generator, in the order of the terms.

    Args:
        expression: see ``training.loss_expression``.
        dim: d, dimensions of the embedding.
        classes: c, number of training classes; a batch may hold some of them only.
        ridge: of DSCL.

    Raises:
        InvalidArgumentError: an expression that cannot be read, or a ridge out of range.
    """
    terms = parse_loss(expression)
    return Criterion(terms, [_build(term, dim, classes, ridge) for term in terms])


class Criterion(nn.Module):
    """A loss over a whole logical batch: a weighted sum of DSCL and its peers.

    ``parameters()`` are the proxies, if there are any. Everything is computed outside of autocast:
    DSCL in float64, the others in their proxies' dtype, or at least float32.
    """

    def __init__(
        self, terms: Sequence[Term], losses: Sequence[nn.Module], world: World | None = None
    ) -> None:
        """Sum ``losses`` with the weights of ``terms``; usually called by ``build_criterion``."""
        super().__init__()
        self.terms = tuple(terms)
        self.losses = nn.ModuleList(losses)
        self.world = world or World()

    @property
    def expression(self) -> str:
        """The canonical expression, from which ``build_criterion`` makes the same loss."""
        return format_loss(self.terms)

    def over(self, world: World) -> Criterion:
        """The same loss, with the same proxies, over a batch that the processes of ``world`` share.

        Each process passes its own rows and gets the loss of the whole batch, with its gradient for
        these rows. The gradient of a network's parameters is then the sum over the processes, and
        that of the proxies the same in each, up to rounding on a GPU:

            world.sum_gradients(network.parameters())
            world.average_gradients(criterion.parameters())

        DSCL sends d × d + c × d numbers, its peers all embeddings.
        """
        return Criterion(self.terms, list(self.losses), world)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Score a batch.

        Args:
            embeddings: floating point [n, d].
            labels: int64 [n] in 0 … c − 1.

        Returns:
            Scalar, float32 or float64.

        Raises:
            InvalidArgumentError: from DSCL, for a batch that it cannot learn from.
            NonFiniteEmbeddingsError: from DSCL, for embeddings with NaN or infinity.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            value = torch.zeros((), device=embeddings.device)
            for term, loss in zip(self.terms, self.losses, strict=True):
                value = value + term.weight * loss(embeddings, labels, self.world)
        return value

    def random_level(self, n: int, d: int, classes: int) -> float | None:
        """The value that embeddings without any information score; None unless DSCL stands alone.

        Args:
            n: images in the batch, over all processes.
            d: embedding dimensions.
            classes: different labels in the batch.

        Raises:
            InvalidArgumentError: n too small for DSCL.
        """
        if len(self.terms) > 1 or not isinstance(self.losses[0], _Spectral):
            return None
        return self.terms[0].weight * self.losses[0].loss.random_level(n, d, classes)

    def extra_repr(self) -> str:
        """Show the expression in ``repr``."""
        return self.expression


class _Spectral(nn.Module):
    """DSCL over the processes of a world, by summing what it needs to know of the batch."""

    def __init__(self, loss: DeepSpectralClusteringLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, embeddings: Tensor, labels: Tensor, world: World) -> Tensor:
        def reduce(statistics: BatchStatistics) -> BatchStatistics:
            world.sum_([statistics.gram, statistics.class_sums, statistics.class_counts])
            return statistics

        classes = torch.unique(world.gather(labels))
        value: Tensor = self.loss(embeddings, labels, classes=classes, reduce=reduce)
        return value


class _Peer(nn.Module):
    """A loss of pytorch-metric-learning with its miner, over the gathered batch of a world."""

    def __init__(self, loss: nn.Module, mine: Miner | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.mine = mine

    def forward(self, embeddings: Tensor, labels: Tensor, world: World) -> Tensor:
        embeddings, labels = world.gather(embeddings), world.gather(labels)
        # The library would change the dtype of its proxies to that of the embeddings.
        proxies = next(self.loss.parameters(), None)
        if proxies is not None:
            embeddings = embeddings.to(proxies.dtype)
        else:
            embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        mined = None if self.mine is None else self.mine(embeddings.detach(), labels)
        value: Tensor = self.loss(embeddings, labels, mined)
        return value


def _build(term: Term, dim: int, classes: int, ridge: float) -> nn.Module:
    values = term.parameters
    match term.name:
        case "dscl":
            return _Spectral(DeepSpectralClusteringLoss(ridge=ridge))
        case "proxy-anchor":
            return _proxy_anchor(dim, classes, margin=values["margin"], alpha=values["alpha"])
        case "proxy-nca":
            return _proxy_nca(dim, classes, scale=values["scale"])
        case "multi-similarity":
            return _multi_similarity(
                alpha=values["alpha"],
                beta=values["beta"],
                base=values["base"],
                epsilon=values["epsilon"],
            )
        case "triplet":
            return _triplet(margin=values["margin"])
        case "arcface":
            return _arcface(dim, classes, margin=values["margin"], scale=values["scale"])
        case "normalized-softmax":
            return _normalized_softmax(dim, classes, temperature=values["temperature"])
        case "soft-triple":
            return _soft_triple(
                dim,
                classes,
                centers=int(values["centers"]),
                scale=values["scale"],
                gamma=values["gamma"],
                margin=values["margin"],
                tau=values["tau"],
            )
        case "contrastive":
            return _contrastive(pos_margin=values["pos_margin"], neg_margin=values["neg_margin"])
        case "circle":
            return _circle(margin=values["margin"], gamma=values["gamma"])
        case "supcon":
            return _supcon(temperature=values["temperature"])
    raise AssertionError(f"{term.name} is in LOSSES, but nothing builds it")


# The library takes most of a second to import, and many runs never need it.


def _proxy_anchor(dim: int, classes: int, *, margin: float, alpha: float) -> _Peer:
    """Kim et al. (CVPR 2020)."""
    from pytorch_metric_learning.losses import ProxyAnchorLoss

    return _Peer(ProxyAnchorLoss(classes, dim, margin=margin, alpha=alpha))


def _proxy_nca(dim: int, classes: int, *, scale: float) -> _Peer:
    """Movshovitz-Attias et al. (ICCV 2017) as a softmax over all proxies (Teh et al., ECCV 2020).

    Squared distances between unit vectors.
    """
    from pytorch_metric_learning.losses import ProxyNCALoss

    return _Peer(ProxyNCALoss(classes, dim, softmax_scale=scale))


def _multi_similarity(*, alpha: float, beta: float, base: float, epsilon: float) -> _Peer:
    """Wang et al. (CVPR 2019): pairs that violate a neighbour by ``epsilon``, softly weighted."""
    from pytorch_metric_learning.losses import MultiSimilarityLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    return _Peer(
        MultiSimilarityLoss(alpha=alpha, beta=beta, base=base), MultiSimilarityMiner(epsilon)
    )


def _triplet(*, margin: float) -> _Peer:
    """Schroff et al. (CVPR 2015): squared distances of unit vectors, all semi-hard triplets."""
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss

    distance = LpDistance(power=2)
    return _Peer(
        TripletMarginLoss(margin=margin, distance=distance),
        lambda embeddings, labels: _semihard(distance(embeddings), labels, margin),
    )


def _arcface(dim: int, classes: int, *, margin: float, scale: float) -> _Peer:
    """Deng et al. (CVPR 2019); ``margin`` in degrees."""
    from pytorch_metric_learning.losses import ArcFaceLoss

    return _Peer(ArcFaceLoss(classes, dim, margin=margin, scale=scale))


def _normalized_softmax(dim: int, classes: int, *, temperature: float) -> _Peer:
    """Zhai and Wu (BMVC 2019): cross entropy of cosines."""
    from pytorch_metric_learning.losses import NormalizedSoftmaxLoss

    return _Peer(NormalizedSoftmaxLoss(classes, dim, temperature=temperature))


def _soft_triple(
    dim: int,
    classes: int,
    *,
    centers: int,
    scale: float,
    gamma: float,
    margin: float,
    tau: float,
) -> _Peer:
    """Qian et al. (ICCV 2019); ``tau`` draws the centers of a class together."""
    from pytorch_metric_learning.losses import SoftTripleLoss
    from pytorch_metric_learning.regularizers import SparseCentersRegularizer

    return _Peer(
        SoftTripleLoss(
            classes,
            dim,
            centers_per_class=centers,
            la=scale,
            gamma=gamma,
            margin=margin,
            # It compares all centers with all others, which nobody should pay for at tau = 0.
            weight_regularizer=SparseCentersRegularizer(classes, centers) if tau else None,
            weight_reg_weight=tau,
        )
    )


def _contrastive(*, pos_margin: float, neg_margin: float) -> _Peer:
    """Hadsell et al. (CVPR 2006), with hinges that are not squared; all pairs."""
    from pytorch_metric_learning.losses import ContrastiveLoss

    return _Peer(ContrastiveLoss(pos_margin=pos_margin, neg_margin=neg_margin))


def _circle(*, margin: float, gamma: float) -> _Peer:
    """Sun et al. (CVPR 2020); all pairs."""
    from pytorch_metric_learning.losses import CircleLoss

    return _Peer(CircleLoss(m=margin, gamma=gamma))


def _supcon(*, temperature: float) -> _Peer:
    """Khosla et al. (NeurIPS 2020), the sum outside of the logarithm; all pairs."""
    from pytorch_metric_learning.losses import SupConLoss

    return _Peer(SupConLoss(temperature=temperature))


def _semihard(distances: Tensor, labels: Tensor, margin: float) -> Pairs:
    """All triplets whose negative is farther than the positive, by at most ``margin``.

    As ``TripletMarginMiner`` of pytorch-metric-learning finds them, but that one asks for n³ bytes:
    half a gigabyte for 784 images, and twice as much for 1,024.

    Args:
        distances: floating point [n, n].
        labels: int64 [n].

    Returns:
        Indices of anchors, positives and negatives, int64 [t] each.
    """
    same = labels[:, None] == labels
    anchors, positives = torch.where(same & ~torch.eye(len(labels), dtype=torch.bool).to(same))
    found: list[Pairs] = []
    rows = max(1, 2**22 // max(1, len(labels)))  # pairs × n at a time
    for a, p in zip(anchors.split(rows), positives.split(rows), strict=True):
        farther = distances[a] - distances[a, p][:, None]
        pair, negatives = torch.where((farther > 0) & (farther <= margin) & ~same[a])
        found.append((a[pair], p[pair], negatives))
    return tuple(torch.cat(part) for part in zip(*found, strict=True))
