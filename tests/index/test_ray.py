"""Two machines of a Ray cluster, as two of its nodes on this one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from index import Gallery, Model, build, list_photos
from tests.index.bulk_runs import Pipe, contents, done, dscl, until
from tests.photos import write_class_folders
from tests.tiny_model import make_model_folder

pytest.importorskip("ray", reason="needs Ray, which comes with the extra `ray`")
pytest.importorskip("pandas", reason="needs Ray Data, which comes with the extra `ray`")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        cluster.second = cluster.add_node(**{k: node[k] for k in list(node)[:2]})
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny"))


def test_a_lost_machine_does_not_lose_the_run(tmp_path, model, cluster):
    """Both nodes wait at a photo each when one is killed: the other does its shard, too."""
    photos = write_class_folders(tmp_path.resolve() / "photos")
    files = [f"car-{i}/{j}.jpg" for i in range(3) for j in range(4)]
    table = photos / "cars.csv"
    table.write_text("path,label\n" + "".join(f"{each},{each[:5]}\n" for each in files))
    with Gallery.create(tmp_path / "by-threads", model) as gallery:
        build(gallery, list_photos(table))

    held = [Pipe(photos / files[number]) for number in (1, 2)]
    gallery_path, work = tmp_path / "gallery", tmp_path / "elsewhere"
    run = dscl(
        *("index", "build", "--model", model.path, "--images", table, "--gallery", gallery_path),
        *("--engine", "ray", "--address", cluster.address, "--work", work, "--shard-size", 1),
        "--json",
    )
    until(lambda: all(pipe.is_read() for pipe in held))
    assert not done(work) & {1, 2}
    cluster.remove_node(cluster.second, allow_graceful=False)
    for pipe in held:
        pipe.as_before()
        pipe.let_go()
    output, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert errors == ""
    report = json.loads(output)
    assert (report["added"], report["skipped"], report["items"]) == (12, [], 12)
    assert not work.exists()
    assert contents(gallery_path) == contents(tmp_path / "by-threads")
