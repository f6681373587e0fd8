"""``LiveIndex``: the vector index of a catalog, kept up to date while others search.

What a search sees is one immutable ``State``, read from one attribute, so no search ever meets a
changing index. Changes are taken in from the catalog and make a new state. When a new base is due,
a thread builds it beside the one that serves, writes it, reads it back against its hashes and swaps
it in; readers in other processes notice the new files and load them.

The catalog is the truth: files that are missing, damaged or of another history only cost the time
to build them again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from index.approximate import Kind, RequestedKind
from index.background import BackgroundWork
from index.base_files import CURRENT_FILE, current_name, read_base, write_base
from index.catalog import Catalog, Changes
from index.errors import BaseDamagedError, GalleryError
from index.files import sync_folder
from index.filters import Filter
from index.subset_cache import SubsetCache
from index.tuning import Progress, build_base, retune
from index.vectors import Base, SearchParameters, Subset, VectorIndex

__all__ = ["IndexInfo", "LiveIndex", "State"]

#: Vectors below which reading them from the catalog is as fast as from files of their own.
STORED_LEAST = 5000

#: Seconds between two looks for a base that another process wrote, and for work that is due.
LOOK_INTERVAL = 0.5

#: Vectors that come or go, as a share of all, before the recall is measured again.
DRIFT = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """What one search sees."""

    seq: int  #: the change of the catalog that this is the state after
    index: VectorIndex
    subsets: SubsetCache = field(default_factory=SubsetCache)  #: of this very state


@dataclass(frozen=True, kw_only=True)
class IndexInfo:
    """How a gallery searches now."""

    kind: Kind
    requested: RequestedKind
    parameters: SearchParameters
    recall: float | None  #: recall@10 measured last; None if there was nothing to measure it on
    target_recall: float
    seq: int  #: the last change of the catalog that searches see
    base_seq: int  #: the last change that is in the base
    base_size: int  #: vectors in the base …
    delta: int  #: … those that came since …
    tombstones: int  #: … and those of the base that went
    stored: bool  #: whether the base is on disk
    updating: bool  #: whether work on the index is under way in this process
    error: str | None  #: why the last such work failed; it is tried again after the next change


class LiveIndex:
    """Searchable vectors of one catalog. Safe to use from any number of threads."""

    def __init__(self, catalog: Catalog, folder: Path, *, writable: bool) -> None:
        """Load the base in ``folder``, or build one in memory, and take in what came since.

        Args:
            catalog: open, and open for writing if ``writable``.
            folder: of the base's files; need not exist.
            writable: whether this process is the gallery's only writer, and so writes bases.
        """
        self._catalog = catalog
        self._folder = folder
        self._writable = writable
        self._catalog_file = catalog.path.stat()
        #: Guards the replacement of ``_state``; taken before the catalog's lock, never inside it.
        self._applying = threading.Lock()
        self._work = BackgroundWork(
            f"updating the index of {folder.parent}", self._is_due, self._do_what_is_due
        )
        self._base_name: str | None = None  # of the files that the base was read from
        self._refused: str | None = None  # the name of files that turned out to be of no use
        self._told: str | None = None  # what is wrong with the pointer to the files
        self._changed = 0  # vectors that came or went since the recall was measured
        self._version = -1
        self._look_at = time.monotonic() + LOOK_INTERVAL
        self._state = self._load()
        self.apply()

    def close(self) -> None:
        """Stop what is under way, at the next point where it can be, and wait for that."""
        self._work.close()

    # Searching

    def state(self) -> State:
        """What the catalog holds now, changes by other processes included."""
        self.refresh()
        return self._state

    def matching(self, where: Filter) -> tuple[State, Subset]:
        """The state now, and the items in it that a filter matches."""
        state = self.state()
        subset = state.subsets.get(where.key)
        if subset is None:
            with self.one_moment() as state:
                subset = self.subset(state, where)
        return state, subset

    @contextmanager
    def one_moment(self) -> Iterator[State]:
        """The state now, while all that is read from the catalog is of the same moment.

        Without it, an item that is replaced between a search and a look into the catalog would be
        found under neither its old id nor its new one.
        """
        with self._applying:
            while True:
                with self._catalog.view():
                    self._take_in_changes()
                    if self._state.seq == self._catalog.seq():
                        yield self._state
                        return

    def subset(self, state: State, where: Filter) -> Subset:
        """The items of ``state`` that a filter matches; only within ``one_moment``."""
        subset = state.subsets.get(where.key)
        if subset is None:
            subset = state.index.subset(self._catalog.select(where))
            state.subsets.put(where.key, subset)
        return subset

    def expect_server(self) -> None:
        """There is none to be waited for."""

    def refresh(self) -> bool:
        """Take in what another process changed; returns whether anything had changed."""
        changed = self._catalog.data_version() != self._version and self.apply()
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_INTERVAL
            self._work.wake()
        return changed

    def apply(self) -> bool:
        """Take in changes of the catalog; returns whether there were any."""
        with self._applying:
            changed = self._take_in_changes()
        if changed and self._writable:
            self._work.wake()
        return changed

    # Care

    def info(self) -> IndexInfo:
        """What serves now."""
        state = self._state
        index, base = state.index, state.index.base
        return IndexInfo(
            kind=base.kind,
            requested=base.requested,
            parameters=base.parameters,
            recall=self._recall(base),
            target_recall=base.target_recall,
            seq=state.seq,
            base_seq=base.seq,
            base_size=len(base.ids),
            delta=index.delta_size,
            tombstones=index.tombstones,
            stored=self._base_name is not None,
            updating=self._work.running,
            error=self._work.error,
        )

    def settle(self) -> None:
        """Wait until no work on the index is due or under way.

        Raises:
            GalleryError: the work failed; searches go on with what there was.
        """
        self._work.settle()

    def rebuild(self, progress: Progress | None = None) -> None:
        """Build a new base now, write it and swap it in.

        Raises:
            GalleryError: it cannot be written, or the gallery was closed meanwhile.
        """
        kind, target_recall = self._wanted()
        with self._work.lock:
            self._install(self._build(kind, target_recall, progress))

    def tune(
        self, target_recall: float, kind: RequestedKind | None, progress: Progress | None
    ) -> None:
        """Want another recall, or another kind of index, from now on, and bring that about.

        Raises:
            InvalidArgumentError: unknown kind, or target out of range; then nothing changes.
            GalleryError: as ``rebuild``.
        """
        with self._work.lock:
            base = self._state.index.base
            wanted = kind or self._wanted()[0]
            as_planned = wanted == base.requested and base.kind == base.planned
            if as_planned and not self._state.index.needs_rebuild:
                tuned = retune(base, target_recall, progress=progress)
            else:
                tuned = self._build(wanted, target_recall, progress)
            self._catalog.set_meta("index_kind", wanted)
            self._catalog.set_meta("target_recall", str(target_recall))
            self._install(tuned)

    def measure_recall(self) -> float:
        """Measure recall@10 of searches as they are now, against exact ones; a writer keeps it.

        Warns in the log when it is below the target.
        """
        state = self._state
        recall = state.index.measure_recall()
        target = state.index.base.target_recall
        if recall < target:
            log.warning(
                "recall@10 of %s is %.4f, below its target of %g: build the index anew, or tune it",
                self._folder.parent,
                recall,
                target,
            )
        if self._writable:
            self._changed = 0
            self._catalog.set_meta("recall", str(recall))
            self._catalog.set_meta("recall_seq", str(state.seq))
        return recall

    # Taking in changes

    def _load(self) -> State:
        """The base on disk, or if there is none to be used, all vectors of the catalog."""
        base = self._read_base()
        if base is None:
            return self._anew(self._catalog.changes(0))
        return State(base.seq, VectorIndex.from_base(base))

    def _read_base(self) -> Base | None:
        """The base on disk and, in ``_base_name``, what it is called; None if it is of no use."""
        try:
            name = current_name(self._folder)
            base = read_base(self._folder)
        except BaseDamagedError as error:
            log.warning("%s", error)
        else:
            if base is None or self._is_ours(base):
                self._base_name = name
                return base
            log.warning("the index in %s is not of this catalog: it is built anew", self._folder)
        self._discard_files()
        return None

    def _is_ours(self, base: Base) -> bool:
        """Whether a base is a state that this catalog once was in."""
        floor, seq = int(self._catalog.meta("floor")), self._catalog.seq()
        return floor <= base.seq <= seq and base.vectors.shape[1] == self._catalog.dim

    def _discard_files(self) -> None:
        """Let go of files that must not be taken for ours once the catalog has gone on."""
        if not self._writable:
            return
        pointer = self._folder / CURRENT_FILE
        try:
            pointer.unlink(missing_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise GalleryError(
                f"{pointer} is of no use and cannot be removed ({error.strerror}): remove it. The "
                "index is built anew from the catalog."
            ) from error

    def _anew(self, changes: Changes) -> State:
        kind, target_recall = self._wanted()
        base = build_base(
            changes.ids,
            changes.vectors,
            seq=changes.seq,
            kind="flat",
            target_recall=target_recall,
        )
        return State(changes.seq, VectorIndex.from_base(replace(base, requested=kind)))

    def _take_in_changes(self) -> bool:
        # Read the version first: a change that lands in between is then seen next time.
        version = self._catalog.data_version()
        state = self._state
        changes = self._catalog.changes(state.seq)
        changed = changes.seq != state.seq
        if changed and changes.whole:
            self._state = self._anew(changes)
            self._base_name = None
            self._changed = 0
        elif changed:
            index = state.index
            came_or_went = len(changes.ids) + len(changes.removed)
            if came_or_went:
                index = index.with_changes(changes.ids, changes.vectors, changes.removed)
            self._state = State(changes.seq, index)
            self._changed += came_or_went
        self._version = version
        return changed

    def _swap(self, base: Base, name: str | None) -> bool:
        """Search on ``base`` and what came since; False if the catalog has another history now."""
        with self._applying:
            changes = self._catalog.changes(base.seq)
            if changes.whole and len(base.ids):
                return False
            index = VectorIndex.from_base(base).with_changes(
                changes.ids, changes.vectors, changes.removed
            )
            self._state = State(changes.seq, index)
            self._base_name = name
            self._changed = len(changes.ids) + len(changes.removed)
            if self._writable and self._catalog.meta("recall", ""):
                self._catalog.set_meta("recall", "")  # that of another base
            return True

    # Working on the index

    def _is_due(self) -> bool:
        if self._writable:
            return self._needs_build() or self._needs_files() or self._needs_measurement()
        return self._offered() is not None or (
            self._base_name is None and self._state.index.needs_rebuild
        )

    def _do_what_is_due(self) -> None:
        if not self._writable:
            if self._offered() is not None:
                self._load_offered()
            elif self._base_name is None and self._state.index.needs_rebuild:
                self._swap(self._build(*self._wanted(), None), None)
        elif self._needs_build():
            base = self._build(*self._wanted(), None)
            if len(base.ids) >= STORED_LEAST or self._base_name is not None:
                self._install(base)
            else:
                self._swap(base, None)
        elif self._needs_files():
            self._install(self._state.index.base)
        elif self._needs_measurement():
            self.measure_recall()

    def _needs_build(self) -> bool:
        index = self._state.index
        wanted = (index.base.requested, index.base.target_recall)
        return index.needs_rebuild or wanted != self._wanted()

    def _needs_files(self) -> bool:
        return self._base_name is None and len(self._state.index.base.ids) >= STORED_LEAST

    def _needs_measurement(self) -> bool:
        index = self._state.index
        return index.base.ann is not None and self._changed > DRIFT * len(index)

    def _wanted(self) -> tuple[RequestedKind, float]:
        """Kind of index and recall that the gallery's owner asked for."""
        kind = self._catalog.meta("index_kind")
        for known in get_args(RequestedKind):
            if kind == known:
                return known, float(self._catalog.meta("target_recall"))
        raise GalleryError(
            f"{self._catalog.path} asks for an index of kind {kind!r}; this release knows "
            f"{', '.join(get_args(RequestedKind))}. Use the release that made it."
        )

    def _build(self, kind: RequestedKind, target_recall: float, progress: Progress | None) -> Base:
        state = self._state
        ids, vectors = state.index.live()

        def tell(stage: str, share: float) -> None:
            self._work.check()
            if progress is not None:
                progress(stage, share)

        return build_base(
            ids, vectors, seq=state.seq, kind=kind, target_recall=target_recall, progress=tell
        )

    def _install(self, base: Base) -> None:
        """Search on ``base``, write it, and search on what was written."""
        if not self._swap(base, None):
            return
        try:
            write_base(self._folder, base)
        except OSError as error:
            reason = error.strerror or error
            raise GalleryError(
                f"the index cannot be written to {self._folder} ({reason}): mend that. Nothing is "
                "lost, and searches go on with the index in memory."
            ) from error
        self._work.error = None
        name = current_name(self._folder)
        # From files, vectors are mapped into memory that all processes share.
        stored = read_base(self._folder)
        assert stored is not None  # one process writes, and it just did
        self._swap(stored, name)
        log.info(
            "index of %s: %s over %d vectors, recall@10 %s",
            self._folder.parent,
            base.kind,
            len(base.ids),
            base.recall,
        )

    def _offered(self) -> str | None:
        """The name of a base on disk that is not the one in use, nor known to be of no use."""
        try:
            name = current_name(self._folder)
        except BaseDamagedError as error:
            if self._told != str(error):
                self._told = str(error)
                log.warning("%s", error)
            return None
        return name if name not in (None, self._base_name, self._refused) else None

    def _load_offered(self) -> None:
        """Load the base that another process wrote; what is of no use is left alone from now on."""
        name = self._offered()
        try:
            # The whole folder may have been exchanged for that of another model.
            base = read_base(self._folder) if self._is_own_folder() else None
        except BaseDamagedError as error:
            log.warning("%s", error)
            base = None
        usable = base is not None and self._is_ours(base) and self._is_own_folder()
        if base is None or not usable or not self._swap(base, name):
            log.warning("the index %s in %s is not taken", name, self._folder)
            self._refused = name

    def _is_own_folder(self) -> bool:
        try:
            return os.path.samestat(self._catalog_file, self._catalog.path.stat())
        except FileNotFoundError:
            return False

    def _recall(self, base: Base) -> float | None:
        """The figure that was measured last: at some change since the base, or with the base."""
        kept = self._catalog.meta("recall", "")
        if kept and int(self._catalog.meta("recall_seq")) >= base.seq:
            return float(kept)
        return base.recall
