"""Evaluations as they run on a thread: of the gallery itself, or of an archive of labelled photos.

Each takes the open gallery first, as ``Engine.evaluate`` gives it. Nothing here knows HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index import Evaluation, Gallery
from index.errors import ImageError, InvalidArgumentError
from index.parallel import in_order
from index.photos import Photo
from service.archives import Archive, ArchiveError
from service.schemas import EvaluationRequest

__all__ = ["Judgement", "RankedBy", "Refused", "count_queries", "judge_archive", "judge_gallery"]

#: Called with (done, total, stage); what it raises stops the work.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Refused:
    """A photo of an archive that took no part."""

    file: str  #: its path there
    code: str
    detail: str


@dataclass(frozen=True)
class RankedBy:
    """An index, and the share of the 10 nearest items that it finds."""

    kind: str
    recall_at_10: float


@dataclass(frozen=True)
class Judgement:
    """An evaluation, and what the answer tells besides."""

    model_name: str
    model_sha256: str
    evaluation: Evaluation
    ranked_by: RankedBy | None  #: None for exact search
    photos: Sequence[str] = ()  #: paths of the queries, where they came from an archive
    refused: list[Refused] | None = None  #: None without an archive


def count_queries(gallery: Gallery, wanted: EvaluationRequest) -> int:
    """How many items of the gallery would be queries.

    Raises:
        FilterError: a filter that cannot be understood.
    """
    labelled = {"label": {"exists": True}}
    if wanted.query_where is None:
        return gallery.count(labelled)
    return gallery.count({**labelled, "any": [wanted.query_where]})


def judge_gallery(
    gallery: Gallery, wanted: EvaluationRequest, progress: Progress | None = None
) -> Judgement:
    """Evaluate a gallery on its own items.

    Raises:
        InvalidArgumentError, FilterError: as ``Gallery.evaluate``.
    """
    evaluation = gallery.evaluate(
        wanted.ks,
        query_where=wanted.query_where,
        gallery_where=wanted.gallery_where,
        exact=wanted.exact,
        clustering=wanted.clustering,
        per_class=wanted.per_class,
        hardest=wanted.hardest,
        confusion=wanted.confusion,
        progress=_ranking(progress),
    )
    return _judgement(gallery, evaluation, wanted.exact)


def judge_archive(
    gallery: Gallery,
    archive: Archive,
    photos: Sequence[Photo],
    wanted: EvaluationRequest,
    *,
    workers: int,
    progress: Progress | None = None,
) -> Judgement:
    """Evaluate a gallery on the labelled photos of an archive.

    Args:
        gallery: what they are looked up in.
        archive: what holds them.
        photos: as ``archive.photos`` gives them.
        wanted: ``query_where`` has no meaning here.
        workers: threads that decode and embed.
        progress: told of photos and then of queries.

    Raises:
        InvalidArgumentError: no photo that has a label can be used, and as
            ``Gallery.evaluate_photos``.
        FilterError: as there.
    """

    def embed(photo: Photo) -> Refused | NDArray[np.float32]:
        if photo.label is None:
            return Refused(
                photo.path,
                "label_missing",
                f"{photo.path} is in no folder that could be its label, and no list gives it one.",
            )
        try:
            pixels = gallery.model.prepare(archive.read(photo.path))
        except (ImageError, ArchiveError) as error:
            return Refused(photo.path, error.code, str(error))
        vector: NDArray[np.float32] = gallery.model.embed(pixels[None])[0]
        return vector

    used, vectors, refused = [], [], []
    with closing(in_order(embed, photos, workers)) as results:
        for done, (photo, result) in enumerate(zip(photos, results, strict=True), 1):
            if isinstance(result, Refused):
                refused.append(result)
            else:
                used.append(photo)
                vectors.append(result)
            if progress is not None:
                progress(done, len(photos), "embedding photos")
    if not used:
        raise InvalidArgumentError(
            f"none of the {len(photos)} photos of the zip can be used; the first: "
            f"{refused[0].detail}"
        )
    evaluation = gallery.evaluate_photos(
        np.stack(vectors),
        [str(photo.label) for photo in used],
        wanted.ks,
        gallery_where=wanted.gallery_where,
        exact=wanted.exact,
        clustering=wanted.clustering,
        per_class=wanted.per_class,
        hardest=wanted.hardest,
        confusion=wanted.confusion,
        progress=_ranking(progress),
    )
    paths = [photo.path for photo in used]
    return _judgement(gallery, evaluation, wanted.exact, photos=paths, refused=refused)


def _ranking(progress: Progress | None) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(done, total, "ranking")


def _judgement(
    gallery: Gallery,
    evaluation: Evaluation,
    exact: bool,
    *,
    photos: Sequence[str] = (),
    refused: list[Refused] | None = None,
) -> Judgement:
    return Judgement(
        model_name=gallery.model.card.name,
        model_sha256=gallery.model.sha256,
        evaluation=evaluation,
        ranked_by=None if exact else RankedBy(gallery.index_info().kind, gallery.measure_recall()),
        photos=photos,
        refused=refused,
    )
