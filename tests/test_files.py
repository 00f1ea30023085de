import os

import pytest

from pdutils.files import (
    displayed,
    find_pictures,
    labelled_files,
    read_class_names,
    read_text,
)


def make(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    return folder


def names(folder):
    return [path.relative_to(folder).as_posix() for path in find_pictures(folder).files]


# Links


def test_folders_and_files_that_are_links_are_followed(tmp_path):
    make(tmp_path, "away/cats/a.png", "away/cats/more/b.png", "away/one.png", "there/dog/c.png")
    root = tmp_path / "root"
    make(root, "ant/d.png")
    (root / "cat").symlink_to("../away/cats")
    (root / "ant" / "part").symlink_to(tmp_path / "there", target_is_directory=True)
    (root / "ant" / "e.png").symlink_to(tmp_path / "away" / "one.png")
    (root / "f_1.png").symlink_to(tmp_path / "away" / "one.png")
    found = find_pictures(root)
    wanted = ["ant/d.png", "ant/e.png", "ant/part/dog/c.png", "cat/a.png", "cat/more/b.png"]
    assert names(root) == [*wanted, "f_1.png"]
    assert found.folders == ["ant", "cat"]
    assert str(found) == ""
    (tmp_path / "link").symlink_to(root)
    assert names(tmp_path / "link") == [*wanted, "f_1.png"]


@pytest.mark.parametrize(
    "links",
    [
        {"root/ant/up": ".."},
        {"root/again": "."},
        {"root/above": ".."},
        {"root/ant/deep/top": "../../.."},
        {"root/ant/itself": "itself"},
        {"root/ant/to_bee": "../bee", "root/bee/to_ant": "../ant"},
        {"root/ant/out": "../../out", "out/back": "../root"},
        {"root/ant/out": "../../out", "out/on": "../on", "on/back": "../out"},
        {"root/ant/out": "../../out/in", "out/in/back": ".."},
        {"root/cat": "../out", "root/dog": "../on", "out/to_on": "../on", "on/to_out": "../out"},
    ],
)
def test_loops_end_and_give_no_picture_twice(tmp_path, links):
    make(tmp_path, "root/ant/a.png", "root/ant/deep/b.png", "root/bee/c.png")
    make(tmp_path, "out/in/d.png", "on/e.png")
    for link, target in links.items():
        (tmp_path / link).symlink_to(target, target_is_directory=True)
    found = find_pictures(tmp_path / "root")
    real = [os.path.realpath(path) for path in found.files]
    assert len(set(real)) == len(real)
    assert {"a.png", "b.png", "c.png"} <= {path.name for path in found.files}
    assert sum(found.passed_over.values()) > 0
    assert "again" not in found.folders


def test_a_class_may_have_two_names(tmp_path):
    make(tmp_path, "badger/a.png", "badger/deep/b.png")
    (tmp_path / "n02447366").symlink_to("badger")
    assert names(tmp_path) == [
        "badger/a.png",
        "badger/deep/b.png",
        "n02447366/a.png",
        "n02447366/deep/b.png",
    ]


def test_a_link_that_leads_nowhere_is_counted(tmp_path):
    make(tmp_path, "ant/a.png")
    (tmp_path / "ant" / "b.png").symlink_to("away.png")
    (tmp_path / "bee").symlink_to("away")
    assert names(tmp_path) == ["ant/a.png"]
    assert str(find_pictures(tmp_path)) == "passed over 2 entries: 2 links that lead nowhere"


def test_what_is_passed_over_is_counted_by_its_ending(tmp_path):
    make(tmp_path, "a_1.PNG", "a_2.heic", "a_3.HEIC", "b/notes.txt", "b/LICENSE", "b/c.JpE")
    make(tmp_path, ".DS_Store", "b/.thumbs/d.heic")
    assert names(tmp_path) == ["a_1.PNG", "b/c.JpE"]
    assert str(find_pictures(tmp_path)) == (
        "passed over 4 entries: 2 .heic, 1 .txt, 1 without an ending"
    )


# Texts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    "form", ["{0}\n\n {1} \n{2}\n", "{0}\r\n{1}\r\n{2}", '["{0}", "{1}", "{2}"]']
)
def test_class_names_are_read_in_every_form_and_encoding(tmp_path, encoding, form):
    wanted = ("ant", "müßig bee", "猫")
    path = tmp_path / "names.txt"
    path.write_bytes(form.format(*wanted).encode(encoding))
    assert read_class_names(path) == wanted


@pytest.mark.parametrize("order", ["le", "be"])
def test_both_orders_of_utf_16_are_read(tmp_path, order):
    (tmp_path / "a").write_bytes("\ufeffé\r\nb".encode(f"utf-16-{order}"))
    assert read_text(tmp_path / "a") == "é\nb"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("ant\ncafé\n".encode("latin-1"), "expected a text in UTF-8.* in line 2; save it as UTF-8"),
        ("ant\nbee\n".encode("utf-16-le"), "expected a text in UTF-8.*zero bytes"),
        (b"\xff\xfea", "expected a text in UTF-8"),
        (b"", "expected the names of classes, found none"),
        (b" \n\n", "expected the names of classes, found none"),
        (b"[]", "expected the names of classes, found none"),
        (b'["ant", 2]', "expected class names as JSON strings, got 2"),
        (b'["ant", ', "expected a list of class names in JSON: "),
        (b'{"ant": 0}', "expected a JSON list of class names, got '{\"ant\": 0}'"),
    ],
)
def test_what_holds_no_class_names_is_refused_by_name(tmp_path, content, said):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: {said}"):
        read_class_names(path)


def test_class_names_in_no_file_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="expected a text file, got a folder"):
        read_class_names(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"away\.txt"):
        read_class_names(tmp_path / "away.txt")
    (tmp_path / "names.json").write_text('"ant"')
    with pytest.raises(ValueError, match=r"names\.json: expected a JSON list"):
        read_class_names(tmp_path / "names.json")


# Names


def test_a_name_that_is_no_utf_8_is_written_out():
    assert displayed(os.fsdecode(b"caf\xe9_1.png")) == r"caf\xe9_1.png"
    assert displayed("café_1.png") == "café_1.png"


# Labels


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (
            ["skunk_2.PNG", "badger_1.jpg", "badger_2.jpeg", "notes.txt", "README_first.md"],
            {"badger_1.jpg": "badger", "badger_2.jpeg": "badger", "skunk_2.PNG": "skunk"},
        ),
        (
            ["n02447366/a.jpg", "n02447366/b_c.png", "n02445715/deep/er/d.webp"],
            {
                "n02445715/deep/er/d.webp": "n02445715",
                "n02447366/a.jpg": "n02447366",
                "n02447366/b_c.png": "n02447366",
            },
        ),
        # What is hidden is passed over; a folder that is named like a picture is none.
        ([".owl_1.png", ".cache/owl_2.png", "owl/._3.png", "owl/4.png"], {"owl/4.png": "owl"}),
        (["owl_1.png/a.txt", "owl_2.png"], {"owl_2.png": "owl"}),
    ],
)
def test_labels_come_from_the_names_of_files_and_folders(tmp_path, paths, labels):
    # A hidden folder that is asked for is read.
    root = make(tmp_path / ".root", *paths)
    expected = [(root / path, label) for path, label in labels.items()]
    assert labelled_files(root) == labelled_files(str(root)) == expected


def test_a_class_folder_that_is_a_link_labels_its_pictures(tmp_path):
    root = make(tmp_path, "away/1.png", "root/owl_2.jfif") / "root"
    (root / "yak").symlink_to(tmp_path / "away")
    expected = [(root / "owl_2.jfif", "owl"), (root / "yak" / "1.png", "yak")]
    assert labelled_files(root) == expected


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["badger_1.png", "badger.png"], r"<label>_<anything>\.png, got badger\.png"),
        ([], r"root: expected pictures .* found none$"),
        (["notes.txt", ".owl_1.png"], r"root: expected pictures .* found none; .* 1 \.txt"),
        (["1.heic", "2.heic", "a.txt"], r"found none; passed over 3 entries: 2 \.heic, 1 \.txt"),
    ],
)
def test_pictures_without_labels_and_folders_without_pictures_are_refused(tmp_path, paths, said):
    (tmp_path / "root").mkdir()
    with pytest.raises(ValueError, match=said):
        labelled_files(make(tmp_path / "root", *paths))


def test_what_is_no_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"away: no such folder"):
        labelled_files(tmp_path / "away")
    make(tmp_path, "owl_1.png")
    with pytest.raises(ValueError, match=r"owl_1\.png: expected a folder of pictures, got a file"):
        labelled_files(tmp_path / "owl_1.png")
