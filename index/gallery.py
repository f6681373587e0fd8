"""``Gallery``: catalog, index and model behind one small interface.

A gallery is one folder: the catalog (the truth), a copy of the model its vectors were made with,
the files of the index and the writer's lock. Or it is a collection of a Milvus server, with the
same behaviour. Everything that searches or changes a gallery goes through this class.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from index.address import GalleryAddress, MilvusAddress, parse_address
from index.approximate import RequestedKind, check_kind
from index.attributes import FieldType
from index.catalog import FILE as CATALOG_FILE
from index.catalog import Catalog
from index.contents import Contents, Searching, State
from index.errors import GalleryError, InvalidArgumentError, ItemNotFoundError, ModelMismatchError
from index.evaluation import Evaluation, check_wanted
from index.evaluation import Progress as EvaluationProgress
from index.files import folder_bytes, replace_folder
from index.filters import Filter, field_type
from index.gallery_evaluation import judge_items, judge_photos
from index.gallery_map import GalleryMap, draw, extend, read_map, write_map
from index.items import KEEP, UNIT_TOLERANCE, Item, Keep, NewItem
from index.kept_photos import PHOTOS_FOLDER
from index.live import IndexInfo, LiveIndex
from index.lock import WriterLock
from index.model import Model
from index.photos import AttributeValue
from index.projection import Progress as MapProgress
from index.results import MAX_K, Hits, best_of_groups, check_k, check_offset, check_threshold
from index.runtimes import Precision, Runtime
from index.scan import scan
from index.stores import PhotoPath
from index.tuning import Progress, check_target
from index.vectors import Subset

if TYPE_CHECKING:
    from index.milvus_notes import Notes

__all__ = [
    "MAX_K",
    "MODEL_FOLDER",
    "VECTORS_FOLDER",
    "Evaluation",
    "Gallery",
    "GalleryInfo",
    "Hits",
    "IndexInfo",
    "check_k",
    "expect_model",
    "is_there",
]

MODEL_FOLDER = "model"
VECTORS_FOLDER = "vectors"

#: Items fetched for each group that is asked for, before it is known how they fall into groups.
ITEMS_PER_GROUP = 4

#: A filter as it comes out of JSON; see ``index.filters``.
Where = Mapping[str, Any]


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
    precision: str
    index: IndexInfo
    bytes: int | None  #: on disk; None on Milvus, which does not tell


class Gallery:
    """A searchable collection of photos. Reading is safe from any number of threads.

    One process at a time may open a gallery for writing; others read it meanwhile and see each
    change at their next search.
    """

    def __init__(
        self,
        path: GalleryAddress,
        model: Model,
        catalog: Contents,
        live: Searching,
        *,
        writable: bool,
        is_at: Callable[[GalleryAddress], bool],
        lock: WriterLock | None = None,
        photos: PhotoPath | None = None,
        notes: Notes | None = None,
    ) -> None:
        """Use ``create`` or ``open``."""
        self.path = path
        self.model = model
        self._photos = photos
        #: Small texts that all processes share; None for a gallery folder.
        self.notes = notes
        self._catalog = catalog
        self._live = live
        self._writable = writable
        self._is_at = is_at
        self._writer_lock = lock
        self._unkept_map: GalleryMap | None = None  # drawn here, and written nowhere

    @classmethod
    def create(
        cls,
        path: GalleryAddress | str,
        model: Model | Path | str,
        *,
        index_kind: RequestedKind = "auto",
        target_recall: float = 0.99,
    ) -> Gallery:
        """Make an empty gallery for the vectors of ``model`` and open it for writing.

        Args:
            path: a folder that does not exist yet, or an empty one; or an address on Milvus, see
                ``index.address``.
            model: the model, or its folder. The gallery keeps a copy.
            index_kind: "auto" searches exactly up to 50,000 items and by an index above that.
            target_recall: the share of the 10 nearest items that such an index is to find, above
                0, up to 1.

        Raises:
            InvalidArgumentError: unknown kind, or target out of range.
            GalleryError: something is already at ``path``.
            ModelError: the model cannot be loaded.
        """
        check_kind(index_kind)
        check_target(target_recall)
        path = parse_address(path)
        model = model if isinstance(model, Model) else Model.load(model)
        if isinstance(path, MilvusAddress):
            from index import milvus_gallery  # which needs an extra

            milvus_gallery.create(path, model, index_kind=index_kind, target_recall=target_recall)
            return cls.open(path, writable=True)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise GalleryError(f"{path} exists already: choose a new folder for the gallery.")
        with replace_folder(path) as fresh:
            Catalog.create(
                fresh,
                model_sha256=model.sha256,
                dim=model.card.dim,
                precision=model.precision,
                index_kind=index_kind,
                target_recall=target_recall,
            )
            model.copy_to(fresh / MODEL_FOLDER)
        return cls.open(path, writable=True)

    @classmethod
    def open(
        cls, path: GalleryAddress | str, *, writable: bool = False, runtime: Runtime = "auto"
    ) -> Gallery:
        """Open an existing gallery.

        Damaged or missing files of the index are no error: they are built anew from the catalog.

        Args:
            path: its folder, or its address on Milvus.
            writable: to change it; a folder by one process at a time.
            runtime: what computes embeddings; see ``Model.load``.

        Raises:
            GalleryLockedError: (``writable``) another process writes to it.
            GalleryError: no gallery there, damaged, of another format, or (``writable``) in a
                folder that cannot be written to.
            ModelError: the gallery's model folder is damaged.
            ModelMismatchError: the model folder is not of the model the vectors were made with.
            GalleryUnavailableError: the Milvus server does not answer.
        """
        path = parse_address(path)
        if isinstance(path, MilvusAddress):
            return cls._open_milvus(path, writable=writable, runtime=runtime)
        path = path.absolute()
        with ExitStack() as opened:
            lock = None
            if writable and (path / CATALOG_FILE).is_file():
                # Before the catalog: opening that for writing may upgrade it.
                lock = opened.enter_context(WriterLock.acquire(path))
            catalog = Catalog(path, writable=writable)
            opened.callback(catalog.close)
            precision = cast(Precision, catalog.meta("precision"))
            model = Model.load(path / MODEL_FOLDER, runtime=runtime, precision=precision)
            expect_model(path, catalog.meta("model_sha256"), model)
            identity = catalog.path.stat()
            gallery = cls(
                path,
                model,
                catalog,
                LiveIndex(catalog, path / VECTORS_FOLDER, writable=writable),
                writable=writable,
                is_at=lambda other: isinstance(other, Path) and _is_file(identity, other),
                lock=lock,
                photos=path / PHOTOS_FOLDER,
            )
            opened.pop_all()
        return gallery

    @classmethod
    def _open_milvus(cls, address: MilvusAddress, *, writable: bool, runtime: Runtime) -> Gallery:
        from index import milvus_gallery  # which needs an extra

        parts = milvus_gallery.open_parts(address, runtime=runtime)
        return cls(
            address,
            parts.model,
            parts.catalog,
            parts.live,
            writable=writable,
            is_at=lambda other: str(other) == str(address) and not parts.place.taken_over(),
            photos=parts.photos,
            notes=parts.notes,
        )

    def close(self) -> None:
        """Close the gallery and let another process write. Closing twice is harmless.

        Work on the index that is under way is stopped; the next writer takes it up again.
        ``settle`` waits for it.
        """
        self._live.close()
        self._catalog.close()
        if self._writer_lock is not None:
            self._writer_lock.release()
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

    def is_at(self, path: GalleryAddress) -> bool:
        """Whether ``path`` is the place of this very gallery, and no other has taken it."""
        return self._is_at(path)

    @property
    def photos_folder(self) -> PhotoPath | None:
        """Where photos that come over the network are kept; None where none are taken."""
        return self._photos

    @property
    def is_remote(self) -> bool:
        """Whether the items are on a server, which may not answer."""
        return not isinstance(self.path, Path)

    def expect_server(self) -> None:
        """Raises GalleryUnavailableError if the items are on a server that does not answer now."""
        self._live.expect_server()

    def __len__(self) -> int:
        return len(self._live.state().index)

    # Changing

    def add(self, items: Sequence[NewItem]) -> list[int]:
        """Store items with their vectors, durably; all of them or, on an error, none.

        A photo that is there already by its path is replaced and gets a new id.

        Returns:
            The ids, in the order of ``items``.

        Raises:
            GalleryError: the gallery was not opened for writing, or cannot be written to.
            DuplicateExternalIdError: an external id twice in ``items``, or another photo's.
            AttributeTypeError: an attribute's value whose type is not the one it has here.
            InvalidArgumentError: a vector of another length, with NaN, or not of unit length; text
                that cannot be stored.
        """
        self._require_writable()
        if not items:
            return []
        self._check_items(items)
        ids = self._catalog.insert(items)
        self._live.apply()
        return ids

    def upsert(self, items: Sequence[NewItem]) -> list[int]:
        """As ``add``, but an item whose external id is there replaces the one that has it."""
        self._require_writable()
        if not items:
            return []
        self._check_items(items)
        ids = self._catalog.upsert(items)
        self._live.apply()
        return ids

    def put(self, pairs: Sequence[tuple[int, NewItem]]) -> None:
        """Store items under ids of the caller's, durably: what copies a gallery.

        Args:
            pairs: id and item, ids ascending, above all that there ever were.

        Raises:
            InvalidArgumentError: other ids; and as ``add``.
        """
        self._require_writable()
        self._check_items([item for _, item in pairs])
        self._catalog.put(pairs)
        self._live.apply()

    def update(
        self,
        item_id: int,
        *,
        label: str | Keep | None = KEEP,
        attributes: Mapping[str, AttributeValue] | None = None,
        external_id: str | Keep | None = KEEP,
    ) -> None:
        """Change what is known about an item, durably. Its id and vector stay.

        Args:
            item_id: which one.
            label: its new label; None for none.
            attributes: merged into those it has; None as a value takes the attribute away.
            external_id: its new external id; None for none.

        Raises:
            ItemNotFoundError: no such item.
            DuplicateExternalIdError, AttributeTypeError, InvalidArgumentError, GalleryError: as
                ``add``; nothing changes.
        """
        self._require_writable()
        self._catalog.update(item_id, label=label, attributes=attributes, external_id=external_id)
        self._live.apply()

    def remove(self, ids: Sequence[int]) -> None:
        """Remove items, durably; all of them or, on an error, none. The photo files stay.

        Raises:
            GalleryError: the gallery was not opened for writing, or cannot be written to.
            ItemNotFoundError: an id is not in the gallery.
        """
        self._require_writable()
        self._catalog.remove(ids)
        self._live.apply()

    def refresh(self) -> bool:
        """Take in what another process changed. Searches do it by themselves.

        Returns:
            Whether anything had changed.
        """
        return self._live.refresh()

    # Searching

    def search(
        self,
        vectors: NDArray[np.float32],
        k: int,
        *,
        where: Where | None = None,
        threshold: float | None = None,
        group_by: str | None = None,
        offset: int = 0,
    ) -> Hits:
        """The k nearest items of each query vector.

        Args:
            vectors: float32 (q, d), rows of unit length, as ``model.embed`` makes them; or (d,).
            k: 1 … 10,000; where fewer items match, all of them come back.
            where: look only among the items that this filter matches; see ``index.filters``.
            threshold: leave out items whose score is below, in [−1, 1].
            group_by: of all items with the same value of this field, only the best one: k different
                values wherever there are so many. ``label``, ``sku``, ``id`` or an attribute; items
                without a value are left out.
            offset: leave out the first so many results; offset + k up to 10,000.

        Returns:
            ids int64 (q, k') and scores float32 (q, k'), k' ≤ k. A score is the cosine similarity
            in [−1, 1]; higher is nearer; ties come by ascending id. See ``Hits`` for queries with
            different numbers of results.

        Raises:
            InvalidArgumentError: k, threshold or offset out of range; vectors of another shape,
                with NaN, not unit.
            FilterError: a filter that cannot be understood, or a field that there is not.
        """
        check_k(k)
        check_offset(offset, k)
        check_threshold(threshold)
        vectors = np.atleast_2d(np.asarray(vectors, np.float32))
        self._check_vectors(vectors, "the query")
        if group_by is not None:
            field_type(group_by, self._catalog.fields())
        matching = None if where is None else self._compiled(where)
        if group_by is not None:
            return self._search_groups(
                vectors, k, where=matching, threshold=threshold, field=group_by, offset=offset
            )
        if matching is None:
            state, subset = self._live.state(), None
        else:
            state, subset = self._live.matching(matching)
        hits = Hits(*state.index.search(vectors, offset + k, within=subset))
        if threshold is None:
            return Hits(hits.ids[:, offset:], hits.scores[:, offset:])
        rows = [_at_least(threshold, *hits.row(query)) for query in range(len(vectors))]
        return Hits.of_rows([(ids[offset:], scores[offset:]) for ids, scores in rows])

    # What there is

    def get(self, ids: Sequence[int]) -> list[Item]:
        """The items with these ids, in the same order.

        Raises:
            ItemNotFoundError: an id is not in the gallery.
        """
        return self._catalog.get(ids)

    def get_external(self, external_ids: Sequence[str]) -> list[Item]:
        """The items with these external ids, in the same order.

        Raises:
            ItemNotFoundError: an external id is not in the gallery.
        """
        ids = self._catalog.get_external(external_ids)
        missing = [each for each in external_ids if each not in ids]
        if missing:
            shown = ", ".join(map(repr, missing[:5])) + (", …" if len(missing) > 5 else "")
            raise ItemNotFoundError(f"no item with sku {shown} in the gallery.")
        return self._catalog.get([ids[each] for each in external_ids])

    def items(self, *, offset: int = 0, limit: int = 50, where: Where | None = None) -> list[Item]:
        """A page of the items, or of those that a filter matches, in the order of their ids.

        Raises:
            FilterError: a filter that cannot be understood.
        """
        matching = None if where is None else self._compiled(where)
        return self._catalog.page(offset=offset, limit=limit, where=matching)

    def scan(self, *, after: int = 0) -> Iterator[list[Item]]:
        """Pages of all items with ids above ``after``, ascending; each as it is when it is read."""
        return scan(self._catalog, after=after)

    def count(self, where: Where | None = None) -> int:
        """How many items there are, or match the filter."""
        return self._catalog.count(None if where is None else self._compiled(where))

    def fields(self) -> dict[str, FieldType]:
        """The attributes that items have, and the type of their values."""
        return self._catalog.fields()

    def values(
        self, field: str, *, where: Where | None = None, limit: int = 50
    ) -> list[tuple[AttributeValue, int]]:
        """The values of an attribute, or ``label``, with the number of items; most frequent first.

        Raises:
            FilterError: there is no such field, or a filter that cannot be understood.
        """
        matching = None if where is None else self._compiled(where)
        return self._catalog.values(field, where=matching, limit=limit)

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The vectors of these items, float32 (n, d), in the same order.

        Raises:
            ItemNotFoundError: an id is not in the gallery.
        """
        return self._catalog.vectors(ids)

    def ids(self, where: Where | None = None) -> NDArray[np.int64]:
        """The ids of all items, or of those that a filter matches, int64 (n,), ascending.

        Raises:
            FilterError: a filter that cannot be understood.
        """
        if where is None:
            return self._live.state().index.live()[0]
        return self._catalog.select(self._compiled(where))

    def values_of(self, ids: Sequence[int], field: str) -> list[AttributeValue]:
        """A field of these items, in the same order; None without a value, or without the item.

        Raises:
            FilterError: there is no such field.
        """
        return self._catalog.attribute_of(ids, field)

    def files(self, root: PhotoPath) -> dict[str, tuple[int, int]]:
        """Path → (size, mtime_ns) of the photos that were indexed from folder ``root``."""
        return self._catalog.files(root)

    def ids_by_path(self, paths: Sequence[PhotoPath]) -> dict[PhotoPath, int]:
        """Absolute photo path → id, for those of ``paths`` that are in the gallery."""
        return self._catalog.ids_by_path(paths)

    def ids_by_sha256(self, hashes: Sequence[str]) -> dict[str, int]:
        """Content hash → id, for those of ``hashes`` that are in the gallery."""
        return self._catalog.ids_by_sha256(hashes)

    def ids_by_external(self, external_ids: Sequence[str]) -> dict[str, int]:
        """External id → id, for those of ``external_ids`` that are in the gallery."""
        return self._catalog.get_external(external_ids)

    def info(self) -> GalleryInfo:
        """Counts, model, index and size on disk."""
        labelled, labels = self._catalog.label_counts()
        return GalleryInfo(
            path=str(self.path),
            items=len(self),
            labelled=labelled,
            labels=labels,
            dim=self.model.card.dim,
            model=self.model.card.name,
            model_sha256=self.model.sha256,
            precision=self.model.precision,
            index=self._live.info(),
            bytes=folder_bytes(self.path) if isinstance(self.path, Path) else None,
        )

    def index_info(self) -> IndexInfo:
        """What serves searches now, without the sizes of files that ``info`` measures."""
        return self._live.info()

    # Map

    def map(self) -> GalleryMap | None:
        """Where items are on the map that was drawn last; None if there is none of these vectors.

        Items may have come and gone since. An item on it that is still there is where it belongs.
        """
        drawn = self._unkept_map
        if drawn is None and isinstance(self.path, Path):
            drawn = read_map(self.path)
        if drawn is None or drawn.model_sha256 != self.model.sha256:
            return None
        # Of a history that a snapshot has replaced, ids mean nothing.
        return drawn if drawn.seq >= self._catalog.floor() else None

    def draw_map(
        self, *, anew: bool = False, keep: bool = True, progress: MapProgress | None = None
    ) -> GalleryMap:
        """Lay the items out in two dimensions, neighbours next to one another.

        Where few have come since the last map, they are put into it, which is quick. Else all are
        laid out anew, from where they were: 80 seconds of a core for 50,000.

        Args:
            anew: also where few have come; nothing of the last map remains.
            keep: write it into the gallery's folder, for which the gallery need not be open for
                writing; else, and on Milvus, it is there as long as the gallery is open.
            progress: told (done, total, stage); what it raises stops the work, and the map is as
                it was.

        Raises:
            InvalidArgumentError: there are no items.
            GalleryError: it cannot be written.
        """
        state = self._live.state()
        ids, vectors = state.index.live()
        before = None if anew else self.map()
        drawn = None if before is None else extend(before, ids, vectors, seq=state.seq)
        if drawn is None:
            drawn = draw(
                ids,
                vectors,
                seq=state.seq,
                model_sha256=self.model.sha256,
                before=before,
                progress=progress,
            )
        if keep and isinstance(self.path, Path):
            write_map(self.path, drawn)
            self._unkept_map = None
        else:
            self._unkept_map = drawn
        return drawn

    # Judging

    def evaluate(
        self,
        ks: Sequence[int] = (1, 2, 4, 8),
        *,
        where: Where | None = None,
        query_where: Where | None = None,
        gallery_where: Where | None = None,
        exact: bool = True,
        clustering: bool = False,
        per_class: bool = False,
        hardest: int = 0,
        confusion: int = 0,
        progress: EvaluationProgress | None = None,
    ) -> Evaluation:
        """recall@K and companions over the gallery itself, leave-one-out.

        Every labelled item is a query against all other labelled items, or some items are queries
        against some. See ``index.metrics`` for the definitions.

        Args:
            ks: the K of recall@K, each in 1 … 10,000.
            where: judge only the items that this filter matches, among themselves.
            query_where: only items that this filter matches are queries.
            gallery_where: only items that this filter matches are looked among. A query that is one
                of them is left out of its own results.
            exact: rank by exact search, which judges the embedding alone; else as ``search`` does,
                which judges the index too.
            clustering: also the NMI of a k-means clustering.
            per_class: also the figures of each label.
            hardest: also so many of the hardest queries, up to 100, with their neighbours.
            confusion: also so many pairs of labels, up to 1000, that are taken for one another.
            progress: told how many of how many queries are done; what it raises stops the work.

        Raises:
            InvalidArgumentError: K, ``hardest`` or ``confusion`` out of range, no query with a
                right answer, ``clustering`` without ``exact``, or ``where`` beside one of the other
                two.
            FilterError: a filter that cannot be understood.
        """
        for k in ks:
            check_k(k)
        check_wanted(exact=exact, clustering=clustering, hardest=hardest, confusion=confusion)
        if where is not None:
            if query_where is not None or gallery_where is not None:
                raise InvalidArgumentError(
                    "where stands for both query_where and gallery_where: give either it or them."
                )
            query_where = gallery_where = where
        queries = None if query_where is None else self._compiled(query_where)
        gallery = None if gallery_where is None else self._compiled(gallery_where)
        return judge_items(
            self._catalog,
            self._live.state().index,
            self.path.name,
            queries,
            gallery,
            ks,
            exact=exact,
            clustering=clustering,
            per_class=per_class,
            hardest=hardest,
            confusion=confusion,
            progress=progress,
        )

    def evaluate_photos(
        self,
        vectors: NDArray[np.float32],
        labels: Sequence[str],
        ks: Sequence[int] = (1, 2, 4, 8),
        *,
        gallery_where: Where | None = None,
        exact: bool = True,
        clustering: bool = False,
        per_class: bool = False,
        hardest: int = 0,
        confusion: int = 0,
        progress: EvaluationProgress | None = None,
    ) -> Evaluation:
        """recall@K and companions of labelled photos that are looked up in the gallery.

        None of them is left out of its results: a photo that is in the gallery too finds itself.

        Args:
            vectors: float32 (q, d), rows of unit length, as ``model.embed`` makes them.
            labels: of each photo.
            ks: and all others: as for ``evaluate``.

        Raises:
            InvalidArgumentError, FilterError: as ``evaluate``; vectors of another shape, with NaN,
                not unit.
        """
        for k in ks:
            check_k(k)
        check_wanted(exact=exact, clustering=clustering, hardest=hardest, confusion=confusion)
        vectors = np.asarray(vectors, np.float32)
        self._check_vectors(vectors, "a photo's vector")
        gallery = None if gallery_where is None else self._compiled(gallery_where)
        return judge_photos(
            self._catalog,
            self._live.state().index,
            self.path.name,
            vectors,
            labels,
            gallery,
            ks,
            exact=exact,
            clustering=clustering,
            per_class=per_class,
            hardest=hardest,
            confusion=confusion,
            progress=progress,
        )

    def measure_recall(self) -> float:
        """recall@10 of searches as they are now against exact ones, on the gallery's own vectors.

        1.0 while the gallery compares all vectors. ``info`` tells what was measured last.
        """
        return self._live.measure_recall()

    # Care

    def rebuild(self, *, progress: Progress | None = None) -> IndexInfo:
        """Build the index anew, now; searches go on meanwhile.

        Args:
            progress: told of each stage and the share 0 … 1 that is done.

        Raises:
            GalleryError: the gallery was not opened for writing, or cannot be written to.
        """
        self._require_writable()
        self._live.rebuild(progress)
        return self._live.info()

    def tune(
        self,
        target_recall: float,
        *,
        kind: RequestedKind | None = None,
        progress: Progress | None = None,
    ) -> IndexInfo:
        """Have the index find this share of the 10 nearest items, from now on.

        Args:
            target_recall: above 0, up to 1.
            kind: also change the kind of index: see ``create``.
            progress: told of each stage and the share 0 … 1 that is done.

        Returns:
            What serves now, with the recall that was measured.

        Raises:
            InvalidArgumentError: unknown kind, or target out of range; then nothing changes.
            GalleryError: the gallery was not opened for writing, or cannot be written to.
        """
        self._require_writable()
        check_target(target_recall)
        if kind is not None:
            check_kind(kind)
        self._live.tune(target_recall, kind, progress)
        return self._live.info()

    def settle(self) -> None:
        """Wait until no work on the index is due or under way.

        Raises:
            GalleryError: that work failed. Nothing is lost; searches go on with what there was.
        """
        self._live.settle()

    def snapshot(self, path: Path | str) -> None:
        """Copy the gallery as it is now; see ``index.care.snapshot``."""
        from index.care import snapshot  # which itself needs this module

        if not isinstance(self.path, Path):
            raise GalleryError(
                f"{self.path} has no snapshots: `dscl gallery copy {self.path} FOLDER` copies it."
            )
        snapshot(self.path, Path(path))

    # Inside

    def _compiled(self, where: Where) -> Filter:
        return self._catalog.compile(where)

    def _search_groups(
        self,
        vectors: NDArray[np.float32],
        k: int,
        *,
        where: Filter | None,
        threshold: float | None,
        field: str,
        offset: int,
    ) -> Hits:
        least = -1.0 if threshold is None else threshold
        self._live.refresh()
        with self._live.one_moment() as state:
            subset = None if where is None else self._live.subset(state, where)
            rows = [
                self._best_of_groups(state, subset, query, offset + k, field, where, least)
                for query in vectors
            ]
        return Hits.of_rows([(ids[offset:], scores[offset:]) for ids, scores in rows])

    def _best_of_groups(
        self,
        state: State,
        subset: Subset | None,
        query: NDArray[np.float32],
        k: int,
        field: str,
        where: Filter | None,
        least: float,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best item of each of the k best groups: fetches more until there are k, or all."""
        total = len(state.index if subset is None else subset)
        fetch = ITEMS_PER_GROUP * k
        wanted = k
        while True:
            [ids], [scores] = state.index.search(query[None], fetch, within=subset)
            near, near_scores = _at_least(least, ids, scores)
            best = best_of_groups(self._catalog.attribute_of(near.tolist(), field), k)
            if len(best) >= wanted or len(near) < len(ids) or fetch >= total:
                return near[best], near_scores[best]
            if wanted == k:
                wanted = len(self._catalog.values(field, where=where, limit=k))
                if len(best) >= wanted:
                    return near[best], near_scores[best]
            fetch *= 4

    def _require_writable(self) -> None:
        if not self._writable:
            raise GalleryError(f"gallery {self.path} is open for reading: open it writable.")

    def _check_items(self, items: Sequence[NewItem]) -> None:
        for item in items:
            self._check_vectors(np.asarray(item.vector)[None], f"the vector of {item.path}")

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


def is_there(path: GalleryAddress) -> bool:
    """Whether there is a gallery, or something else that cannot become one.

    Raises:
        GalleryUnavailableError: the Milvus server does not answer.
    """
    if isinstance(path, Path):
        return path.exists() and not (path.is_dir() and not any(path.iterdir()))
    from index.milvus_gallery import exists  # which needs an extra

    return exists(path)


def expect_model(path: GalleryAddress, sha256: str, model: Model) -> None:
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


def _at_least(
    threshold: float, ids: NDArray[np.int64], scores: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The results of one query, best first, up to those whose score is ``threshold``."""
    near = scores >= threshold
    return ids[near], scores[near]


def _is_file(identity: os.stat_result, folder: Path) -> bool:
    try:
        return os.path.samestat(identity, (folder / CATALOG_FILE).stat())
    except (FileNotFoundError, NotADirectoryError):
        return False
