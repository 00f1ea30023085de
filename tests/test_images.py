import contextlib
import errno
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import photo, photos
from numpy.testing import assert_array_equal
from PIL import Image

from pdutils import images
from pdutils.images import (
    IMAGE_SUFFIXES,
    check_target,
    displayed,
    find_pictures,
    labelled_files,
    load_image,
    load_map,
    save_image,
    save_map,
)

WHITE = [255.0, 255.0, 255.0]


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand, from the format's own description."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def grey(values: list[list[int]], dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=dtype))


def saved(folder: Path, name: str, picture: Image.Image, **options: object) -> Path:
    picture.save(folder / name, **options)
    return folder / name


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_no_picture_is_refused_by_name(tmp_path):
    path = tmp_path / "owl_1.png"
    for load in (load_image, load_map):
        with pytest.raises(FileNotFoundError, match=r"nowhere/owl_1\.png: no such file"):
            load("nowhere/owl_1.png")
        with pytest.raises(ValueError, match=f"{tmp_path}: expected a picture, got a folder"):
            load(tmp_path)
        for content in (b"", b"not a picture\n", b"\x89PNG\r\n\x1a\n", bytes(1000)):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=f"^{path}: expected a picture that can be read"):
                load(path)


# Pillow warns of some of these files too.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.webp", "a.tif"])
def test_a_picture_that_was_cut_off_is_refused_by_name(tmp_path, name):
    path = saved(tmp_path, name, Image.fromarray(photo().astype(np.uint8)))
    whole = path.read_bytes()
    for kept in (len(whole) // 8, len(whole) // 2, len(whole) * 7 // 8):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=f"^{path}: expected a picture that can be read"):
            load_image(path)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_an_animation_is_refused_and_one_that_was_cut_off_too(tmp_path, name):
    frames = [Image.fromarray(photo(seed=seed).astype(np.uint8)) for seed in range(3)]
    path = saved(tmp_path, name, frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=f"^{path}: expected a still .* animation of 3 frames"):
        load_image(path)
    whole = path.read_bytes()
    for kept in range(20, len(whole) - 1, 97) if name == "a.gif" else ():
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=f"^{path}: expected"):
            load_image(path)


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_a_picture_that_claims_to_be_huge_is_refused_before_it_is_decoded(
    tmp_path, monkeypatch, side
):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, 8, 2, b""))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=f"^{path}: expected at most 64,000,000 pixels"):
        load_image(path)


def test_floats_and_more_than_16_bits_are_refused(tmp_path):
    for picture, said in (
        (Image.fromarray(photo()[..., 0]), "expected 8 or 16 bits a channel, got floats"),
        (grey([[0, 70_000]], np.int32), ".*70000, not 16 bits"),
    ):
        path = saved(tmp_path, "a.tif", picture)
        with pytest.raises(ValueError, match=f"^{path}: {said}"):
            load_image(path)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_32_bit_grey_is_read_by_what_it_holds(tmp_path, dtype):
    path, tag = tmp_path / "a.tif", 2 if dtype == np.int32 else 1

    def loaded(*values):
        # A TIFF of one row, from the format's own description.
        entries = {256: len(values), 257: 1, 258: 32, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1,
                   279: 4 * len(values), 339: tag}  # fmt: skip
        content = np.array(values, dtype=dtype).tobytes()
        table = b"".join(struct.pack("<HHII", key, 4, 1, value) for key, value in entries.items())
        start = struct.pack("<2sHI", b"II", 42, 8 + len(content))
        path.write_bytes(start + content + struct.pack("<H", len(entries)) + table + bytes(4))
        return load_image(path)[0, :, 0].tolist()

    assert loaded(0, 7, 255) == [0, 7, 255]
    assert loaded(3, 3) == [3, 3]
    assert loaded(0, 257, 65_535) == [0, 1, 255]
    assert loaded(0, 32_768) == [0, 128]
    for values in ((0, 256), (0, 4095), (5, 32_767)):
        with pytest.raises(ValueError, match=rf"a\.tif: .*{values[1]} in 32 bits.*with 8 or 16"):
            loaded(*values)


def test_the_endings_of_pictures_are_those_of_what_can_be_read(tmp_path):
    Image.init()
    square = Image.fromarray(photo(64, 64).astype(np.uint8))
    for suffix, form in Image.registered_extensions().items():
        path = tmp_path / f"a{suffix}"
        # Floats, vectors for another program to draw, and what Pillow is about to forget.
        if form not in Image.SAVE or suffix in (".pfm", ".eps", ".ps", ".im"):
            continue
        assert (suffix in IMAGE_SUFFIXES) == readable(square, path), suffix
    assert set(Image.registered_extensions()) > IMAGE_SUFFIXES
    assert {".jfif", ".jpe", ".avif", ".jp2", ".ppm", ".pgm", ".pnm", ".tga"} <= IMAGE_SUFFIXES


def readable(picture: Image.Image, path: Path) -> bool:
    for mode in ("RGB", "P", "1"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            picture.convert(mode).save(path)
            load_image(path)
            return True
    return False


CMYK_NAMES = ("a.jpg", "a.tif")
DEEP_NAMES = ("a.png", "a.tif", "a.pgm")
BLACK = [0.0, 0.0, 0.0]
RGBA = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], dtype=np.uint8)
DEEP = grey([[0, 257, 25_700, 32_768, 65_535]], np.uint16)


@pytest.mark.parametrize(
    ("name", "picture", "expected"),
    [
        ("a.png", grey([[0, 7, 255]]), [BLACK, [7.0] * 3, WHITE]),
        ("a.png", Image.fromarray(np.array([[True, False]])), [WHITE, BLACK]),
        # A fifth of the colour and four fifths of white.
        ("a.png", Image.fromarray(RGBA), [[200, 100, 0], WHITE, [244, 224, 204]]),
        ("a.png", Image.fromarray(RGBA[..., 2:]), [[0] * 3, WHITE, [204] * 3]),
        *((n, Image.new("CMYK", (1, 1), (0, 255, 255, 0)), [[255, 0, 0]]) for n in CMYK_NAMES),
        *((name, DEEP, [[v] * 3 for v in (0, 1, 100, 128, 255)]) for name in DEEP_NAMES),
        # What says 16 bits and is dark stays dark.
        *((name, grey([[100, 255]], np.uint16), [BLACK, [1] * 3]) for name in DEEP_NAMES),
    ],
)
def test_every_kind_of_picture_becomes_rgb_of_8_bits(tmp_path, name, picture, expected):
    assert_array_equal(load_image(saved(tmp_path, name, picture)), [expected])


def test_16_bit_rgb_is_scaled_to_within_a_grey_level(tmp_path):
    values = np.array([[[0, 25_700, 65_535], [32_768, 300, 40_000]]], dtype=">u2")
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 1, 16, 2, b"\0" + values.tobytes()))
    assert np.abs(load_image(path) - values.astype(float) / 257).max() < 1


def test_palettes_are_read_with_and_without_a_transparent_colour(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([250, 0, 0, 0, 240, 0])
    picture.putdata([0, 1])
    for name in ("a.png", "a.gif"):
        assert_array_equal(load_image(saved(tmp_path, name, picture)), [[[250, 0, 0], [0, 240, 0]]])
        pierced = load_image(saved(tmp_path, name, picture, transparency=1))
        assert_array_equal(pierced, [[[250, 0, 0], WHITE]])


def test_a_camera_s_rotation_is_obeyed_and_of_two_pictures_in_a_file_the_first_is_read(tmp_path):
    upright = np.full((8, 16, 3), 20, np.uint8)
    upright[:, 8:] = 220
    exif = Image.Exif()
    # 6: the camera was held so that the top of the scene is at the right of the file.
    exif[0x0112] = 6
    for name in ("a.jpg", "a.png", "a.tif"):
        path = saved(tmp_path, name, Image.fromarray(np.rot90(upright)), exif=exif)
        assert np.abs(load_image(path) - upright).max() < 12
    # As telephones write.
    first, second = (Image.new("RGB", (side, side), (90, 90, 90)) for side in (16, 8))
    path = saved(tmp_path, "a.jpg", first, format="MPO", save_all=True, append_images=[second])
    assert_array_equal(load_image(path), np.full((16, 16, 3), 90))


def test_a_picture_of_the_size_wanted_is_untouched_and_256_pixels_give_their_224(tmp_path):
    image = photo(256, 300)
    save_image(tmp_path / "a.png", image)
    assert_array_equal(load_image(tmp_path / "a.png", (256, 300)), image)
    assert_array_equal(load_image(tmp_path / "a.png", 224), image[16:240, 38:262])


@pytest.mark.parametrize(("height", "width"), [(512, 512), (512, 640), (768, 512), (96, 64)])
def test_a_ramp_is_sampled_where_a_scaled_and_centred_cut_lies(tmp_path, height, width):
    down, across = np.mgrid[:height, :width]
    ramps = np.stack([250 * down / height, 250 * across / width, 0 * down], axis=-1)
    save_image(tmp_path / "a.png", ramps.astype(np.float32))
    loaded = load_image(tmp_path / "a.png", 56)
    # An eighth more than 56 is 64, which the shorter side becomes.
    step = min(height, width) / 64
    places = (np.arange(56) - 27.5) * step
    expected_rows = 250 * ((height - 1) / 2 + places) / height
    expected_columns = 250 * ((width - 1) / 2 + places) / width
    assert np.abs(loaded[..., 0] - expected_rows[:, np.newaxis]).max() < 1.1
    assert np.abs(loaded[..., 1] - expected_columns).max() < 1.1


def test_scaling_down_averages_and_height_comes_before_width(tmp_path):
    checks = 255.0 * (np.indices((512, 512)).sum(axis=0) % 2)
    save_image(tmp_path / "a.png", np.repeat(checks[..., np.newaxis], 3, 2).astype(np.float32))
    assert np.abs(load_image(tmp_path / "a.png", 56) - 127.5).max() < 8
    assert load_image(tmp_path / "a.png", (16, 24)).shape == (16, 24, 3)
    assert load_image(tmp_path / "a.png", np.int64(16)).shape == (16, 16, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30_000), (30_000, 1)])
def test_a_pixel_and_a_line_are_scaled_without_filling_the_memory(tmp_path, monkeypatch, shape):
    path = saved(tmp_path, "a.png", Image.new("RGB", shape[::-1], (9, 99, 199)))
    resize, sizes = Image.Image.resize, []

    def recorded(self, size, *args, **options):
        sizes.append(size)
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    assert_array_equal(load_image(path, 224), np.broadcast_to([9.0, 99.0, 199.0], (224, 224, 3)))
    assert all(width * height <= 256 * 256 for width, height in sizes)


def test_a_size_that_is_none_is_refused(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", photo())
    monkeypatch.setattr(images, "MAX_PIXELS", 100_000)
    for size in (0, -224, (224, 0), 224.0, "224", (1, 2, 3), (224,), True, (300, 400)):
        with pytest.raises(ValueError, match=r"size: expected .*got"):
            load_image(tmp_path / "a.png", size)


def test_a_png_gives_back_exactly_what_lies_on_the_grid(tmp_path):
    path = tmp_path / "new" / "a.png"
    for shape in ((13, 17), (1, 1), (1, 7), (31, 33)):
        save_image(path, photo(*shape))
        loaded = load_image(path)
        assert_array_equal(loaded, photo(*shape))
        assert (loaded.dtype, loaded.flags.writeable) == (np.float32, True)
    assert names(path.parent) == ["a.png"]
    # Its rights are those of any other new file.
    (tmp_path / "other").write_text("")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    # Off the grid it is clipped and rounded, and unchanged; a name may be as long as can be.
    image = np.float32([[[-20.0, 0.6, 270.0]]])
    path = tmp_path / f"{'a' * 251}.png"
    save_image(path, image)
    assert_array_equal(load_image(path), [[[0, 1, 255]]])
    assert_array_equal(image, np.float32([[[-20.0, 0.6, 270.0]]]))


@pytest.mark.parametrize(
    ("name", "image", "said"),
    [
        *((name, photo(), r"ends in \.png or \.jpg") for name in ("a.xyz", "a", "a.txt")),
        *((name, photo(), f"{name}: expected a ") for name in ("a.psd", "a.xbm")),
        ("a.png", photos(2), r"image: expected shape \(H, W, 3\), got \(2, 32"),
        ("a.png", photo() / 255, "image: expected .*looks scaled"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_leaves_nothing(tmp_path, name, image, said):
    with pytest.raises(ValueError, match=said):
        save_image(tmp_path / name, image)
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", photo(seed=1))

    def full(self, fp, *args, **options):
        Path(fp).write_bytes(b"half a pic")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    for name in ("a.png", "b.png"):
        with pytest.raises(OSError, match="No space left"):
            save_image(tmp_path / name, photo(seed=2))
    assert names(tmp_path) == ["a.png"]
    assert_array_equal(load_image(tmp_path / "a.png"), photo(seed=1))


def test_what_cannot_be_written_is_named_before_there_is_an_image(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "b.png").mkdir()
    for path, kind in (
        (tmp_path / "file" / "a.png", NotADirectoryError),
        (tmp_path / "file" / "deep" / "a.png", NotADirectoryError),
        (tmp_path / "b.png", IsADirectoryError),
    ):
        for step in (check_target, lambda path: save_image(path, photo())):
            with pytest.raises(kind) as caught:
                step(path)
            assert caught.value.filename == str(path)
    check_target(tmp_path / "new" / "deep" / "a.png")
    assert names(tmp_path) == ["b.png", "file"]
    monkeypatch.setattr(images.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError) as caught:
        check_target(tmp_path / "new" / "a.png")
    assert caught.value.filename == str(tmp_path / "new" / "a.png")


def test_a_map_comes_back_stretched_to_half_a_step_of_16_bits(tmp_path):
    ramp = np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7)
    path = tmp_path / "a.png"
    save_map(path, ramp)
    loaded = load_map(path)
    assert loaded.dtype == np.float32
    assert np.abs(loaded - ramp).max() <= 0.5 / 65_535 + 1e-7
    save_map(path, np.float32([[0, 0.25, 1]]))
    with Image.open(path) as picture:
        assert_array_equal(np.asarray(picture), [[0, 16_384, 65_535]])
    for picture in (grey([[1000, 1500, 3000]], np.uint16), grey([[50, 51, 54]])):
        assert_array_equal(load_map(saved(tmp_path, "a.png", picture)), [[0, 0.25, 1]])
    for value in (0.0, 0.3, 1.0):
        save_map(path, np.full((3, 4), value, np.float32))
        assert_array_equal(load_map(path), np.zeros((3, 4)))


def test_a_map_in_colour_is_refused_by_name(tmp_path):
    for mode in ("RGB", "RGBA", "P", "LA", "1", "CMYK", "F"):
        name = "a.tif" if mode in ("CMYK", "F") else "a.png"
        path = saved(tmp_path, name, Image.new(mode, (4, 4)))
        with pytest.raises(ValueError, match=f"^{path}: expected .*{mode}"):
            load_map(path)


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        *(("a.png", np.zeros(shape, np.float32), r"\(H, W\)") for shape in ((1, 4, 4), (0, 4))),
        ("a.png", np.zeros((4, 4)), "float64"),
        ("a.png", np.full((4, 4), 2, np.float32), r"values in \[0, 1\]"),
        ("a.png", None, r"shape \(H, W\), got NoneType"),
        *((name, np.zeros((4, 4), np.float32), r"in \.png") for name in ("a.jpg", "a.gif", "a")),
    ],
)
def test_what_is_no_map_is_not_saved(tmp_path, name, wrong, said):
    with pytest.raises(ValueError, match=f"expected .*{said}"):
        save_map(tmp_path / name, wrong)
    assert names(tmp_path) == []


def make(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    return folder


def below(folder):
    return [path.relative_to(folder).as_posix() for path in find_pictures(folder).files]


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
    assert below(root) == [*wanted, "f_1.png"]
    assert found.folders == ["ant", "cat"]
    assert str(found) == ""
    (tmp_path / "link").symlink_to(root)
    assert below(tmp_path / "link") == [*wanted, "f_1.png"]


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
    both, files = ["badger", "n02447366"], ["a.png", "deep/b.png"]
    assert below(tmp_path) == [f"{name}/{file}" for name in both for file in files]
    assert {label for _, label in labelled_files(tmp_path)} == set(both)


def test_what_is_passed_over_is_counted_by_its_ending(tmp_path):
    make(tmp_path, "a_1.PNG", "a_2.heic", "a_3.HEIC", "b/notes.txt", "b/LICENSE", "b/c.JpE")
    make(tmp_path, ".DS_Store", "b/.thumbs/d.heic")
    (tmp_path / "b" / "d.png").symlink_to("away.png")
    (tmp_path / "c").symlink_to("away")
    assert below(tmp_path) == ["a_1.PNG", "b/c.JpE"]
    assert str(find_pictures(tmp_path)) == (
        "passed over 6 entries: 2 .heic, 1 .txt, 2 links that lead nowhere, 1 without an ending"
    )
    # An ending may be no UTF-8.
    assert displayed(os.fsdecode(b"caf\xe9_1.png")) == r"caf\xe9_1.png"
    assert displayed("café_1.png") == "café_1.png"


@pytest.mark.parametrize(
    ("others", "labels"),
    [
        (
            ["notes.txt", "README_first.md"],
            {"black-footed ferret_1_b.jpg": "black-footed ferret", "skunk_2.PNG": "skunk"},
        ),
        ([], {"n1/deep/er/d.webp": "n1", "n2/a.jpg": "n2", "n2/b_c.png": "n2"}),
        # What is hidden is passed over; a folder that is named like a picture is none.
        ([".owl_1.png", ".cache/owl_2.png", "owl/._3.png"], {"owl/4.png": "owl"}),
        (["owl_1.png/a.txt"], {"owl_2.png": "owl"}),
    ],
)
def test_labels_come_from_the_names_of_files_and_folders(tmp_path, others, labels):
    # A hidden folder that is asked for is read.
    root = make(tmp_path / ".root", *others, *labels)
    expected = [(root / path, label) for path, label in labels.items()]
    assert labelled_files(root) == labelled_files(str(root)) == expected


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["badger_1.png", "badger.png"], r"<label>_<anything>\.png, got badger\.png"),
        (["_000.png"], r"<label>_<anything>\.png, got _000\.png"),
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


def test_what_is_cut_off_a_picture_is_said_and_shown_dark(tmp_path):
    path, size = tmp_path / "wide.png", (20, 20)
    columns = np.zeros((40, 60, 3), np.float32)
    # Red is what lies outside of the middle 35 x 35, which alone is looked at.
    columns[...] = (200, 0, 0)
    columns[3:37, 13:47] = (0, 200, 0)
    images.save_image(path, columns)
    assert images.load_image(path, size)[2:-2, 2:-2, 0].max() < 40
    words, drawn = images.show_cut(path, size, 60)
    assert words == "the middle 35 x 35 of 60 x 40 pixels"
    assert drawn.shape == (40, 60, 3)
    bright = drawn.max(axis=-1) > 100
    np.testing.assert_array_equal(np.flatnonzero(bright.any(axis=0))[[0, -1]], [12, 46])
    np.testing.assert_array_equal(np.flatnonzero(bright.any(axis=1))[[0, -1]], [2, 36])
    assert drawn[20, 5].tolist() == [50, 0, 0]
    assert images.show_cut(path, size, 30)[1].shape == (20, 30, 3)
    assert images.show_cut(path, (40, 60), 30) is None
