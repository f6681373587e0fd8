"""What the HTTP interface takes and gives, as it appears in ``/docs``."""

from service.schemas.common import FieldProblem, ModelReference, Problem, TookMs
from service.schemas.evaluate import (
    ClassFigures,
    ConfusedLabels,
    EvaluationRequest,
    EvaluationResponse,
    HardQuery,
    IndexReference,
    JudgedNeighbour,
    RefusedPhoto,
)
from service.schemas.explain import ExplainResponse, PhotoArea, PhotoRegions, RegionPair
from service.schemas.items import (
    FieldsResponse,
    FieldSummary,
    ItemChange,
    ItemPage,
    ItemResponse,
    ValueCount,
)
from service.schemas.jobs import Job, JobList, JobProblem, JobProgress
from service.schemas.map import LegendEntry, MapColours, MapResponse
from service.schemas.search import (
    BatchAnswer,
    BatchResponse,
    Hit,
    PhotoProblem,
    SearchResponse,
    UrlQuery,
    VectorQuery,
)
from service.schemas.system import Health, ModelResponse, ReloadRequest, ReloadResponse

__all__ = [
    "BatchAnswer",
    "BatchResponse",
    "ClassFigures",
    "ConfusedLabels",
    "EvaluationRequest",
    "EvaluationResponse",
    "ExplainResponse",
    "FieldProblem",
    "FieldSummary",
    "FieldsResponse",
    "HardQuery",
    "Health",
    "Hit",
    "IndexReference",
    "ItemChange",
    "ItemPage",
    "ItemResponse",
    "Job",
    "JobList",
    "JobProblem",
    "JobProgress",
    "JudgedNeighbour",
    "LegendEntry",
    "MapColours",
    "MapResponse",
    "ModelReference",
    "ModelResponse",
    "PhotoArea",
    "PhotoProblem",
    "PhotoRegions",
    "Problem",
    "RefusedPhoto",
    "RegionPair",
    "ReloadRequest",
    "ReloadResponse",
    "SearchResponse",
    "TookMs",
    "UrlQuery",
    "ValueCount",
    "VectorQuery",
]
