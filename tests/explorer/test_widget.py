import errno
import io
import json
import re
import threading
import weakref
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdutils import downloads
from pdutils._utils import on_grid
from pdutils.classifiers import Classifier, load_classifier
from pdutils.demo.examples import demo_image, load_case
from pdutils.denoising import DENOISERS
from pdutils.explorer import visit as visit_module
from pdutils.explorer import widget as widget_module
from pdutils.explorer.engine import Explorer, Settings
from pdutils.explorer.visit import PICTURES, UPLOAD_LIMIT, summary
from pdutils.explorer.widget import ExplorerWidget, explorer
from pdutils.images import load_image


@pytest.fixture(scope="module")
def demo() -> Classifier:
    return load_classifier("demo")


@pytest.fixture
def widget(demo) -> ExplorerWidget:
    return explorer(network=demo)


def moved(widget: ExplorerWidget, **changes) -> ExplorerWidget:
    widget.move(**changes)
    widget.settle()
    return widget


def said(widget: ExplorerWidget, content: dict, *buffers: bytes) -> ExplorerWidget:
    """Hand the widget a message as the browser sends it."""
    widget._handle_custom_msg(content, [memoryview(buffer) for buffer in buffers])
    widget.settle()
    return widget


def decoded(packed: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(packed)) as picture:
        return np.asarray(picture)


def png_of(name: str = "fox_000") -> bytes:
    return demo_image(name).image.read_bytes()


def test_it_begins_with_the_result_of_its_settings(demo):
    start = Settings(image="otter_000", denoiser="wavelet", seed=4)
    widget = explorer(start, network=demo)
    expected = Explorer({("demo", ""): demo}).result(start)
    np.testing.assert_array_equal(widget.result.probabilities, expected.probabilities)
    assert widget.settings == asdict(start)
    assert widget.shown["verdict"] == expected.verdict
    assert widget.busy == widget.error == {}


def test_it_loads_its_network_while_it_is_on_the_screen(demo, monkeypatch):
    may_load = threading.Event()

    def load(name, weights):
        may_load.wait(10)
        return demo

    monkeypatch.setattr("pdutils.explorer.engine.load_classifier", load)
    widget = explorer()
    loading = {"what": "Loading demo", "done": 0, "total": 0}
    assert (widget.busy, widget.shown) == (loading, {})
    may_load.set()
    widget.settle()
    assert (widget.busy, widget.shown["name"]) == ({}, "badger_000")


def test_pictures_and_numbers_are_those_of_the_result(widget, demo):
    moved(widget, denoiser="wavelet", deflections=40, activation="rcam", runs=3)
    shown, result, case = widget.shown, widget.result, load_case(demo, "badger_000")
    expected = {name: on_grid(getattr(result, name)) for name in ("clean", "adversary", "defended")}
    for name, image in (("attack", result.adversary), ("left", result.defended)):
        expected[name] = np.clip(np.rint(127.5 + 8 * (image - result.clean)), 0, 255)
    for name, image in expected.items():
        np.testing.assert_array_equal(decoded(getattr(widget, f"picture_{name}")), image)
    black = (decoded(widget.picture_deflected) == 0).all(axis=-1)
    np.testing.assert_array_equal(black, result.changed)
    assert PICTURES.keys() == {*expected, "deflected"}
    answers = demo.predict(case.clean), demo.predict(case.adversary), result.probabilities
    for name, row in zip(("clean", "adversary", "defended"), answers, strict=True):
        best = np.argsort(-row)[:5]
        assert [one["name"] for one in shown["top"][name]] == [demo.class_names[i] for i in best]
        np.testing.assert_allclose([one["p"] for one in shown["top"][name]], row[best])
    roles = [shown["top"]["clean"][0], *(shown["top"]["adversary"][i] for i in (0, 4))]
    assert [found["role"] for found in roles] == ["true", "attack", "other"]
    steps = ["clean", "adversary", "deflected", "denoised"]
    assert [step["name"] for step in shown["steps"]] == steps
    assert shown["steps"][3]["true"] == pytest.approx(result.probabilities[case.label])
    assert json.loads(json.dumps(shown)) == shown


class Wire:
    """Stands where the browser would be."""

    comm_id, kernel = "wire", True

    def __init__(self):
        self.states = []

    def send(self, data=None, buffers=None, **_):
        paths = [path[0] for path in data.get("buffer_paths", [])]
        self.states.append({*data.get("state", {}), *paths})

    def on_msg(self, callback):
        pass

    def close(self, *_, **__):
        pass


def test_a_result_comes_whole_and_only_with_the_pictures_that_changed(widget, monkeypatch):
    widget.comm = wire = Wire()
    moved(widget, seed=3)
    (state,) = [state for state in wire.states if "shown" in state]
    pictures = {f"picture_{name}" for name in ("defended", "deflected", "left")}
    assert state >= pictures | {"shown", "settings", "history"}
    assert not (state - pictures) & {f"picture_{name}" for name in PICTURES}
    assert not any(pictures & other for other in wire.states if other is not state)

    # What is the same is not encoded again.
    with monkeypatch.context() as patch:
        patch.setattr(visit_module, "_packed", None)
        message = {"type": "move", "id": "x-7", "settings": {"sigma": 0.1}, "final": False}
        said(widget, message)
    assert (widget.shown["id"], widget.settings["sigma"], widget.error) == ("x-7", 0.1, {})
    # A move of the browser is answered by its number.
    said(widget, {"type": "move", "id": "x-8", "settings": {"deflections": -5}, "final": True})
    assert (widget.error["id"], widget.shown["id"]) == ("x-8", "x-7")


def test_moves_made_meanwhile_are_dropped_but_the_last(widget, monkeypatch):
    began, go, seeds, result = threading.Event(), threading.Event(), [], Explorer.result

    def slowly(explorer, settings, **options):
        seeds.append(settings.seed)
        began.set()
        assert go.wait(10)
        return result(explorer, settings, **options)

    monkeypatch.setattr(Explorer, "result", slowly)
    widget.move(seed=1)
    assert began.wait(10)
    for seed in (2, 3, 4):
        widget.move(seed=seed)
    widget.move(deflections=30)
    with pytest.raises(TimeoutError, match=r"still computing after 0\.05 s"):
        widget.settle(0.05)
    go.set()
    widget.settle()
    assert seeds == [1, 4]
    # What a dropped move changed is not forgotten.
    assert (widget.settings["seed"], widget.settings["deflections"]) == (4, 30)


@pytest.mark.parametrize(("second", "made"), [({"attack": "none"}, 3), ({"denoiser": "jpeg"}, 12)])
def test_an_attack_goes_on_only_where_it_is_needed_still(widget, monkeypatch, second, made):
    """Begin a strong attack, change settings in its middle, and count its steps."""
    steps, middle, go = [], threading.Event(), threading.Event()
    gradient = Classifier.loss_gradient

    def counted(*args, **options):
        steps.append(1)
        if len(steps) == 3:
            middle.set()
            assert go.wait(10)
        return gradient(*args, **options)

    monkeypatch.setattr(Classifier, "loss_gradient", counted)
    widget.move(attack="igsm", stop=False, steps=12)
    assert middle.wait(10)
    widget.move(**second)
    go.set()
    widget.settle()
    assert (len(steps), widget.error) == (made, {})
    assert widget.settings.items() >= {"attack": "igsm", **second}.items()


def test_what_cannot_be_leaves_a_sentence_and_the_last_result(widget):
    before = widget.shown
    for changes, words in (
        ({"deflections": -1}, "deflections: expected a whole number from 0 to 20000, got -1"),
        ({"sigma": None}, "sigma: expected a number above 0 and at most 1, got None"),
        ({"image": "/etc/passwd"}, "no picture '/etc/passwd' on offer"),
        ({"classifier": "my_model"}, "no network 'my_model' on offer"),
        ({"weights": "/etc/passwd"}, "weights: no setting of the explorer"),
        ({"label": "fox"}, "label: expected none, since what this picture shows is known"),
        ({"colour": 1}, "colour: no setting of the explorer"),
        ({"classifier": ["demo"]}, "classifier: expected a text, got ['demo']"),
    ):
        said(widget, {"type": "move", "id": "m", "settings": changes, "final": True})
        assert (widget.error, widget.shown) == ({"text": words, "id": "m"}, before)
    assert moved(widget, seed=8).settings["seed"] == 8
    assert widget.error == {}


def test_whatever_goes_wrong_becomes_a_sentence(widget, monkeypatch):
    for error, words in (
        (downloads.DownloadError("resnet50 is not in the cache"), "resnet50 is not in the cache"),
        (ValueError("k: expected less"), "k: expected less"),
        (KeyError("hidden\nlines"), "This could not be computed (KeyError: 'hidden\\nlines')."),
        (MemoryError(), "This could not be computed (MemoryError: no more is known)."),
    ):

        def fail(*_, error=error, **__):
            raise error

        with monkeypatch.context() as broken:
            broken.setattr(Explorer, "result", fail)
            moved(widget, seed=5)
        assert (widget.error["text"], widget.busy) == (words, {})
        # The setting that failed is not carried on to the next move.
        assert moved(widget, deflections=30).settings["seed"] == 0
        assert widget.error == {}


def test_an_error_of_an_older_wish_does_not_stand_beside_the_newer_one_s_picture(
    widget, monkeypatch
):
    began, go, result = threading.Event(), threading.Event(), Explorer.result

    def fail(explorer, settings, **options):
        if settings.seed == 1:
            began.set()
            assert go.wait(10)
            raise ValueError("an old failure")
        return result(explorer, settings, **options)

    monkeypatch.setattr(Explorer, "result", fail)
    widget.move(seed=1)
    assert began.wait(10)
    widget.move(seed=2)
    go.set()
    widget.settle()
    assert (widget.settings["seed"], widget.error, widget.busy) == (2, {}, {})


def test_a_disk_that_is_full_leaves_a_sentence(widget, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", fail)
    upload(widget, "mine.png", png_of())
    assert "No space left on device" in widget.error["text"]
    assert moved(widget, seed=4).error == {}


def test_a_beginning_that_fails_is_a_sentence_too(demo):
    widget = explorer(Settings(image="nowhere.png"), network=demo)
    words = "nowhere.png: no such file; images with a name: badger_0"
    assert widget.error["text"].startswith(words)
    assert moved(widget, image="badger_000").shown["name"] == "badger_000"


def upload(widget, name: str, content: bytes) -> ExplorerWidget:
    return said(widget, {"type": "upload", "id": "u", "name": name}, content)


def test_a_picture_of_ones_own_is_shown_and_its_class_is_what_the_network_sees(widget, demo):
    upload(widget, "skunk_of_mine.png", png_of())
    picture = load_image(demo_image("fox_000").image)
    np.testing.assert_array_equal(decoded(widget.picture_clean), picture)
    assert widget.result.label == demo.predict(picture).argmax() != demo.index("skunk")
    assert widget.images[-1]["title"] == "skunk of mine.png"
    assert "load_case(network, 'skunk-of-mine.png')" in widget.shown["code"]
    assert str(Path(widget.settings["image"]).parent) not in widget.shown["code"]
    assert moved(widget, attack="none").settings["image"] == widget.images[-1]["name"]
    # Another of the same name is another.
    upload(widget, "skunk_of_mine.png", png_of("hamster_000"))
    clean = load_image(demo_image("hamster_000").image)
    np.testing.assert_array_equal(widget.result.clean, clean)


def test_a_picture_that_cannot_be_leaves_a_sentence(widget):
    before, unread = widget.shown, "expected a picture that can be read: .*"
    frames, moving = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")], io.BytesIO()
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    still = "expected a still picture, got an animation of 2 .*"
    for name, content, words in (
        ("broken.png", png_of()[:500], rf"broken\.png: {unread}"),
        ("notes.txt", b"no picture", rf"notes\.txt: {unread}"),
        ("empty.png", b"", rf"empty\.png: {unread}"),
        ("two.gif", moving.getvalue(), rf"two\.gif: {still}"),
        ("big.png", b"0" * (UPLOAD_LIMIT + 10**5), r"big\.png: expected at most 8 MB, got 8\.1 MB"),
        ("../up.png", b"x", rf"up\.png: {unread}"),
        ("nul\0.png", b"x", r".*null byte.*"),
    ):
        upload(widget, name, content)
        assert re.fullmatch(words, widget.error["text"])
        assert "explorer-" not in widget.error["text"]
        assert (widget.shown, len(widget.images)) == (before, 20)


def test_uploads_are_few_and_leave_with_the_widget(demo):
    widget = explorer(Settings(attack="none"), network=demo)
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    for i in range(10):
        upload(widget, f"{i}.png", small.getvalue())
    assert [image["title"] for image in widget.images[20:]] == [f"{i}.png" for i in range(2, 10)]
    folder = widget._visit._folder
    assert folder.is_dir()
    (finalizer,) = [f for f in weakref.finalize._registry if (f.peek() or [None])[0] is widget]
    finalizer()
    assert not folder.exists()


def test_the_last_results_are_kept_and_can_be_gone_back_to(widget, demo):
    other = explorer(network=demo)
    before = other.shown
    moved(widget, denoiser="jpeg", deflections=30)
    moved(widget, attack="none", seed=2)
    first, second, third = widget.history
    assert [entry["summary"] for entry in (first, second, third)] == [
        "PD 200", "PD 30 + jpeg", "clean; PD 30 + jpeg",
    ]  # fmt: skip
    assert re.fullmatch(r"\w+ 0\.\d\d -> \w+ \d\.\d\d", second["sentence"])
    assert max(decoded(first["picture"]).shape) == 56
    said(widget, {"type": "move", "id": "b", "settings": second["settings"], "final": True})
    assert (widget.settings["denoiser"], len(widget.history)) == ("jpeg", 3)
    # Widgets do not disturb each other.
    assert (other.shown, len(other.history)) == (before, 1)


def test_what_is_passed_on_the_way_is_not_kept_and_of_the_rest_twelve(widget):
    for deflections in (10, 20, 30):
        message = {"type": "move", "id": "d", "settings": {"deflections": deflections}}
        said(widget, {**message, "final": False})
    assert len(widget.history) == 1
    for deflections in (10, 20, 30):
        moved(widget, deflections=deflections)
    assert [entry["settings"]["deflections"] for entry in widget.history] == [200, 30]
    for seed in range(1, 14):
        moved(widget, seed=seed, deflections=seed)
    assert len(widget.history) == 12
    assert widget.history[-1]["settings"]["seed"] == 13


def test_another_network_is_shown_pictures_that_it_knows(widget, demo, toy, monkeypatch, tmp_path):
    monkeypatch.setenv("PDUTILS_CACHE", str(tmp_path))
    # A stand-in for an ImageNet network: it has the classes of the photos at hand.
    names = ("Egyptian_cat", "espresso", "missile", "skunk", "mink", "otter")
    own = {"preprocess": lambda x: x / 127.5 - 1, "class_names": names, "name": "vgg19"}
    asked, networks = [], {"vgg19": Classifier(toy.model, **own), "demo": demo}
    monkeypatch.setattr(
        "pdutils.explorer.engine.load_classifier",
        lambda *names: asked.append(names) or networks[names[0]],
    )
    moved(widget, classifier="vgg19")
    assert asked == [("vgg19", None)]
    assert (widget.settings["image"], widget.shown["true"]) == ("coffee", "espresso")
    assert [image["name"] for image in widget.images] == ["coffee", "chelsea", "rocket"]
    moved(widget, classifier="demo")
    assert (widget.settings["image"], len(widget.images)) == ("badger_000", 20)


def test_the_files_that_a_notebook_names_can_be_chosen_again(demo, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_of())
    start = Settings(weights="mine.h5", image=str(path), label="mink")
    widget = explorer(start, network=demo)
    first = {"name": str(path), "title": "a", "own": True}
    assert widget.images[0] == first | {"picture": widget.images[0]["picture"]}
    moved(widget, image="otter_000")
    assert widget.result.label == demo.index("otter")
    moved(widget, image=str(path))
    assert widget.result.label == demo.index("mink")
    assert widget.settings["weights"] == "mine.h5"


def test_where_no_widget_can_be_shown_there_is_a_picture_with_words(widget):
    bundle, metadata = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert decoded(bundle["image/png"]).shape[1] > 400
    assert len(bundle["image/png"]) < 600_000
    words = metadata["image/png"]["alt"]
    assert widget.shown["sentence"] in words
    assert widget.shown["verdict"].lower() in words.lower()


def test_what_can_be_chosen_is_what_the_settings_take_and_the_face_asks_no_network(widget):
    offer, static = widget.offer, Path(widget_module.__file__).parent / "static"
    script = (static / "controls.js").read_text()
    for name in offer["words"].keys() - {"attack"}:
        for word in offer["words"][name]:
            assert re.search(rf"\b{word}: \"", script), (name, word)
    assert set(offer["words"]["denoiser"]) == {"none", *DENOISERS}
    offered = {c["name"]: c["at_hand"] for c in offer["classifiers"]}
    assert list(offered)[:3] == ["demo", "efficientnet_lite0", "resnet50"]
    assert offered["demo"]
    for path in static.iterdir():
        assert not re.search(r"https?://|@import|url\(", path.read_text())


def test_a_few_letters_say_what_was_done():
    for words, changes in {
        "PD 200": {},
        "no defence": {"deflections": 0},
        "tv": {"deflections": 0, "denoiser": "tv", "activation": "cam"},
        "PD 200 + R-CAM + wavelet": {"activation": "rcam", "denoiser": "wavelet"},
        "FGSM 4; PD 200": {"attack": "fgsm", "eps": 4},
        "weak IGSM 8 x 10; PD 200": {"attack": "igsm"},
        "strong IGSM 8 x 10; PD 200": {"attack": "igsm", "stop": False},
    }.items():
        assert summary(replace(Settings(), **changes)) == words
