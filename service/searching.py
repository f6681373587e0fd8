"""Searches as they run on a thread: decode → embed → search → look up, in one hop.

Each takes the open gallery first, as ``Engine.photo`` gives it. Nothing here knows HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from index import Gallery, Item
from index.errors import ImageError, ItemNotFoundError
from index.results import MAX_K, check_offset
from service.metrics import Stage
from service.search_parameters import SearchOptions

__all__ = [
    "Found",
    "Neighbour",
    "search_photo",
    "search_photo_or_refuse",
    "search_similar",
    "search_vector",
]

#: Times a search starts over because a writer removed one of its results meanwhile.
SEARCH_RETRIES = 3

#: Ids and scores, best first: int64 (k,) and float32 (k,).
Ranked = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True)
class Neighbour:
    """An item near a query. ``score`` is their cosine similarity in [−1, 1]."""

    item: Item
    score: float
    vector: NDArray[np.float32] | None  #: float32 (d,), if it was asked for


@dataclass
class Found:
    """What a search found, by which model, and how many seconds its stages took."""

    model_name: str
    model_sha256: str
    neighbours: list[Neighbour] = field(default_factory=list)  #: nearest first, ties by id
    refused: ImageError | None = None  #: why the photo could not be used
    seconds: dict[Stage, float] = field(default_factory=dict)

    @classmethod
    def by(cls, gallery: Gallery) -> Found:
        """Nothing yet."""
        return cls(gallery.model.card.name, gallery.model.sha256)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Notes how long what is done inside takes."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


def search_photo(gallery: Gallery, photo: bytes, options: SearchOptions) -> Found:
    """The items nearest to an encoded photo.

    Raises:
        ImageError: the photo cannot be used.
        InvalidArgumentError, FilterError: as ``Gallery.search``.
    """
    found = Found.by(gallery)
    with found.timed("decode"):
        pixels = gallery.model.prepare(photo)
    with found.timed("embed"):
        query = gallery.model.embed(pixels[None])
    _search(gallery, query, options, found)
    return found


def search_photo_or_refuse(gallery: Gallery, photo: bytes, options: SearchOptions) -> Found:
    """As ``search_photo``, but a photo that cannot be used is ``refused``, not raised."""
    try:
        return search_photo(gallery, photo, options)
    except ImageError as error:
        refused = Found.by(gallery)
        refused.refused = error
        return refused


def search_vector(gallery: Gallery, vector: Sequence[float], options: SearchOptions) -> Found:
    """The items nearest to an embedding.

    Raises:
        InvalidArgumentError: it has another length than the gallery's vectors, or is not unit.
        FilterError: as ``Gallery.search``.
    """
    found = Found.by(gallery)
    with np.errstate(over="ignore"):  # what is too large for float32 is refused as not unit
        query = np.array([vector], np.float64).astype(np.float32)
    _search(gallery, query, options, found)
    return found


def search_similar(gallery: Gallery, item_id: int, options: SearchOptions) -> Found:
    """The items nearest to an item of the gallery, itself left out.

    Raises:
        ItemNotFoundError: no such item.
        InvalidArgumentError, FilterError: as ``Gallery.search``.
    """
    check_offset(options.offset, options.k)
    query = gallery.vectors([item_id])
    found = Found.by(gallery)
    if options.group_by is not None:
        # It must not stand for its group either, so the search itself has to pass it over.
        others = {"id": {"ne": item_id}}
        where = others if options.where is None else {**others, "any": [options.where]}

        def ranked() -> Ranked:
            return gallery.search(
                query,
                options.k,
                where=where,
                threshold=options.threshold,
                group_by=options.group_by,
                offset=options.offset,
            ).row(0)
    else:
        # Far cheaper than a filter of all other items: one more, and then without it.
        reach = min(options.offset + options.k + 1, MAX_K)

        def ranked() -> Ranked:
            ids, scores = gallery.search(
                query, reach, where=options.where, threshold=options.threshold
            ).row(0)
            kept = np.flatnonzero(ids != item_id)[options.offset :][: options.k]
            return ids[kept], scores[kept]

    with found.timed("search"):
        found.neighbours = _looked_up(gallery, ranked, options)
    return found


def _search(
    gallery: Gallery, query: NDArray[np.float32], options: SearchOptions, found: Found
) -> None:
    def ranked() -> Ranked:
        return gallery.search(
            query,
            options.k,
            where=options.where,
            threshold=options.threshold,
            group_by=options.group_by,
            offset=options.offset,
        ).row(0)

    with found.timed("search"):
        found.neighbours = _looked_up(gallery, ranked, options)


def _looked_up(
    gallery: Gallery, ranked: Callable[[], Ranked], options: SearchOptions
) -> list[Neighbour]:
    """The items of a ranking. A writer may remove one before it is looked up: then once more."""
    with_vectors = "vector" in options.include
    for _ in range(SEARCH_RETRIES):
        ids, scores = ranked()
        with suppress(ItemNotFoundError):
            return _neighbours(gallery, ids.tolist(), scores.tolist(), with_vectors)
    ids, scores = ranked()
    there = []
    for item_id, score in zip(ids.tolist(), scores.tolist(), strict=True):
        with suppress(ItemNotFoundError):
            there += _neighbours(gallery, [item_id], [score], with_vectors)
    return there


def _neighbours(
    gallery: Gallery, ids: list[int], scores: list[float], with_vectors: bool
) -> list[Neighbour]:
    items = gallery.get(ids)
    vectors = list(gallery.vectors(ids)) if with_vectors else [None] * len(ids)
    return [
        Neighbour(item, score, vector)
        for item, score, vector in zip(items, scores, vectors, strict=True)
    ]
