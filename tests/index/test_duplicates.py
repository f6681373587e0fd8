from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from index import Gallery, Model, build, list_photos
from index.duplicates import DEFAULT_THRESHOLD, NEIGHBOURS, PAGE, DuplicateGroup, find_duplicates
from index.errors import InvalidArgumentError
from tests.index.gallery_items import DIM, items, unit
from tests.photos import encoded, picture, write_class_folders
from tests.tiny_model import make_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny", dim=DIM))


@pytest.fixture
def gallery(tmp_path, model):
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        yield gallery


def around(centre: np.ndarray, n: int, spread: float, seed: int) -> np.ndarray:
    """n unit vectors near a direction."""
    x = centre + spread * np.random.default_rng(seed).normal(size=(n, DIM))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def brute_force(
    ids: list[int], vectors: np.ndarray, threshold: float
) -> list[tuple[tuple[int, ...], float]]:
    """Every pair that is near enough joins two sets, until no more do."""
    scores = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    pairs = [(a, b) for a, b in combinations(range(len(ids)), 2) if scores[a, b] >= threshold]
    groups = [{a} for a in range(len(ids))]
    for a, b in pairs:
        one = next(group for group in groups if a in group)
        other = next(group for group in groups if b in group)
        if one is not other:
            groups.remove(other)
            one |= other
    found = [
        (
            tuple(sorted(ids[a] for a in group)),
            min(float(scores[a, b]) for a, b in pairs if a in group),
        )
        for group in groups
        if len(group) > 1
    ]
    return sorted(found, key=lambda each: (-len(each[0]), each[0]))


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.97, 0.999])
@pytest.mark.parametrize("seed", range(3))
def test_groups_are_the_connected_components(gallery, threshold, seed):
    rng = np.random.default_rng(seed)
    vectors = np.concatenate(
        [
            around(centre, rng.integers(1, 3 * NEIGHBOURS), spread, seed)
            for centre, spread in zip(unit(15, seed=seed), rng.uniform(0.001, 0.2, 15), strict=True)
        ]
    )
    vectors = vectors[rng.permutation(len(vectors))]
    ids = gallery.add(items(vectors))
    gone = rng.choice(ids, 5, replace=False).tolist()
    gallery.remove(gone)
    kept = [number for number, item_id in enumerate(ids) if item_id not in gone]
    expected = brute_force([ids[number] for number in kept], vectors[kept], threshold)
    assert expected
    told = []
    groups = find_duplicates(
        gallery, threshold=threshold, progress=lambda count, total: told.append((count, total))
    )
    assert [group.ids for group in groups] == [group for group, _ in expected]
    assert np.allclose(
        [group.least for group in groups], [least for _, least in expected], atol=1e-6
    )
    assert sum(count for count, _ in told) == len(kept)
    assert {total for _, total in told} == {len(kept)}


def test_a_chain_is_one_group_whose_ends_may_differ(gallery):
    angles = np.radians(np.arange(0, 90, 10))
    chain = np.zeros((len(angles), DIM), np.float32)
    chain[:, 0], chain[:, 1] = np.cos(angles), np.sin(angles)
    ids = gallery.add(items(chain))
    [group] = find_duplicates(gallery, threshold=0.98)
    assert group == DuplicateGroup(tuple(ids), pytest.approx(np.cos(np.radians(10)), abs=1e-6))
    assert find_duplicates(gallery, threshold=0.99) == []


def test_more_copies_than_are_looked_at_first_are_one_group(gallery):
    copies = gallery.add(items(np.repeat(unit(1), PAGE + 4 * NEIGHBOURS, axis=0)))
    gallery.add(items(unit(50, seed=1), prefix="other-"))
    [group] = find_duplicates(gallery, threshold=0.9999)
    assert group.ids == tuple(copies)


def test_an_empty_gallery_has_no_groups(gallery):
    assert find_duplicates(gallery) == []


@pytest.mark.parametrize("threshold", [-1.5, 1.5, float("nan")])
@pytest.mark.parametrize("filled", [True, False])
def test_a_threshold_that_is_no_cosine_is_refused(gallery, threshold, filled):
    gallery.add(items(unit(2 * filled)))
    with pytest.raises(InvalidArgumentError, match="threshold is"):
        find_duplicates(gallery, threshold=threshold)


def test_copies_of_a_photo_are_found_by_the_default_threshold_and_others_are_not(tmp_path, gallery):
    photos = write_class_folders(tmp_path.resolve() / "photos")
    copies = [photos / "car-0" / name for name in ("0.jpg", "smaller.jpg", "other.png")]
    copies[1].write_bytes(encoded(picture(0).resize((40, 30)), quality=60))
    copies[2].write_bytes(encoded(picture(0), "PNG"))
    build(gallery, list_photos(photos), workers=1)
    [group] = find_duplicates(gallery)
    assert {each.image for each in gallery.get(group.ids)} == set(copies)
    assert DEFAULT_THRESHOLD <= group.least < 1
