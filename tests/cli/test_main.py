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
from pdutils.explorer.engine import Settings
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


@pytest.fixture
def network(toy, toy_file, tmp_path, monkeypatch) -> str:
    """The options that name the toy, a file of one's own, with its class names."""
    monkeypatch.setattr(classifiers, "deterministic", lambda: None)
    (tmp_path / "names.txt").write_text("\n".join(toy.class_names) + "\n")
    return f"--classifier {toy_file} --preprocess -1..1 --class-names {tmp_path / 'names.txt'}"


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


@pytest.fixture
def run(capsys):
    """Carry out a command line; give its status and what it printed."""

    def carried_out(line: str, *more: str) -> tuple[int, str, str]:
        try:
            status = main.main([*line.split(), *more])
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return carried_out


def table(out: str) -> list[list[str]]:
    return [line.split() for line in out.split("\n\n")[1].splitlines()[1:]]


def row(classifier, probabilities) -> list[list[str]]:
    return [[one.class_name, f"{one.probability:.3f}"] for one in classifier.top(probabilities)]


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
def test_help_has_examples_or_lists_the_commands(run, command):
    status, out, _ = run(f"{command} --help")
    assert (status, "For example:" in out) == (0, bool(command))
    assert f"python -m pdutils {command}" in out
    if command == "evaluate":
        for name in (*registry.ATTACKS, *registry.DEFENSES):
            assert f"\n{name} " in out
        assert "eps=8, step=1, iterations=50" in out


def defense(options: str) -> pipeline.Defense:
    """What the options of `defend` amount to."""
    return main._defense(main._parser().parse_args(["defend", "x", *options.split()]))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("pd+rcam+wd:deflections=600", "--map rcam --deflections 600"),
        ("pd+cam", "--map cam --deflections 1500 --denoiser none"),
        ("pd:reading=paper,window=3", "--window 3 --reading paper --denoiser none"),
        ("wd:sigma=0.1,sigma_scale=rgb",
         "--sigma 0.1 --sigma-scale rgb --map none --deflections 0"),
        ("none", "--deflections 0 --denoiser none"),
    ],
)  # fmt: skip
def test_a_defence_is_said_in_one_text_or_by_options(text, options):
    wanted = defense(f"{options} --runs 3 --aggregate majority")
    assert defense(f"--defense {text} --runs 3 --aggregate majority") == wanted
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
    assert defense("") == pipeline.Defense()


REFUSED = """
1 | defend nothing.png | nothing.png: no such file
2 | defend photos --save x.png | --save takes the result of one image
2 | defend photos --map x.png | --map takes one of none, cam, rcam with a folder
2 | defend photos --map cat_1.png | or a folder of maps, got cat_1.png
1 | defend photos --map empty | ant_0.png: no such map; 8 of 8 pictures have none
1 | defend cat_1.png --map empty | empty/cat_1.png: no such map
1 | defend cat_1.png --map x.png | x.png: no such file
1 | defend cat_1.png --map small.png | small.png: expected a map of 32 x 32
2 | defend cat_1.png --denoiser none --sigma-scale rgb | --sigma-scale goes with
2 | defend cat_1.png --defense pd --sigma-scale rgb | give it or --sigma-scale
1 | defend cat_1.png --defense pd:sigma=1 | pd: no knob sigma
2 | defend cat_1.png --aggregate worst | --aggregate: invalid choice
2 | defend cat_1.png --denoiser blur | invalid choice: 'blur'
2 | defend cat_1.png --window wide | invalid int value: 'wide'
2 | defend cat_1.png --seed -1 | --seed: expected a whole number of at least 0
1 | defend cat_1.png --save text.txt | expected a name that ends in .png
1 | defend cat_1.png --save text.txt/a.png | error: text.txt/a.png: Not a directory
1 | defend cat_1.png --save folder.png | error: folder.png: Is a directory
1 | defend photos --batch-size 0 | batch_size: expected a whole number of at least 1
1 | defend unknown | has no class 'yak'
1 | defend empty | expected pictures
1 | both photos {network} --weights x.h5 | holds its weights
2 | both photos {network} --preprocess 0..2 | --preprocess: invalid choice: '0..2'
1 | both photos {network} --class-names latin.txt | latin.txt: expected a text in UTF-8
1 | both photos {network} --class-names few.txt | expected 6 class names
1 | both photos {network} --class-names nowhere.txt | nowhere.txt: No such file
1 | both photos {network} --classifier demo | preprocess and class_names go with a .keras file
1 | evaluate nowhere | nowhere: no such folder; drawings:N makes drawings
1 | evaluate drawings:none | expected drawings:N
1 | evaluate drawings:0 | expected drawings:N with N at least 1
1 | evaluate drawings:3 {network} | classes of the demo
2 | evaluate drawings:2 --images-list x | --images-list goes with a folder
1 | evaluate photos {network} --attacks magic | attack: expected one of ('none', 'fgsm
1 | evaluate photos {network} --defenses pd:window=0 | pd: window: expected
1 | evaluate photos {network} --images-list nowhere.txt | nowhere.txt: no such list
1 | evaluate photos {network} --limit 0 | n: expected at least 1 image
1 | evaluate photos {network} --runs 0 | runs: expected a whole number of at least 1
1 | evaluate photos {network} --output text.txt | expected a file of records
1 | table none | no such file of records
1 | table text.txt | expected a file of records
2 | run nope | no notebook 'nope'; known: 01_classify
2 | run 05 -p other 1 | no parameter 'other' in 05_robust_cam; known:
2 | run --classifier my.keras | into notebook 8: run 08 -p model_file
2 | run 05 -p k two | k: expected a number, got 'two' (05_robust_cam)
"""


@pytest.mark.parametrize(
    ("status", "line", "message"),
    [
        line.replace("both", command).split(" | ")
        for line in REFUSED.strip().splitlines()
        for command in (("defend", "evaluate") if "both" in line else ("",))
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    run, with_toy, picture, folder, network, tmp_path, monkeypatch, status, line, message
):
    monkeypatch.chdir(tmp_path)
    for name, text in (("text", "no records " * 500), ("few", "ant"), ("latin", "café")):
        Path(f"{name}.txt").write_bytes(text.encode("latin-1"))
    for name in ("empty", "folder.png"):
        Path(name).mkdir()
    save_image("unknown/yak_1.png", photo())
    save_map("small.png", np.zeros((16, 16), dtype=np.float32))
    if "--save" in line:
        monkeypatch.setattr(classifiers, "load_classifier", lambda *_: pytest.fail("loaded"))
    found, _, err = run(line.format(network=network))
    assert (found, err[:7], err.count("\n")) == (int(status), "error: ", 1)
    assert message in err


def _stream_of_run(seed: int, run: int = 0) -> list[np.random.Generator]:
    (first,) = streams(seed, 1)
    return [[first, *first.spawn(run)][run]]


def test_defend_shows_the_top_five_before_and_after(run, with_toy, picture):
    status, out, _ = run(f"defend {picture} --seed 4 --window 3 --sigma 0.1")
    image = load_image(picture)
    deflected = pixel_deflection(image, 200, 3, rng=_stream_of_run(4))
    after = with_toy.predict(denoise(deflected, "wavelet", sigma=0.1))
    assert (status, table(out)) == (0, side_by_side(with_toy, image, after))
    changed = np.any(deflected != image, axis=-1).mean()
    assert f"Deflection changed {changed:.1%} of the pixels" in out
    assert "200 deflections (blog reading, window 3) without a map" in out
    assert "wavelet denoising, sigma 0.1" in out
    lines = out.split("\n\n")[1].splitlines()
    assert len({len(line) for line in lines[1:]}) == 1
    assert lines[0].index("after") == lines[1].index(lines[1].split()[2], 6)


@pytest.mark.parametrize(
    ("options", "knobs", "words"),
    [
        ("--map cam", {"activation": "cam"}, "window 10) spared by CAM, then wavelet"),
        ("--map rcam", {"activation": "rcam"}, "spared by robust CAM"),
        ("--deflections 0 --denoiser none", {"deflections": 0, "denoiser": None},
         "Defence: nothing. Deflection changed 0.0% of the pixels. The most probable class st"),
    ],
)  # fmt: skip
def test_a_map_can_be_made_and_nothing_be_done(run, with_toy, picture, options, knobs, words):
    _, out, _ = run(f"defend {picture} {options}")
    image = load_image(picture)
    after = pipeline.Defense(**knobs).predict(with_toy, image, rng=0)
    assert table(out) == side_by_side(with_toy, image, after)
    assert words in out


def test_several_runs_become_one_answer_and_the_first_is_saved(run, with_toy, picture, tmp_path):
    saved, image = tmp_path / "defended.png", load_image(picture)
    line = f"defend {picture} --runs 3 --denoiser median --save {saved}"
    _, out, _ = run(line)
    defended = [
        denoise(pixel_deflection(image, 200, rng=_stream_of_run(0, i)), "median") for i in range(3)
    ]
    seen = np.stack([with_toy.predict(each) for each in defended])
    assert table(out) == side_by_side(with_toy, image, seen.mean(axis=0))
    np.testing.assert_array_equal(load_image(saved), on_grid(defended[0]))
    assert "mean of 3 runs" in out
    _, out, _ = run(f"{line} --aggregate majority")
    shares = np.bincount(seen.argmax(axis=1), minlength=6) / 3
    assert [line[-1] for line in table(out)] == [f"{p:.3f}" for p in sorted(shares)[:0:-1]]
    assert "majority of 3 runs" in out


def test_a_map_file_spares_pixels(run, with_toy, picture, tmp_path):
    spared, saved = tmp_path / "map.png", tmp_path / "defended.png"
    save_map(spared, np.repeat(np.float32([[1, 0]]), 16, axis=1).repeat(32, axis=0))
    assert run(f"defend {picture} --map {spared} --denoiser none --save {saved}")[0] == 0
    changed = np.any(load_image(saved) != load_image(picture), axis=-1)
    assert not changed[:, :16].any()
    assert changed[:, 16:].any()


@pytest.fixture
def predictions(monkeypatch) -> list:
    """What goes into `Defense.predict` and what it gives, of every call."""
    seen, predict = [], pipeline.Defense.predict

    def recorded(self, classifier, images, **options):
        found = predict(self, classifier, images, **options)
        seen.append((images, options["activation_map"], found))
        return found

    monkeypatch.setattr(pipeline.Defense, "predict", recorded)
    return seen


def test_a_folder_s_maps_are_found_by_name(run, with_toy, folder, tmp_path, predictions):
    (folder / "bee_9.png").unlink()
    files, own = sorted(folder.iterdir()), tmp_path / "maps"
    maps = np.random.default_rng(0).random((len(files), 32, 32), dtype=np.float32)
    for path, chances in zip(files, maps, strict=True):
        save_map(own / path.name, chances)
    status, out, _ = run(f"defend {folder} --map {own} --batch-size 3")
    assert (status, f"spared by the maps in {own}" in out) == (0, True)
    images, chances, _ = (np.concatenate(part) for part in zip(*predictions, strict=True))
    np.testing.assert_array_equal(images, [load_image(path) for path in files])
    np.testing.assert_allclose(chances, min_max(maps), atol=1e-4)
    run(f"defend {files[2]} --map {own}")
    np.testing.assert_allclose(predictions[-1][1], min_max(maps[2]), atol=1e-4)


def test_a_folder_is_counted_before_and_after(run, with_toy, folder):
    status, out, _ = run(f"defend {folder} --deflections 50 --seed 2")
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


def test_the_batch_size_does_not_change_what_is_drawn(run, with_toy, folder, predictions):
    for size in (3, 32):
        run(f"defend {folder} --batch-size {size}")
    *parts, (_, _, whole) = predictions
    assert len(parts) == 3
    np.testing.assert_allclose(np.concatenate([seen for *_, seen in parts]), whole, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".jpg", ".JPE", ".gif", ".webp", ".ico"])
def test_a_picture_that_is_saved_with_a_loss_is_told_and_judged_anew(
    run, with_toy, picture, tmp_path, suffix
):
    saved, exact = tmp_path / f"defended{suffix}", tmp_path / "defended.png"
    status, out, _ = run(f"defend {picture} --save {saved}")
    held = load_image(saved, with_toy.input_size)
    _, plain, _ = run(f"defend {picture} --save {exact}")
    assert (status, "another picture" in plain) == (0, False)
    if np.array_equal(held, load_image(exact)):
        assert suffix not in (".jpg", ".gif", ".webp")
        assert out == plain
        return
    seen = ", ".join(" ".join(one) for one in row(with_toy, with_toy.predict(held)))
    assert f"{saved} holds another picture" in out
    assert out.rstrip().endswith(f"Seen in it: {seen}.")


def test_defend_takes_a_model_of_ones_own(run, toy, network, folder, tmp_path):
    status, out, _ = run(f"defend {folder / 'cat_2.png'} {network}")
    assert (status, "seen by toy_gap" in out) == (0, True)
    image = load_image(folder / "cat_2.png")
    assert [line[:2] for line in table(out)] == row(toy, toy.predict(image))
    status, by_name, _ = run(f"defend {folder} {network}")
    (tmp_path / "names.json").write_bytes(json.dumps(toy.class_names).encode("utf-16"))
    again = run(f"defend {folder} {network} --class-names {tmp_path / 'names.json'}")
    assert (status, again[:2]) == (0, (0, by_name))


def test_what_a_folder_holds_besides_is_counted_in_a_line(run, with_toy, network, folder):
    (folder / "fox").mkdir()
    (folder / "a.heic").touch()
    (folder / "b.heic").touch()
    for line in (f"defend {folder}", f"evaluate {folder} {network}"):
        _, _, err = run(line)
        assert f"{folder}: passed over 2 entries: 2 .heic\n" in err
    # The last of them was to evaluate.
    assert f"{folder / 'fox'}: no picture" in err


def test_names_that_are_no_utf_8_are_defended_evaluated_and_printed(run, network, folder):
    rough = os.fsdecode(b"caf\xe9")
    (folder / "cat_2.png").rename(folder / f"cat_{rough}.png")
    (folder / f"ant_{rough}.png").write_bytes(b"no picture")
    kept, tables = folder.parent / f"{rough}.sqlite", folder.parent / rough
    # What goes on, the second time, reads the same names.
    for _ in range(2):
        status, out, _ = run(f"evaluate {folder} {network} {ASKED} --output {kept}")
        assert (status, r"skipped ant_caf\xe9.png: " in out) == (0, True)
        assert r"cat_caf\xe9.png" in set(stored(kept)["image"])
        out.encode("utf-8")
    status, out, _ = run(f"table {kept} --output {tables}")
    assert (status, r"ant_caf\xe9.png" in out) == (0, True)
    assert len(list(tables.iterdir())) > 4
    for path in (folder, folder / f"cat_{rough}.png"):
        status, out, err = run(f"defend {path} {network}")
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
        ("0", ["defend", "--help"]), ("print('x') or 0", ["table", "x"]),
        ("print('x\\n' * 200_000) or 0", ["table", "x"]),
        ("print('x\\n' * 200_000) or 1 / 0", ["table", "x"]),
    ],
    ids=["help", "small", "large", "fault"],
)  # fmt: skip
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
def test_an_exception_becomes_a_status_and_a_line(run, monkeypatch, raised, status, line):
    def fail(*_):
        raise raised

    monkeypatch.setattr(main, "_inputs", fail)
    if status is None:
        with pytest.raises(type(raised)):
            run("defend x.png")
    else:
        assert run("defend x.png") == (status, "", line)


@pytest.mark.parametrize(
    ("options", "start", "where"),
    [
        ("", {"classifier": "efficientnet_lite0"}, ("localhost", None, True)),
        (
            "--classifier vgg19 --weights w.h5 --host 0.0.0.0 --port 9000 --no-browser",
            {"classifier": "vgg19", "weights": "w.h5"},
            ("0.0.0.0", 9000, False),
        ),
    ],
)
def test_app_serves_this_machine_alone_unless_told_otherwise(
    run, monkeypatch, options, start, where
):
    served = []
    monkeypatch.setattr("pdutils.explorer.page.serve", lambda *a, **k: served.append((*a, k)))
    assert run(f"app {options}") == (0, "", "")
    names = ("host", "port", "browser")
    assert served == [(Settings(**start), dict(zip(names, where, strict=True)))]


@pytest.mark.parametrize(
    ("command", "missing", "name"),
    [("app", "tornado", "app"), ("run", "papermill", "notebooks"), ("run", "zmq", "notebooks")],
)
def test_a_missing_extra_is_told_in_one_line(run, monkeypatch, command, missing, name):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(metadata.Distribution, "discover", lambda **_: iter(()))
    monkeypatch.delitem(sys.modules, "pdutils.cli.runner")
    monkeypatch.delattr("pdutils.cli.runner")
    monkeypatch.delitem(sys.modules, "pdutils.explorer.page", raising=False)
    line = f"error: {missing} is not installed; bring it with: pip install 'pdutils[{name}]'\n"
    assert run(command) == (1, "", line)


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
    known = [Path("01_a.ipynb"), Path("12_b.ipynb")]
    monkeypatch.setattr(runner, "find_notebooks", lambda folder=None: known)
    return calls


def test_run_takes_the_blog_by_default_and_names_what_failed_with_its_cell(run, asked):
    assert run("run") == (0, "1 of 1 notebooks ran to their end\n", "")
    said = "12_b failed: ZeroDivisionError: division by zero\n    half = 1\n    half / 0\n"
    assert run("run --all") == (1, "1 of 2 notebooks ran to their end\n", f"\n{said}")
    blog, every = (call["notebooks"] for call in asked)
    assert (blog, every) == ([Path("01_a.ipynb")], [Path("01_a.ipynb"), Path("12_b.ipynb")])
    assert asked[0]["output"] == demo_root() / "results"
    assert (asked[0]["parameters"], asked[0]["timeout"]) == ({}, 3600)
    assert asked[0]["jobs"] in (1, 2)


def test_run_passes_its_options_on(run, asked, tmp_path):
    line = f"run 12 --classifier vgg19 --timeout 9 --jobs 3 --output {tmp_path} -p seed -1"
    run(line, "-p", "image", "a b.png")
    (call,) = asked
    assert (call["notebooks"], call["output"]) == ([Path("12_b.ipynb")], tmp_path)
    assert call["parameters"] == {"classifier": "vgg19", "seed": "-1", "image": "a b.png"}
    assert (call["timeout"], call["jobs"]) == (9, 3)


ASKED = "--attacks fgsm:eps=4 --defenses pd:deflections=60 wd --runs 3"

#: The same for the functions that the commands are to call.
TEXTS = ["fgsm:eps=4"], ["pd:deflections=60", "wd"]


def stored(path: Path) -> pd.DataFrame:
    """The records of a file, but for what differs from run to run."""
    with StoredRecords(path) as store:
        return store.records().drop(columns="seconds")


def test_evaluate_keeps_records_and_prints_shares(run, network, toy, folder, tmp_path):
    kept = tmp_path / "kept" / "records.sqlite"
    status, out, _ = run(f"evaluate {folder} {network} {ASKED} --seed 4 --output {kept}")
    wanted = study.run(toy, folder_source(folder, toy), *TEXTS, runs=3, seed=4).records
    assert status == 0
    pd.testing.assert_frame_equal(stored(kept), wanted.drop(columns="seconds"))
    page = str(Study.open(kept).report("majority"))
    assert page[page.index("### Share") : page.index("### Dest")].strip() in out
    assert "Destruction" not in out
    assert "skipped bee_9.png: " in out
    assert f"table {kept}" in out


def test_evaluate_goes_on_where_it_ended_and_table_says_that_it_has_not(
    run, network, folder, tmp_path, monkeypatch
):
    made, more = [], Bench.records

    def counted(*arguments):
        made.append(arguments)
        if len(made) in (1, 8):
            raise KeyboardInterrupt
        return more(*arguments)

    monkeypatch.setattr(Bench, "records", counted)
    line = f"evaluate {folder} {network} {ASKED} --batch-size 3 --output"
    for message in ("no record is finished yet", "3 of 8 images so far: the evaluation is"):
        assert run(f"{line} {tmp_path / 'a'}")[::2] == (130, "interrupted\n")
        assert message in "".join(run(f"table {tmp_path / 'a'}")[1:])
    for name in "ab":
        assert run(f"{line} {tmp_path / name}")[0] == 0
    # Three chunks, two attacks, three defences, twice, and the two that were interrupted.
    assert len(made) == 2 * 3 * 2 * 3 + 2
    pd.testing.assert_frame_equal(stored(tmp_path / "a"), stored(tmp_path / "b"))


def test_evaluate_takes_a_list_and_a_limit(run, network, toy, folder, tmp_path):
    labels = {"ant_0.png": 4, "bee_1.png": 3, "cat_2.png": 2, "dog_3.png": 1}
    listing, kept, few = (tmp_path / name for name in ("list.txt", "a.sqlite", "few.sqlite"))
    listing.write_text("\n".join(f"{name} {label}" for name, label in labels.items()))
    line = f"evaluate {folder} {network}"
    assert run(f"{line} --images-list {listing} --output {kept}")[0] == 0
    assert dict(zip(stored(kept)["image"], stored(kept)["label"], strict=True)) == labels
    run(f"{line} --limit 3 --seed 2 --output {few}")
    wanted = set(chosen(folder_source(folder, toy), 3, seed=2).names) - {"bee_9.png"}
    assert set(stored(few)["image"]) == wanted


def test_evaluate_draws_for_the_demo(run, network, tmp_path):
    found = []
    # The pictures follow from the seed too.
    for seed in (6, 7):
        kept = tmp_path / f"{seed}.sqlite"
        status, out, _ = run(f"evaluate drawings:2 --seed {seed} --output {kept}")
        assert (status, "n = " in out) == (0, True)
        found.append(stored(kept))
    assert list(found[0]["image"]) == list(DrawingSource(2).names)
    assert not np.array_equal(found[0]["p_label"], found[1]["p_label"])


def test_a_dry_run_tells_the_cost_and_writes_nothing(run, network, toy, folder, tmp_path):
    kept = tmp_path / "records.sqlite"
    status, out, _ = run(f"evaluate {folder} {network} {ASKED} --output {kept} --dry-run")
    found = estimate(toy, folder_source(folder, toy), *TEXTS, runs=3)
    total = [line.split() for line in out.splitlines() if line.startswith("total")]
    assert total[0][1:3] == [f"{found.total.forward:.0f}", f"{found.total.backward:.0f}"]
    assert f"{found.records} records" in out
    assert (status, kept.exists()) == (0, False)


def test_evaluate_asks_for_repeatable_operations_and_sends_workers_what_they_find_from_anywhere(
    run, network, toy_file, folder, monkeypatch
):
    calls, form, load = [], inspect.signature(study.run), ClassifierSource.load

    def record(*arguments, **options):
        calls.append(form.bind(*arguments, **options).arguments)
        raise ValueError("recorded")

    monkeypatch.setattr(study, "run", record)
    monkeypatch.setattr(classifiers, "deterministic", lambda: calls.append("deterministic"))
    monkeypatch.setattr(ClassifierSource, "load", lambda self: calls.append("load") or load(self))
    monkeypatch.chdir(Path(toy_file).parent)
    relative = network.replace(toy_file, Path(toy_file).name)
    run(f"evaluate {folder} {relative} --scheduler tcp://there:8786 --batch-size 5 {ASKED}")
    *before, call = calls
    assert before[:2] == ["deterministic", "load"]
    assert call["network"].name == toy_file
    assert (call["scheduler"], call["batch_size"], call["runs"]) == ("tcp://there:8786", 5, 3)
    assert (call["attacks"], call["defenses"]) == TEXTS


def test_evaluate_keeps_records_where_the_same_command_finds_them_again(
    run, network, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("pdutils.demo.examples.checkout", lambda: tmp_path)
    files = []
    for seed in (1, 1, 2):
        _, out, _ = run(f"evaluate {folder} {network} --limit 2 --seed {seed}")
        files.append(re.search(r"records: (\S+\.sqlite)", out)[1])
    assert files[0] == files[1] != files[2]
    assert len(stored(files[0])) == len(stored(files[2])) > 0


def test_table_prints_and_writes_what_the_report_says(run, network, folder, tmp_path):
    records, output = tmp_path / "mine.sqlite", tmp_path / "tables"
    run(f"evaluate {folder} {network} {ASKED} --output {records}")
    more = f"--protocol plain --aggregate worst --output {output}"
    status, out, _ = run(f"table {records} {more}")
    open_study = Study.open(records)
    assert status == 0
    assert out.startswith(str(open_study.report("worst", "plain")).rstrip())
    assert "bee_9.png" in out
    assert "not finished" not in out
    files = {path.name for path in output.iterdir()}
    assert {"mine.md", "mine_accuracy.csv", "mine_accuracy.tex", "mine_numbers.csv"} <= files
    assert all(f"written: {output / name}" in out for name in files)
    _, out, _ = run(f"table {records}")
    plain = str(open_study.report("majority"))
    assert out.startswith(plain.rstrip())
    assert "written" not in out
    spelled = next(text for text in stored(records).defense.unique() if text != "none")
    status, out, _ = run(f"table {records} --baseline {spelled}")
    wanted = str(open_study.report("majority", baseline=spelled))
    assert (status, out.startswith(wanted.rstrip()), wanted != plain) == (0, True, True)
    status, _, err = run(f"table {records} --baseline tv")
    assert (status, "error: baseline: expected one of ('none', " in err) == (1, True)


def test_control_c_that_became_another_error_on_its_way_is_control_c_still(
    run, network, folder, tmp_path, monkeypatch
):
    def swallowing(*arguments):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise TypeError from None

    monkeypatch.setattr(Bench, "read", swallowing)
    handler = signal.getsignal(signal.SIGINT)
    status, _, err = run(f"evaluate {folder} {network} --output {tmp_path / 'a.sqlite'}")
    assert (status, err) == (130, "interrupted\n")
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.slow
def test_control_c_ends_an_evaluation_and_its_workers_and_keeps_what_they_did(
    network, folder, tmp_path
):
    kept = tmp_path / "records.sqlite"
    line = f"-m pdutils evaluate {folder} {network} --batch-size 1 --output {kept} "
    line += "--scheduler local:1 --attacks fgsm igsm:iterations=100000"
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *line.split()]
    process = subprocess.Popen(command, **pipes, start_new_session=True)
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
