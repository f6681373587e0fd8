"""Two machines of a Ray cluster, as two of its nodes on this one."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from index import Gallery, Model, build, list_photos
from index.bulk import ShardedEmbedder
from index.errors import InvalidArgumentError, ShardError
from index.photos import image_files
from index.ray_runner import ATTEMPTS, RayRunner, _embed
from index.shard_runner import ProcessRunner
from index.shards import Work
from tests.index.bulk_runs import PATIENCE, Pipe, contents, done, dscl, stamps, until
from tests.photos import write_class_folders
from tests.tiny_model import make_model_folder

pytest.importorskip("ray", reason="needs Ray, which comes with the extra `ray`")
pytest.importorskip("pandas", reason="needs Ray Data, which comes with the extra `ray`")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a CPU each, and what they say is a GPU."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        node = {
            "num_cpus": 1,
            "num_gpus": 1,
            "object_store_memory": 100 * 2**20,
            "include_dashboard": False,
        }
        cluster = Cluster(initialize_head=True, head_node_args=node)
        cluster.second = cluster.add_node(**{k: node[k] for k in list(node)[:3]})
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny"))


def table_of(photos: Path) -> Path:
    """A CSV, as a folder's list leaves pipes out."""
    rows = [f"{each.relative_to(photos)},{each.parent.name}" for each in image_files(photos)]
    (photos / "cars.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    return photos / "cars.csv"


def run_by_ray(model: Model, images: Path, gallery: Path, *options: object) -> Any:
    command = ["index", "build", "--model", model.path, "--images", images, "--gallery", gallery]
    return dscl(*command, "--engine", "ray", "--shard-size", 1, "--json", *options)


def test_a_stopped_run_goes_on_and_gives_what_threads_give(tmp_path, model, cluster, monkeypatch):
    """The address comes from the environment; Ctrl-C leaves one line."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    photos = write_class_folders(tmp_path.resolve() / "photos", classes=2, per_class=2)
    (photos / "broken.jpg").write_bytes(b"")
    table = table_of(photos)
    with Gallery.create(tmp_path / "by-threads", model) as gallery:
        expected = build(gallery, list_photos(table))
    held = Pipe(photos / "car-0" / "1.jpg")
    gallery_path, work = tmp_path / "gallery", tmp_path / "gallery.shards"
    with run_by_ray(model, table, gallery_path) as run:
        until(lambda: held.is_read() and len(done(work)) == 4)
        before = stamps(work)
        os.killpg(run.pid, signal.SIGINT)
        output, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130, errors
    assert output == ""
    assert errors == "Stopped. Shards that are done are kept; the same command goes on.\n"
    held.as_before()
    held.let_go()

    [missing] = set(range(5)) - set(before)
    opened = Work.open(work)
    with RayRunner() as runner:
        assert runner.workers == 2
        assert list(runner.run(opened, [missing])) == [missing]
    assert {number: stamps(work)[number] for number in before} == before
    bulk = ShardedEmbedder(work, ProcessRunner(1))
    with Gallery.open(gallery_path, writable=True) as gallery:
        assert build(gallery, list_photos(table), bulk=bulk) == expected
        assert contents(gallery) == contents(tmp_path / "by-threads")


def test_a_lost_machine_does_not_lose_the_run(tmp_path, model, cluster):
    """Both nodes wait at a photo each when one is killed: the other does its shard, too."""
    photos = write_class_folders(tmp_path.resolve() / "photos")
    table = table_of(photos)
    with Gallery.create(tmp_path / "by-threads", model) as gallery:
        build(gallery, list_photos(table))

    held = [Pipe(photos / "car-0" / name) for name in ("1.jpg", "2.jpg")]
    gallery_path, work = tmp_path / "gallery", tmp_path / "elsewhere"
    options = ("--address", cluster.address, "--work", work, "--gpus", 0.5)
    with run_by_ray(model, table, gallery_path, *options) as run:
        until(lambda: all(pipe.is_read() for pipe in held))
        assert not done(work) & {1, 2}
        cluster.remove_node(cluster.second, allow_graceful=False)
        for pipe in held:
            pipe.as_before()
            pipe.let_go()
        output, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, errors
    assert "Traceback" not in errors
    report = json.loads(output)
    assert (report["added"], report["skipped"], report["items"]) == (12, [], 12)
    assert not work.exists()
    assert contents(gallery_path) == contents(tmp_path / "by-threads")


def test_gpus_that_there_are_not_are_refused_at_once(cluster):
    runner = RayRunner(address=cluster.address, gpus=3)
    with (
        pytest.raises(ShardError, match=r"3 GPUs, and the Ray cluster at .* has [12] in all"),
        runner,
    ):
        pass
    for gpus in (-1, 1.5):
        with pytest.raises(InvalidArgumentError, match=r"expected a part of one"):
            RayRunner(gpus=gpus)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("10.0.0.1", "expected HOST:PORT of its head, such as 10.0.0.1:6379"),
        ("ray://10.0.0.1:10001", "expected HOST:PORT of its head"),
        ("127.0.0.1:{closed}", "no Ray cluster answers at 127.0.0.1:.*refused.*ray start --head"),
    ],
)
def test_a_cluster_that_is_not_there_is_said_at_once(address, message):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    with pytest.raises(ShardError, match=message), RayRunner(address=address.format(closed=closed)):
        pass


def test_a_shard_that_kills_whatever_embeds_it_is_given_up(tmp_path, model):
    photos = write_class_folders(tmp_path.resolve() / "photos")
    work = Work.create(tmp_path / "work", model)
    [shard] = work.append(list(image_files(photos)), 100)
    for _ in range(ATTEMPTS):
        work.begin(shard, "this run")
    row = {"folder": str(work.path), "shard": 0, "run": "this run"}
    assert f"shard 0 was begun {ATTEMPTS} times" in _embed(row)["error"]
    assert not work.is_done(shard)
    assert _embed({**row, "run": "the next"}) == {"shard": 0, "error": ""}
    assert work.is_done(shard)
