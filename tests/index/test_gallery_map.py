"""The map of a gallery: neighbours stay neighbours, and the file is never taken for another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.manifold import trustworthiness

from index import Gallery, Model
from index.errors import GalleryError, InvalidArgumentError
from index.gallery_map import FILE, LARGEST, draw, read_map
from index.projection import project
from tests.index.gallery_items import DIM, items, unit
from tests.tiny_model import make_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny", dim=DIM))


@pytest.fixture
def gallery(tmp_path: Path, model: Model):
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        yield gallery


def groups(n: int, count: int, d: int = 32, seed: int = 0) -> tuple[NDArray[np.float32], NDArray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(count, size=n)
    x = rng.standard_normal((count, d))[labels] + 0.3 * rng.standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def nearest_on(plane: NDArray) -> NDArray:
    distances = np.square(plane[:, None].astype(np.float64) - plane[None]).sum(2)
    np.fill_diagonal(distances, np.inf)
    return distances.argmin(1)


def test_neighbours_on_the_map_are_neighbours_in_search() -> None:
    x, labels = groups(600, 12)
    plane = project(x)
    assert plane.shape == (600, 2)
    # By chance it would be 0.5; scikit-learn's own t-SNE reaches 0.99 on such data.
    assert trustworthiness(x, plane, n_neighbors=5) > 0.97
    assert (labels[nearest_on(plane)] == labels).mean() > 0.97


def test_the_same_vectors_give_the_same_map() -> None:
    x, _ = groups(200, 5)
    np.testing.assert_array_equal(project(x), project(x))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_few_items_have_places_of_their_own(n: int) -> None:
    plane = project(unit(n))
    assert plane.shape == (n, 2) and np.isfinite(plane).all()
    assert len(np.unique(plane.round(9), axis=0)) == n


def test_identical_photos_are_no_error() -> None:
    assert np.isfinite(project(np.repeat(unit(3), 40, axis=0))).all()


def test_what_progress_raises_stops_the_drawing() -> None:
    def stop(done: int, total: int, stage: str) -> None:
        assert 0 < done <= total and stage
        raise InterruptedError

    with pytest.raises(InterruptedError):
        project(groups(200, 5)[0], progress=stop)


def test_positions_fill_their_range_and_keep_the_shape() -> None:
    x, _ = groups(300, 6)
    plane, drawn = project(x), draw(np.arange(300), x, seq=1, model_sha256="m")
    spread = np.ptp(drawn.positions.astype(int), axis=0)
    assert spread.max() == LARGEST
    assert spread.min() / LARGEST == pytest.approx(
        np.ptp(plane, axis=0).min() / np.ptp(plane, axis=0).max(), abs=1e-4
    )


def test_an_empty_gallery_has_no_map(gallery: Gallery) -> None:
    assert gallery.map() is None
    with pytest.raises(InvalidArgumentError, match="gallery is empty"):
        gallery.draw_map()


def test_a_map_is_kept_with_the_gallery(gallery: Gallery) -> None:
    ids = gallery.add(items(unit(50)))
    drawn = gallery.draw_map()
    assert drawn.ids.tolist() == ids
    with Gallery.open(gallery.path) as reader:
        found = reader.map()
    assert found is not None
    np.testing.assert_array_equal(found.positions, drawn.positions)
    assert (found.seq, found.items, found.created) == (drawn.seq, 50, drawn.created)


def test_a_map_that_is_not_kept_is_the_process_own(gallery: Gallery) -> None:
    gallery.add(items(unit(20)))
    gallery.draw_map(keep=False)
    assert gallery.map() is not None
    assert not (gallery.path / FILE).exists()


def test_few_new_items_come_beside_their_nearest_and_the_others_stay(gallery: Gallery) -> None:
    x, labels = groups(300, 6, DIM)
    ids = np.array(gallery.add(items(x)))
    before = gallery.draw_map()
    gallery.remove(ids[:20].tolist())
    twins = x[[50, 60, 70]]
    new = gallery.add(items(twins, prefix="new/"))
    after = gallery.draw_map()
    kept, positions = after.positions_of(ids[20:])
    np.testing.assert_array_equal(kept, ids[20:])
    np.testing.assert_array_equal(positions, before.positions[20:])
    _, placed = after.positions_of(np.array(new))
    for twin, place in zip([50, 60, 70], placed, strict=True):
        group = before.positions[labels == labels[twin]]
        assert (group.min(0) <= place).all() and (place <= group.max(0)).all()
    assert after.items == 283 and not np.isin(ids[:20], after.ids).any()


def test_many_new_items_have_it_drawn_anew(gallery: Gallery) -> None:
    x, _ = groups(200, 4, DIM)
    gallery.add(items(x[:100]))
    before = gallery.draw_map()
    gallery.add(items(x[100:], prefix="new/"))
    after = gallery.draw_map()
    assert len(after.ids) == 200
    assert (after.positions_of(before.ids)[1] != before.positions).any()
    assert trustworthiness(x, after.positions.astype(float), n_neighbors=5) > 0.9


@pytest.mark.parametrize("damage", ["cut", "garbage", "gone", "format"])
def test_a_damaged_file_is_no_map_and_can_be_drawn_again(
    gallery: Gallery, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    gallery.add(items(unit(30)))
    gallery.draw_map()
    file = gallery.path / FILE
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "garbage":
        file.write_bytes(b"\xff" * 1000)
    elif damage == "format":
        file.write_bytes(content.replace(b'"format_version": 1', b'"format_version": 9'))
    else:
        file.unlink()
    assert read_map(gallery.path) is None
    assert ("draw the map again" in caplog.text) == (damage != "gone")
    gallery.draw_map(anew=True)
    assert gallery.map() is not None


def test_a_map_of_another_model_is_none(gallery: Gallery) -> None:
    gallery.add(items(unit(30)))
    gallery.draw_map()
    data = dict(np.load(gallery.path / FILE))
    about = data["about"].tobytes().replace(gallery.model.sha256.encode(), b"0" * 64)
    np.savez(gallery.path / FILE, **{**data, "about": np.frombuffer(about, np.uint8)})
    assert read_map(gallery.path) is not None
    assert gallery.map() is None


def test_a_map_that_cannot_be_written_leaves_the_one_before(gallery: Gallery, monkeypatch) -> None:
    gallery.add(items(unit(30)))
    gallery.draw_map()
    content = (gallery.path / FILE).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("index.gallery_map.write_atomically", full)
    with pytest.raises(GalleryError, match="No space left"):
        gallery.draw_map(anew=True)
    assert (gallery.path / FILE).read_bytes() == content
