from __future__ import annotations

import io
import struct
import tempfile
import tracemalloc
import zipfile

import pytest

from index.errors import DataError
from service.archives import Archive, ArchiveError, ArchiveLimits
from tests.service.zips import photo_bytes, zip_of, zip_with_link

LIMITS = ArchiveLimits()


def opened(data: bytes, limits: ArchiveLimits = LIMITS) -> Archive:
    return Archive(io.BytesIO(data), limits)


def refusal(data: bytes, limits: ArchiveLimits = LIMITS) -> ArchiveError:
    file = io.BytesIO(data)
    with pytest.raises(ArchiveError) as caught:
        Archive(file, limits)
    assert file.closed
    return caught.value


def test_folders_are_labels_and_the_bytes_are_those_of_the_files() -> None:
    files = {
        "bmw/x5/2.jpg": photo_bytes(2),
        "audi/1.JPG": photo_bytes(1),
        "top.png": photo_bytes(3, "PNG"),
        "audi/notes.txt": b"no photo",
        "__MACOSX/audi/1.jpg": b"no photo",
        ".hidden/1.jpg": b"no photo",
        "audi/.1.jpg": b"no photo",
    }
    with opened(zip_of(files)) as archive:
        photos = archive.photos()
        assert [(photo.path, photo.label) for photo in photos] == [
            ("audi/1.JPG", "audi"),
            ("bmw/x5/2.jpg", "bmw/x5"),
            ("top.png", None),
        ]
        for photo in photos:
            assert archive.read(photo.path) == files[photo.path]


def test_a_list_says_what_the_photos_are() -> None:
    table = "path,label,sku,year,colour\na/1.jpg,audi,A1,2011,red\n2.jpg,,,,\n"
    files = {"items.csv": table.encode(), "a/1.jpg": b"1", "2.jpg": b"2", "3.jpg": b"3"}
    with opened(zip_of(files)) as archive:
        first, second = archive.photos()
    assert (first.path, first.label, first.external_id) == ("a/1.jpg", "audi", "A1")
    assert first.attributes == {"year": 2011, "colour": "red"}
    assert (second.path, second.label, second.external_id) == ("2.jpg", None, None)


@pytest.mark.parametrize("path", ["../1.jpg", "/etc/passwd", "a/../../1.jpg"])
def test_a_list_that_leads_out_of_the_zip_is_refused(path: str) -> None:
    data = zip_of({"items.csv": f"path\n{path}\n".encode(), "1.jpg": b"1"})
    with opened(data) as archive, pytest.raises(DataError) as caught:
        archive.photos()
    assert "items.csv, line 2" in str(caught.value)
    assert path in str(caught.value)
    assert tempfile.gettempdir() not in str(caught.value)


@pytest.mark.parametrize("table", ["label\naudi\n", "path,id\n1.jpg,7\n", "path\n1.jpg\n1.jpg\n"])
def test_a_list_that_cannot_be_used_is_refused_without_our_paths(table: str) -> None:
    with opened(zip_of({"items.csv": table.encode()})) as archive, pytest.raises(DataError) as e:
        archive.photos()
    assert str(e.value).startswith("items.csv")


@pytest.mark.parametrize(
    "name",
    [
        "../1.jpg",
        "a/../../1.jpg",
        "/etc/1.jpg",
        "..\\1.jpg",
        "a\\1.jpg",
        "C:/1.jpg",
        "./1.jpg",
        "notes/../../x.txt",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    error = refusal(zip_of({"ok.jpg": b"1", name: b"2"}))
    assert error.code == "archive_unsafe"
    assert repr(name) in str(error)


def test_a_name_that_hides_behind_a_nul_is_refused() -> None:
    data = zip_of({"1.jpg.exe": b"1"}).replace(b"1.jpg.exe", b"1.jpg\0exe")
    assert refusal(data).code == "archive_unsafe"


def test_a_link_is_refused() -> None:
    assert refusal(zip_with_link("1.jpg", "/etc/passwd")).code == "archive_unsafe"


def test_a_name_that_comes_twice_is_refused() -> None:
    data = zip_of({"1.jpg": b"1", "2.jpg": b"2"}).replace(b"2.jpg", b"1.jpg")
    assert refusal(data).code == "archive_unsafe"


def test_an_encrypted_zip_is_refused() -> None:
    data = bytearray(zip_of({"1.jpg": b"1"}))
    data[data.index(b"PK\1\2") + 8] |= 1
    assert "encrypted" in str(refusal(bytes(data)))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_than_deflate_are_refused(method: int) -> None:
    assert refusal(zip_of({"1.jpg": b"1"}, method)).code == "archive_invalid"


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\5\6" + 18 * b"\0", photo_bytes(1)])
def test_what_is_no_zip_with_photos_is_refused(data: bytes) -> None:
    with pytest.raises(ArchiveError) as caught, opened(data) as archive:
        archive.photos()
    assert caught.value.code == "archive_invalid"


@pytest.mark.parametrize("cut", range(1, 400, 7))
def test_a_zip_cut_anywhere_is_refused_or_read_in_part(cut: int) -> None:
    data = zip_of({"a/1.jpg": photo_bytes(1), "2.jpg": photo_bytes(2)})
    with pytest.raises(ArchiveError), opened(data[: len(data) - cut]) as archive:
        for photo in archive.photos():
            archive.read(photo.path)


def test_limits_are_refused_by_what_the_zip_declares() -> None:
    data = zip_of({"1.jpg": bytes(1000), "2.jpg": bytes(1000)}, zipfile.ZIP_STORED)
    opened(data, ArchiveLimits(files=2, file_bytes=1000, total_bytes=2000)).close()
    for limits in (
        ArchiveLimits(files=1),
        ArchiveLimits(file_bytes=999),
        ArchiveLimits(total_bytes=1999),
    ):
        assert refusal(data, limits).code == "archive_too_large"


def test_large_files_that_are_no_photos_do_not_count() -> None:
    limits = ArchiveLimits(file_bytes=10)
    with opened(zip_of({"film.mp4": bytes(1000), "1.jpg": b"1"}), limits) as archive:
        assert [photo.path for photo in archive.photos()] == ["1.jpg"]


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    data = zip_of({f"{i}.jpg": bytes(10_000_000) for i in range(4)})
    assert len(data) < 50_000
    tracemalloc.start()
    assert refusal(data).code == "archive_too_large"
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_file_larger_than_it_says_is_never_read_beyond_that() -> None:
    data = zip_of({"1.jpg": bytes(5_000_000)})
    lying = data.replace(struct.pack("<L", 5_000_000), struct.pack("<L", 100))
    with opened(lying) as archive, pytest.raises(ArchiveError) as caught:
        archive.read("1.jpg")
    assert caught.value.code == "archive_invalid"


def test_a_huge_table_of_contents_is_refused_before_it_is_parsed() -> None:
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *6 * [0], 0, 0, 0, *5 * [0], 0, 0)
    table = entry * (2**24 // len(entry) + 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, len(table), 0, 0)
    file = table + end
    tracemalloc.start()
    assert refusal(file).code == "archive_too_large"
    assert tracemalloc.get_traced_memory()[1] < 2 * len(file)
    tracemalloc.stop()


def test_a_damaged_photo_is_told_and_the_others_can_be_read() -> None:
    files = {"1.jpg": photo_bytes(1), "2.jpg": photo_bytes(2)}
    data = bytearray(zip_of(files, zipfile.ZIP_STORED))
    data[data.index(files["1.jpg"]) + 50] ^= 1
    with opened(bytes(data)) as archive:
        with pytest.raises(ArchiveError, match=r"1\.jpg"):
            archive.read("1.jpg")
        assert archive.read("2.jpg") == files["2.jpg"]
