"""``Gallery``: catalog, vectors and model behind one small interface.

A gallery is one folder: the catalog (the truth), a copy of the model its vectors were made with,
and the writer's lock. Everything that searches or changes a gallery goes through this class.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

import index.metrics as metrics
from index.catalog import Catalog, Item, NewItem
from index.errors import GalleryError, InvalidArgumentError, ModelMismatchError
from index.files import replace_folder
from index.model import Model
from index.vectors import VectorIndex

__all__ = ["MAX_K", "Evaluation", "Gallery", "GalleryInfo", "check_k"]

MAX_K = 10_000
MODEL_FOLDER = "model"
LOCK_FILE = "writer.lock"

#: How far from 1 the length of a stored or searched vector may be.
UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Evaluation:
    """Retrieval metrics of a gallery and how they were taken."""

    metrics: metrics.RetrievalMetrics
    protocol: str
    unlabelled: int  #: items without a label, left out on both sides


@dataclass(frozen=True)
class GalleryInfo:
    """What ``dscl index info`` tells."""

    path: str
    items: int
    labelled: int
    labels: int
    dim: int
    model: str
    model_sha256: str
    bytes: int


class Gallery:
    """A searchable collection of photos. Reading is safe from any number of threads.

    One process at a time may open a gallery for writing; others read it meanwhile and see each
    change at their next search.
    """

    def __init__(
        self, path: Path, model: Model, catalog: Catalog, lock: IO[str] | None = None
    ) -> None:
        """Use ``create`` or ``open``."""
        self.path = path
        self.model = model
        self._catalog = catalog
        self._writer_lock = lock
        self._refreshing = threading.Lock()
        self._version = catalog.data_version()
        everything = catalog.changes(0)
        self._seq = everything.seq
        self._index = VectorIndex.build(everything.ids, everything.vectors)

    @classmethod
    def create(cls, path: Path | str, model: Model | Path | str) -> Gallery:
        """Make an empty gallery for the vectors of ``model`` and open it for writing.

        Raises:
            GalleryError: something is already at ``path``.
            ModelError: the model cannot be loaded.
        """
        path = Path(path)
        model = model if isinstance(model, Model) else Model.load(model)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise GalleryError(f"{path} exists already: choose a new folder for the gallery.")
        with replace_folder(path) as fresh:
            Catalog.create(fresh, model_sha256=model.sha256, dim=model.card.dim)
            model.copy_to(fresh / MODEL_FOLDER)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: Path | str, *, writable: bool = False) -> Gallery:
        """Open an existing gallery.

        Raises:
            GalleryError: no gallery there, damaged, or (``writable``) another process writes to it.
            ModelError: the gallery's model folder is damaged.
            ModelMismatchError: the model folder is not of the model the vectors were made with.
        """
        path = Path(path).absolute()
        catalog = Catalog(path)
        lock: IO[str] | None = None
        try:
            model = Model.load(path / MODEL_FOLDER)
            expect_model(path, catalog.meta("model_sha256"), model)
            lock = _lock(path) if writable else None
            return cls(path, model, catalog, lock)
        except BaseException:
            catalog.close()
            if lock is not None:
                lock.close()
            raise

    def close(self) -> None:
        """Close the gallery and let another process write. Closing twice is harmless."""
        self._catalog.close()
        if self._writer_lock is not None:
            self._writer_lock.close()
            self._writer_lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        self.refresh()
        return len(self._index)

    # Changing

    def add(self, items: Sequence[NewItem]) -> list[int]:
        """Store items with their vectors, durably; all of them or, on an error, none.

        A photo that is there already by its path is replaced and gets a new id.

        Returns:
            The ids, in the order of ``items``.

        Raises:
            GalleryError: the gallery was not opened for writing.
            InvalidArgumentError: a vector of another length, with NaN, or not of unit length.
        """
        self._require_writable()
        if not items:
            return []
        for item in items:
            self._check_vectors(item.vector[None], f"the vector of {item.path}")
        ids = self._catalog.insert(items)
        self._apply_changes()
        return ids

    def remove(self, ids: Sequence[int]) -> None:
        """Remove items, durably; all of them or, on an error, none. The photo files stay.

        Raises:
            GalleryError: the gallery was not opened for writing.
            ItemNotFoundError: an id is not in the gallery.
        """
        self._require_writable()
        self._catalog.remove(ids)
        self._apply_changes()

    def refresh(self) -> bool:
        """Take in what another process changed. Searches do it by themselves.

        Returns:
            Whether anything had changed.
        """
        if self._catalog.data_version() == self._version:
            return False
        return self._apply_changes()

    # Reading

    def search(
        self, vectors: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k nearest items of each query vector.

        Args:
            vectors: float32 (q, d), rows of unit length, as ``model.embed`` makes them.
            k: 1 … 10,000; where the gallery holds fewer items, all of them come back.

        Returns:
            ids int64 (q, k') and scores float32 (q, k'), k' = min(k, len). A score is the cosine
            similarity in [−1, 1]; higher is nearer; ties come by ascending id.

        Raises:
            InvalidArgumentError: k out of range; vectors of another shape, with NaN, not unit.
        """
        check_k(k)
        vectors = np.atleast_2d(np.asarray(vectors, np.float32))
        self._check_vectors(vectors, "the query")
        self.refresh()
        return self._index.search(vectors, k)

    def get(self, ids: Sequence[int]) -> list[Item]:
        """The items with these ids, in the same order.

        Raises:
            ItemNotFoundError: an id is not in the gallery.
        """
        return self._catalog.get(ids)

    def items(self, *, offset: int = 0, limit: int = 50) -> list[Item]:
        """A page of items in the order of their ids."""
        return self._catalog.page(offset=offset, limit=limit)

    def files(self, root: Path) -> dict[str, tuple[int, int]]:
        """Path → (size, mtime_ns) of the photos that were indexed from folder ``root``."""
        return self._catalog.files(root)

    def ids_by_path(self, paths: Sequence[Path]) -> dict[Path, int]:
        """Absolute photo path → id, for those of ``paths`` that are in the gallery."""
        return self._catalog.ids_by_path(paths)

    def info(self) -> GalleryInfo:
        """Counts, model and size on disk."""
        labelled, labels = self._catalog.label_counts()
        return GalleryInfo(
            path=str(self.path),
            items=len(self),
            labelled=labelled,
            labels=labels,
            dim=self.model.card.dim,
            model=self.model.card.name,
            model_sha256=self.model.sha256,
            bytes=sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file()),
        )

    def evaluate(self, ks: Sequence[int] = (1, 2, 4, 8), *, clustering: bool = False) -> Evaluation:
        """recall@K and companions over the gallery itself, leave-one-out.

        Every labelled item is a query against all other labelled items, by exact search. See
        ``index.metrics.evaluate`` for the definitions.

        Raises:
            InvalidArgumentError: K out of range, or no two items share a label.
        """
        vectors, labels = self._catalog.labelled()
        if not labels:
            raise InvalidArgumentError(
                f"gallery {self.path.name} has no labelled items, and recall@K needs labels: index "
                "photos from class folders, or a CSV with a `label` column."
            )
        return Evaluation(
            metrics=metrics.evaluate(
                vectors, np.array(labels), ks=tuple(ks), clustering=clustering
            ),
            protocol="gallery leave-one-out, exact search",
            unlabelled=len(self._catalog) - len(labels),
        )

    # Inside

    def _apply_changes(self) -> bool:
        with self._refreshing:
            # Read the version first: a change that lands in between is then seen next time.
            version = self._catalog.data_version()
            changes = self._catalog.changes(self._seq)
            changed = changes.seq != self._seq
            if changed:
                self._index = self._index.with_changes(
                    changes.ids, changes.vectors, changes.removed
                )
                self._seq = changes.seq
            self._version = version
        return changed

    def _require_writable(self) -> None:
        if self._writer_lock is None:
            raise GalleryError(f"gallery {self.path} is open for reading: open it writable.")

    def _check_vectors(self, vectors: NDArray[np.float32], name: str) -> None:
        dim = self.model.card.dim
        if vectors.ndim != 2 or vectors.shape[1] != dim:
            raise InvalidArgumentError(
                f"{name} has shape {list(vectors.shape)}; this gallery holds {dim} values a vector."
            )
        norms = np.linalg.norm(vectors, axis=1)
        if not np.all(np.abs(norms - 1) <= UNIT_TOLERANCE):  # also False for NaN and infinity
            worst = norms[np.argmax(np.nan_to_num(np.abs(norms - 1), nan=np.inf))]
            raise InvalidArgumentError(
                f"{name} has length {worst:g}, expected 1: divide each vector by its length."
            )


def expect_model(path: Path, sha256: str, model: Model) -> None:
    """Refuse to mix vectors of different models: their distances mean nothing.

    Raises:
        ModelMismatchError: gallery ``path`` was made with ``sha256``, which is not ``model``.
    """
    if model.sha256 != sha256:
        raise ModelMismatchError(
            f"gallery {path} was built with model {sha256[:12]}…, not with {model.card.name} "
            f"({model.sha256[:12]}…): vectors of different models do not compare. Use the model it "
            "was built with, or build a new gallery."
        )


def check_k(k: int) -> None:
    """Raises InvalidArgumentError unless ``k`` is an int in 1 … ``MAX_K``."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= MAX_K:
        raise InvalidArgumentError(f"k is {k}: expected a whole number from 1 to {MAX_K}.")


def _lock(path: Path) -> IO[str]:
    """Become the gallery's only writer; the operating system frees the lock if we die."""
    # An argument may be a file name that is not UTF-8.
    file = (path / LOCK_FILE).open("a+", encoding="utf-8", errors="backslashreplace")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise GalleryError(
            f"gallery {path} is being changed by {owner}: wait until it is done, or stop it."
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} ({' '.join(Path(sys.argv[0]).name.split() + sys.argv[1:])})")
    file.flush()
    return file
