"""The exported model: an ONNX graph and its card.

A model folder holds ``model.onnx`` (``pixels`` uint8 [n, 3, h, w] → ``embedding`` float32 [n, d] of
unit length, everything in between inside the graph) and ``model.json``, the card; beside them may
lie the same model in lower precision and the graph that shows similar regions, which the card
lists. Training writes such folders; this module reads them, and needs no training code to do so.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from index.errors import InvalidArgumentError, ModelError
from index.files import replace_folder, sha256_bytes, sha256_file
from index.images import MAX_PIXELS, Area, ResizeMode, decode, resize, seen_area
from index.regions import RegionGraph, RegionReader
from index.runtimes import (
    Precision,
    Runtime,
    RuntimeName,
    Session,
    choose_runtime,
    open_session,
)
from index.stores import PhotoPath

__all__ = ["CARD_FILE", "FORMAT_VERSION", "GRAPH_FILE", "LowerPrecision", "Model", "ModelCard"]

FORMAT_VERSION = 1
GRAPH_FILE = "model.onnx"
CARD_FILE = "model.json"

#: Images a single run of the graph takes. Larger batches gain nothing on a CPU and cost memory.
RUN_SIZE = 32

#: Shorter outputs have no direction: they are left as they are.
TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class LowerPrecision:
    """A graph of the same model in lower precision, and what that does to its figures."""

    file: str  #: beside ``model.onnx``
    sha256: str
    metrics: dict[str, Any] = field(default_factory=dict)  #: measured like the card's own


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model is and how it was made; ``model.json`` beside the graph.

    ``metrics`` were measured under ``protocol``; figures of different protocols do not compare.
    """

    name: str
    sha256: str  #: of ``model.onnx``: the model's identity
    backbone: str
    dim: int
    height: int
    width: int
    resize: ResizeMode
    loss: str | None = None
    dataset: str | None = None
    protocol: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    created: str | None = None
    precisions: dict[str, LowerPrecision] = field(default_factory=dict)  #: by name: ``int8``
    regions: RegionGraph | None = None  #: where the embedding adds up over the feature map
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The card as the text of ``model.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> ModelCard:
        """Read and check a ``model.json``.

        Raises:
            ModelError: missing, not JSON, of another format version, or with missing values.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(
                f"{path.parent} is not a model folder: {path.name} is missing. "
                "Make one with `dscl train` or `dscl export`."
            ) from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read as a model card: {error}.") from error
        version = values.get("format_version") if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            raise ModelError(
                f"{path} has format version {version!r}; this release reads {FORMAT_VERSION}. "
                "Export the model again, or use the release that wrote it."
            )
        known = {f.name for f in dataclasses.fields(cls)}
        try:
            card = cls(**{key: value for key, value in values.items() if key in known})
        except TypeError as error:
            raise ModelError(f"{path} is incomplete: {error}. Export the model again.") from error
        sizes = (card.dim, card.height, card.width)
        if any(not isinstance(size, int) or size < 1 for size in sizes):
            raise ModelError(f"{path}: dim, height and width must be positive integers: {sizes}.")
        if card.resize not in get_args(ResizeMode):
            raise ModelError(
                f"{path}: resize {card.resize!r} is not one of {get_args(ResizeMode)}."
            )
        return dataclasses.replace(
            card,
            precisions=_lower_precisions(path, card.precisions),
            regions=_regions(path, card.regions),
        )

    def graph(self, precision: Precision) -> tuple[str, str]:
        """Name and SHA-256 of the file that is run in this precision.

        bf16 has no file of its own: it is computed from the fp32 graph.

        Raises:
            ModelError: the model was not exported in this precision.
        """
        if precision != "int8":
            return GRAPH_FILE, self.sha256
        if precision not in self.precisions:
            raise ModelError(
                f"{self.name} has no int8 graph; its precisions are "
                f"{', '.join(['fp32', 'bf16', *self.precisions])}. Make one with "
                "`dscl export --int8`, or use precision fp32."
            )
        return self.precisions[precision].file, self.precisions[precision].sha256


def _lower_precisions(path: Path, values: Any) -> dict[str, LowerPrecision]:
    if not isinstance(values, dict):
        raise ModelError(f"{path}: precisions is {values!r}; expected an object.")
    try:
        found = {name: LowerPrecision(**entry) for name, entry in values.items()}
    except TypeError as error:
        raise ModelError(
            f"{path}: precisions cannot be read: {error}. Export the model again."
        ) from error
    for name, entry in found.items():
        _check_beside(path, f"precision {name}", entry.file)
    return found


def _regions(path: Path, values: Any) -> RegionGraph | None:
    if values is None:
        return None
    try:
        graph = RegionGraph(**values)
    except TypeError as error:
        raise ModelError(
            f"{path}: regions cannot be read: {error}. Export the model again."
        ) from error
    _check_beside(path, "regions", graph.file)
    if not isinstance(graph.maps, list) or len(graph.maps) not in (1, 2):
        raise ModelError(
            f"{path}: regions.maps is {graph.maps!r}; expected the names of one or two tensors."
        )
    return graph


def _check_beside(path: Path, what: str, file: Any) -> None:
    if not isinstance(file, str) or Path(file).name != file:
        raise ModelError(
            f"{path}: {what} is to be in {file!r}; expected the name of a file in the model folder."
        )


class Model:
    """An embedding model, ready to run. ``embed`` may be called from several threads at once."""

    def __init__(
        self,
        path: Path,
        card: ModelCard,
        session: Session,
        *,
        runtime: RuntimeName,
        precision: Precision,
        threads: int = 1,
    ) -> None:
        self.path = path
        self.card = card
        self.runtime = runtime
        self.precision = precision
        #: Photos with more pixels are refused by ``prepare``.
        self.max_pixels = MAX_PIXELS
        self._session = session
        self._threads = threads
        self._regions: RegionReader | None = None
        self._regions_lock = threading.Lock()

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        threads: int = 1,
        runtime: Runtime = "auto",
        precision: Precision = "fp32",
    ) -> Model:
        """Load a model folder after checking the graph against its card.

        Args:
            path: the model folder.
            threads: CPU threads of one forward pass. One is right where several passes run side by
                side, as in the service.
            runtime: what runs the graph, see ``index.runtimes.choose_runtime``.
            precision: what to compute in. Vectors of different precisions do not belong in one
                gallery.

        Raises:
            InvalidArgumentError: a runtime or precision that is not known, or no threads.
            ModelError: the folder is missing or incomplete, the graph is not the one the card
                describes (a changed byte suffices), the model has no graph of this precision, or
                the runtime cannot load it or is not installed.
        """
        path = Path(path)
        if threads < 1:
            raise InvalidArgumentError(f"threads is {threads}; expected at least 1.")
        name = choose_runtime(runtime, precision)
        card = ModelCard.read(path / CARD_FILE)
        file, sha256 = card.graph(precision)
        graph = _read(path / file, sha256)
        try:
            session = open_session(graph, runtime=name, precision=precision, threads=threads)
        except ModelError as error:
            raise ModelError(f"{path / file}: {error}") from error
        return cls(path, card, session, runtime=name, precision=precision, threads=threads)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the fp32 graph, whatever the precision: what a gallery remembers."""
        return self.card.sha256

    def prepare(self, source: bytes | PhotoPath) -> NDArray[np.uint8]:
        """Decode and resize one photo as this model wants it.

        Returns:
            uint8 [3, h, w], RGB.

        Raises:
            ImageError: see ``index.images.decode``.
        """
        pixels, _ = self.prepare_with_area(source)
        return pixels

    def prepare_with_area(self, source: bytes | PhotoPath) -> tuple[NDArray[np.uint8], Area]:
        """As ``prepare``, and which part of the photo the model sees.

        Raises:
            ImageError: see ``index.images.decode``.
        """
        card = self.card
        image = decode(source, at_least=(card.height, card.width), max_pixels=self.max_pixels)
        pixels = resize(image, card.height, card.width, card.resize).transpose(2, 0, 1)
        area = seen_area(image.shape[0], image.shape[1], card.height, card.width, card.resize)
        return np.ascontiguousarray(pixels), area

    def embed(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed prepared images.

        Args:
            pixels: uint8 [n, 3, h, w], RGB, of the card's height and width.

        Returns:
            float32 [n, d], rows of unit length.

        Raises:
            InvalidArgumentError: another dtype or shape.
        """
        expected = (3, self.card.height, self.card.width)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != expected:
            raise InvalidArgumentError(
                f"images are {pixels.dtype} {list(pixels.shape)}; the model takes uint8 "
                f"[n, {', '.join(map(str, expected))}]."
            )
        if len(pixels) == 0:
            return np.empty((0, self.card.dim), np.float32)
        parts = [
            self._session.run(pixels[start : start + RUN_SIZE])
            for start in range(0, len(pixels), RUN_SIZE)
        ]
        embeddings = np.concatenate(parts)
        # Graphs end in unit length, but in low precision they miss it.
        embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), TINY)
        return embeddings

    def regions(self) -> RegionReader | None:
        """What shows which regions make photos alike; None where the model cannot.

        Opened at the first call: a second copy of the fp32 graph, whatever the precision of the
        vectors, in ONNX Runtime on the CPU.

        Raises:
            ModelError: its files are missing or not those of the card, or cannot be loaded.
        """
        described = self.card.regions
        if described is None:
            return None
        with self._regions_lock:
            if self._regions is None:
                self._regions = RegionReader(
                    _read(self.path / GRAPH_FILE, self.sha256),
                    _read(self.path / described.file, described.sha256),
                    described.maps,
                    threads=self._threads,
                )
            return self._regions

    def copy_to(self, path: Path) -> None:
        """Copy card and graphs, all that inference needs, to a folder that does not exist yet.

        Raises:
            ModelError: the model folder has been changed or removed since it was loaded.
        """
        graphs = {GRAPH_FILE: self.sha256}
        graphs |= {entry.file: entry.sha256 for entry in self.card.precisions.values()}
        if self.card.regions is not None:
            graphs[self.card.regions.file] = self.card.regions.sha256
        with replace_folder(path) as fresh:
            try:
                for name in (*graphs, CARD_FILE):
                    shutil.copyfile(self.path / name, fresh / name)
            except OSError as error:
                raise ModelError(
                    f"{self.path} cannot be copied: {error.strerror}. Export the model again."
                ) from error
            for name, sha256 in graphs.items():
                if sha256_file(fresh / name) != sha256:
                    raise ModelError(
                        f"{self.path / name} has changed since it was loaded: run it again."
                    )


def _read(path: Path, sha256: str) -> bytes:
    """A graph's bytes, if they are those that the card describes."""
    try:
        graph = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}. Export the model again."
        ) from error
    digest = sha256_bytes(graph)
    if digest != sha256:
        raise ModelError(
            f"{path} is not the file its card describes: SHA-256 is {digest[:12]}…, the card says "
            f"{str(sha256)[:12]}…. The file was changed or damaged: copy the model folder again, "
            "or export it anew."
        )
    return graph
