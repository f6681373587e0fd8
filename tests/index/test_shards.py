from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from index import Gallery, Model, build, list_photos
from index.bulk import ShardedEmbedder
from index.commands import index as index_commands
from index.errors import DsclError, InvalidArgumentError, ShardError
from index.reading import Content, Embedded, Skipped
from index.shard_output import pack, unpack
from index.shard_runner import ProcessRunner, ShardEmbedder
from index.shards import Work
from tests.index.bulk_runs import PATIENCE, Pipe, contents, done, dscl, stamps, until
from tests.photos import BROKEN, write_class_folders, write_photo
from tests.tiny_model import make_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twelve photos, in a folder whose path has no links."""
    return write_class_folders(tmp_path.resolve() / "photos")


class Here:
    """Runs shards in this process, counts photos, and may be stopped after some shards."""

    def __init__(self, *, workers: int = 1, stop_after: int | None = None) -> None:
        self.workers = workers
        self.embedded = 0
        self.ran: list[int] = []
        self._stop_after = stop_after

    def run(self, work: Work, numbers: Sequence[int]) -> Iterator[int]:
        embedder = ShardEmbedder(work.path)
        for number in numbers:
            if len(self.ran) == self._stop_after:
                raise KeyboardInterrupt
            self.embedded += embedder.embed(number)
            self.ran.append(number)
            yield number


def stopped(tmp_path: Path, model: Model, photos: Path, *, after: int, size: int = 2) -> Path:
    """The work folder of a build, into ``gallery``, that was stopped after so many shards."""
    work = tmp_path / "work"
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        bulk = ShardedEmbedder(work, Here(stop_after=after), shard_size=size)
        with pytest.raises(KeyboardInterrupt):
            build(gallery, list_photos(photos), bulk=bulk)
        assert len(gallery) == 0
    return work


def resume(tmp_path: Path, photos: Path, **options) -> tuple[Here, list]:
    runner = Here()
    bulk = ShardedEmbedder(tmp_path / "work", runner, shard_size=2)
    with Gallery.open(tmp_path / "gallery", writable=True) as gallery:
        build(gallery, list_photos(photos), bulk=bulk, **options)
        return runner, contents(gallery)


def by_threads(tmp_path: Path, model: Model, photos: Path) -> list:
    with Gallery.create(tmp_path / "by-threads", model) as gallery:
        build(gallery, list_photos(photos))
        return contents(gallery)


# The same gallery


def awkward_photos(photos: Path) -> Path:
    """Photos with duplicates, broken ones and what somebody wrote down: the CSV of them."""
    shutil.copyfile(photos / "car-0" / "1.jpg", photos / "car-2" / "copy.jpg")
    rows = [f"car-{i}/{j}.jpg,audi,{1990 + j},K-{i}{j}" for i in range(3) for j in range(4)]
    rows += ["car-2/copy.jpg,bmw,2000,", "car-2/gone.jpg,bmw,2000,"]
    for name, (data, _) in BROKEN.items():
        (photos / f"broken-{name}.jpg").write_bytes(data)
        rows.append(f"broken-{name}.jpg,,,")
    (photos / "cars.csv").write_text("path,label,year,sku\n" + "\n".join(rows) + "\n")
    return photos / "cars.csv"


@pytest.mark.parametrize(("skip_duplicates", "sizes"), [(False, {100: 1, 1: 2}), (True, {5: 2})])
def test_processes_give_the_gallery_and_the_report_that_threads_give(
    tmp_path, model, photos, skip_duplicates, sizes
):
    """By shards of these sizes, in so many processes."""
    listed = list_photos(awkward_photos(photos))
    results = []
    for size, workers in {0: 1, **sizes}.items():
        bulk = size and ShardedEmbedder(tmp_path / "work", ProcessRunner(workers), shard_size=size)
        told: list[int] = []
        with Gallery.create(tmp_path / str(size), model) as gallery:
            for _ in range(2):
                report = build(
                    gallery,
                    listed,
                    skip_duplicates=skip_duplicates,
                    progress=told.append,
                    bulk=bulk or None,
                )
                results.append((report, contents(gallery)))
        assert sum(told) == 2 * len(listed)
        assert not (tmp_path / "work").exists()
    assert results[0][0].added == 12 + (not skip_duplicates)
    assert results[1][0].unchanged == results[0][0].added
    assert results[2::2] == [results[0]] * len(sizes)
    assert results[3::2] == [results[1]] * len(sizes)


def test_what_changes_and_goes_is_taken_over_and_only_that_is_embedded(tmp_path, model, photos):
    listed = list_photos(photos)
    for name in ("threads", "shards"):
        with Gallery.create(tmp_path / name, model) as gallery:
            build(gallery, listed)
    write_photo(photos / "car-0" / "0.jpg", seed=999)
    write_photo(photos / "car-9" / "0.jpg", seed=998)
    (photos / "car-1" / "3.jpg").unlink()
    runner, results = Here(), []
    for name, bulk in (("threads", None), ("shards", ShardedEmbedder(tmp_path / "work", runner))):
        with Gallery.open(tmp_path / name, writable=True) as gallery:
            report = build(gallery, list_photos(photos), prune=True, bulk=bulk)
            results.append((report, contents(gallery)))
    assert results[0] == results[1]
    assert (report.added, report.unchanged, report.removed) == (2, 10, 1)
    assert runner.embedded == 2


def test_skus_are_exchanged_without_embedding(tmp_path, model, photos):
    table = photos / "cars.csv"
    table.write_text("path,sku\ncar-0/0.jpg,A\ncar-0/1.jpg,B\n")
    runner, told = Here(), []
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        build(gallery, list_photos(table))
        before = {each[0]["external_id"]: each[1] for each in contents(gallery)}
        table.write_text("path,sku\ncar-0/0.jpg,B\ncar-0/1.jpg,A\n")
        bulk = ShardedEmbedder(tmp_path / "work", runner)
        build(gallery, list_photos(table), bulk=bulk, progress=told.append)
        after = {each[0]["external_id"]: each[1] for each in contents(gallery)}
    assert after == {"A": before["B"], "B": before["A"]}
    assert (runner.embedded, sum(told)) == (0, 2)


def test_few_photos_are_shared_among_the_workers(tmp_path, model, photos):
    work = tmp_path / "work"
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        bulk = ShardedEmbedder(work, Here(workers=2, stop_after=0))
        with pytest.raises(KeyboardInterrupt):
            build(gallery, list_photos(photos), bulk=bulk)
    assert [shard.photos for shard in Work.open(work).shards] == [2] * 6


# Stopped and run again


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_after_a_stop_only_missing_shards_are_embedded(tmp_path, model, photos, how):
    held = Pipe(photos / "car-1" / "0.jpg")  # the fifth of twelve: shard 2
    rows = [f"car-{i}/{j}.jpg,car-{i}" for i in range(3) for j in range(4)]
    (photos / "cars.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    gallery, work = tmp_path / "gallery", tmp_path / "gallery.shards"
    command = [
        *("index", "build", "--model", model.path, "--images", photos / "cars.csv"),
        *("--gallery", gallery, "--engine", "processes", "--workers", 2, "--shard-size", 2),
        "--json",
    ]
    with dscl(*command) as first:
        until(lambda: done(work) == {0, 1, 3, 4, 5} and held.is_read())
        before = stamps(work)
        if how == signal.SIGKILL:
            first.kill()  # it alone: its workers notice
        else:
            os.killpg(first.pid, how)  # as a terminal does
        _, errors = first.communicate(timeout=PATIENCE)
    assert first.returncode == (-9 if how == signal.SIGKILL else 130)
    if how == signal.SIGINT:
        assert errors == "Stopped. Shards that are done are kept; the same command goes on.\n"
    until(lambda: not held.is_read())
    held.as_before()
    assert done(work) == {0, 1, 3, 4, 5}

    assert stamps(work) == before
    runner = Here()
    with Gallery.open(gallery, writable=True) as opened:
        report = build(opened, list_photos(photos / "cars.csv"), bulk=ShardedEmbedder(work, runner))
    assert (runner.ran, runner.embedded, report.added) == ([2], 2, 12)
    assert not work.exists()
    assert contents(gallery) == by_threads(tmp_path, model, photos)


def test_the_command_goes_on_with_what_single_shards_left(tmp_path, model, photos):
    work = stopped(tmp_path, model, photos, after=2)
    result = CliRunner().invoke(index_commands, ["embed-shard", str(work), "4", "1"])
    assert result.output == "Shard 4: embedded 2 photos.\nShard 1: was done already.\n"
    assert done(work) == {0, 1, 4}
    command = [
        *("index", "build", "--model", model.path, "--images", photos, "--work", work),
        *("--gallery", tmp_path / "gallery", "--engine", "processes", "--json"),
    ]
    with dscl(*command) as second:
        output, errors = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, errors
    assert json.loads(output)["added"] == 12
    assert not work.exists()
    assert contents(tmp_path / "gallery") == by_threads(tmp_path, model, photos)


def test_a_stop_while_storing_costs_no_embedding(tmp_path, model, photos, monkeypatch):
    monkeypatch.setattr("index.ingest.BATCH", 4)
    upsert, calls = Gallery.upsert, []

    def failing(self, items):
        calls.append(len(items))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return upsert(self, items)

    with Gallery.create(tmp_path / "gallery", model) as gallery, monkeypatch.context() as patch:
        patch.setattr(Gallery, "upsert", failing)
        bulk = ShardedEmbedder(tmp_path / "work", Here(), shard_size=2)
        with pytest.raises(KeyboardInterrupt):
            build(gallery, list_photos(photos), bulk=bulk)
        assert len(gallery) == 4
    runner, held = resume(tmp_path, photos)
    assert runner.ran == []
    assert held == by_threads(tmp_path, model, photos)


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "no record", "cut record"])
def test_a_damaged_output_is_embedded_anew(tmp_path, model, photos, damage):
    work = stopped(tmp_path, model, photos, after=4)
    output, record = work / "00001.npz", work / "00001.done.json"
    data = bytearray(output.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        output.write_bytes(data)
    elif damage == "cut":
        output.write_bytes(data[:-7])
    elif damage == "gone":
        output.unlink()
    elif damage == "no record":
        record.unlink()
    else:
        record.write_bytes(record.read_bytes()[:-7])
    with pytest.raises(ShardError, match=r"00001\.npz"):
        Work.open(work).read(Work.open(work).shard(1))
    runner, held = resume(tmp_path, photos)
    assert runner.ran == [1, 4, 5]
    assert held == by_threads(tmp_path, model, photos)


def test_an_output_of_other_photos_under_its_name_does_not_count(tmp_path, model, photos):
    work = stopped(tmp_path, model, photos, after=4)
    for suffix in ("npz", "done.json"):
        shutil.copyfile(work / f"00000.{suffix}", work / f"00001.{suffix}")
    runner, _ = resume(tmp_path, photos)
    assert runner.ran == [1, 4, 5]


def test_photos_that_came_meanwhile_get_shards_of_their_own(tmp_path, model, photos):
    stopped(tmp_path, model, photos, after=4)
    write_photo(photos / "car-0" / "2-new.jpg", seed=999)
    runner, held = resume(tmp_path, photos)
    assert sorted(runner.ran) == [4, 5, 6]
    assert runner.embedded == 5
    assert held == by_threads(tmp_path, model, photos)


def test_photos_that_changed_or_were_mended_meanwhile_are_stored_as_they_are(
    tmp_path, model, photos
):
    (photos / "car-0" / "0.jpg").write_bytes(b"")
    stopped(tmp_path, model, photos, after=4)
    write_photo(photos / "car-0" / "0.jpg", seed=999)
    write_photo(photos / "car-0" / "3.jpg", seed=998)
    (photos / "car-1" / "0.jpg").unlink()
    _, held = resume(tmp_path, photos)
    assert len(held) == 11
    assert held == by_threads(tmp_path, model, photos)


# Another run's folder


def test_another_model_or_precision_is_refused(tmp_path, model, photos):
    work = stopped(tmp_path, model, photos, after=4)
    other = Model.load(make_model_folder(tmp_path / "other", seed=1))
    with Gallery.create(tmp_path / "of-other", other) as gallery:
        bulk = ShardedEmbedder(work, Here())
        expected = f"begun with another model: it has {model.sha256[:12]}, the gallery"
        with pytest.raises(ShardError, match=expected):
            build(gallery, list_photos(photos), bulk=bulk)
    manifest = json.loads((work / "manifest.json").read_text())
    (work / "manifest.json").write_text(json.dumps({**manifest, "precision": "int8"}))
    with pytest.raises(ShardError, match="another precision: it has int8, the gallery fp32"):
        resume(tmp_path, photos)


def test_a_copy_of_another_model_in_the_folder_is_refused(tmp_path, model, photos):
    work = stopped(tmp_path, model, photos, after=4)
    shutil.rmtree(work / "model")
    make_model_folder(work / "model", seed=1)
    with pytest.raises(ShardError, match="another model"):
        ShardEmbedder(work)


def test_other_photos_are_refused_and_say_which(tmp_path, model, photos):
    work = stopped(tmp_path, model, photos, after=4)
    with pytest.raises(ShardError, match=r"8 of its 12 are not among the 4 named now, such as .*0"):
        resume(tmp_path, photos / "car-0")
    assert done(work) == {0, 1, 2, 3}


def test_a_folder_with_anything_else_is_refused_and_left_alone(tmp_path, model, photos):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "diary.txt").write_text("mine")
    Gallery.create(tmp_path / "gallery", model).close()
    with pytest.raises(ShardError, match=r"holds something else: manifest.json is missing"):
        resume(tmp_path, photos)
    assert (tmp_path / "work" / "diary.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("manifest.json", "{", "cannot be read"),
        ("manifest.json", "[]", "format version None"),
        ("manifest.json", '{"format_version": 9}', "format version 9; this release reads 1"),
        ("manifest.json", '{"format_version": 1}', "incomplete"),
        ("00003.photos.json", "[]", "00003.photos.json is not what was written"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, model, photos, file, content, message):
    work = stopped(tmp_path, model, photos, after=4)
    (work / file).write_text(content)
    with pytest.raises(ShardError, match=message):
        resume(tmp_path, photos)


# Single shards and their workers


def test_a_shard_is_embedded_once_whoever_asks(tmp_path, model, photos):
    work = stopped(tmp_path, model, photos, after=0)
    embedder = ShardEmbedder(work)
    assert [embedder.embed(5), embedder.embed(5)] == [2, 0]
    assert done(work) == {5}
    with pytest.raises(ShardError, match=r"no shard 6 in .*: it has 6, from 0 on"):
        embedder.embed(6)
    with pytest.raises(ShardError, match=r"no work folder: manifest.json is missing"):
        ShardEmbedder(photos)


def test_a_worker_that_is_killed_is_named_and_its_shard_left(tmp_path, model, photos):
    listed = list_photos(photos)
    work = Work.create(tmp_path / "work", model)
    work.append([each.file for each in listed], 3)
    held = Pipe(listed[4].file)
    caught: list[BaseException] = []

    def run() -> None:
        try:
            list(ProcessRunner(1).run(work, range(4)))
        except ShardError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(held.is_read)
    [child] = multiprocessing.active_children()
    child.kill()
    thread.join()
    assert "a worker process ended with status -9 over shard 1" in str(caught[0])
    assert done(work.path) == {0}
    held.as_before()
    assert list(ProcessRunner(2).run(work, [1])) == [1]


def test_errors_of_a_worker_reach_the_caller(tmp_path, model, photos):
    work = Work.create(tmp_path / "work", model)
    work.append([each.file for each in list_photos(photos)], 3)
    (work.path / "model" / "model.onnx").write_bytes(b"")
    with pytest.raises(DsclError, match="is not the file its card describes"):
        list(ProcessRunner(2).run(work, range(4)))


@given(
    st.lists(
        st.tuples(
            st.none() | st.text(st.characters(exclude_categories=["Cs"])),
            st.none() | st.tuples(st.integers(0, 2**62), st.integers(-(2**62), 2**62)),
            st.binary(min_size=32, max_size=32),
        )
    )
)
def test_an_output_gives_back_what_was_put_in(photos):
    results, files = [], []
    for number, (reason, stamp, sha256) in enumerate(photos):
        files.append(Path(f"{number}.jpg"))
        if reason is not None:
            results.append(Embedded(stamp, Skipped(str(files[-1]), "image_empty", reason)))
        else:
            stamp = stamp or (1, 2)
            vector = np.full(4, number, np.float32)
            results.append(Embedded(stamp, Content(sha256.hex(), *stamp, vector=vector)))
    for made, given_back in zip(results, unpack(pack(results), files), strict=True):
        assert given_back.stamp == made.stamp
        if isinstance(made.result, Skipped):
            assert given_back.result == made.result
        else:
            assert given_back.result.sha256 == made.result.sha256
            assert (given_back.result.size, given_back.result.mtime_ns) == made.stamp
            assert given_back.result.vector.tobytes() == made.result.vector.tobytes()


# The command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--work", "w"], "--work says nothing to engine threads"),
        (["--shard-size", "5"], "--shard-size says nothing to engine threads"),
        (["--engine", "processes", "--address", "a:1"], "--address says nothing to engine proc"),
    ],
)
def test_options_that_say_nothing_are_refused_before_anything_is_made(
    tmp_path, model, photos, options, message
):
    command = ["build", "--model", model.path, "--images", photos, "--gallery", tmp_path / "g"]
    result = CliRunner().invoke(index_commands, [*map(str, command), *options])
    assert isinstance(result.exception, InvalidArgumentError)
    assert message in str(result.exception)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("missing", ["ray", "pandas"])
def test_without_ray_the_extra_is_named(tmp_path, model, photos, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name)
    )
    command = ["build", "--model", model.path, "--images", photos, "--gallery", tmp_path / "g"]
    result = CliRunner().invoke(index_commands, [*map(str, command), "--engine", "ray"])
    assert isinstance(result.exception, ShardError)
    assert f"engine ray needs {missing}, which is not installed" in str(result.exception)
    assert "pip install 'dscl-retrieval[ray]'" in str(result.exception)
    assert not (tmp_path / "g").exists()


def test_ray_is_not_imported_where_it_is_not_used():
    code = "import sys, index.commands; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("size", [0, -1])
def test_shards_without_photos_are_refused(tmp_path, size):
    with pytest.raises(InvalidArgumentError, match=f"shard size is {size}: expected at least 1"):
        ShardedEmbedder(tmp_path, Here(), shard_size=size)
