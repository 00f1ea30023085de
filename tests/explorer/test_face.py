"""The explorer's face alone: on a page of strict rules, with a model that computes nothing."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import axe_violations, chromium, watched
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect

import pdutils

pytestmark = pytest.mark.slow

browser = pytest.fixture(chromium, scope="module")

STATIC = Path(pdutils.__file__).parent / "explorer" / "static"
#: An address without a right to the clipboard, and nobody behind it.
SITE = "http://face.test/"
RULES = "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:"
PAGE = """<!doctype html><html lang="en"><meta name="viewport" content="width=device-width">
<title>The face</title><link rel="icon" href="data:,"><link rel="stylesheet" href="explorer.css">
<script type="module" src="model.js"></script><body data-pdx-page><main></main>"""
MODEL = """
import face from './explorer.js';
const acts = {}, state = {}, sent = window.sent = [];
const model = {
  get: (name) => state[name],
  on: (event, act) => (acts[event] ??= []).push(act),
  off: (event, act) => { acts[event] = acts[event].filter((one) => one !== act); },
  send: (message, _, buffers) => sent.push({ ...message, size: buffers?.[0].byteLength }),
};
const page = {
  newcomer: true, met: () => { window.met = true; }, link: () => `${location.href}?seed=3`,
  begin: (ends) => { window.ends = ends; },
};
window.put = (text) => {
  const news = JSON.parse(text, (_, one) => (one?.bytes ? Uint8Array.from(one.bytes) : one));
  Object.assign(state, news);
  Object.keys(news).forEach((name) => acts[`change:${name}`]?.forEach((act) => act()));
};
window.start = (served) => {
  if (served) model.page = page;
  window.end = face.render({ model, el: document.querySelector('main') });
};
"""


def a_picture(width: int) -> dict[str, list[int]]:
    packed = io.BytesIO()
    Image.fromarray(np.full((8, width, 3), 128, np.uint8)).save(packed, "WEBP")
    return {"bytes": list(packed.getvalue())}


# fmt: off
CHOSEN = {
    "classifier": "tiny", "image": "cup", "label": "", "attack": "igsm", "eps": 8, "steps": 10,
    "stop": True, "deflections": 200, "window": 10, "reading": "blog", "activation": "rcam",
    "combine": "paper", "k": 5, "denoiser": "wavelet", "sigma": 0.04, "mode": "soft",
    "sigma_scale": "channel", "runs": 1, "seed": 123456,
}
SETTINGS = CHOSEN | {"weights": "kept.h5"}
BEST = [{"name": "consomme", "p": 0.57, "role": "attack"},
        {"name": "espresso", "p": 0.33, "role": "true"},
        {"name": "a very long name of a class", "p": 0.1, "role": "other"}]
SHOWN = {
    "name": "cup", "classes": 3, "true": "espresso", "attacked": "consomme", "truth": "known",
    "before": BEST[0], "after": BEST[0], "milliseconds": 12.3, "sentence": "consomme 0.57",
    "verdict": "the network still sees consomme.", "knows": "", "cut": "", "code": "found = 1",
    "steps": [{"name": "adversary", "true": 0.33, "attack": 0.57}] * 4, "id": "", "final": True,
    "top": dict.fromkeys(("clean", "adversary", "defended"), BEST),
    "notes": {"clean": "cup", "adversary": "made now, by IGSM against efficientnet_lite0",
              "defended": "first of 5 runs; bars: their mean", "left": "L2 0.054",
              "deflected": "345 pixels changed, map mean 0.38",
              "attack": "L2 0.043, at most 11 of 255"},
}
THEIRS = [{"name": "cup", "title": "cup", "own": False, "picture": a_picture(8)}]
OWN = [THEIRS[0] | {"own": True}]
STATE = {
    "offer": {"classifiers": [{"name": "tiny", "at_hand": True}], "ranges": {"seed": [0, 999999]},
              "start": CHOSEN | {"seed": 1}, "with_sigma": ["wavelet"], "upload_limit": 1_000_000,
              "magnified": 8,
              "colors": {"true": "#009e73", "attack": "#d55e00", "other": "#8a8a8a"}},
    "images": THEIRS, "settings": SETTINGS, "shown": SHOWN, "history": [], "busy": {}, "error": {},
    "classes": ["espresso", "consomme", "soup bowl"], "picture_whole": a_picture(12),
    **{f"picture_{name}": a_picture(8) for name in SHOWN["notes"]},
}
# fmt: on


class Face:
    """The face and its model, of which a test says what it has computed."""

    def __init__(self, page: Page) -> None:
        self.page, self.alert, self.root = page, page.get_by_role("alert"), page.locator(".pdx")

    def start(self, *, served: bool = False, **changes: Any) -> None:
        self.put(**STATE | changes)
        self.page.evaluate("served => start(served)", served)
        expect(self.page.locator(".pdx[data-shown]")).to_be_attached()

    def put(self, **changes: Any) -> None:
        self.page.evaluate("text => put(text)", json.dumps(changes))

    def answer(self, **settings: Any) -> None:
        asked = self.sent()[-1]["id"]
        self.put(settings=SETTINGS | settings, shown=SHOWN | {"id": asked}, error={})
        expect(self.root).to_have_attribute("data-shown", asked)

    def sent(self, least: int = 0) -> list[dict[str, Any]]:
        if least:
            expect(self.root).to_have_attribute("data-asked", re.compile(f"-{least}$"))
        return self.page.evaluate("sent")

    def control(self, name: str) -> Locator:
        return self.root.locator(f"[name={name}]")

    def write(self, name: str, text: str) -> None:
        self.control(name).fill(text)
        self.control(name).press("Enter")

    def button(self, name: str) -> Locator:
        return self.root.get_by_role("button", name=name)

    def drop(self, *files: tuple[str, str, str]) -> None:
        """Drop files, each a name, a type and what is in it, onto a picture."""
        make = """(files) => {
            const all = new DataTransfer();
            files.forEach(([name, type, text]) => all.items.add(new File([text], name, { type })));
            return all;
        }"""
        event = {"dataTransfer": self.page.evaluate_handle(make, files)}
        self.root.locator("figure").first.dispatch_event("dragover", event)
        expect(self.root).to_have_class(re.compile("pdx-over"))
        self.root.locator("figure").first.dispatch_event("drop", event)
        expect(self.root).not_to_have_class(re.compile("pdx-over"))


@pytest.fixture
def face(browser: Browser) -> Iterator[Face]:
    expect.set_options(timeout=30_000)
    parts = [
        (STATIC / f"{name}.js").read_text("utf-8") for name in ("kernel", "controls", "explorer")
    ]
    css = (STATIC / "explorer.css").read_text("utf-8")
    served = {"": (PAGE, "html"), "explorer.css": (css, "css"), "model.js": (MODEL, "javascript")}
    served["explorer.js"] = ("".join(parts), "javascript")

    def serve(route: Route) -> None:
        text, kind = served[route.request.url.removeprefix(SITE)]
        kind = f"text/{kind}; charset=utf-8"
        route.fulfill(body=text, content_type=kind, headers={"Content-Security-Policy": RULES})

    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.route(f"{SITE}**", serve)
    with watched(page, SITE) as seen:
        page.goto(SITE)
        yield Face(page)
    page.close()
    assert seen.errors == seen.foreign == []


FIRST = "the network's own first answer"
NOBODY = f"Nobody said what this shows: {FIRST}, espresso, is taken as the truth. Knows three."


@pytest.mark.parametrize(
    ("truth", "own", "words", "whose", "said"),
    [
        ("known", False, "true class", "espresso", ""),
        ("known", True, "true class", "espresso", "Knows three."),
        ("chosen", True, "chosen class", "espresso (chosen class)", "Knows three."),
        ("first", True, FIRST, f"espresso ({FIRST})", NOBODY),
    ],
)
def test_the_face_says_whose_word_the_truth_is(face, truth, own, words, whose, said):
    shown = SHOWN | {"truth": truth, "knows": "Knows three."}
    face.start(shown=shown, images=OWN if own else THEIRS)
    hidden = face.root.locator(".pdx-mark.pdx-true .pdx-hidden").all_inner_texts()
    assert {text.strip() for text in hidden} == {f"{words}:"}
    expect(face.root.locator(".pdx-path > span")).to_have_text(f"{whose}, step by step")
    expect(face.root.locator(".pdx-truth")).to_have_text(said)
    assert face.root.locator(".pdx-truth").is_visible() == bool(said)
    assert face.control("label").is_enabled() == own


@pytest.mark.parametrize(
    ("name", "text", "setting"),
    [("label", "Soup Bowl", "soup bowl"), ("label", "", ""), ("label", "shark", None),
     ("seed", " 42 ", 42), ("seed", "999999", 999999),
     *(("seed", text, None) for text in ("", "1e400", "1.5", "-5", "abc", "1000000"))],
)  # fmt: skip
def test_what_is_written_is_a_setting_or_leaves_a_sentence(face, name, text, setting):
    face.start(images=OWN, settings=SETTINGS | {"label": "espresso"})
    before = face.control(name).input_value()
    face.write(name, text)
    if setting is not None:
        assert [message["settings"] for message in face.sent()] == [{name: setting}]
        return
    wanted = {"seed": "seed: expected a whole number from 0 to 999999",
              "label": "class of your picture: expected one of 3 classes, or nothing"}  # fmt: skip
    expect(face.alert).to_have_text(f"{wanted[name]}, got {text or 'nothing'}")
    expect(face.control(name)).to_have_value(before)
    assert face.sent() == []
    # The sentence goes with what is done next.
    face.button("New draw").click()
    expect(face.alert).to_be_hidden()
    assert face.sent()[0]["settings"] == {"seed": 123457}
    face.control("seed").fill("77")
    face.answer(seed=123457)
    expect(face.alert).to_be_hidden()
    # What is being written is not written over.
    expect(face.control("seed")).to_have_value("77")


def test_five_seconds_without_an_answer_make_the_pictures_grey(face):
    face.page.clock.install()
    face.start()
    grey = face.root.get_by_text("No answer for 5 seconds: what is shown is older than the slid")
    wait = face.page.clock.fast_forward
    wait(9000)
    expect(grey).to_be_hidden()
    face.control("window").press("ArrowRight")
    # As long as something is said, nothing is grey.
    for news in ({"what": "Loading tiny", "done": 0, "total": 0}, {}):
        wait(4000)
        face.put(busy=news)
        wait(4000 if not news else 9000)
        expect(grey).to_be_hidden()
    wait(1000)
    expect(grey).to_be_visible()
    canvas = face.root.locator(".pdx-stage > canvas:first-child").first
    assert "grayscale" in canvas.evaluate("c => getComputedStyle(c).filter")
    for part in (".pdx-line", ".pdx-bars", ".pdx-note", ".pdx-path", ".pdx-foot"):
        expect(face.root.locator(part).first).to_be_hidden()
    # A mistake of one's own is told as ever.
    face.write("seed", "x")
    expect(face.alert).to_be_visible()
    face.button("Ask again").click()
    assert face.sent()[-1]["settings"] == CHOSEN | {"window": 11}
    expect(grey).to_be_visible()
    face.answer(window=11)
    expect(grey).to_be_hidden()
    expect(face.root.locator(".pdx-line")).to_be_visible()
    wait(9000)
    expect(grey).to_be_hidden()


def test_a_page_whose_connection_is_gone_has_a_sentence_and_a_button(face):
    face.start(served=True)
    face.control("window").press("ArrowRight")
    before = face.sent()
    face.page.evaluate("ends.gone('No connection.', 'Connect', () => { window.pressed = true; })")
    expect(face.root.get_by_text("No connection.")).to_be_visible()
    parts = face.root.locator("input, select, button, summary").all()
    assert [part.inner_text() for part in parts if part.is_visible()] == ["Connect"]
    assert not re.search(r"\d\.\d|\d\d", face.root.inner_text())
    assert axe_violations(face.page) == []
    face.drop(("cup.png", "image/png", "x"))
    assert face.sent() == before
    face.button("Connect").click()
    assert face.page.evaluate("pressed")
    # What was on its way is asked for again.
    face.page.evaluate("ends.back()")
    assert face.sent()[-1]["settings"] == CHOSEN | {"window": 11}
    face.answer(window=11)
    expect(face.root.get_by_text("No connection.")).to_be_hidden()
    expect(face.control("window")).to_have_value("11")
    face.page.evaluate("ends.ask({ seed: 3 }, true)")
    assert face.sent()[-1]["settings"] == {"seed": 3}


PNG, JSON = "image/png", "application/json"
WANTED = "expected one picture, or one file of settings that was saved here, got "


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([("a.png", PNG, "x" * 9)], ""),
        ([("a.png", PNG, "x" * 1_100_000)], "a.png: expected at most 1 MB, got 1.1 MB"),
        ([("a.json", JSON, "[1]")], f"a.json: {WANTED}other JSON"),
        ([("a.json", "", '{"settings": [1]}')], f"a.json: {WANTED}other JSON"),
        ([("a.json", JSON, "{")], f"a.json: {WANTED}no JSON"),
        ([("a.txt", "text/plain", "x")], f"a.txt: {WANTED}text/plain"),
        ([("a.png", PNG, "x"), ("b.png", PNG, "x")], f"{WANTED}2 files"),
        ([], f"{WANTED}no file"),
    ],
)
def test_a_file_that_is_dropped_is_a_picture_or_leaves_a_sentence(face, files, sentence):
    face.start()
    face.drop(*files)
    if not sentence:
        [upload] = face.sent(1)
        assert (upload["type"], upload["name"], upload["size"]) == ("upload", "a.png", 9)
        return
    expect(face.alert).to_have_text(sentence)
    assert face.sent() == []


def test_settings_come_back_from_a_file_and_the_first_ones_by_a_button(face, tmp_path):
    face.start()
    with face.page.expect_download() as download:
        face.button("Save settings").click()
    kept = tmp_path / "kept.json"
    download.value.save_as(kept)
    found = json.loads(kept.read_text())
    assert set(found) == {"settings", "sentence", "verdict", "top", "code"}
    assert found["settings"] == SETTINGS
    face.write("seed", "5")
    face.answer(seed=5)
    face.drop(("kept.json", JSON, kept.read_text()))
    face.sent(2)
    face.page.get_by_label("Your picture or settings").set_input_files(kept)
    face.sent(3)
    face.button("Begin again").click()
    began = CHOSEN | {"seed": 1}
    assert [one["settings"] for one in face.sent(4)[1:]] == [CHOSEN, CHOSEN, began]


@pytest.mark.parametrize(
    ("name", "value", "shown", "next_"),
    [("deflections", 20000, "20000", None), ("deflections", 207, "207", 208),
     ("sigma", 0.01234, "0.01234", None), ("window", 700, "700", None)],
)  # fmt: skip
def test_a_slider_shows_what_a_link_or_file_named_beyond_it(face, name, value, shown, next_):
    face.start(settings=SETTINGS | {name: value})
    control = face.control(name)
    assert float(control.input_value()) == value
    expect(face.root.locator(f"output[for='{control.get_attribute('id')}']")).to_have_text(shown)
    if next_:
        control.press("ArrowRight")
        assert face.sent(2)[-1]["settings"][name] == next_


@pytest.mark.parametrize("name", ["reading", "combine", "sigma_scale"])
def test_each_option_has_a_sentence_at_its_control(face, name):
    face.start()
    control, said = face.control(name), []
    text = face.page.locator(f"[id='{control.get_attribute('aria-describedby')}']")
    for option in control.locator("option").evaluate_all("all => all.map(one => one.value)"):
        control.select_option(option)
        expect(text).to_be_visible()
        said.append(text.inner_text())
    assert len(set(said)) == len(said) >= 2
    assert all(12 <= len(sentence.split()) <= 18 for sentence in said)


SIDES = "all => all.map(one => one.getBoundingClientRect()).map(b => [b.x, b.right, b.y, b.bottom])"


@pytest.mark.parametrize("width", [320, 390, 560, 561, 800, 960, 1280])
def test_nothing_is_cut_or_printed_over_at_any_width(face, width):
    face.page.set_viewport_size({"width": width, "height": 844})
    cut = {"cut": "The middle 224 x 224 of 299 x 224 pixels is used", "truth": "first"}
    face.start(served=True, shown=SHOWN | cut, images=OWN)
    assert face.page.evaluate("document.documentElement.scrollWidth") <= width
    fits = "all => all.every(one => one.clientWidth && one.scrollWidth <= one.clientWidth)"
    for part in ("figcaption b", ".pdx-note", ".pdx-used", ".pdx-means", "[name=seed]"):
        assert face.root.locator(part).evaluate_all(fits), part
    for part in ("figure", "figcaption > *", "fieldset > *", ".pdx-headline > *"):
        boxes = [box for box in face.root.locator(part).evaluate_all(SIDES) if box[1] > box[0] + 1]
        for i, (left, right, top, bottom) in enumerate(boxes):
            for x, end, y, foot in boxes[:i]:
                assert max(left - end, x - right, top - foot, y - bottom) > -1, part
    # The pictures of one row stand in line, whatever is said above them; on a phone, two of them.
    figures, stages = (face.root.locator(p).evaluate_all(SIDES) for p in ("figure", ".pdx-stage"))
    rows = [{s[2] for s, f in zip(stages, figures, strict=True) if f[2] == y} for y in
            sorted({figure[2] for figure in figures})]  # fmt: skip
    assert [max(row) - min(row) < 1 for row in rows] == [True] * (3 if width < 900 else 2)
    expect(face.root.locator(".pdx-used img")).to_be_visible()


def test_on_a_phone_the_line_stays_in_view_with_the_knobs_under_it(face):
    face.page.set_viewport_size({"width": 390, "height": 844})
    face.start()
    parts = [face.root.locator(p) for p in (".pdx-words", ".pdx-controls", ".pdx-pictures")]
    line, controls, pictures = (part.bounding_box() for part in parts)
    assert 0 <= controls["y"] - line["y"] - line["height"] < 30
    assert controls["y"] < pictures["y"]
    face.page.evaluate("scrollTo(0, 1500)")
    expect(parts[0]).to_be_in_viewport(ratio=1)
    assert parts[0].bounding_box()["height"] < 130


@pytest.mark.parametrize("key", ["Enter", "Escape"])
def test_a_first_visit_has_a_tour_that_ends_with_a_question(face, key):
    face.start(served=True)
    tour = face.page.get_by_role("region", name="For your first visit")
    expect(tour.get_by_role("listitem")).to_have_count(3)
    expect(tour).to_contain_text(
        "The attack turns espresso into consomme. Which single knob brings the espresso back? "
        "And does it still, against a strong attack?"
    )
    assert face.page.evaluate("document.activeElement === document.body && !window.met")
    tour.get_by_role("button", name="Got it").press(key)
    expect(tour).to_have_count(0)
    assert face.page.evaluate("met")


def test_a_link_is_copied_without_a_right_to_the_clipboard(face):
    face.start(served=True)
    assert face.page.evaluate("navigator.clipboard === undefined")
    face.button("Copy link").click()
    expect(face.root.get_by_text("copied")).to_be_visible()
    face.control("seed").fill("")
    face.control("seed").press("Control+v")
    expect(face.control("seed")).to_have_value(f"{SITE}?seed=3")


def test_a_notebook_has_no_tour_and_no_link_and_ends_without_an_error(face):
    face.start()
    expect(face.button("Copy link")).to_have_count(0)
    expect(face.page.get_by_role("region", name="For your first visit")).to_have_count(0)
    face.page.evaluate("end()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 800])
def test_axe_finds_nothing_serious_with_all_that_can_be_said(face, width, scheme):
    face.page.emulate_media(color_scheme=scheme)
    face.page.set_viewport_size({"width": width, "height": 844})
    shown = SHOWN | {"truth": "first", "knows": "Knows three.", "cut": "The middle is used"}
    face.start(served=True, shown=shown, images=OWN, error={"text": "seed: expected", "id": ""})
    face.button("Copy link").click()
    assert axe_violations(face.page) == []
