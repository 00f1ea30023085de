import io
import json
import re
import threading
import weakref
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image

from pdutils import downloads
from pdutils._utils import on_grid
from pdutils.classifiers import Classifier, load_classifier
from pdutils.demo.examples import demo_image, load_case
from pdutils.explorer import widget as widget_module
from pdutils.explorer.engine import Explorer, Settings
from pdutils.explorer.widget import PICTURES, UPLOAD_LIMIT, ExplorerWidget, explorer, summary
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


def test_the_page_begins_with_the_network_that_its_parameters_name(monkeypatch):
    begun = []
    monkeypatch.setattr(widget_module, "explorer", begun.append)
    notebook = load_notebook_node(str(Path(__file__).parents[2] / "app" / "explorer.ipynb"))
    asked = {"classifier": "mobilenet_v2", "weights": "some.weights.h5"}
    cells = parameterize_notebook(notebook, asked).cells
    exec("\n".join(cell.source for cell in cells if cell.cell_type == "code"), {})
    assert begun == [Settings(**asked)]


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
    assert widget.busy == {"what": "Loading demo", "done": 0, "total": 0}
    assert widget.shown == {}
    may_load.set()
    widget.settle()
    assert widget.shown["name"] == "badger_000"
    assert widget.busy == {}


def test_the_pictures_are_those_of_the_result(widget):
    moved(widget, denoiser="wavelet", deflections=40, activation="rcam")
    result = widget.result
    for name in ("clean", "adversary", "defended"):
        np.testing.assert_array_equal(
            decoded(getattr(widget, f"picture_{name}")), on_grid(getattr(result, name))
        )
    assert {f"picture_{name}" for name in PICTURES} <= set(widget.trait_names())
    black = (decoded(widget.picture_deflected) == 0).all(axis=-1)
    np.testing.assert_array_equal(black, result.changed)
    attack = np.clip(np.rint(127.5 + 8 * (result.adversary - result.clean)), 0, 255)
    np.testing.assert_array_equal(decoded(widget.picture_attack), attack)
    left = np.clip(np.rint(127.5 + 8 * (result.defended - result.clean)), 0, 255)
    np.testing.assert_array_equal(decoded(widget.picture_left), left)


def test_the_numbers_are_those_of_the_result(widget, demo):
    moved(widget, denoiser="wavelet", runs=3)
    shown, result = widget.shown, widget.result
    case = load_case(demo, "badger_000")
    answers = demo.predict(case.clean), demo.predict(case.adversary), result.probabilities
    for name, row in zip(("clean", "adversary", "defended"), answers, strict=True):
        best = np.argsort(-row)[:5]
        assert [one["name"] for one in shown["top"][name]] == [demo.class_names[i] for i in best]
        np.testing.assert_allclose([one["p"] for one in shown["top"][name]], row[best])
    assert shown["top"]["clean"][0]["role"] == "true"
    assert shown["top"]["adversary"][0]["role"] == "attack"
    assert shown["top"]["adversary"][4]["role"] == "other"
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


def test_a_result_comes_whole_and_only_with_the_pictures_that_changed(widget):
    widget.comm = wire = Wire()
    moved(widget, seed=3)
    (state,) = [state for state in wire.states if "shown" in state]
    pictures = {f"picture_{name}" for name in ("defended", "deflected", "left")}
    assert state >= pictures | {"shown", "settings", "history"}
    assert not (state - pictures) & {f"picture_{name}" for name in PICTURES}
    assert not any(pictures & other for other in wire.states if other is not state)


def test_what_is_the_same_is_not_encoded_again(widget, monkeypatch):
    encoded = []
    packed = widget_module._packed
    monkeypatch.setattr(
        widget_module, "_packed", lambda pixels: encoded.append(1) or packed(pixels)
    )
    said(widget, {"type": "move", "id": "a", "settings": {"sigma": 0.1}, "final": False})
    assert encoded == []


def test_a_move_of_the_browser_is_answered_by_its_number(widget):
    message = {"type": "move", "id": "x-7", "settings": {"deflections": 10}, "final": True}
    said(widget, message)
    assert widget.shown["id"] == "x-7"
    assert widget.settings["deflections"] == 10
    said(widget, {"type": "move", "id": "x-8", "settings": {"deflections": -5}, "final": True})
    assert widget.error["id"] == "x-8"
    assert widget.shown["id"] == "x-7"


class Slow:
    """Holds computations until it is let go, and remembers what was computed."""

    def __init__(self, monkeypatch):
        self.began, self.go, self.seeds = threading.Event(), threading.Event(), []
        result = Explorer.result

        def slowly(explorer, settings, **options):
            self.seeds.append(settings.seed)
            self.began.set()
            assert self.go.wait(10)
            return result(explorer, settings, **options)

        monkeypatch.setattr(Explorer, "result", slowly)


def test_moves_made_meanwhile_are_dropped_but_the_last(widget, monkeypatch):
    slow = Slow(monkeypatch)
    widget.move(seed=1)
    assert slow.began.wait(10)
    for seed in (2, 3, 4):
        widget.move(seed=seed)
    widget.move(deflections=30)
    slow.go.set()
    widget.settle()
    assert slow.seeds == [1, 4]
    # What a dropped move changed is not forgotten.
    assert (widget.settings["seed"], widget.settings["deflections"]) == (4, 30)


def adversaries_made(widget, monkeypatch, **second) -> list[int]:
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
    return steps


def test_an_attack_that_nobody_waits_for_any_more_ends(widget, monkeypatch):
    steps = adversaries_made(widget, monkeypatch, attack="none")
    assert len(steps) == 3
    assert widget.settings["attack"] == "none"
    assert widget.error == {}


def test_an_attack_that_is_needed_still_goes_on(widget, monkeypatch):
    steps = adversaries_made(widget, monkeypatch, denoiser="jpeg")
    assert len(steps) == 12
    assert (widget.settings["attack"], widget.settings["denoiser"]) == ("igsm", "jpeg")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"deflections": -1}, "deflections: expected a whole number from 0 to 20000, got -1"),
        ({"sigma": None}, "sigma: expected a number in (0, 1], got None"),
        ({"image": "/etc/passwd"}, "no picture '/etc/passwd' on offer"),
        ({"classifier": "my_model"}, "no network 'my_model' on offer"),
        ({"weights": "/etc/passwd"}, "weights: no setting of the explorer"),
        ({"label": "fox"}, "label: no setting of the explorer"),
        ({"colour": 1}, "colour: no setting of the explorer"),
        ({"classifier": ["demo"]}, "no network ['demo'] on offer"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_cannot_be_leaves_a_sentence_and_the_last_result(widget, changes, words):
    before = widget.shown
    said(widget, {"type": "move", "id": "m", "settings": changes, "final": True})
    assert widget.error == {"text": words, "id": "m"}
    assert widget.shown == before
    assert moved(widget, seed=8).settings["seed"] == 8
    assert widget.error == {}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (downloads.DownloadError("resnet50 is not in the cache"), "resnet50 is not in the cache"),
        (ValueError("k: expected less"), "k: expected less"),
        (KeyError("hidden\nlines"), "This could not be computed (KeyError: 'hidden\\nlines')."),
        (MemoryError(), "This could not be computed (MemoryError: no more is known)."),
    ],
    ids=["download", "value", "key", "memory"],
)
def test_whatever_goes_wrong_becomes_a_sentence(widget, monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(Explorer, "result", fail)
        moved(widget, seed=5)
    assert widget.error["text"] == words
    assert widget.busy == {}
    # The setting that failed is not carried on to the next move.
    assert moved(widget, deflections=30).settings["seed"] == 0
    assert widget.error == {}


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


def test_two_pictures_of_one_name_are_two(widget):
    upload(widget, "a.png", png_of("fox_000"))
    upload(widget, "a.png", png_of("hamster_000"))
    clean = load_image(demo_image("hamster_000").image)
    np.testing.assert_array_equal(widget.result.clean, clean)


def animation() -> bytes:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("broken.png", png_of()[:500], r"broken\.png: expected a picture that can be read: .*"),
        ("notes.txt", b"no picture", r"notes\.txt: expected a picture that can be read: .*"),
        ("empty.png", b"", r"empty\.png: expected a picture that can be read: .*"),
        ("two.gif", animation(), r"two\.gif: expected a still picture, got an animation of 2 .*"),
        ("big.png", b"0" * (UPLOAD_LIMIT + 10**5), r"big\.png: expected at most 8 MB, got 8\.1 MB"),
        ("../up.png", b"x", r"up\.png: expected a picture .*"),
        ("nul\0.png", b"x", r".*null byte.*"),
    ],
    ids=["broken", "text", "empty", "animation", "large", "path", "nul"],
)
def test_a_picture_that_cannot_be_leaves_a_sentence(widget, name, content, words):
    before = widget.shown
    upload(widget, name, content)
    assert re.fullmatch(words, widget.error["text"])
    assert "explorer-" not in widget.error["text"]
    assert widget.shown == before
    assert len(widget.images) == 20


def test_uploads_are_few_and_leave_with_the_widget(demo):
    widget = explorer(Settings(attack="none"), network=demo)
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    for i in range(10):
        upload(widget, f"{i}.png", small.getvalue())
    assert [image["title"] for image in widget.images[20:]] == [f"{i}.png" for i in range(2, 10)]
    folder = Path(widget.settings["image"]).parents[1]
    assert folder.is_dir()
    (finalizer,) = [f for f in weakref.finalize._registry if (f.peek() or [None])[0] is widget]
    finalizer()
    assert not folder.exists()


def test_the_last_results_are_kept_and_can_be_gone_back_to(widget):
    moved(widget, denoiser="jpeg", deflections=30)
    moved(widget, attack="none", seed=2)
    first, second, third = widget.history
    assert [entry["summary"] for entry in (first, second, third)] == [
        "PD 200", "PD 30 + jpeg", "clean; PD 30 + jpeg",
    ]  # fmt: skip
    assert re.fullmatch(r"\w+ 0\.\d\d -> \w+ \d\.\d\d", second["sentence"])
    assert max(decoded(first["picture"]).shape) == 56
    said(widget, {"type": "move", "id": "b", "settings": second["settings"], "final": True})
    assert widget.settings["denoiser"] == "jpeg"
    assert len(widget.history) == 3


def test_what_is_passed_on_the_way_is_not_kept(widget):
    for deflections in (10, 20, 30):
        message = {"type": "move", "id": "d", "settings": {"deflections": deflections}}
        said(widget, {**message, "final": False})
    assert len(widget.history) == 1
    for deflections in (10, 20, 30):
        moved(widget, deflections=deflections)
    assert [entry["settings"]["deflections"] for entry in widget.history] == [200, 30]


def test_no_more_than_twelve_results_are_kept(widget):
    for seed in range(1, 16):
        moved(widget, seed=seed, deflections=seed)
    assert len(widget.history) == 12
    assert widget.history[-1]["settings"]["seed"] == 15


@pytest.fixture
def imagenet(toy) -> Classifier:
    """A stand-in for an ImageNet network: it has the classes of the photos at hand."""
    names = ("Egyptian_cat", "espresso", "missile", "skunk", "mink", "otter")
    return Classifier(
        toy.model, preprocess=lambda x: x / 127.5 - 1, class_names=names, name="vgg19"
    )


def test_another_network_is_shown_pictures_that_it_knows(
    widget, demo, imagenet, monkeypatch, tmp_path
):
    monkeypatch.setenv("PDUTILS_CACHE", str(tmp_path))
    asked = []
    networks = {"vgg19": imagenet, "demo": demo}
    monkeypatch.setattr(
        "pdutils.explorer.engine.load_classifier",
        lambda *names: asked.append(names) or networks[names[0]],
    )
    moved(widget, classifier="vgg19")
    assert asked == [("vgg19", None)]
    assert (widget.settings["image"], widget.shown["true"]) == ("coffee", "espresso")
    assert [image["name"] for image in widget.images] == ["coffee", "chelsea", "rocket"]
    moved(widget, classifier="demo")
    assert widget.settings["image"] == "badger_000"
    assert len(widget.images) == 20


def test_the_files_that_a_notebook_names_can_be_chosen_again(demo, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_of())
    start = Settings(weights="mine.h5", image=str(path), label="mink")
    widget = explorer(start, network=demo)
    assert widget.images[0] | {"picture": b""} == {"name": str(path), "title": "a", "picture": b""}
    moved(widget, image="otter_000")
    assert widget.result.label == demo.index("otter")
    moved(widget, image=str(path))
    assert widget.result.label == demo.index("mink")
    assert widget.settings["weights"] == "mine.h5"


def test_two_widgets_do_not_disturb_each_other(demo):
    one, other = explorer(network=demo), explorer(network=demo)
    before = other.shown
    moved(one, deflections=700, image="fox_000")
    assert other.shown == before
    assert len(other.history) == 1


def test_where_no_widget_can_be_shown_there_is_a_picture_with_words(widget):
    bundle, metadata = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert decoded(bundle["image/png"]).shape[1] > 400
    assert len(bundle["image/png"]) < 600_000
    words = metadata["image/png"]["alt"]
    assert widget.shown["sentence"] in words
    assert widget.shown["verdict"].lower() in words.lower()


def test_what_can_be_chosen_is_what_the_settings_take(widget):
    offer = widget.offer
    assert set(offer["words"]["denoiser"]) == {"none", *widget_module.WORDS["denoiser"]}
    script = (Path(widget_module.__file__).parent / "static" / "explorer.js").read_text()
    for name in offer["words"].keys() - {"attack"}:
        for word in offer["words"][name]:
            assert re.search(rf"\b{word}: \"", script), (name, word)
    offered = {c["name"]: c["at_hand"] for c in offer["classifiers"]}
    assert list(offered)[:3] == ["demo", "efficientnet_lite0", "resnet50"]
    assert offered["demo"]


def test_the_face_asks_nothing_of_the_network():
    for path in (Path(widget_module.__file__).parent / "static").iterdir():
        assert not re.search(r"https?://|@import|url\(", path.read_text())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "PD 200"),
        ({"deflections": 0}, "no defence"),
        ({"deflections": 0, "denoiser": "tv", "activation": "cam"}, "tv"),
        ({"activation": "rcam", "denoiser": "wavelet"}, "PD 200 + R-CAM + wavelet"),
        ({"attack": "fgsm", "eps": 4}, "FGSM 4; PD 200"),
        ({"attack": "igsm"}, "weak IGSM 8 x 10; PD 200"),
        ({"attack": "igsm", "stop": False}, "strong IGSM 8 x 10; PD 200"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_few_letters_say_what_was_done(changes, words):
    assert summary(replace(Settings(), **changes)) == words


def test_waiting_has_an_end(widget, monkeypatch):
    slow = Slow(monkeypatch)
    widget.move(seed=1)
    with pytest.raises(TimeoutError, match=r"still computing after 0\.05 s"):
        widget.settle(0.05)
    slow.go.set()
    widget.settle()
