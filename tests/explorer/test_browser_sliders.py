"""The sliders in JupyterLab: one kernel, one notebook with three that need no trained network."""

import re
from collections.abc import Iterator

import nbformat
import pytest
from browser import chromium, jupyterlab, watched
from playwright.sync_api import Locator, Page, expect

from pdutils.explorer.sliders import Sliders

pytestmark = pytest.mark.slow

browser = pytest.fixture(chromium, scope="module")

#: A kernel with TensorFlow takes long to start; what the controls do does not depend on it.
SETUP = """
import numpy as np
from pdutils.demo.examples import Case
from pdutils.explorer import sliders

class Network:
    class_names = ("ant", "bee")
    def predict(self, image):
        return np.array([image.mean(), 255 - image.mean()]) / 255

rng = np.random.default_rng(0)
image = np.rint(rng.uniform(0, 255, (48, 48, 3))).astype(np.float32)
rcam = np.linspace(0, 1, 48 * 48, dtype=np.float32).reshape(48, 48)
network, case = Network(), Case("x", image, image, 0, 1, "drawn")
"""

#: As in the notebooks, in the order in which they stand in the test's.
CALLS = {
    "deflection": "sliders.deflection(network, case)",
    "denoising": "sliders.denoising(network, case)",
    "placement": "sliders.placement(network, case, rcam)",
}

MOVES = [
    ("deflection", "deflections"),
    ("deflection", "window"),
    ("deflection", "seed"),
    ("denoising", "sigma"),
    ("placement", "deflections"),
]

SWITCHES = [
    ("denoising", "mode", "hard"),
    ("denoising", "before", "nothing"),
    ("placement", "with_map", "none"),
]


@pytest.fixture(scope="module")
def by_hand() -> dict[str, Sliders]:
    """The oracle: the same in this process, set without a browser."""
    names: dict = {}
    exec(SETUP, names)
    return {name: eval(call, names) for name, call in CALLS.items()}


class Notebook:
    """The test's notebook in a page."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def run(self) -> None:
        self.page.wait_for_function(
            """() => {
                const { sessionContext } = window.jupyterapp?.shell?.currentWidget ?? {};
                return sessionContext?.isReady && sessionContext.session?.kernel?.status === 'idle';
            }"""
        )
        self.page.evaluate(
            "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
        )
        expect(self.page.locator(".pdutils-sliders figcaption")).to_have_count(len(CALLS))

    def run_again(self) -> None:
        """Run what a new kernel knows nothing of; what the old one left goes first."""
        self.page.evaluate(
            "() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')"
        )
        expect(self.page.locator(".pdutils-sliders")).to_have_count(0)
        self.run()

    def widget(self, name: str) -> Locator:
        return self.page.locator(".pdutils-sliders").nth(list(CALLS).index(name))

    def handle(self, name: str, control: str, by_hand: dict[str, Sliders]) -> Locator:
        words = by_hand[name].controls[control].description
        row = self.widget(name).locator(".widget-hslider", has_text=re.compile(f"^{words}"))
        return row.locator(".noUi-handle")

    def shows(self, name: str, by_hand: dict[str, Sliders]) -> None:
        expect(self.widget(name).locator("figcaption")).to_have_text(by_hand[name].text)


@pytest.fixture(scope="module")
def notebook(browser, tmp_path_factory) -> Iterator[Notebook]:
    home = tmp_path_factory.mktemp("lab")
    shown = f"display({', '.join(CALLS.values())})"
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in (SETUP, shown)]
    (home / "served").mkdir()
    # Without its name JupyterLab would ask for a kernel.
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    made = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(made, home / "served" / "all.ipynb")
    with jupyterlab(home, home / "served") as address:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        with watched(page, address):
            page.goto(f"{address}/lab/tree/all.ipynb")
            opened = Notebook(page)
            opened.run()
            yield opened
        page.close()


@pytest.mark.parametrize(("name", "control"), MOVES)
def test_each_slider_is_moved_from_the_keyboard(notebook, by_hand, name, control):
    notebook.shows(name, by_hand)
    moved, read = by_hand[name].controls[control], {by_hand[name].text}
    handle = notebook.handle(name, control, by_hand)
    for key, by in (("ArrowLeft", -1), ("ArrowRight", 1), ("ArrowRight", 1)):
        if 0 <= moved.index + by < len(moved.options):
            handle.press(key)
            moved.index += by
            notebook.shows(name, by_hand)
            read.add(by_hand[name].text)
    assert len({text.partition(": ")[2] for text in read}) >= 2


@pytest.mark.parametrize(("name", "control", "option"), SWITCHES)
def test_each_switch_is_pressed_from_the_keyboard(notebook, by_hand, name, control, option):
    before, switched = by_hand[name].text, by_hand[name].controls[control]
    notebook.widget(name).get_by_role("button", name=option, exact=True).press("Enter")
    switched.value = dict(switched.options)[option]
    notebook.shows(name, by_hand)
    assert by_hand[name].text.partition(": ")[2] != before.partition(": ")[2]


def test_a_slider_that_is_dragged_acts_when_it_is_let_go(notebook, by_hand):
    notebook.shows("deflection", by_hand)
    handle = notebook.handle("deflection", "deflections", by_hand)
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    mouse = notebook.page.mouse
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(box["x"] + 300, box["y"] + box["height"] / 2, steps=20)
    notebook.page.wait_for_timeout(500)
    notebook.shows("deflection", by_hand)
    mouse.up()
    by_hand["deflection"].controls["deflections"].value = 5000
    notebook.shows("deflection", by_hand)


def test_the_reader_sees_one_picture(notebook):
    expect(notebook.page.locator(".jp-OutputArea-output img")).to_have_count(len(CALLS))


@pytest.mark.parametrize(
    "end", ["restartKernel()", "changeKernel({ name: 'python3' })", "shutdown()"]
)
def test_a_kernel_that_ends_leaves_a_grey_picture_and_a_sentence(notebook, end):
    for name in CALLS:
        expect(notebook.widget(name).get_by_text("lost their kernel")).to_be_hidden()
        expect(notebook.widget(name).locator("figcaption")).to_be_visible()
    session = "window.jupyterapp.shell.currentWidget.sessionContext"
    notebook.page.evaluate(f"() => {session}.{end}")
    for name in CALLS:
        widget = notebook.widget(name)
        widget.scroll_into_view_if_needed()
        expect(widget.get_by_text("lost their kernel")).to_be_visible()
        assert "grayscale" in widget.locator("img").evaluate("i => getComputedStyle(i).filter")
        # No control that moves, no number in words.
        for part in (".noUi-handle", "button", "figcaption"):
            assert not any(one.is_visible() for one in widget.locator(part).all())
    if end != "shutdown()":
        notebook.run_again()
