"""The service from Python: a client that waits, one for asyncio, and their errors."""

from service.client.calls import Photo, SearchOptions
from service.client.clients import AsyncClient, Client
from service.client.errors import JobError, ServiceError, UnreachableError
from service.client.retries import Retries

__all__ = [
    "AsyncClient",
    "Client",
    "JobError",
    "Photo",
    "Retries",
    "SearchOptions",
    "ServiceError",
    "UnreachableError",
]
