"""``/evaluate``: recall@K and its companions, of the gallery or of photos that are sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, File, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse

from index import Gallery
from index.evaluation import (
    MAX_CONFUSION,
    MAX_HARDEST,
    Confusion,
    HardQuery,
    JudgedNeighbour,
)
from index.photos import Photo
from service import schemas
from service.archives import Archive, ArchiveLimits, detached
from service.dependencies import EngineDep
from service.engine import Engine
from service.errors import problems
from service.evaluating import Judgement, count_queries, judge_archive, judge_gallery
from service.jobs import JobCancelledError, Progress
from service.routes.item_paths import thumbnail_url
from service.schemas import EvaluationRequest, EvaluationResponse, Job, ModelReference
from service.schemas.evaluate import Ks
from service.security import require
from service.where import WhereDep

__all__ = ["router"]

router = APIRouter(prefix="/evaluate", tags=["evaluation"], dependencies=[Depends(require("read"))])

#: What is answered at once; more becomes a job.
INLINE_QUERIES = 20_000
INLINE_PHOTOS = 200

#: Photos that took no part, of those that an answer lists.
LISTED = 1000

#: An evaluation, told how far it is if anybody wants to know.
Judge = Callable[[Gallery, Progress | None], Judgement]

RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {
        "model": Job,
        "description": "It is large, or `background` was set: a job does it, and what is described "
        "for 200 will be its `result`.",
    },
    **problems(413, 422, 503),
}


@router.get(
    "",
    operation_id="evaluate_default",
    response_model=EvaluationResponse,
    responses=RESPONSES,
)
async def evaluate_default(request: Request, engine: EngineDep) -> EvaluationResponse | Response:
    """Measure recall@1, 2, 4 and 8 of the gallery as it is now.

    The same as `POST /evaluate` without a body.
    """
    return await _evaluate(request, engine, EvaluationRequest())


@router.post("", operation_id="evaluate", response_model=EvaluationResponse, responses=RESPONSES)
async def evaluate(
    request: Request, engine: EngineDep, wanted: EvaluationRequest | None = None
) -> EvaluationResponse | Response:
    """Measure recall@K of the gallery as it is now.

    Unless filters say otherwise every labelled item is a query against all other labelled items.
    The body is optional. Evaluations run one after another; each costs seconds of a core for 10,000
    items, and four times that for twice as many. One of more than 20,000 queries becomes a job.
    """
    return await _evaluate(request, engine, wanted or EvaluationRequest())


@router.post(
    "/upload",
    operation_id="evaluate_upload",
    response_model=EvaluationResponse,
    responses=RESPONSES,
)
async def evaluate_upload(
    request: Request,
    engine: EngineDep,
    where: WhereDep,
    file: Annotated[UploadFile, File(description="A zip of labelled photos.")],
    ks: Annotated[Ks, Query()] = [1, 2, 4, 8],  # noqa: B006  FastAPI makes a copy for each request
    exact: Annotated[bool, Query(description="See `POST /evaluate`, as for all below.")] = True,
    per_class: bool = False,
    hardest: Annotated[int, Query(ge=0, le=MAX_HARDEST)] = 0,
    confusion: Annotated[int, Query(ge=0, le=MAX_CONFUSION)] = 0,
    clustering: bool = False,
    background: bool = False,
) -> EvaluationResponse | Response:
    """Measure how well photos of yours find the items of their label in the gallery.

    Their folders are their labels (`audi-a4/1.jpg` → `audi-a4`), unless there is an `items.csv` at
    the top with `path` and `label`. They are looked up in the gallery, or among those of its items
    that `where` matches, and not added to it. None is left out of its own results: a photo that is
    in the gallery too finds itself. More than 200 photos become a job.

    `cd photos && zip -qr ../photos.zip . && curl -F file=@../photos.zip …/evaluate/upload`
    """
    wanted = EvaluationRequest(
        ks=ks,
        gallery_where=None if where is None else dict(where),
        exact=exact,
        per_class=per_class,
        hardest=hardest,
        confusion=confusion,
        clustering=clustering,
    )
    archive, photos = await engine.read(_opened, engine, detached(file))

    def judge(gallery: Gallery, progress: Progress | None) -> Judgement:
        with archive:
            return judge_archive(
                gallery,
                archive,
                photos,
                wanted,
                workers=engine.settings.threads,
                progress=progress,
            )

    background = background or len(photos) > INLINE_PHOTOS
    return await _answered(request, engine, "evaluate_upload", judge, background=background)


async def _evaluate(
    request: Request, engine: Engine, wanted: EvaluationRequest
) -> EvaluationResponse | Response:
    def judge(gallery: Gallery, progress: Progress | None) -> Judgement:
        return judge_gallery(gallery, wanted, progress)

    queries = await engine.read(count_queries, wanted)
    background = wanted.background or queries > INLINE_QUERIES
    return await _answered(request, engine, "evaluate", judge, background=background)


async def _answered(
    request: Request, engine: Engine, kind: str, judge: Judge, *, background: bool
) -> EvaluationResponse | Response:
    """The figures, or the job that will have them."""

    def measured(gallery: Gallery, progress: Progress | None) -> EvaluationResponse:
        start = time.perf_counter()
        judgement = judge(gallery, progress)
        took_ms = round((time.perf_counter() - start) * 1000, 2)
        return _response(judgement, took_ms)

    if not background:
        return await engine.evaluate(measured, None)

    def work(progress: Progress, cancelled: Callable[[], bool]) -> dict[str, Any]:
        with engine.lease() as gallery:
            return measured(gallery, _stoppable(progress, cancelled)).model_dump(mode="json")

    def start_job(_: Gallery) -> Job:
        return engine.jobs.start(kind, work)

    job = await engine.read(start_job)
    return JSONResponse(
        job.model_dump(mode="json"),
        status_code=202,
        headers={"Location": str(request.app.url_path_for("get_job", job_id=job.id))},
    )


def _opened(_: Gallery, engine: Engine, file: BinaryIO) -> tuple[Archive, list[Photo]]:
    archive = Archive(file, ArchiveLimits(file_bytes=engine.settings.max_upload_bytes))
    try:
        return archive, archive.photos()
    except BaseException:
        archive.close()
        raise


def _stoppable(progress: Progress, cancelled: Callable[[], bool]) -> Progress:
    def tell(done: int, total: int, stage: str) -> None:
        if cancelled():
            raise JobCancelledError(f"cancelled while {stage}, after {done} of {total}.")
        progress(done, total, stage)

    return tell


def _response(judgement: Judgement, took_ms: float) -> EvaluationResponse:
    evaluation = judgement.evaluation
    figures = evaluation.metrics
    index = None
    if judgement.ranked_by is not None:
        index = schemas.IndexReference(**asdict(judgement.ranked_by))
    per_class = None
    if evaluation.per_class is not None:
        per_class = [
            schemas.ClassFigures(
                label=each.label,
                queries=each.queries,
                recall=_by_text(each.recall),
                r_precision=each.r_precision,
                map_at_r=each.map_at_r,
            )
            for each in evaluation.per_class
        ]
    hardest = None
    if evaluation.hardest is not None:
        hardest = [_hard(each, judgement.photos) for each in evaluation.hardest]
    confusion = None
    if evaluation.confusion is not None:
        confusion = [_confused(each, judgement.photos) for each in evaluation.confusion]
    refused = None
    if judgement.refused is not None:
        refused = [schemas.RefusedPhoto(**asdict(each)) for each in judgement.refused[:LISTED]]
    return EvaluationResponse(
        model=ModelReference(name=judgement.model_name, sha256=judgement.model_sha256),
        protocol=evaluation.protocol,
        recall=_by_text(figures.recall),
        r_precision=figures.r_precision,
        map_at_r=figures.map_at_r,
        nmi=figures.nmi,
        queries=figures.queries,
        skipped=figures.skipped,
        unlabelled=evaluation.unlabelled,
        gallery=evaluation.gallery,
        index=index,
        per_class=per_class,
        hardest=hardest,
        confusion=confusion,
        refused=refused,
        refused_total=len(judgement.refused or ()),
        took_ms=took_ms,
    )


def _hard(query: HardQuery, photos: Sequence[str]) -> schemas.HardQuery:
    is_item = query.id >= 0
    return schemas.HardQuery(
        id=query.id if is_item else None,
        file=None if is_item else photos[-1 - query.id],
        label=query.label,
        average_precision=query.average_precision,
        answers=query.answers,
        first_answer=query.first,
        thumbnail_url=thumbnail_url(query.id) if is_item else None,
        neighbours=[_near(near, query.label) for near in query.neighbours],
    )


def _confused(pair: Confusion, photos: Sequence[str]) -> schemas.ConfusedLabels:
    is_item = pair.query >= 0
    return schemas.ConfusedLabels(
        label=pair.label,
        found=pair.found,
        count=pair.count,
        share=pair.share,
        query=pair.query if is_item else None,
        file=None if is_item else photos[-1 - pair.query],
        nearest=_near(pair.nearest, pair.label),
    )


def _near(near: JudgedNeighbour, label: str) -> schemas.JudgedNeighbour:
    return schemas.JudgedNeighbour(
        id=near.id,
        label=near.label,
        right=near.label == label,
        score=near.score,
        thumbnail_url=thumbnail_url(near.id),
    )


def _by_text(recall: Mapping[int, float]) -> dict[str, float]:
    return {str(k): value for k, value in recall.items()}
