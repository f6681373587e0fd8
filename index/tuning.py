"""``build_base``: from vectors to a base whose search is tuned to a promised recall.

Which index for which size and dimension, its training, and the search for the cheapest parameters
that reach the target. Recall is measured with the gallery's own vectors as queries, each left out
of its own results, and told of others than those that parameters were chosen on.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.approximate import (
    TUNED_K,
    ApproximateSegment,
    Base,
    RequestedKind,
    SearchParameters,
    check_kind,
    due_kind,
    stored_vectors,
)
from index.errors import InvalidArgumentError
from index.exact import FlatSegment, Ids, Vectors, exact_scores
from index.recall import neighbour_scores, recall

__all__ = ["Progress", "build_base", "retune"]

#: Called with the stage and the share 0 … 1 of the whole; what it raises stops the build.
Progress = Callable[[str, float], None]

#: Cells are 16√n, rounded to a power of two, but no more. With as many as there are groups of
#: similar vectors, the neighbours of a query lie in very few of them: 250,000 vectors in 2,500
#: groups took 64 of 1,024 cells to recall .95, and 2 of 4,096.
MOST_CELLS = 65_536

#: Vectors for each cell, at least: below some 60,000 vectors, cells are fewer.
LEAST_PER_CELL = 12

#: Cells from which a graph finds those nearest to a query, instead of comparing all centres.
GRAPH_CELLS = 2048
GRAPH_NEIGHBOURS = 32

#: How well it is built, and how hard it looks for the cell of a vector that is added. On a million
#: vectors with FAISS's own 40 and 16, a fifth came into another cell than the nearest, and a
#: search had to look into a hundred times as many.
GRAPH_CONSTRUCTION = 200
GRAPH_ADDING = 40

#: Steps of k-means over all cells, after that in two levels: near the borders of groups, vectors
#: that are alike lie in several cells.
REFINEMENTS = 2

#: Vectors per cell that the centres are trained on; more cost time and change little.
TRAINING_PER_CELL = 30
TRAINING_ROUNDS = 10

#: Dimensions per 4-bit code: fewer are finer and slower.
CODE_DIMS = 2

#: FAISS's fast-scan variant for queries that come one by one: a sixth faster than its choice.
SINGLE_QUERY_SCAN = 11

HNSW_NEIGHBOURS = 32

#: Rows added between two reports of progress.
ADD_BLOCK = 50_000

#: Queries that parameters are chosen on, and as many others that the recall is told of.
QUERIES = 200

REFINES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
EF_SEARCHES = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)

#: Queries and rounds that the cost of parameters is timed with.
TIMED_QUERIES = 40
TIMED_ROUNDS = 3

#: Where the chosen parameters miss the target on other queries, the bar is raised by these shares
#: of what is left to 1.
BARS = (0.0, 0.25, 0.5, 0.75, 0.9)

log = logging.getLogger(__name__)


def build_base(
    ids: Ids,
    vectors: Vectors,
    *,
    seq: int,
    kind: RequestedKind = "auto",
    target_recall: float = 0.99,
    progress: Progress | None = None,
) -> Base:
    """Choose an index for the size, train it and tune it. The same seeds, the same index.

    Where no parameters reach ``target_recall``, the base compares all vectors instead: its kind is
    then "flat" while ``planned`` names what was tried.

    Args:
        ids: int64 (n,), ascending.
        vectors: float32 (n, d), unit rows, d >= 1; kept, not copied, if contiguous.
        seq: the catalog's sequence number that this is the state of.
        kind: "auto" is exact up to 50,000 vectors, else "ivf"; "flat", "ivf" and "hnsw" as named,
            but exact below 1,000.
        target_recall: above 0, up to 1.
        progress: told of each stage.

    Raises:
        InvalidArgumentError: other shapes, ids not ascending, unknown kind, target out of range.
    """
    check_kind(kind)
    check_target(target_recall)
    ids, vectors = _checked(ids, vectors)
    told = _silent if progress is None else progress
    n, d = vectors.shape
    flat = Base(
        ids=ids,
        vectors=vectors,
        kind="flat",
        requested=kind,
        planned=due_kind(kind, n),
        ann=None,
        parameters=SearchParameters(),
        recall=1.0,
        target_recall=target_recall,
        seq=seq,
    )
    if flat.planned == "flat":
        told("done", 1.0)
        return flat
    if flat.planned == "ivf":
        ann = _train_ivf(vectors, told)
        _add(ann, vectors, 0.6, told)
        untuned = replace(flat, kind="ivf", ann=ann)
    else:
        graph = faiss.IndexHNSWFlat(d, HNSW_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        _add(graph, vectors, 0.0, told)
        # The graph needs vectors of its own; one copy is enough.
        untuned = replace(flat, kind="hnsw", ann=graph, vectors=stored_vectors(graph))
    tuned = retune(untuned, target_recall, progress=told)
    told("done", 1.0)
    return tuned


def retune(base: Base, target_recall: float, *, progress: Progress | None = None) -> Base:
    """The same base with parameters for another target; "flat" where none reach it.

    A base that compares all vectors stays as it is: to approximate again, build it anew.

    Raises:
        InvalidArgumentError: target out of range.
    """
    check_target(target_recall)
    if base.ann is None:
        return replace(base, target_recall=target_recall)
    told = _silent if progress is None else progress
    told("tuning", 0.9)
    chosen, others = _samples(base)
    trials = list(_trials(base, chosen, target_recall + BARS[-1] * (1 - target_recall)))
    measured = 0.0
    tried: set[SearchParameters] = set()
    for bar in BARS:
        parameters = _cheapest(base, trials, chosen, target_recall + bar * (1 - target_recall))
        if parameters is None or parameters in tried:
            continue
        tried.add(parameters)
        tuned = replace(base, parameters=parameters, target_recall=target_recall)
        measured = others.recalls(tuned, [parameters.refine])[0]
        if measured >= target_recall:
            return replace(tuned, recall=measured)
    log.warning(
        "no parameters of the %s index over %d vectors reach recall %g (%.4f was the last "
        "measured): all vectors are compared instead",
        base.kind,
        len(base.ids),
        target_recall,
        measured,
    )
    return replace(
        base,
        kind="flat",
        ann=None,
        vectors=base.vectors if base.kind == "ivf" else base.vectors.copy(),
        parameters=SearchParameters(),
        recall=1.0,
        target_recall=target_recall,
    )


@dataclass(frozen=True)
class _Sample:
    """Own vectors as queries, and what exact search finds for them."""

    own: Ids  #: rows of the base, (q,)
    vectors: Vectors  #: (q, d)
    right: Vectors  #: score of the k-th nearest other item, (q,)

    def recalls(self, base: Base, refines: Sequence[int]) -> list[float]:
        """recall@``TUNED_K`` with the parameters of ``base`` but each of these ``refine``."""
        fetches = [replace(base.parameters, refine=refine).fetch(TUNED_K) for refine in refines]
        segment = ApproximateSegment(base, None, len(base.ids))
        # One more, for the query finds itself.
        fetch = min(max(fetches) + 1, len(base.ids))
        rows, _ = segment.propose(self.vectors, fetch, base.parameters.effort)
        scores = exact_scores(self.vectors, base.vectors, rows)
        others = np.cumsum(rows != self.own[:, None], axis=1)
        return [
            recall(
                rows,
                np.where(others <= fetch, scores, -np.inf).astype(np.float32),
                own=self.own,
                right=self.right,
                k=TUNED_K,
            )
            for fetch in fetches
        ]


@dataclass(frozen=True)
class _Trial:
    """What one nprobe or ef_search reaches."""

    parameters: SearchParameters
    recalls: dict[int, float]  #: by refine


def _samples(base: Base) -> tuple[_Sample, _Sample]:
    """Queries to choose parameters on, and others to tell the recall of."""
    n = len(base.ids)
    drawn = np.random.default_rng(0).choice(n, 2 * min(QUERIES, n // 2), replace=False)
    exact = [FlatSegment(np.arange(n), base.vectors)]
    samples = []
    for own in np.split(drawn, 2):
        queries = base.vectors[own]
        right = neighbour_scores(exact, own, queries, TUNED_K)
        samples.append(_Sample(own=own, vectors=queries, right=right))
    return samples[0], samples[1]


def _trials(base: Base, sample: _Sample, enough: float) -> Iterator[_Trial]:
    """From the least effort to twice that which reaches ``enough`` recall, or all there is."""
    most = math.inf
    refines = REFINES if base.kind == "ivf" else (1,)
    for parameters in _efforts(base):
        if parameters.effort > most:
            return
        recalls = sample.recalls(replace(base, parameters=parameters), refines)
        yield _Trial(parameters, dict(zip(refines, recalls, strict=True)))
        if max(recalls) >= enough:
            most = min(most, 2 * parameters.effort)


def _efforts(base: Base) -> Iterator[SearchParameters]:
    assert base.ann is not None
    if base.kind == "hnsw":
        yield from (SearchParameters(ef_search=ef) for ef in EF_SEARCHES)
        return
    cells: int = base.ann.nlist
    steps = (step << shift for shift in range(32) for step in (4, 5, 6, 7))
    for nprobe in itertools.chain((1, 2, 3), itertools.takewhile(lambda step: step < cells, steps)):
        yield SearchParameters(nprobe=nprobe)
    yield SearchParameters(nprobe=cells)


def _cheapest(
    base: Base, trials: Sequence[_Trial], sample: _Sample, goal: float
) -> SearchParameters | None:
    """Those that reach ``goal`` on the sample and answer its queries, one by one, soonest."""
    rivals: list[SearchParameters] = []
    for trial in trials:  # by ascending effort, which pays only if fewer candidates do then
        refine = next((r for r, reached in trial.recalls.items() if reached >= goal), None)
        if refine is not None and (not rivals or refine < rivals[-1].refine):
            rivals.append(replace(trial.parameters, refine=refine))
    if len(rivals) <= 1:
        return rivals[0] if rivals else None
    segments = [
        ApproximateSegment(replace(base, parameters=rival), None, len(base.ids)) for rival in rivals
    ]
    queries = sample.vectors[:TIMED_QUERIES, None]
    seconds = np.empty((TIMED_ROUNDS, len(rivals)))
    for i, (j, segment) in itertools.product(range(TIMED_ROUNDS), enumerate(segments)):
        start = time.perf_counter()
        for query in queries:
            segment.search(query, TUNED_K)
        seconds[i, j] = time.perf_counter() - start
    return rivals[int(seconds.min(0).argmin())]


def _train_ivf(vectors: Vectors, progress: Progress) -> faiss.IndexIVFPQFastScan:
    """An empty "ivf" index: trained cells, and 4-bit codes of what sets vectors off from them."""
    progress("training", 0.0)
    n, d = vectors.shape
    cells = min(MOST_CELLS, 2 ** round(math.log2(min(16 * math.sqrt(n), n / LEAST_PER_CELL))))
    sample = min(n, TRAINING_PER_CELL * cells)
    rows = np.random.default_rng(0).choice(n, sample, replace=False)
    rows.sort()
    training = vectors[rows]
    quantizer = _searchable(_centres(training, cells))
    for step in range(REFINEMENTS):
        progress("training", 0.1 * (step + 1))
        quantizer = _searchable(_moved(quantizer, training))
    ann = faiss.IndexIVFPQFastScan(quantizer, d, cells, _codes(d), 4, faiss.METRIC_INNER_PRODUCT)
    ann.implem = SINGLE_QUERY_SCAN
    # For inner products the tables are those of the query alone, so residuals cost nothing.
    ann.by_residual = True
    progress("training", 0.3)
    ann.train(training)
    return ann


def _searchable(centres: Vectors) -> Any:
    """An index that finds the cells whose centres are nearest."""
    count, d = centres.shape
    if count < GRAPH_CELLS:
        flat = faiss.IndexFlatIP(d)
        flat.add(centres)
        return flat
    graph = faiss.IndexHNSWFlat(d, GRAPH_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = GRAPH_CONSTRUCTION
    graph.hnsw.efSearch = GRAPH_ADDING
    # One by one: threads would link them in an order that differs from time to time.
    for centre in centres:
        graph.add(centre[None])
    return graph


def _moved(quantizer: Any, vectors: Vectors) -> Vectors:
    """The centres, each moved amid the vectors that are nearest to it: a step of k-means."""
    # PyTorch, where FAISS was told of it, would make this a tensor.
    centres = np.asarray(quantizer.reconstruct_n(0, quantizer.ntotal))
    cells = quantizer.search(vectors, 1)[1][:, 0]
    order = np.argsort(cells, kind="stable")
    there, starts = np.unique(cells[order], return_index=True)
    sums = np.add.reduceat(vectors[order], starts, axis=0)
    centres[there] = sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(1e-12)
    return np.ascontiguousarray(centres)


def _centres(vectors: Vectors, count: int) -> Vectors:
    """Centres of cells by k-means on the sphere, float32 (count, d), in two levels.

    The vectors are parted into √count groups and each of them into its share of the cells, which
    takes a tenth of the time of parting them at once and finds neighbours as well.

    Args:
        vectors: float32 (n, d), unit rows, n >= count.
        count: how many.
    """
    groups = max(1, round(math.sqrt(count)))
    _, assigned = _k_means(vectors, groups)
    order = np.argsort(assigned, kind="stable")
    ends = np.cumsum(np.bincount(assigned, minlength=groups))
    shares = np.diff(ends * count // len(vectors), prepend=0)  # none more than its group has
    centres = [
        _k_means(vectors[part], share)[0]
        for part, share in zip(np.split(order, ends[:-1]), shares.tolist(), strict=True)
        if share
    ]
    return np.concatenate(centres)


def _k_means(vectors: Vectors, count: int) -> tuple[Vectors, NDArray[np.int64]]:
    """Centres (count, d) of unit length, and which of them is nearest to each vector (n,)."""
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        count,
        niter=TRAINING_ROUNDS,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=2000,
    )
    kmeans.train(vectors)
    _, nearest = kmeans.index.search(vectors, 1)
    assert kmeans.centroids is not None
    return kmeans.centroids, nearest[:, 0]


def _codes(d: int) -> int:
    """How many codes a vector gets; FAISS wants a divisor of d."""
    return next(d // dims for dims in (CODE_DIMS, CODE_DIMS + 1, 1) if d % dims == 0)


def _add(ann: Any, vectors: Vectors, start: float, progress: Progress) -> None:
    """Add all vectors, telling progress from ``start`` to 0.9."""
    for first in range(0, len(vectors), ADD_BLOCK):
        progress("adding", start + (0.9 - start) * first / len(vectors))
        ann.add(vectors[first : first + ADD_BLOCK])


def _silent(stage: str, share: float) -> None:
    pass


def check_target(target_recall: float) -> None:
    if not 0 < target_recall <= 1:
        raise InvalidArgumentError(
            f"target recall is {target_recall}: expected above 0 and up to 1, such as 0.99."
        )


def _checked(ids: Ids, vectors: Vectors) -> tuple[Ids, Vectors]:
    ids = np.ascontiguousarray(ids, np.int64)
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or vectors.shape[1] == 0 or ids.shape != (len(vectors),):
        raise InvalidArgumentError(
            f"ids have shape {list(ids.shape)} and vectors {list(vectors.shape)}: expected [n] and "
            "[n, d]."
        )
    if np.any(np.diff(ids) <= 0):
        raise InvalidArgumentError("ids must ascend, each once: sort items by id.")
    return ids, vectors
