"""The base of an index: vectors that do not change, and a FAISS index over them for large n.

FAISS only proposes candidates; they are ranked by exact scores from the vectors themselves, which
are stored once. An index that is searched never changes (adding under a search crashes FAISS), and
parameters travel with each call, never through the index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import faiss
import numpy as np
from numpy.typing import NDArray

from index.errors import InvalidArgumentError
from index.exact import Ids, Vectors, exact_scores, nearest_rows, rank

__all__ = [
    "EXACT_LIMIT",
    "TUNED_K",
    "ApproximateSegment",
    "Base",
    "Kind",
    "RequestedKind",
    "SearchParameters",
    "check_kind",
    "due_kind",
    "stored_vectors",
]

Kind = Literal["flat", "ivf", "hnsw"]
RequestedKind = Literal["auto", "flat", "ivf", "hnsw"]

#: Vectors up to which comparing them all is fast enough.
EXACT_LIMIT = 50_000

#: Vectors below which approximate kinds asked for by hand are exact too: too few to train on.
APPROXIMATE_LEAST = 1000

#: The k for which parameters are tuned and recall is promised.
TUNED_K = 10

#: Candidates beyond those asked for, so that a tie across the k-th place shows.
SLACK = 8

#: efSearch, at least, of the graph that finds the cells of an "ivf" index.
CELL_EFFORT_LEAST = 32

#: How a search for more neighbours, or among fewer items, widens: see ``widening``.
WIDENING = 0.5


@dataclass(frozen=True)
class SearchParameters:
    """How hard an approximate search looks."""

    nprobe: int | None = None  #: cells of an "ivf" index that are scanned for ``TUNED_K`` results
    ef_search: int | None = None  #: size of the candidate list of an "hnsw" index
    refine: int = 1  #: how many × k candidates are scored exactly

    def fetch(self, k: int) -> int:
        """How many candidates to score exactly for k results."""
        return self.refine * max(k, TUNED_K) + SLACK

    @property
    def effort(self) -> int:
        """``nprobe`` or ``ef_search``, whichever is set."""
        return self.nprobe or self.ef_search or 0


def widening(kind: Kind, k: int, share: float) -> float:
    """Factor to the effort of a search for k results among a ``share`` of the items.

    The k nearest of a random share of the items are spread as the k / share nearest of all. In an
    "hnsw" index the others take their places in the candidate list, too.
    """
    if kind == "hnsw":
        return math.pow(max(1.0, k / TUNED_K), WIDENING) / share
    return math.pow(max(1.0, k / share / TUNED_K), WIDENING)


@dataclass(frozen=True, kw_only=True)
class Base:
    """Vectors with an index over them. Nothing in it changes."""

    ids: Ids  #: (n,), ascending
    vectors: Vectors  #: (n, d), unit rows, contiguous; may be memory-mapped
    kind: Kind  #: what serves: "flat" where approximate search missed the target
    requested: RequestedKind
    planned: Kind  #: what was due for the size
    ann: Any | None  #: FAISS index over the rows; None for "flat"
    parameters: SearchParameters
    recall: float  #: recall@``TUNED_K`` measured on own vectors; 1.0 where all are compared
    target_recall: float
    seq: int  #: the catalog's sequence number that this is the state of


def check_kind(kind: str) -> None:
    """Raises InvalidArgumentError unless ``kind`` is a ``RequestedKind``."""
    if kind not in get_args(RequestedKind):
        raise InvalidArgumentError(
            f"index kind is {kind!r}: expected one of {', '.join(get_args(RequestedKind))}."
        )


def due_kind(requested: RequestedKind, n: int, current: Kind = "flat") -> Kind:
    """The kind of index for n vectors.

    Args:
        requested: "auto" chooses by size.
        n: how many vectors.
        current: the kind that there is; around the limit it stays, lest it change at every turn.
    """
    if requested == "auto":
        limit = EXACT_LIMIT if current == "flat" else EXACT_LIMIT * 4 // 5
        return "ivf" if n > limit else "flat"
    return requested if n >= APPROXIMATE_LEAST else "flat"


def stored_vectors(ann: faiss.IndexHNSWFlat) -> Vectors:
    """The vectors float32 (n, d) that an "hnsw" index holds: its own memory, not a copy."""
    storage: Any = faiss.downcast_index(ann.storage)
    view = faiss.rev_swig_ptr(storage.get_xb(), ann.ntotal * ann.d).reshape(ann.ntotal, ann.d)
    view.flags.writeable = False
    return np.asarray(_Owned(view, ann))


class _Owned:
    """Memory of another object as an array, which keeps that object alive."""

    def __init__(self, view: Vectors, owner: object) -> None:
        self.__array_interface__ = view.__array_interface__
        self._owner = owner


class ApproximateSegment:
    """The rows of a base that are allowed, found through its FAISS index.

    Scores are exact, the choice of candidates is not. Where candidates are too few, or ties may
    have been cut off, the search widens and in the end compares all rows.
    """

    def __init__(self, base: Base, allowed: NDArray[np.uint8] | None, count: int) -> None:
        """Make rows searchable.

        Args:
            base: of kind "ivf" or "hnsw".
            allowed: a bit for each row, lowest bit first; None allows all.
            count: how many bits are set.
        """
        assert base.ann is not None
        self._base = base
        self._ann = base.ann
        self._count = count
        self._share = count / len(base.ids) if allowed is not None else 1.0
        self._allowed = allowed
        self._selector = None
        if allowed is not None:
            # The selector points into the array: the two live and die with this object.
            self._selector = faiss.IDSelectorBitmap(len(base.ids), faiss.swig_ptr(allowed))
        self._parameters: dict[int, faiss.SearchParameters] = {}

    def __len__(self) -> int:
        return self._count

    def search(self, queries: Vectors, k: int) -> tuple[Ids, Vectors]:
        """See ``Segment``."""
        parameters = self._base.parameters
        effort = math.ceil(parameters.effort * widening(self._base.kind, k, self._share))
        rows, scores = self._search(queries, k, parameters.fetch(k), effort)
        return self._base.ids[rows], scores

    def propose(self, queries: Vectors, fetch: int, effort: int) -> tuple[Ids, Vectors]:
        """What FAISS finds.

        Args:
            queries: float32 (q, d), contiguous.
            fetch: how many candidates.
            effort: nprobe or efSearch; more than there can be is all.

        Returns:
            rows int64 (q, fetch) and FAISS's own scores of them, best first; row -1 where there
            is none.
        """
        rows = np.empty((len(queries), fetch), np.int64)
        coarse = np.empty((len(queries), fetch), np.float32)
        # `search_c` is the method beneath `search`, which pytorch-metric-learning, where it is
        # imported, has FAISS replace by one that takes no parameters.
        self._ann.search_c(
            len(queries),
            faiss.swig_ptr(queries),
            fetch,
            faiss.swig_ptr(coarse),
            faiss.swig_ptr(rows),
            self._faiss_parameters(effort, fetch),
        )
        return rows, coarse

    def _search(self, queries: Vectors, k: int, fetch: int, effort: int) -> tuple[Ids, Vectors]:
        if 2 * fetch >= self._count:
            return nearest_rows(queries, self._base.vectors, k, self._forbidden())
        candidates, coarse = self.propose(queries, fetch, effort)
        exact = exact_scores(queries, self._base.vectors, candidates)
        best = rank(candidates, exact, k)
        rows, scores = candidates[best], exact[best]
        # Equal vectors have equal coarse scores. So if the k-th result's is that of the last
        # candidate, vectors equal to it may have been cut off, with lower ids.
        unsure = (coarse[best][:, -1] <= coarse[:, -1]) | (rows[:, -1] < 0)
        if unsure.any():
            # Where there is no k-th result, more candidates take more effort.
            more = 4 * effort if (rows[:, -1] < 0).any() else effort
            rows[unsure], scores[unsure] = self._search(queries[unsure], k, 4 * fetch, more)
        return rows, scores

    def _faiss_parameters(self, effort: int, fetch: int) -> faiss.SearchParameters:
        ivf = self._base.kind == "ivf"
        effort = min(effort, self._ann.nlist) if ivf else max(effort, fetch)
        parameters = self._parameters.get(effort)
        if parameters is None:
            if ivf:
                parameters = self._ivf_parameters(effort)
            else:
                parameters = faiss.SearchParametersHNSW(  # type: ignore[attr-defined]
                    efSearch=effort, sel=self._selector
                )
            self._parameters[effort] = parameters
        return parameters

    def _ivf_parameters(self, nprobe: int) -> faiss.SearchParameters:
        options = {"nprobe": nprobe, "sel": self._selector}
        if isinstance(faiss.downcast_index(self._ann.quantizer), faiss.IndexHNSW):
            # The graph of the cells' centres, too, finds some and not others.
            options["quantizer_params"] = faiss.SearchParametersHNSW(  # type: ignore[attr-defined]
                efSearch=max(CELL_EFFORT_LEAST, 2 * nprobe)
            )
        return faiss.SearchParametersIVF(**options)

    def _forbidden(self) -> Ids:
        if self._allowed is None:
            return np.empty(0, np.int64)
        bits = np.unpackbits(self._allowed, count=len(self._base.ids), bitorder="little")
        return np.flatnonzero(bits == 0)
