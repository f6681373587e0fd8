"""What ``Gallery`` needs of where its items are: in a folder, or on Milvus.

``Contents`` is met by ``index.catalog.Catalog`` and ``index.milvus_catalog.MilvusCatalog``, whose
docstrings say what each method does; ``Searching`` by ``index.live.LiveIndex`` and
``index.milvus_search.MilvusLive``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index.approximate import Kind, RequestedKind
from index.attributes import FieldType
from index.filters import Filter
from index.items import KEEP, Item, Keep, NewItem
from index.live import IndexInfo
from index.photos import AttributeValue
from index.stores import PhotoPath
from index.tuning import Progress

__all__ = ["Contents", "Index", "Searching", "State"]

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


class Contents(Protocol):
    """Items, attributes and vectors: the truth."""

    dim: int

    def compile(self, where: Mapping[str, Any]) -> Filter: ...  # noqa: D102
    def floor(self) -> int: ...  # noqa: D102
    def fields(self) -> dict[str, FieldType]: ...  # noqa: D102
    def insert(self, items: Sequence[NewItem]) -> list[int]: ...  # noqa: D102
    def upsert(self, items: Sequence[NewItem]) -> list[int]: ...  # noqa: D102
    def put(self, pairs: Sequence[tuple[int, NewItem]]) -> None: ...  # noqa: D102
    def update(  # noqa: D102
        self,
        item_id: int,
        *,
        label: str | Keep | None = KEEP,
        attributes: Mapping[str, AttributeValue] | None = None,
        external_id: str | Keep | None = KEEP,
    ) -> None: ...
    def remove(self, ids: Sequence[int]) -> None: ...  # noqa: D102
    def get(self, ids: Sequence[int]) -> list[Item]: ...  # noqa: D102
    def get_external(self, external_ids: Sequence[str]) -> dict[str, int]: ...  # noqa: D102
    def ids_by_sha256(self, hashes: Sequence[str]) -> dict[str, int]: ...  # noqa: D102
    def ids_by_path(self, paths: Sequence[PhotoPath]) -> dict[PhotoPath, int]: ...  # noqa: D102
    def page(  # noqa: D102
        self, *, offset: int, limit: int, where: Filter | None = None
    ) -> list[Item]: ...
    def select(self, where: Filter) -> Ids: ...  # noqa: D102
    def count(self, where: Filter | None = None) -> int: ...  # noqa: D102
    def values(  # noqa: D102
        self, field: str, *, where: Filter | None = None, limit: int = 50
    ) -> list[tuple[AttributeValue, int]]: ...
    def vectors(self, ids: Sequence[int]) -> Vectors: ...  # noqa: D102
    def labelled(  # noqa: D102
        self, where: Filter | None = None
    ) -> tuple[Ids, Vectors, list[str]]: ...
    def attribute_of(  # noqa: D102
        self, ids: Sequence[int], field: str
    ) -> list[AttributeValue]: ...
    def label_counts(self) -> tuple[int, int]: ...  # noqa: D102
    def files(self, root: PhotoPath) -> dict[str, tuple[int, int]]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Index(Protocol):
    """What is searched."""

    @property
    def kind(self) -> Kind: ...  # noqa: D102
    def __len__(self) -> int: ...
    def live(self) -> tuple[Ids, Vectors]: ...  # noqa: D102
    def search(  # noqa: D102
        self, queries: Vectors, k: int, *, within: Any = None
    ) -> tuple[Ids, Vectors]: ...
    def subset(self, ids: Ids) -> Any: ...  # noqa: D102


class State(Protocol):
    """What one search sees."""

    @property
    def seq(self) -> int: ...  # noqa: D102
    @property
    def index(self) -> Index: ...  # noqa: D102


class Searching(Protocol):
    """The vectors of ``Contents``, ready to be searched."""

    def state(self) -> State: ...  # noqa: D102
    def matching(self, where: Filter) -> tuple[State, Any]: ...  # noqa: D102
    def one_moment(self) -> AbstractContextManager[State]: ...  # noqa: D102
    def subset(self, state: Any, where: Filter) -> Any: ...  # noqa: D102
    def expect_server(self) -> None: ...  # noqa: D102
    def refresh(self) -> bool: ...  # noqa: D102
    def apply(self) -> bool: ...  # noqa: D102
    def info(self) -> IndexInfo: ...  # noqa: D102
    def settle(self) -> None: ...  # noqa: D102
    def rebuild(self, progress: Progress | None = None) -> None: ...  # noqa: D102
    def tune(  # noqa: D102
        self, target_recall: float, kind: RequestedKind | None, progress: Progress | None
    ) -> None: ...
    def measure_recall(self) -> float: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102
