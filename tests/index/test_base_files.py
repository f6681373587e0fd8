from __future__ import annotations

import resource
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.base_files import current_name, read_base, write_base
from index.errors import BaseDamagedError, GalleryError
from index.tuning import build_base
from index.vectors import Base, VectorIndex
from tests.index.vector_sets import clustered

KINDS = ("flat", "ivf", "hnsw")


@pytest.fixture(scope="module")
def bases() -> dict[str, Base]:
    vectors = clustered(np.random.default_rng(0), 1200, 8)
    ids = np.arange(1200) * 2 + 5
    return {
        kind: build_base(ids, vectors, seq=i + 1, kind=kind, target_recall=0.9)
        for i, kind in enumerate(KINDS)
    }


def marked(seq: int) -> Base:
    """A base whose content tells its number."""
    return build_base(np.array([seq]), np.full((1, 4), 0.5, np.float32), seq=seq)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_comes_back_as_it_was_written(kind, bases, tmp_path):
    base = bases[kind]
    write_base(tmp_path / "vectors", base)
    back = read_base(tmp_path / "vectors")
    assert back is not None
    for field in fields(Base):
        if field.name in ("ids", "vectors"):
            assert np.array_equal(getattr(back, field.name), getattr(base, field.name))
        elif field.name != "ann":
            assert getattr(back, field.name) == getattr(base, field.name)
    queries = clustered(np.random.default_rng(1), 40, 8)
    before = VectorIndex.from_base(base).search(queries, 12)
    after = VectorIndex.from_base(back).search(queries, 12)
    assert np.array_equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_mapped_not_copied(kind, bases, tmp_path):
    write_base(tmp_path, bases[kind])
    back = read_base(tmp_path)
    assert back is not None
    address = back.vectors.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            assert str(tmp_path) in line
            return
    pytest.fail("the vectors are in no mapping of this process")


def test_vectors_are_stored_once(bases, tmp_path):
    base = bases["hnsw"]
    write_base(tmp_path, base)
    content = b"".join(path.read_bytes() for path in files_of(tmp_path))
    assert content.count(base.vectors[7].tobytes()) == 1


def test_where_nothing_was_written_nothing_is_read(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        assert read_base(folder) is None
        assert current_name(folder) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "longer", "flipped", "folder"])
def test_each_damaged_file_is_noticed(kind, damage, bases, tmp_path):
    names = {path.name for path in _written(tmp_path / "names", bases[kind])}
    for name in sorted(names):
        folder = tmp_path / name
        [path] = [path for path in _written(folder, bases[kind]) if path.name == name]
        content = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "missing":
            flipped = bytearray(content)
            flipped[len(content) // 2] ^= 1
            path.write_bytes(
                {"empty": b"", "cut": content[:-1], "longer": content + b"\n", "flipped": flipped}[
                    damage
                ]
            )
        if damage == "missing" and name == "CURRENT":
            assert read_base(folder) is None
            continue
        with pytest.raises(BaseDamagedError) as caught:
            read_base(folder)
        # Half a pointer may point elsewhere.
        assert name in str(caught.value) or name == "CURRENT"
        assert caught.value.code == "index_damaged"
        assert isinstance(caught.value, GalleryError)
        # The way out: a new base in its place
        if not path.is_dir() or name != "CURRENT":
            write_base(folder, bases[kind])
            assert read_base(folder) is not None


def _written(folder: Path, base: Base) -> list[Path]:
    write_base(folder, base)
    return files_of(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_flipped_bit_is_noticed(data, bases, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        write_base(folder, bases["ivf"])
    path = data.draw(st.sampled_from(files_of(folder)))
    content = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    try:
        with pytest.raises(BaseDamagedError):
            read_base(folder)
    finally:
        path.write_bytes(content)


def test_a_new_base_takes_the_place_of_the_old_one(bases, tmp_path):
    write_base(tmp_path, bases["ivf"])
    first = current_name(tmp_path)
    old = read_base(tmp_path)
    assert old is not None
    queries = clustered(np.random.default_rng(2), 10, 8)
    expected = VectorIndex.from_base(old).search(queries, 10)
    # What a killed writer may have left
    (tmp_path / "base-99-0123456789abcdef").mkdir()
    (tmp_path / ".base-99-0123456789abcdef.new-x").mkdir()
    (tmp_path / ".CURRENT.x").touch()
    write_base(tmp_path, bases["hnsw"])
    assert current_name(tmp_path) != first
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["CURRENT", str(current_name(tmp_path))]
    )
    # Whoever has the old base open goes on with it.
    assert np.array_equal(VectorIndex.from_base(old).search(queries, 10)[0], expected[0])
    new = read_base(tmp_path)
    assert new is not None
    assert new.kind == "hnsw"


WRITER = """
import sys
from pathlib import Path
from tests.index.test_base_files import marked, write_base
folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for seq in range(first, last):
    write_base(folder, marked(seq))
    print(seq, flush=True)
"""


def _writer(folder: Path, first: int, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_reader_never_sees_a_swap_half_done(tmp_path):
    write_base(tmp_path, marked(1))
    seen = [1]
    with _writer(tmp_path, 2, 100) as writer:
        while writer.poll() is None:
            base = read_base(tmp_path)
            assert base is not None
            assert base.ids.tolist() == [base.seq]
            assert base.seq >= seen[-1]
            seen.append(base.seq)
    assert writer.returncode == 0
    assert len(set(seen)) > 5
    last = read_base(tmp_path)
    assert last is not None
    assert last.seq == 99


def test_a_killed_writer_leaves_a_whole_base_and_no_rubbish_for_long(tmp_path):
    random = np.random.default_rng(3)
    acknowledged = 0
    for _ in range(4):
        with _writer(tmp_path, acknowledged + 1, 10**6) as writer:
            assert writer.stdout is not None
            for _ in range(int(random.integers(1, 30))):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            # Those that were acknowledged before the signal came
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
        base = read_base(tmp_path)
        assert base is not None
        assert base.seq in (acknowledged, acknowledged + 1)
        assert base.ids.tolist() == [base.seq]
        acknowledged = base.seq
    write_base(tmp_path, marked(acknowledged + 1))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_that_does_not_fit_leaves_the_one_before(kind, bases, tmp_path):
    write_base(tmp_path, marked(1))
    before = {path: path.read_bytes() for path in files_of(tmp_path)}
    sizes = [path.stat().st_size for path in _written(tmp_path.with_suffix(".whole"), bases[kind])]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Cut off in the first file, in the largest, and by one byte
    for most in (10, max(sizes) // 2, max(sizes) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limit[1]))
        try:
            with pytest.raises(OSError):
                write_base(tmp_path, bases[kind])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert {path: path.read_bytes() for path in files_of(tmp_path)} == before
        assert len(list(tmp_path.iterdir())) == 2
    back = read_base(tmp_path)
    assert back is not None
    assert back.seq == 1
