"""``/evaluate``: recall@K of the gallery as it is."""

from __future__ import annotations

from fastapi import APIRouter

from service.dependencies import EngineDep
from service.engine import Engine
from service.errors import problems
from service.schemas import EvaluationRequest, EvaluationResponse

router = APIRouter(prefix="/evaluate", tags=["evaluation"], responses=problems(422, 503))


@router.get("")
async def evaluate_default(engine: EngineDep) -> EvaluationResponse:
    """Measure recall@1, 2, 4 and 8 of the gallery as it is now.

    The same as `POST /evaluate` without a body.
    """
    return await _evaluate(engine, EvaluationRequest())


@router.post("")
async def evaluate(
    engine: EngineDep, wanted: EvaluationRequest | None = None
) -> EvaluationResponse:
    """Measure recall@K of the gallery as it is now, for values of K of your choice.

    Every labelled item is a query against all other labelled items, by exact search. The body is
    optional. Evaluations run one after another; each costs seconds of a core for 10,000 items, and
    four times that for twice as many.
    """
    return await _evaluate(engine, wanted or EvaluationRequest())


async def _evaluate(engine: Engine, wanted: EvaluationRequest) -> EvaluationResponse:
    timed = await engine.evaluate(wanted.ks)
    metrics = timed.evaluation.metrics
    return EvaluationResponse(
        recall={str(k): value for k, value in metrics.recall.items()},
        r_precision=metrics.r_precision,
        map_at_r=metrics.map_at_r,
        queries=metrics.queries,
        skipped=metrics.skipped,
        unlabelled=timed.evaluation.unlabelled,
        protocol=timed.evaluation.protocol,
        took_ms=round(timed.took_ms, 2),
    )
