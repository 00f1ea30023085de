import errno
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import photo

from pdutils import classifiers, deflection, denoising
from pdutils._utils import min_max, on_grid, streams
from pdutils.classifiers import ClassifierSource
from pdutils.cli import main, runner
from pdutils.defenses import pipeline
from pdutils.deflection import pixel_deflection
from pdutils.demo.examples import demo_root
from pdutils.denoising import denoise
from pdutils.evaluation import estimate, registry, report, study
from pdutils.evaluation.datasets import DrawingSource, chosen, folder_source
from pdutils.evaluation.evaluate import Bench
from pdutils.evaluation.store import StoredRecords, StoreError
from pdutils.evaluation.study import Study
from pdutils.images import load_image, save_image, save_map


@pytest.fixture(scope="module", autouse=True)
def art_is_loaded():
    """Load ART outside of any test: it sets up logging anew, which closes a stream of pytest's."""
    import pdutils.attacks._art  # noqa: F401


@pytest.fixture
def with_toy(toy, monkeypatch):
    classifiers._loaded.cache_clear()
    monkeypatch.setattr(classifiers, "load_classifier", lambda name, weights: toy)
    yield toy
    classifiers._loaded.cache_clear()


@pytest.fixture(scope="module")
def names(toy, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("\n".join(toy.class_names) + "\n")
    return path


@pytest.fixture
def network(toy_file, names, monkeypatch) -> list[object]:
    """The options that name the toy, a file of one's own, with its class names."""
    monkeypatch.setattr(classifiers, "deterministic", lambda: None)
    return ["--classifier", toy_file, "--preprocess", "-1..1", "--class-names", names]


@pytest.fixture
def picture(tmp_path) -> Path:
    save_image(tmp_path / "cat_1.png", photo(seed=3))
    return tmp_path / "cat_1.png"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Seven labelled pictures, and one that is none."""
    for i, label in enumerate(("ant", "bee", "cat", "dog", "eel", "fox", "ant")):
        save_image(tmp_path / "photos" / f"{label}_{i}.png", photo(seed=i))
    (tmp_path / "photos" / "bee_9.png").write_text("no picture")
    return tmp_path / "photos"


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Carry out a command line; give its status and what it printed."""
    try:
        status = main.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def refused(capsys, *arguments: object) -> tuple[int, str]:
    """Give the status and the one line of a command that cannot be carried out."""
    status, _, err = run(capsys, *arguments)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return status, err


def table(out: str) -> list[list[str]]:
    return [line.split() for line in out.split("\n\n")[1].splitlines()[1:]]


def row(classifier, probabilities) -> list[list[str]]:
    best = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:5]
    return [[classifier.class_names[i], f"{probabilities[i]:.3f}"] for i in best]


def side_by_side(classifier, image, after) -> list[list[str]]:
    rows = zip(row(classifier, classifier.predict(image)), row(classifier, after), strict=True)
    return [[*left, *right] for left, right in rows]


def test_help_is_quick():
    """It loads no package that it can do without; that of `evaluate` lists what there is."""
    code = (
        "import sys\nfrom pdutils.cli.main import main\n"
        "for command, heavy in (('defend', {'numpy', 'skimage', 'papermill', 'nbformat'}),\n"
        "        ('table', set()), ('evaluate', {'tensorflow', 'keras', 'art', 'distributed'})):\n"
        "    try:\n        main([command, '--help'])\n"
        "    except SystemExit:\n        pass\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert "IMAGE|FOLDER" in found.stdout


@pytest.mark.parametrize("command", ["", "run", "defend", "evaluate", "table", "app"])
def test_help_has_examples_or_lists_the_commands(capsys, command):
    status, out, _ = run(capsys, *command.split(), "--help")
    assert (status, "For example:" in out) == (0, bool(command))
    assert f"python -m pdutils {command}" in out
    if command == "evaluate":
        for name in (*registry.ATTACKS, *registry.DEFENSES):
            assert f"\n{name} " in out
        assert "eps=8, step=1, iterations=50" in out


def defense(*options: object) -> pipeline.Defense:
    """What the options of `defend` amount to."""
    return main._defense(main._parser().parse_args(["defend", "x", *map(str, options)]))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("pd+rcam+wd:deflections=600", ["--map", "rcam", "--deflections", 600]),
        ("pd+cam", ["--map", "cam", "--deflections", 1500, "--denoiser", "none"]),
        ("pd:reading=paper,window=3", ["--window", 3, "--reading", "paper", "--denoiser", "none"]),
        ("wd:sigma=0.1,sigma_scale=rgb", ["--sigma", 0.1, "--sigma-scale", "rgb", "--map", "none"]),
        ("none", ["--deflections", 0, "--denoiser", "none"]),
    ],
)
def test_a_defence_is_said_in_one_text_or_by_options(text, options):
    more = ["--runs", 3, "--aggregate", "majority"]
    wanted = defense(*options, *(["--deflections", 0] if text.startswith("wd") else []), *more)
    assert defense("--defense", text, *more) == wanted
    assert (wanted.text, wanted.runs, wanted.aggregate) == (text, 3, "majority")


def test_the_words_of_the_options_are_those_of_the_functions():
    (commands,) = main._parser()._subparsers._group_actions
    words = {
        (name, action.dest): action.choices
        for name, parser in commands.choices.items()
        for action in parser._actions
        if action.choices
    }
    assert words["defend", "denoiser"] == (*denoising.DENOISERS, "none")
    assert words["defend", "reading"] == get_args(deflection.Reading)
    assert words["defend", "sigma_scale"] == get_args(denoising.SigmaScale)
    assert words["defend", "aggregate"] == get_args(pipeline.Aggregate)
    assert words["defend", "preprocess"] == tuple(classifiers._SCALINGS)
    assert words["table", "protocol"] == tuple(report.PROTOCOLS)
    assert words["table", "aggregate"] == tuple(report.AGGREGATES)
    assert get_args(pipeline.MapKind) == main.MAPS
    assert get_args(classifiers.Scaling) == tuple(classifiers._SCALINGS)
    assert defense() == pipeline.Defense()


def _stream_of_run(seed: int, run: int = 0) -> list[np.random.Generator]:
    (first,) = streams(seed, 1)
    return [[first, *first.spawn(run)][run]]


def test_defend_shows_the_top_five_before_and_after(capsys, with_toy, picture):
    status, out, _ = run(capsys, "defend", picture, "--seed", 4, "--window", 3, "--sigma", 0.1)
    image = load_image(picture)
    deflected = pixel_deflection(image, 200, 3, rng=_stream_of_run(4))
    after = with_toy.predict(denoise(deflected, "wavelet", sigma=0.1))
    assert status == 0
    assert table(out) == side_by_side(with_toy, image, after)
    changed = np.any(deflected != image, axis=-1).mean()
    assert f"Deflection changed {changed:.1%} of the pixels" in out
    assert "200 deflections (blog reading, window 3) without a map" in out
    assert "wavelet denoising, sigma 0.1" in out
    lines = out.split("\n\n")[1].splitlines()
    assert len({len(line) for line in lines[1:]}) == 1
    assert lines[0].index("after") == lines[1].index(lines[1].split()[2], 6)


def test_several_runs_become_one_answer_and_the_first_is_saved(capsys, with_toy, picture, tmp_path):
    saved, image = tmp_path / "defended.png", load_image(picture)
    options = ["--runs", 3, "--denoiser", "median", "--save", saved]
    _, out, _ = run(capsys, "defend", picture, *options)
    defended = [
        denoise(pixel_deflection(image, 200, rng=_stream_of_run(0, i)), "median") for i in range(3)
    ]
    seen = np.stack([with_toy.predict(each) for each in defended])
    assert table(out) == side_by_side(with_toy, image, seen.mean(axis=0))
    np.testing.assert_array_equal(load_image(saved), on_grid(defended[0]))
    assert "mean of 3 runs" in out
    _, out, _ = run(capsys, "defend", picture, *options, "--aggregate", "majority")
    shares = np.bincount(seen.argmax(axis=1), minlength=6) / 3
    assert [line[-1] for line in table(out)] == [f"{p:.3f}" for p in sorted(shares)[:0:-1]]
    assert "majority of 3 runs" in out


def test_a_map_file_spares_pixels(capsys, with_toy, picture, tmp_path):
    spared = np.repeat(np.float32([[1, 0]]), 16, axis=1).repeat(32, axis=0)
    save_map(tmp_path / "map.png", spared)
    saved = tmp_path / "defended.png"
    options = ["--map", tmp_path / "map.png", "--denoiser", "none", "--save", saved]
    assert run(capsys, "defend", picture, *options)[0] == 0
    changed = np.any(load_image(saved) != load_image(picture), axis=-1)
    assert not changed[:, :16].any()
    assert changed[:, 16:].any()
    save_map(tmp_path / "map.png", spared[:16, 8:24])
    status, err = refused(capsys, "defend", picture, "--map", tmp_path / "map.png")
    assert (status, "map.png: expected a map of 32 x 32" in err) == (1, True)


def test_a_folder_s_maps_are_found_by_name(capsys, with_toy, folder, tmp_path, monkeypatch):
    (folder / "bee_9.png").unlink()
    maps = {path.name: np.random.default_rng(i).random((32, 32), dtype=np.float32)
            for i, path in enumerate(sorted(folder.iterdir()))}  # fmt: skip
    for name, chances in maps.items():
        save_map(tmp_path / "maps" / name, chances)
    seen, predict = [], pipeline.Defense.predict

    def recorded(self, classifier, images, **options):
        seen.extend(zip(images, options["activation_map"], strict=True))
        return predict(self, classifier, images, **options)

    monkeypatch.setattr(pipeline.Defense, "predict", recorded)
    options = ["--map", tmp_path / "maps", "--batch-size", 3]
    status, out, _ = run(capsys, "defend", folder, *options)
    assert (status, f"spared by the maps in {tmp_path / 'maps'}" in out) == (0, True)
    for (image, chances), path in zip(seen, sorted(folder.iterdir()), strict=True):
        np.testing.assert_array_equal(image, load_image(path))
        np.testing.assert_allclose(chances, min_max(maps[path.name]), atol=1e-4)
    seen.clear()
    run(capsys, "defend", folder / "cat_2.png", "--map", tmp_path / "maps")
    np.testing.assert_allclose([row for _, row in seen], min_max(maps["cat_2.png"]), atol=1e-4)
    (tmp_path / "maps" / "cat_2.png").unlink()
    for path in (folder, folder / "cat_2.png"):
        status, err = refused(capsys, "defend", path, "--map", tmp_path / "maps")
        assert (status, f"{tmp_path / 'maps' / 'cat_2.png'}: no such map" in err) == (1, True)


@pytest.mark.parametrize("suffix", [".jpg", ".JPE", ".gif", ".webp", ".ico"])
def test_a_picture_that_is_saved_with_a_loss_is_told_and_judged_anew(
    capsys, with_toy, picture, tmp_path, suffix
):
    saved, exact = tmp_path / f"defended{suffix}", tmp_path / "defended.png"
    status, out, _ = run(capsys, "defend", picture, "--save", saved)
    held = load_image(saved, with_toy.input_size)
    _, plain, _ = run(capsys, "defend", picture, "--save", exact)
    assert (status, "another picture" in plain) == (0, False)
    if np.array_equal(held, load_image(exact)):
        assert suffix not in (".jpg", ".gif", ".webp")
        assert out == plain
        return
    seen = ", ".join(" ".join(one) for one in row(with_toy, with_toy.predict(held)))
    assert f"{saved} holds another picture" in out
    assert out.rstrip().endswith(f"Seen in it: {seen}.")


def test_a_place_that_cannot_be_written_is_named_before_a_classifier_is_loaded(
    capsys, picture, tmp_path, monkeypatch
):
    monkeypatch.setattr(classifiers, "load_classifier", lambda *_: pytest.fail("loaded"))
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for name in (tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        status, err = refused(capsys, "defend", picture, "--save", name)
        assert (status, err.startswith(f"error: {name}: ")) == (1, True)


def test_defend_takes_a_model_of_ones_own(capsys, toy, network, folder, tmp_path):
    status, out, _ = run(capsys, "defend", folder / "cat_2.png", *network)
    assert (status, "seen by toy_gap" in out) == (0, True)
    image = load_image(folder / "cat_2.png")
    assert [line[:2] for line in table(out)] == row(toy, toy.predict(image))
    status, by_name, _ = run(capsys, "defend", folder, *network)
    (tmp_path / "names.json").write_bytes(json.dumps(toy.class_names).encode("utf-16"))
    again = [*network[:-1], tmp_path / "names.json"]
    assert (status, run(capsys, "defend", folder, *again)[:2]) == (0, (0, by_name))


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--weights", "x.h5"], 1, "holds its weights"),
        (["--preprocess", "0..2"], 2, "--preprocess: invalid choice: '0..2'"),
        (["--class-names", "{latin}"], 1, "latin.txt: expected a text in UTF-8"),
        (["--class-names", "{few}"], 1, "expected 6 class names"),
        (["--class-names", "nowhere.txt"], 1, "nowhere.txt: No such file"),
        (["--classifier", "demo"], 1, "preprocess and class_names go with a .keras file"),
    ],
)
def test_what_does_not_go_with_a_model_of_ones_own_is_told(
    capsys, network, folder, tmp_path, options, status, message
):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "few.txt").write_text("ant")
    places = {"latin": tmp_path / "latin.txt", "few": tmp_path / "few.txt"}
    given = [option.format(**places) for option in options]
    for command in ("defend", "evaluate"):
        found, _, err = run(capsys, command, folder, *network, *given)
        assert (found, message in err) == (status, True)


def test_what_a_folder_holds_besides_is_counted_in_a_line(capsys, with_toy, network, folder):
    (folder / "fox").mkdir()
    (folder / "a.heic").touch()
    (folder / "b.heic").touch()
    for arguments in (["defend", folder], ["evaluate", folder, *network]):
        _, _, err = run(capsys, *arguments)
        assert f"{folder}: passed over 2 entries: 2 .heic\n" in err
    # The last of them was to evaluate.
    assert f"{folder / 'fox'}: no picture" in err


def test_names_that_are_no_utf_8_are_defended_evaluated_and_printed(capsys, network, folder):
    rough = os.fsdecode(b"caf\xe9")
    (folder / "cat_2.png").rename(folder / f"cat_{rough}.png")
    (folder / f"ant_{rough}.png").write_bytes(b"no picture")
    kept = folder.parent / f"{rough}.sqlite"
    # What goes on, the second time, reads the same names.
    for _ in range(2):
        status, out, _ = run(capsys, "evaluate", folder, *network, *ASKED, "--output", kept)
        assert (status, r"skipped ant_caf\xe9.png: " in out) == (0, True)
        assert r"cat_caf\xe9.png" in set(stored(kept)["image"])
        out.encode("utf-8")
    status, out, _ = run(capsys, "table", kept, "--output", folder.parent / rough)
    assert (status, r"ant_caf\xe9.png" in out) == (0, True)
    assert len(list((folder.parent / rough).iterdir())) > 4
    for path in (folder, folder / f"cat_{rough}.png"):
        status, out, err = run(capsys, "defend", path, *network)
        assert (status, err, r"caf\udce9.png" in out) == (0, "", True)


def program(table: str, *arguments: object) -> list[str]:
    """A process whose command `table` does something else, for which nothing is loaded."""
    code = (
        "import sys, pdutils.cli.main as c\n"
        f"def _table(options): return {table}\n"
        "c._COMMANDS[_table] = c._COMMANDS.pop(c._table)\n"
        "sys.exit(c.main())"
    )
    return [sys.executable, "-c", code, *map(str, arguments)]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "cp437"])
def test_what_a_terminal_cannot_show_is_written_out(tmp_path, encoding):
    name = os.fsdecode("猫_é".encode() + b"\xe9.png")
    command = program("print(options.file) or 0", "table", tmp_path / name)
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    found = subprocess.run(command, capture_output=True, env=environment)
    assert (found.returncode, found.stderr) == (0, b"")
    assert found.stdout.startswith(str(tmp_path).encode())
    assert found.stdout.rstrip().endswith(rb"\udce9.png")


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(
    ("table", "arguments"),
    [
        ("0", ["defend", "--help"]),
        ("print('x\\n' * 200_000) or 0", ["table", "x"]),
        ("print('x') or 0", ["table", "x"]),
        ("print('x\\n' * 200_000) or 1 / 0", ["table", "x"]),
    ],
    ids=["help", "large", "small", "fault"],
)
def test_a_reader_that_has_had_enough_ends_the_command_quietly(table, arguments, both):
    read, write = os.pipe()
    os.close(read)
    error = write if both else subprocess.PIPE
    found = subprocess.run(program(table, *arguments), stdout=write, stderr=error)
    os.close(write)
    assert found.stderr == (None if both else b"")
    # argparse itself does not mind that nobody reads its help.
    assert found.returncode in (141, 0 if "--help" in arguments else 141)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_what_cannot_be_printed_is_an_error_in_one_line():
    command = program("print('x') or 0", "table", "x")
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 1
    assert re.fullmatch(r"error: .*No space left on device\n", found.stderr)


@pytest.mark.parametrize(
    ("options", "knobs", "words"),
    [
        (["--map", "cam"], {"activation": "cam"}, "window 10) spared by CAM, then wavelet"),
        (["--map", "rcam"], {"activation": "rcam"}, "spared by robust CAM"),
        (
            ["--deflections", 0, "--denoiser", "none"],
            {"deflections": 0, "denoiser": None},
            "Defence: nothing. Deflection changed 0.0% of the pixels. The most probable class st",
        ),
    ],
)
def test_a_map_can_be_made_and_nothing_be_done(capsys, with_toy, picture, options, knobs, words):
    _, out, _ = run(capsys, "defend", picture, *options)
    image = load_image(picture)
    after = pipeline.Defense(**knobs).predict(with_toy, image, rng=0)
    assert table(out) == side_by_side(with_toy, image, after)
    assert words in out


def test_a_folder_is_counted_before_and_after(capsys, with_toy, folder):
    status, out, _ = run(capsys, "defend", folder, "--deflections", 50, "--seed", 2)
    files = sorted(path for path in folder.iterdir() if path.name != "bee_9.png")
    spawned = np.random.default_rng(2).spawn(len(files))
    hits = np.zeros((2, 2), dtype=int)
    for path, stream in zip(files, spawned, strict=True):
        image, label = load_image(path), with_toy.class_names.index(path.name[:3])
        deflected = pixel_deflection(image, 50, rng=[stream])
        for i, seen in enumerate((image, denoise(deflected))):
            ranks = list(np.argsort(-with_toy.predict(seen)))
            hits[:, i] += ranks[0] == label, label in ranks[:5]
    rows = [line.replace("[", " [").split() for line in out.split("\n\n")[1].splitlines()[1:]]
    assert status == 0
    assert [[name, before, after] for name, before, _, _, after, *_ in rows] == [
        [name, *(f"{count / 7:.2f}" for count in pair)]
        for name, pair in zip(("top1", "top5"), hits, strict=True)
    ]
    assert "n = 7 images" in out
    assert f"skipped {folder / 'bee_9.png'}: " in out


def test_the_batch_size_does_not_change_what_is_drawn(capsys, with_toy, folder, monkeypatch):
    seen, predict = [], pipeline.Defense.predict

    def recorded(*arguments, **options):
        seen.append(predict(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(pipeline.Defense, "predict", recorded)
    for size in (3, 32):
        run(capsys, "defend", folder, "--batch-size", size)
    assert len(seen) == 4
    np.testing.assert_allclose(np.concatenate(seen[:3]), seen[3], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["nothing.png"], 1, "nothing.png: no such file"),
        (["{folder}", "--save", "x.png"], 2, "--save takes the result of one image"),
        (["{folder}", "--map", "x.png"], 2, "--map takes one of none, cam, rcam with a folder"),
        (["{folder}", "--map", "{picture}"], 2, "or a folder of maps, got "),
        (["{folder}", "--map", "{empty}"], 1, "ant_0.png: no such map; 8 of 8 pictures have none"),
        (["{picture}", "--map", "x.png"], 1, "x.png: no such file"),
        (["{picture}", "--denoiser", "none", "--sigma-scale", "rgb"], 2, "--sigma-scale goes with"),
        (["{picture}", "--defense", "pd", "--sigma-scale", "rgb"], 2, "give it or --sigma-scale"),
        (["{picture}", "--defense", "pd:sigma=1"], 1, "pd: no knob sigma"),
        (["{picture}", "--aggregate", "worst"], 2, "--aggregate: invalid choice"),
        (["{picture}", "--denoiser", "blur"], 2, "invalid choice: 'blur'"),
        (["{picture}", "--window", "wide"], 2, "invalid int value: 'wide'"),
        (["{picture}", "--seed", "-1"], 2, "--seed: expected a whole number of at least 0"),
        (["{picture}", "--save", "{text}"], 1, "expected a name that ends in .png"),
        (["{folder}", "--batch-size", "0"], 1, "batch_size: expected a whole number of at least 1"),
        (["{unknown}"], 1, "has no class 'yak'"),
        (["{empty}"], 1, "expected pictures"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    capsys, with_toy, picture, folder, tmp_path, options, status, message
):
    places = {"picture": picture, "folder": folder, "text": tmp_path / "notes.txt"}
    places |= {"empty": tmp_path / "empty", "unknown": tmp_path / "unknown"}
    places["empty"].mkdir()
    save_image(places["unknown"] / "yak_1.png", photo())
    places["text"].write_text("no picture")
    found, err = refused(capsys, "defend", *(option.format(**places) for option in options))
    assert (found, message in err) == (status, True)


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (PermissionError(13, "Permission denied", "file"), 1, "error: file: Permission denied\n"),
        (ValueError("two\nlines"), 1, "error: two lines\n"),
        # A pipe, but not that of what is printed.
        (BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)), 1, "error: Broken pipe\n"),
        # Faults of the program are not hidden.
        (ModuleNotFoundError("No module named 'numqy'", name="numqy"), None, ""),
        (KeyError("missing"), None, ""),
    ],
)
def test_an_exception_becomes_a_status_and_a_line(capsys, monkeypatch, raised, status, line):
    def fail(*_):
        raise raised

    monkeypatch.setattr(main, "_inputs", fail)
    if status is None:
        with pytest.raises(type(raised)):
            main.main(["defend", "x.png"])
    else:
        assert run(capsys, "defend", "x.png") == (status, "", line)


@pytest.mark.parametrize(
    ("command", "missing", "name"),
    [("app", "voila", "app"), ("run", "papermill", "notebooks"), ("run", "zmq", "notebooks")],
)
def test_a_missing_extra_is_told_in_one_line(capsys, monkeypatch, command, missing, name):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(metadata.Distribution, "discover", lambda **_: iter(()))
    monkeypatch.delitem(sys.modules, "pdutils.cli.runner")
    monkeypatch.delattr("pdutils.cli.runner")
    line = f"error: {missing} is not installed; bring it with: pip install 'pdutils[{name}]'\n"
    assert run(capsys, command) == (1, "", line)


@pytest.fixture
def asked(monkeypatch) -> list:
    """What the command line asks the runner for, which then runs nothing."""
    calls, form = [], inspect.signature(runner.run_notebooks)

    def record(*arguments, **options):
        calls.append(form.bind(*arguments, **options).arguments)
        failed = ("ZeroDivisionError: division by zero", "half = 1\nhalf / 0")
        names = [path.stem for path in calls[-1]["notebooks"]]
        return [runner.Outcome(n, 1.0, *(failed if n == "12_b" else ("", ""))) for n in names]

    monkeypatch.setattr(runner, "run_notebooks", record)
    monkeypatch.setattr(
        runner, "find_notebooks", lambda folder=None: [Path("01_a.ipynb"), Path("12_b.ipynb")]
    )
    return calls


def test_run_takes_the_blog_by_default_and_names_what_failed_with_its_cell(capsys, asked):
    status, out, err = run(capsys, "run")
    assert (status, out, err) == (0, "1 of 1 notebooks ran to their end\n", "")
    status, out, err = run(capsys, "run", "--all")
    assert (status, out) == (1, "1 of 2 notebooks ran to their end\n")
    said = "12_b failed: ZeroDivisionError: division by zero\n    half = 1\n    half / 0\n"
    assert err == f"\n{said}"
    blog, every = (call["notebooks"] for call in asked)
    assert (blog, every) == ([Path("01_a.ipynb")], [Path("01_a.ipynb"), Path("12_b.ipynb")])
    assert asked[0]["output"] == demo_root() / "results"
    assert (asked[0]["parameters"], asked[0]["timeout"]) == ({}, 3600)
    assert asked[0]["jobs"] in (1, 2)


def test_run_passes_its_options_on(capsys, asked, tmp_path):
    options = ["--classifier", "vgg19", "-p", "seed", "-1", "-p", "image", "a b.png"]
    run(capsys, "run", "12", *options, "--timeout", 9, "--jobs", 3, "--output", tmp_path)
    (call,) = asked
    assert (call["notebooks"], call["output"]) == ([Path("12_b.ipynb")], tmp_path)
    assert call["parameters"] == {"classifier": "vgg19", "seed": "-1", "image": "a b.png"}
    assert (call["timeout"], call["jobs"]) == (9, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "no notebook 'nope'; known: 01_classify"),
        (["05", "-p", "other", "1"], "no parameter 'other' in 05_robust_cam; known: "),
        (["--classifier", "my.keras"], "into notebook 8: run 08 -p model_file"),
        (["05", "-p", "k", "two"], "k: expected a number, got 'two' (05_robust_cam)"),
    ],
)
def test_run_refuses_what_it_does_not_know(capsys, tmp_path, arguments, message):
    status, err = refused(capsys, "run", *arguments, "--output", tmp_path / "results")
    assert (status, message in err) == (2, True)


ASKED = ["--attacks", "fgsm:eps=4", "--defenses", "pd:deflections=60", "wd", "--runs", 3]

#: The same for the functions that the commands are to call.
TEXTS = ["fgsm:eps=4"], ["pd:deflections=60", "wd"]


def without_times(records: pd.DataFrame) -> pd.DataFrame:
    return records.drop(columns="seconds")


def stored(path: Path) -> pd.DataFrame:
    with StoredRecords(path) as store:
        return store.records()


def test_evaluate_keeps_records_and_prints_shares(capsys, network, toy, folder, tmp_path):
    kept = tmp_path / "kept" / "records.sqlite"
    options = [*ASKED, "--seed", 4, "--output", kept]
    status, out, _ = run(capsys, "evaluate", folder, *network, *options)
    wanted = study.run(toy, folder_source(folder, toy), *TEXTS, runs=3, seed=4).records
    assert status == 0
    pd.testing.assert_frame_equal(without_times(stored(kept)), without_times(wanted))
    page = str(Study.open(kept).report("majority"))
    assert page[page.index("### Share") : page.index("### Dest")].strip() in out
    assert "Destruction" not in out
    assert "skipped bee_9.png: " in out
    assert f"table {kept}" in out


def test_evaluate_goes_on_where_it_ended_and_table_says_that_it_has_not(
    capsys, network, folder, tmp_path, monkeypatch
):
    kept, again = ([*ASKED, "--batch-size", 3, "--output", tmp_path / name] for name in "ab")
    made, more = [], Bench.records

    def counted(*arguments):
        made.append(arguments)
        if len(made) in (1, 8):
            raise KeyboardInterrupt
        return more(*arguments)

    monkeypatch.setattr(Bench, "records", counted)
    for message in ("no record is finished yet", "3 of 8 images so far: the evaluation is"):
        ended = run(capsys, "evaluate", folder, *network, *kept)
        assert ended[::2] == (130, "interrupted\n")
        assert message in "".join(run(capsys, "table", kept[-1])[1:])
    for options in (kept, again):
        assert run(capsys, "evaluate", folder, *network, *options)[0] == 0
    # Three chunks, two attacks, three defences, twice, and the two that were interrupted.
    assert len(made) == 2 * 3 * 2 * 3 + 2
    one, other = (without_times(stored(options[-1])) for options in (kept, again))
    pd.testing.assert_frame_equal(one, other)
    (tmp_path / "notes.txt").write_text("no records " * 500)
    for name, message in (("none", "no such file of records"), ("notes.txt", "expected a file of")):
        status, err = refused(capsys, "table", tmp_path / name)
        assert (status, message in err) == (1, True)


def test_evaluate_takes_a_list_and_a_limit(capsys, network, toy, folder, tmp_path):
    labels = {"ant_0.png": 4, "bee_1.png": 3, "cat_2.png": 2, "dog_3.png": 1}
    (tmp_path / "list.txt").write_text("\n".join(f"{n} {label}" for n, label in labels.items()))
    listing = ["--images-list", tmp_path / "list.txt"]
    kept = tmp_path / "records.sqlite"
    assert run(capsys, "evaluate", folder, *network, *listing, "--output", kept)[0] == 0
    assert dict(zip(stored(kept)["image"], stored(kept)["label"], strict=True)) == labels
    kept = tmp_path / "few.sqlite"
    run(capsys, "evaluate", folder, *network, "--limit", 3, "--seed", 2, "--output", kept)
    wanted = set(chosen(folder_source(folder, toy), 3, seed=2).names) - {"bee_9.png"}
    assert set(stored(kept)["image"]) == wanted


def test_evaluate_draws_for_the_demo_alone(capsys, network, tmp_path):
    found = []
    # The pictures follow from the seed too.
    for seed in (6, 7):
        kept = tmp_path / f"{seed}.sqlite"
        status, out, _ = run(capsys, "evaluate", "drawings:2", "--seed", seed, "--output", kept)
        assert (status, "n = " in out) == (0, True)
        found.append(stored(kept))
    assert list(found[0]["image"]) == list(DrawingSource(2).names)
    assert not np.array_equal(found[0]["p_label"], found[1]["p_label"])
    status, err = refused(capsys, "evaluate", "drawings:3", *network)
    assert (status, "classes of the demo" in err) == (1, True)


def test_a_dry_run_tells_the_cost_and_writes_nothing(capsys, network, toy, folder, tmp_path):
    kept = tmp_path / "records.sqlite"
    options = [*ASKED, "--output", kept, "--dry-run"]
    status, out, _ = run(capsys, "evaluate", folder, *network, *options)
    found = estimate(toy, folder_source(folder, toy), *TEXTS, runs=3)
    total = [line.split() for line in out.splitlines() if line.startswith("total")]
    assert status == 0
    assert total[0][1:3] == [f"{found.total.forward:.0f}", f"{found.total.backward:.0f}"]
    assert f"{found.records} records" in out
    assert not kept.exists()


def test_evaluate_asks_for_repeatable_operations_and_sends_workers_what_they_find_from_anywhere(
    capsys, network, folder, monkeypatch
):
    calls, form, load = [], inspect.signature(study.run), ClassifierSource.load

    def record(*arguments, **options):
        calls.append(form.bind(*arguments, **options).arguments)
        raise ValueError("recorded")

    monkeypatch.setattr(study, "run", record)
    monkeypatch.setattr(classifiers, "deterministic", lambda: calls.append("deterministic"))
    monkeypatch.setattr(ClassifierSource, "load", lambda self: calls.append("load") or load(self))
    model = Path(network[1])
    monkeypatch.chdir(model.parent)
    network[1] = model.name
    cluster = ["--scheduler", "tcp://there:8786", "--batch-size", 5]
    run(capsys, "evaluate", folder, *network, *ASKED, *cluster)
    *before, call = calls
    assert before[:2] == ["deterministic", "load"]
    assert call["network"].name == str(model)
    assert (call["scheduler"], call["batch_size"], call["runs"]) == ("tcp://there:8786", 5, 3)
    assert (call["attacks"], call["defenses"]) == TEXTS


def test_evaluate_keeps_records_where_the_same_command_finds_them_again(
    capsys, network, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("pdutils.demo.examples.checkout", lambda: tmp_path)
    files = []
    for seed in (1, 1, 2):
        _, out, _ = run(capsys, "evaluate", folder, *network, "--limit", 2, "--seed", seed)
        files.append(re.search(r"records: (\S+\.sqlite)", out)[1])
    assert files[0] == files[1] != files[2]
    assert len(stored(files[0])) == len(stored(files[2])) > 0


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["nowhere"], 1, "nowhere: no such folder; drawings:N makes drawings"),
        (["drawings:none"], 1, "expected drawings:N"),
        (["drawings:0"], 1, "expected drawings:N with N at least 1"),
        (["drawings:2", "--images-list", "x"], 2, "--images-list goes with a folder"),
        (["{folder}", "--attacks", "magic"], 1, "attack: expected one of none, fgsm"),
        (["{folder}", "--defenses", "pd:window=0"], 1, "pd: window: expected"),
        (["{folder}", "--images-list", "nowhere.txt"], 1, "nowhere.txt: no such list"),
        (["{folder}", "--limit", "0"], 1, "n: expected at least 1 image"),
        (["{folder}", "--runs", "0"], 1, "runs: expected a whole number of at least 1"),
        (["{folder}", "--output", "{text}"], 1, "expected a file of records"),
    ],
)
def test_what_cannot_be_evaluated_is_told_in_one_line(
    capsys, network, folder, tmp_path, options, status, message
):
    (tmp_path / "notes.txt").write_text("no records " * 500)
    places = {"folder": folder, "text": tmp_path / "notes.txt"}
    given = [option.format(**places) for option in options]
    # What comes later counts.
    base = [] if given[0].startswith("drawings") else network
    found, err = refused(capsys, "evaluate", *base, *given)
    assert (found, message in err) == (status, True)


@pytest.fixture
def records(capsys, network, folder, tmp_path) -> Path:
    kept = tmp_path / "mine.sqlite"
    run(capsys, "evaluate", folder, *network, *ASKED, "--output", kept)
    return kept


def test_table_prints_and_writes_what_the_report_says(capsys, records, tmp_path):
    output = tmp_path / "tables"
    options = ["--protocol", "plain", "--aggregate", "worst", "--output", output]
    status, out, _ = run(capsys, "table", records, *options)
    wanted = Study.open(records).report("worst", "plain")
    assert status == 0
    assert out.startswith(str(wanted).rstrip())
    assert "bee_9.png" in out
    assert "not finished" not in out
    files = {path.name for path in output.iterdir()}
    assert {"mine.md", "mine_accuracy.csv", "mine_accuracy.tex", "mine_numbers.csv"} <= files
    assert all(f"written: {output / name}" in out for name in files)
    _, out, _ = run(capsys, "table", records)
    plain = str(Study.open(records).report("majority"))
    assert out.startswith(plain.rstrip())
    assert "written" not in out
    spelled = next(text for text in stored(records).defense.unique() if text != "none")
    status, out, _ = run(capsys, "table", records, "--baseline", spelled)
    wanted = str(Study.open(records).report("majority", baseline=spelled))
    assert (status, out.startswith(wanted.rstrip()), wanted != plain) == (0, True, True)
    status, err = refused(capsys, "table", records, "--baseline", "tv")
    assert (status, "baseline: expected one of ('none', " in err) == (1, True)


def test_control_c_that_became_another_error_on_its_way_is_control_c_still(
    capsys, network, folder, tmp_path, monkeypatch
):
    def swallowing(*arguments):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise TypeError from None

    monkeypatch.setattr(Bench, "read", swallowing)
    handler = signal.getsignal(signal.SIGINT)
    status, _, err = run(capsys, "evaluate", folder, *network, "--output", tmp_path / "a.sqlite")
    assert (status, err) == (130, "interrupted\n")
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.slow
def test_control_c_ends_an_evaluation_and_its_workers_and_keeps_what_they_did(
    network, folder, tmp_path
):
    kept = tmp_path / "records.sqlite"
    attack = ["--attacks", "fgsm", "igsm:iterations=100000", "--batch-size", 1, "--output", kept]
    arguments = [*map(str, [folder, *network, *attack]), "--scheduler", "local:1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pdutils", "evaluate", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not (before := _stored_so_far(kept)) and process.poll() is None:
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        # As a terminal does it: to all processes, and once.
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert (process.returncode, err) == (130, "interrupted\n")
    assert not psutil.wait_procs(children, timeout=300)[1]
    assert before
    assert before <= _stored_so_far(kept)


def _stored_so_far(path: Path) -> set[tuple]:
    try:
        records = stored(path)
    except (FileNotFoundError, StoreError):
        return set()
    return set(records.astype(str).itertuples(index=False, name=None))
