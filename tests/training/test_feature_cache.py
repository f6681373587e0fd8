"""Cached features: those of the backbone, computed once, and anew when anything has changed."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from index.errors import DataError, ImageError, InvalidArgumentError
from index.images import ResizeMode
from tests.photos import BROKEN, write_photo
from training import feature_cache
from training.augment import Augmentation, PhotoLoader
from training.backbones import Backbone
from training.data import Photos
from training.embed import embed
from training.feature_cache import FeatureCacheError, _View, cached_features

N = 11
CPU = torch.device("cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    paths = tuple(write_photo(tmp_path / "photos" / f"{i:02}.jpg", seed=i) for i in range(N))
    return Photos(paths, np.arange(N) % 2, ("a", "b"))


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone("small_cnn")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 4 photos, in two forward passes."""
    monkeypatch.setattr(feature_cache, "BATCH", 2)
    monkeypatch.setattr(feature_cache, "SHARD_BATCHES", 2)


def make_loader(
    photos: Photos,
    *,
    side: int = 32,
    mode: ResizeMode = "squash",
    augmentation: Augmentation | None = None,
) -> PhotoLoader:
    return PhotoLoader(photos, height=side, width=side, mode=mode, augmentation=augmentation)


class Run:
    """A run with a cache: what it got, how many photos went through the network, what it said."""

    def __init__(self, backbone: Backbone, loader: PhotoLoader, folder: Path, **options: Any):
        self.lines: list[str] = []
        self.computed = 0

        def count(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            self.computed += len(inputs[0])

        hook = backbone.register_forward_pre_hook(count)
        try:
            self.features = cached_features(
                backbone,
                loader,
                folder=folder,
                device=CPU,
                description="Features",
                echo=self.lines.append,
                **options,
            )
        finally:
            hook.remove()


def only_cache(folder: Path) -> Path:
    (cache,) = (path for path in folder.iterdir() if path.is_dir())
    return cache


def test_features_are_those_of_the_backbone(
    photos: Photos, backbone: Backbone, tmp_path: Path
) -> None:
    loader = make_loader(photos)
    run = Run(backbone.train(), loader, tmp_path / "new" / "cache")
    assert run.features.shape == (N, backbone.features)
    assert run.features.dtype == np.float32
    assert isinstance(run.features, np.memmap)
    assert not run.features.flags.writeable
    np.testing.assert_array_equal(run.features, embed(backbone, loader, CPU, "").numpy())


def test_a_second_run_computes_nothing(photos: Photos, backbone: Backbone, tmp_path: Path) -> None:
    first = Run(backbone, make_loader(photos), tmp_path / "cache")
    again = Backbone("small_cnn")
    again.load_state_dict(backbone.state_dict())
    second = Run(again, make_loader(photos), tmp_path / "cache")
    assert (first.computed, second.computed) == (N, 0)
    assert second.lines == []
    np.testing.assert_array_equal(second.features, first.features)
    assert [path.name for path in sorted(only_cache(tmp_path / "cache").iterdir())] == [
        "features.json",
        "features.npy",
    ]


def change_weights(backbone: Backbone, photos: Photos) -> None:
    with torch.no_grad():
        next(backbone.parameters()).view(-1)[0] += 1e-6


def change_running_mean(backbone: Backbone, photos: Photos) -> None:
    dict(backbone.named_buffers())["network.features.0.1.running_mean"][0] += 1e-6


def change_normalisation(backbone: Backbone, photos: Photos) -> None:
    assert "mean" not in backbone.state_dict()
    backbone.mean += 1


def rename(backbone: Backbone, photos: Photos) -> None:
    backbone.name = "other"


def replace_photo(backbone: Backbone, photos: Photos) -> None:
    write_photo(photos.paths[3], seed=99)


def touch_photo(backbone: Backbone, photos: Photos) -> None:
    facts = photos.paths[3].stat()
    os.utime(photos.paths[3], ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))


@pytest.mark.parametrize(
    "change",
    [
        change_weights,
        change_running_mean,
        change_normalisation,
        rename,
        replace_photo,
        touch_photo,
    ],
)
def test_another_network_or_photo_is_computed_anew(
    photos: Photos,
    backbone: Backbone,
    tmp_path: Path,
    change: Callable[[Backbone, Photos], None],
) -> None:
    loader = make_loader(photos)
    Run(backbone, loader, tmp_path / "cache")
    change(backbone, photos)
    changed = Run(backbone, loader, tmp_path / "cache")
    assert changed.computed == N
    np.testing.assert_array_equal(changed.features, embed(backbone, loader, CPU, "").numpy())


def test_other_photos_boxes_sizes_and_draws_are_caches_of_their_own(
    photos: Photos, backbone: Backbone, tmp_path: Path
) -> None:
    boxes = np.tile([4.0, 4, 40, 40], (N, 1))
    shifted = boxes.copy()
    shifted[5] += 1
    flip, color = Augmentation(color=0), Augmentation(flip=False)
    asked: list[tuple[PhotoLoader, dict[str, int]]] = [
        (make_loader(photos), {}),
        (make_loader(photos.subset(np.arange(N) != 4)), {}),
        (make_loader(replace(photos, paths=photos.paths[::-1])), {}),
        (make_loader(replace(photos, boxes=boxes)), {}),
        (make_loader(replace(photos, boxes=shifted)), {}),
        (make_loader(photos, side=48), {}),
        (make_loader(photos, mode="pad"), {}),
        (make_loader(photos, augmentation=flip), {}),
        (make_loader(photos, augmentation=color), {}),
        (make_loader(photos, augmentation=flip), {"view": 1}),
        (make_loader(photos, augmentation=flip), {"seed": 1}),
    ]
    first = [Run(backbone, loader, tmp_path / "cache", **draw) for loader, draw in asked]
    assert all(run.computed == len(run.features) for run in first)
    second = [Run(backbone, loader, tmp_path / "cache", **draw) for loader, draw in asked]
    for before, after in zip(first, second, strict=True):
        assert after.computed == 0
        np.testing.assert_array_equal(after.features, before.features)


def test_labels_and_the_seed_of_photos_that_are_not_augmented_do_not_matter(
    photos: Photos, backbone: Backbone, tmp_path: Path
) -> None:
    Run(backbone, make_loader(photos), tmp_path / "cache")
    other = replace(photos, labels=1 - photos.labels)
    assert Run(backbone, make_loader(other), tmp_path / "cache", seed=1).computed == 0


def test_each_photo_has_its_own_draw_in_each_view(
    photos: Photos, backbone: Backbone, tmp_path: Path
) -> None:
    twins = replace(photos, paths=photos.paths[:1] * N)
    loader = make_loader(twins, augmentation=Augmentation())
    views = [Run(backbone, loader, tmp_path / "cache", view=view).features for view in range(2)]
    rows = np.concatenate(views)
    # Pixels of the same photo, so that rows differ by their draws alone.
    assert len(np.unique(rows, axis=0)) == 2 * N

    def of_draw(position: int, draw: int) -> NDArray[np.float32]:
        with torch.inference_mode():
            return backbone(loader[position, draw][None]).numpy()[0]

    draws = np.random.SeedSequence((0, 1)).generate_state(N, np.uint64).tolist()
    expected = np.stack([of_draw(i, draw) for i, draw in enumerate(draws)])
    np.testing.assert_allclose(views[1], expected, rtol=1e-4, atol=1e-5)


def test_worker_processes_draw_the_same_photos(photos: Photos) -> None:
    view = _View(make_loader(photos, augmentation=Augmentation()), view=1, seed=2).after(3)
    sent: _View = pickle.loads(pickle.dumps(view))
    assert len(sent) == N - 3
    for position in range(N - 3):
        assert torch.equal(sent[position, 0], view[position, 0])


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("augmentation", [None, Augmentation()])
@pytest.mark.parametrize(("photos_done", "left"), [(3, 11), (4, 7), (7, 7), (9, 3)])
def test_an_interrupted_run_goes_on_from_its_last_whole_shard(
    photos: Photos,
    backbone: Backbone,
    tmp_path: Path,
    augmentation: Augmentation | None,
    photos_done: int,
    left: int,
) -> None:
    loader = make_loader(photos, augmentation=augmentation)
    whole = Run(backbone, loader, tmp_path / "whole").features
    seen = 0

    def interrupt(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        nonlocal seen
        seen += len(inputs[0])
        if seen > photos_done:
            raise KeyboardInterrupt

    hook = backbone.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        Run(backbone, loader, tmp_path / "cache")
    hook.remove()
    resumed = Run(backbone, loader, tmp_path / "cache")
    assert resumed.computed == left
    np.testing.assert_array_equal(resumed.features, whole)
    assert only_cache(tmp_path / "cache")  # shards are gone


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("content", [b"", b"not an array", None])
def test_a_damaged_shard_is_computed_anew(
    photos: Photos, backbone: Backbone, tmp_path: Path, content: bytes | None
) -> None:
    loader = make_loader(photos)
    whole = Run(backbone, loader, tmp_path / "whole").features
    shards = tmp_path / "cache" / f"{only_cache(tmp_path / 'whole').name}.partial"
    shards.mkdir(parents=True)
    for start, end in ((0, 4), (4, 8), (8, N)):
        np.save(shards / f"{start:09}-{end:09}.npy", whole[start:end])
    damaged = shards / f"{4:09}-{8:09}.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] if content is None else content)
    run = Run(backbone, loader, tmp_path / "cache")
    assert run.computed == 7
    np.testing.assert_array_equal(run.features, whole)


def flip_a_bit(cache: Path) -> None:
    content = bytearray((cache / "features.npy").read_bytes())
    content[-3] ^= 1
    (cache / "features.npy").write_bytes(content)


def cut_off(cache: Path) -> None:
    with (cache / "features.npy").open("r+b") as file:
        file.truncate(200)


def put_other_features(cache: Path) -> None:
    np.save(cache / "features.npy", np.zeros((N, 3), np.float32))


def describe_other_inputs(cache: Path) -> None:
    card = json.loads((cache / "features.json").read_text())
    card["inputs"]["backbone"] = "resnet50"
    (cache / "features.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, "features.npy has changed"),
        (cut_off, "features.npy has changed"),
        (put_other_features, "features.npy has changed"),
        (describe_other_inputs, "features.json describes something else"),
        (lambda cache: (cache / "features.json").write_text("{"), "is incomplete"),
        (lambda cache: (cache / "features.json").write_bytes(b"\xff"), "is incomplete"),
        (lambda cache: (cache / "features.json").write_text("[]"), "describes something else"),
        (lambda cache: (cache / "features.json").unlink(), "is incomplete"),
        (lambda cache: (cache / "features.npy").unlink(), "is incomplete"),
        (shutil.rmtree, None),
    ],
)
def test_a_damaged_or_foreign_cache_is_rebuilt_and_named(
    photos: Photos,
    backbone: Backbone,
    tmp_path: Path,
    damage: Callable[[Path], object],
    reason: str | None,
) -> None:
    loader = make_loader(photos)
    whole = np.array(Run(backbone, loader, tmp_path / "cache").features)
    cache = only_cache(tmp_path / "cache")
    damage(cache)
    rebuilt = Run(backbone, loader, tmp_path / "cache")
    assert rebuilt.computed == N
    np.testing.assert_array_equal(rebuilt.features, whole)
    if reason is None:
        assert rebuilt.lines == []
    else:
        (line,) = rebuilt.lines
        assert str(cache) in line
        assert reason in line
    after = Run(backbone, loader, tmp_path / "cache")
    assert (after.computed, after.lines) == (0, [])


def test_of_two_runs_at_once_one_computes_and_the_other_waits(
    photos: Photos, backbone: Backbone, tmp_path: Path
) -> None:
    loader = make_loader(photos)
    expected = Run(backbone, loader, tmp_path / "other").features
    name = only_cache(tmp_path / "other").name
    folder = tmp_path / "cache"
    folder.mkdir()
    waiting, found, computed = threading.Event(), [], []

    def second_run() -> None:
        features = cached_features(
            backbone,
            loader,
            folder=folder,
            device=CPU,
            description="Features",
            echo=lambda line: waiting.set(),
        )
        found.append(features)

    backbone.register_forward_pre_hook(lambda *_: computed.append(1))
    thread = threading.Thread(target=second_run)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread.start()
        assert waiting.wait(60)
        # The first run finishes.
        shutil.copytree(tmp_path / "other" / name, folder / name)
    thread.join(60)
    assert not computed
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.usefixtures("small_shards")
def test_a_photo_that_cannot_be_read_leaves_no_cache(
    photos: Photos, backbone: Backbone, tmp_path: Path
) -> None:
    photos.paths[-1].write_bytes(BROKEN["truncated"][0])
    with pytest.raises(ImageError, match=photos.paths[-1].name):
        Run(backbone, make_loader(photos), tmp_path / "cache")
    assert only_cache(tmp_path / "cache").suffix == ".partial"


def test_features_that_are_not_finite_are_not_kept(
    photos: Photos, backbone: Backbone, tmp_path: Path
) -> None:
    with torch.no_grad():
        next(backbone.parameters()).fill_(torch.nan)
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match=r"11 of 11 photos, .*00.jpg, have .* NaN"):
            Run(backbone, make_loader(photos), tmp_path / "cache")


def test_a_photo_that_is_gone_is_named(photos: Photos, backbone: Backbone, tmp_path: Path) -> None:
    photos.paths[2].unlink()
    with pytest.raises(DataError, match=f"{photos.paths[2]} cannot be read: No such file"):
        Run(backbone, make_loader(photos), tmp_path / "cache")


def test_a_folder_that_cannot_be_written_is_named(
    photos: Photos, backbone: Backbone, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FeatureCacheError, match=r"file/cache cannot .* --feature-cache"):
        Run(backbone, make_loader(photos), tmp_path / "file" / "cache")


def test_photos_that_are_not_augmented_have_one_view(
    photos: Photos, backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"view is 1: .* expected 0"):
        Run(backbone, make_loader(photos), tmp_path / "cache", view=1)
    with pytest.raises(InvalidArgumentError, match="view is -1"):
        augmented = make_loader(photos, augmentation=Augmentation())
        Run(backbone, augmented, tmp_path / "cache", view=-1)
