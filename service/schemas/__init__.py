"""What the HTTP interface takes and gives, as it appears in ``/docs``."""

from service.schemas.common import FieldProblem, ModelReference, Problem, TookMs
from service.schemas.evaluate import (
    ClassFigures,
    EvaluationRequest,
    EvaluationResponse,
    HardQuery,
    IndexReference,
    JudgedNeighbour,
    RefusedPhoto,
)
from service.schemas.items import (
    FieldsResponse,
    FieldSummary,
    ItemChange,
    ItemPage,
    ItemResponse,
    ValueCount,
)
from service.schemas.jobs import Job, JobList, JobProblem, JobProgress
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
    "EvaluationRequest",
    "EvaluationResponse",
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
    "ModelReference",
    "ModelResponse",
    "PhotoProblem",
    "Problem",
    "RefusedPhoto",
    "ReloadRequest",
    "ReloadResponse",
    "SearchResponse",
    "TookMs",
    "UrlQuery",
    "ValueCount",
    "VectorQuery",
]
