from __future__ import annotations

from pathlib import Path

import pytest

from index.errors import DataError
from index.images import IMAGE_SUFFIXES
from index.photos import Photo, image_files, list_photos

#: Listing decodes nothing, so any bytes will do.
BYTES = b"not looked at"


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(BYTES)
    return root


def labels(photos: list[Photo]) -> dict[str, str | None]:
    return {photo.path: photo.label for photo in photos}


def write_csv(folder: Path, text: str | bytes) -> Path:
    file = folder / "photos.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


# Folders


def test_folders_become_labels_and_photos_at_the_top_have_none(tmp_path):
    touch(tmp_path, "audi-a4/1.jpg", "audi-a4/2.png", "bmw/x5/3.jpg", "top.webp")
    photos = list_photos(tmp_path)
    assert labels(photos) == {
        "audi-a4/1.jpg": "audi-a4",
        "audi-a4/2.png": "audi-a4",
        "bmw/x5/3.jpg": "bmw/x5",
        "top.webp": None,
    }
    assert all(photo.attributes == {} for photo in photos)
    assert all(photo.file.read_bytes() == BYTES for photo in photos)


def test_a_folder_is_listed_in_the_same_order_however_it_was_filled(tmp_path):
    names = ["b/2.jpg", "a/10.jpg", "a/2.jpg", "c.jpg", "B/1.jpg"]
    one = list_photos(touch(tmp_path / "one", *names))
    other = list_photos(touch(tmp_path / "other", *reversed(names)))
    assert [photo.path for photo in one] == [photo.path for photo in other] == sorted(names)


def test_the_root_does_not_depend_on_how_the_folder_was_named(tmp_path, monkeypatch):
    touch(tmp_path / "photos", "a/1.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    absolute = list_photos(tmp_path / "photos")
    for name in ("photos", "./photos/", "photos/../photos", "link"):
        assert list_photos(Path(name)) == absolute


def test_train_and_test_become_the_attribute_split(tmp_path):
    photos = list_photos(touch(tmp_path, "train/audi/1.jpg", "test/audi/1.jpg", "test/2.jpg"))
    assert {photo.path: (photo.label, photo.attributes) for photo in photos} == {
        "train/audi/1.jpg": ("audi", {"split": "train"}),
        "test/audi/1.jpg": ("audi", {"split": "test"}),
        "test/2.jpg": (None, {"split": "test"}),
    }


def test_train_beside_other_folders_is_a_label_like_them(tmp_path):
    photos = list_photos(touch(tmp_path, "train/1.jpg", "bus/1.jpg"))
    assert labels(photos) == {"train/1.jpg": "train", "bus/1.jpg": "bus"}
    assert all(photo.attributes == {} for photo in photos)


def test_hidden_and_other_files_are_left_out(tmp_path):
    touch(
        tmp_path,
        "a/1.JPG",
        "a/.1.jpg",
        ".thumbnails/1.jpg",
        "a/.cache/deep/1.jpg",
        "__MACOSX/a/1.jpg",
        "a/notes.txt",
        "a/jpg",
        "Thumbs.db",
    )
    (tmp_path / "folder.jpg").mkdir()
    assert [photo.path for photo in list_photos(tmp_path)] == ["a/1.JPG"]


def test_a_hidden_folder_that_is_named_is_listed(tmp_path):
    assert labels(list_photos(touch(tmp_path / ".photos", "1.jpg"))) == {"1.jpg": None}


def test_every_suffix_of_an_image_is_found(tmp_path):
    touch(tmp_path, *(f"photo{suffix}" for suffix in IMAGE_SUFFIXES))
    assert {path.suffix for path in image_files(tmp_path)} == IMAGE_SUFFIXES


def test_a_folder_without_an_image_tells_what_it_found(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=r"holds no image: looked for .*\.jpg.*found notes\.txt"):
        list_photos(tmp_path)


def test_an_empty_folder_holds_no_image(tmp_path):
    with pytest.raises(DataError, match="found nothing"):
        list_photos(tmp_path)


def test_a_source_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        list_photos(tmp_path / "nowhere")


def test_a_single_file_is_one_photo_without_label(tmp_path):
    touch(tmp_path, "audi/1.jpg", "audi/2.jpg")
    folder = (tmp_path / "audi").resolve()
    assert list_photos(tmp_path / "audi" / "1.jpg") == [Photo(root=folder, path="1.jpg")]


# CSV


def test_csv_columns_become_labels_and_typed_attributes(tmp_path):
    file = write_csv(
        tmp_path,
        "path,label,year,price,colour,code,note\n"
        "a/1.jpg,Audi,1999,10.5,blue,7,\n"
        '"b, c.jpg",,-3,1e3,"a ""deep"" red",x7,\n'
        "3.jpg,BMW,,,,,\n",
    )
    assert list_photos(file) == [
        Photo(
            root=tmp_path.resolve(),
            path=path,
            label=label,
            attributes=dict(zip(("year", "price", "colour", "code", "note"), values, strict=True)),
            stated=frozenset({"label", "year", "price", "colour", "code", "note"}),
        )
        for path, label, values in [
            ("a/1.jpg", "Audi", (1999, 10.5, "blue", "7", None)),
            ("b, c.jpg", None, (-3, 1000.0, 'a "deep" red', "x7", None)),
            ("3.jpg", "BMW", (None, None, None, None, None)),
        ]
    ]


def test_the_kind_of_a_number_is_the_columns_not_the_cells(tmp_path):
    photos = list_photos(write_csv(tmp_path, "path,x\n1.jpg,1\n2.jpg,2.5\n"))
    assert [photo.attributes["x"] for photo in photos] == [1.0, 2.5]
    assert all(isinstance(photo.attributes["x"], float) for photo in photos)


@pytest.mark.parametrize("word", ["nan", "inf", "-Infinity", "1e999"])
def test_what_json_cannot_hold_stays_text(tmp_path, word):
    photos = list_photos(write_csv(tmp_path, f"path,x\n1.jpg,1.5\n2.jpg,{word}\n"))
    assert [photo.attributes["x"] for photo in photos] == ["1.5", word]


def test_a_csv_needs_only_paths(tmp_path):
    assert labels(list_photos(write_csv(tmp_path, "path\n1.jpg\n"))) == {"1.jpg": None}


def test_a_csv_as_spreadsheets_write_it_is_read(tmp_path):
    file = write_csv(tmp_path, b"\xef\xbb\xbf" + "path,label\r\n1.jpg,Škoda\r\n\r\n".encode())
    assert labels(list_photos(file)) == {"1.jpg": "Škoda"}


@pytest.mark.parametrize("name", ["./a//1.jpg", "a/../a/1.jpg", "{root}/a/1.jpg"])
def test_paths_within_the_folder_are_brought_to_one_form(tmp_path, name):
    file = write_csv(tmp_path, f"path\n{name.format(root=tmp_path.resolve())}\n")
    assert [photo.path for photo in list_photos(file)] == ["a/1.jpg"]


def test_what_a_table_says_is_stated_and_what_a_folder_shows_is_not(tmp_path):
    touch(tmp_path, "audi/1.jpg")
    [shown] = list_photos(tmp_path)
    assert (shown.label, shown.stated) == ("audi", frozenset())
    [named] = list_photos(write_csv(tmp_path, "path,year\naudi/1.jpg,1999\n"))
    assert (named.label, named.stated) == (None, {"year"})
    [told] = list_photos(write_csv(tmp_path, "label,sku,path\n,,audi/1.jpg\n"))
    assert (told.label, told.external_id, told.stated) == (None, None, {"label", "sku"})


def test_the_column_sku_becomes_the_external_id_as_it_is_written(tmp_path):
    photos = list_photos(write_csv(tmp_path, "path,sku\n1.jpg,007\n2.jpg,\n3.jpg,7\n4.jpg,\n"))
    assert [photo.external_id for photo in photos] == ["007", None, "7", None]
    assert all(photo.attributes == {} for photo in photos)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column `path`; its header is: empty"),
        ("file,label\n1.jpg,a\n", "no column `path`; its header is: file, label"),
        ("path;label\n1.jpg;a\n", "no column `path`; its header is: path;label"),
        ("path,label\n", "lists no photo"),
        ("path\n1.jpg\n../2.jpg\n", r"line 3: \.\./2\.jpg lies outside"),
        ("path\n/etc/passwd\n", "line 2: /etc/passwd lies outside"),
        ("path,label\n,audi\n", "line 2: expected 2 values with a path"),
        ("path,id\n1.jpg,7\n", "has a column `id`, which is the gallery's to give"),
        ("path\n1.jpg\n2.jpg\na/../1.jpg\n", r"line 4: path 1\.jpg is on line 2 already"),
        ("path,sku\n1.jpg,A\n2.jpg,B\n3.jpg,A\n", "line 4: sku A is on line 2 already"),
        ("label,path\naudi\n", "line 2: expected 2 values with a path"),
        ("path,label\n1.jpg,audi,a4\n", "line 2: expected 2 values with a path"),
        ("path\n\n\n1.jpg\n../2.jpg\n", "line 5: "),
        ("path\na\0b.jpg\n", "line 2: expected 1 values with a path"),
        ("path,label\n1.jpg,Škoda\n".encode("iso-8859-2"), "cannot be read as CSV in UTF-8"),
        ("path,label\n1.jpg,audi\n".encode("utf-16"), "cannot be read as CSV in UTF-8"),
    ],
)
def test_a_csv_that_cannot_be_used_says_why_and_where(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"photos\.csv.*{message}"):
        list_photos(write_csv(tmp_path, text))


def test_a_csv_cannot_lead_out_through_a_link(tmp_path):
    touch(tmp_path / "secret", "1.jpg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="lies outside"):
        list_photos(write_csv(tmp_path / "photos", "path\nlink/1.jpg\n"))
