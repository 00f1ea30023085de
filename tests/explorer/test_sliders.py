import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from pdutils import metrics
from pdutils._utils import Array
from pdutils.activation import robust_cam
from pdutils.attacks import gradient
from pdutils.classifiers import Classifier, load_classifier
from pdutils.deflection import pixel_deflection
from pdutils.demo.examples import Case, load_case
from pdutils.denoising import denoise
from pdutils.explorer import sliders
from pdutils.explorer.sliders import Sliders, View
from pdutils.metrics import correlation


@pytest.fixture(scope="module")
def demo() -> Classifier:
    return load_classifier("demo")


@pytest.fixture(scope="module")
def case(demo) -> Case:
    return load_case(demo)


@pytest.fixture(scope="module")
def rcam(demo, case) -> Array:
    return robust_cam(demo, case.adversary, k=5)


def answers(demo: Classifier, case: Case, image: Array) -> str:
    found, names = demo.predict(image), demo.class_names
    classes = (case.label, case.attacked_label)
    return ", ".join(f"{names[c]} {found[c]:.2f}" for c in classes)


def count(image: Array, other: Array, where=True) -> int:
    return int(((image != other).any(axis=-1) & where).sum())


def test_the_attack_goes_along_its_steps(demo, case):
    widget = sliders.attack(demo, case, eps=16, step=0.5, iterations=6)
    for steps in (1, 6):
        widget.controls["steps"].value = steps
        by_hand = gradient.igsm(demo, case.clean, case.label, eps=16, step=0.5, iterations=steps)
        greatest = metrics.linf(case.clean, by_hand)
        assert widget.text.startswith(f"steps {steps}: {answers(demo, case, by_hand)}; L2 0.0")
        assert widget.text.endswith(f"L-infinity {greatest:.0f} of 255")
    widget.controls["steps"].value = 0
    assert answers(demo, case, case.clean) in widget.text


def test_deflection_has_three_knobs(demo, case):
    widget = sliders.deflection(demo, case, deflections=200, window=10, seed=0)
    settings = {"deflections": 200, "window": 10, "seed": 0}
    for name, value in (("window", 3), ("seed", 7), ("deflections", 0)):
        settings[name] = value
        widget.controls[name].value = value
        deflections, window, seed = settings.values()
        by_hand = pixel_deflection(case.adversary, deflections, window, rng=seed)
        said = "deflections {deflections}, window {window}, seed {seed}".format(**settings)
        number = f"{count(by_hand, case.adversary)} pixels changed"
        assert widget.text == f"{said}: {answers(demo, case, by_hand)}; {number}"


@pytest.mark.parametrize(("mode", "before"), [("soft", True), ("hard", False)])
def test_denoising_with_deflection_before_it_and_without(demo, case, mode, before):
    widget = sliders.denoising(demo, case, deflections=300, sigma=0.04, sigma_scale="rgb", seed=2)
    widget.controls["sigma"].value = 0.1
    widget.controls["mode"].value = mode
    widget.controls["before"].value = before
    given = pixel_deflection(case.adversary, 300, 10, rng=2) if before else case.adversary
    by_hand = denoise(given, sigma=0.1, mode=mode, sigma_scale="rgb")
    said = f"sigma 0.1, shrinkage {mode}, before it {'PD 300' if before else 'nothing'}: "
    change = f"; changes a value by {abs(by_hand - given).mean():.2f} of 255 on average"
    assert widget.text == said + answers(demo, case, by_hand) + change


def test_maps_by_k_and_definition(demo, case):
    widget = sliders.maps(demo, case, k=1, combine="paper")
    for k, combine in ((2, "paper"), (2, "geometric")):
        widget.controls["k"].value = k
        widget.controls["combine"].value = combine
        made = [robust_cam(demo, of, k=k, combine=combine) for of in (case.clean, case.adversary)]
        clean, adversary = (f"{one.mean():.2f}" for one in made)
        means = f"clean, mean {clean}; adversary, mean {adversary}"
        said = f"k {k}, definition {combine}: {means}; correlation {correlation(*made):.2f}"
        assert widget.text == said


def test_placement_counts_the_hot_zone(demo, case, rcam):
    widget = sliders.placement(demo, case, rcam, deflections=1500, window=10, seed=1)
    within = {}
    for with_map in (True, False):
        widget.controls["with_map"].value = with_map
        widget.controls["deflections"].value = 2000
        used = {"activation_map": rcam} if with_map else {}
        by_hand = pixel_deflection(case.adversary, 2000, 10, rng=1, **used)
        within[with_map] = count(by_hand, case.adversary, rcam >= 0.5)
        said = f"map {'R-CAM' if with_map else 'none'}, deflections 2000: "
        whole = f"{count(by_hand, case.adversary)} pixels changed, {within[with_map]} of them "
        assert widget.text.startswith(said + whole + "in the hot zone (map at least 0.5, ")
        assert widget.text.endswith(answers(demo, case, by_hand))
    assert within[True] < within[False] / 2


@pytest.fixture
def plain(demo, case) -> Sliders:
    return sliders.deflection(demo, case)


def png_in(html: str) -> bytes:
    return base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', html)[1])


def shown(widget: Sliders) -> str:
    return widget.box.children[1].value


def test_picture_and_numbers_arrive_as_one_and_stand_where_no_widget_can_be_shown(plain):
    arrived = []
    plain.box.children[1].observe(lambda change: arrived.append(change.new), "value")
    before = png_in(shown(plain))
    plain.controls["deflections"].value = 1000
    (html,) = arrived
    assert png_in(html) != before
    assert plain.text in html
    assert 'alt="Pictures and two bars: ' in html
    data, metadata = plain._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == plain.box.model_id
    assert data["image/png"] == png_in(html)
    with Image.open(io.BytesIO(data["image/png"])) as picture:
        assert picture.width >= 600
        assert len(np.unique(picture.convert("L"))) > 100
    assert plain.text in metadata["image/png"]["alt"]


def test_an_error_becomes_a_sentence_and_takes_the_old_picture_away(plain):
    def view(**settings) -> View:
        if settings["window"] == 2:
            raise ValueError("window: expected <another>")
        return plain._view(**settings)

    widget = Sliders(view, **plain.controls)
    widget.controls["window"].value = 2
    assert widget.text == "ValueError: window: expected <another>"
    assert "<img" not in shown(widget)
    assert 'role="alert"' in shown(widget)
    assert "&lt;another&gt;" in shown(widget)
    assert "image/png" not in widget._repr_mimebundle_()
    widget.controls["window"].value = 3
    assert "window 3" in widget.text
    assert "<img" in shown(widget)


def test_each_slider_acts_when_it_is_let_go_and_begins_where_it_is_told(demo, case, plain):
    before = plain.text
    widget = sliders.deflection(demo, case, deflections=123, window=4, seed=99)
    assert widget.text.startswith("deflections 123, window 4, seed 99: ")
    for control in widget.controls.values():
        assert control.continuous_update is False
        offered = [value for _, value in control.options]
        assert offered == sorted(offered)
    # Widgets share nothing.
    assert plain.text == before
