import io
import json
import re
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest
from browser import (
    PATIENCE,
    axe_violations,
    chromium,
    free_port,
    lab_settings,
    made,
    served,
    watched,
)
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from pdutils._utils import on_grid
from pdutils.classifiers import load_classifier
from pdutils.demo.examples import demo_image, demo_root
from pdutils.explorer.engine import RANGES, Explorer, Result, Settings
from pdutils.explorer.sliders import Sliders

pytestmark = pytest.mark.slow

browser = pytest.fixture(chromium, scope="module")


@pytest.fixture(scope="module")
def by_hand() -> Explorer:
    """The oracle: the same computation in this process, which no browser has touched."""
    names = ("demo", "efficientnet_lite0")
    return Explorer({(name, ""): load_classifier(name) for name in names})


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The page, served as `make app` does."""
    address = f"http://localhost:{free_port()}"
    with served(made("app", address, ""), address, {}):
        yield address


class Face:
    """The explorer in a page, as a visitor works it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.root = page.locator(".pdx")

    def control(self, name: str) -> Locator:
        return self.root.locator(f"[name={name}]")

    def press(self, name: str, *keys: str) -> None:
        for key in keys:
            self.control(name).press(key)
        self.settled()

    def choose(self, name: str, value: str) -> None:
        self.control(name).select_option(value)
        self.settled()

    def switch(self, text: str) -> None:
        self.root.locator(".pdx-switch label").get_by_text(text, exact=True).click()
        self.settled()

    def picture(self, title: str) -> None:
        self.root.get_by_role("radio", name=re.compile(title)).first.locator("+ label").click()
        self.settled()

    def button(self, name: str) -> None:
        self.root.get_by_role("button", name=name).click()

    def settled(self) -> None:
        # A page that runs no code but its own runs none of Playwright's that waits, either.
        expect(self.page.locator(".pdx[data-asked]")).to_be_attached()
        asked = self.root.get_attribute("data-asked")
        done = f".pdx[data-shown='{asked}'], .pdx[data-failed='{asked}']"
        expect(self.page.locator(done)).to_be_attached(timeout=PATIENCE)

    def settings(self) -> Settings:
        """Read the settings off the controls."""
        found = self.root.evaluate(
            """(root) => {
                const found = {};
                for (const node of root.querySelectorAll('.pdx-controls [name]')) {
                    if (node.type === 'radio' && !node.checked) continue;
                    found[node.name.split('-').pop()] = node.value;
                }
                found.image = root.querySelector('.pdx-thumbs input:checked').value;
                return found;
            }"""
        )
        if found["attack"] in ("weak", "strong"):
            found |= {"attack": "igsm", "stop": found["attack"] == "weak"}
        found |= {name: int(found[name]) for name in RANGES}
        return Settings.from_dict({**found, "sigma": float(found["sigma"])})

    def line(self) -> str:
        """Read what happened, without what it took."""
        words = self.root.locator(".pdx-line").inner_text()
        numbers = re.findall(r"([A-Za-z ]+ \d\.\d\d)", re.sub(r"[\w' ]+:\s", "", words))
        return " -> ".join(number.strip() for number in numbers[:2])

    def bars(self, picture: int) -> list[tuple[str, str]]:
        rows = self.root.locator("figure").nth(picture).locator(".pdx-bars li")
        names = [re.sub(r".*:\s", "", n) for n in rows.locator(".pdx-name").all_inner_texts()]
        shares = rows.locator(".pdx-p").all_inner_texts()
        return [(name.strip(), share) for name, share in zip(names, shares, strict=True)]

    def pixels(self, picture: int) -> np.ndarray:
        """Read a picture back from the canvas that shows it."""
        address = self.root.locator(".pdx-stage > canvas:first-child").nth(picture)
        with urllib.request.urlopen(address.evaluate("c => c.toDataURL('image/png')")) as data:
            return np.asarray(Image.open(io.BytesIO(data.read())).convert("RGB"))

    def shows(self, by_hand: Explorer) -> Result:
        """Check that what is on the screen is what the package gives for what the controls say."""
        result = by_hand.result(self.settings())
        names = [name.replace("_", " ") for name in result.network.class_names]
        assert self.line() == result.sentence.rpartition(", in ")[0].replace("_", " ")
        verdict = self.root.locator(".pdx-verdict").inner_text()
        assert verdict.lower() == result.verdict.replace("_", " ").lower()
        rows = [result.steps[0].probabilities, result.steps[1].probabilities, result.probabilities]
        for i, row in enumerate(rows):
            best = np.argsort(-row, kind="stable")[:5]
            assert self.bars(i) == [(names[b], f"{row[b]:.2f}") for b in best]
        np.testing.assert_array_equal(self.pixels(2), on_grid(result.defended))
        return result


def settle_down(page: Page) -> Face:
    """Wait until the explorer of a page that was gone to has its first result."""
    expect(page.locator(".pdx[data-shown]")).to_be_attached(timeout=PATIENCE)
    return Face(page)


@pytest.fixture(scope="module")
def visitor(browser, site) -> Iterator[Face]:
    """One visitor of the page, whom all tests of it share; whatever it did is looked at last."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    with watched(page, site) as seen:
        page.goto(site, wait_until="commit")
        face = Face(page)
        face.seen = seen
        yield face
    context.close()


def test_the_page_says_what_it_is_and_listens_on_this_machine_alone(visitor, site):
    page = visitor.page
    expect(page.get_by_role("heading", level=1)).to_have_text("Bring the right answer back")
    assert page.title() == "Pixel deflection: the explorer"
    assert "notebooks" in page.locator("header").inner_text()
    port = int(site.rpartition(":")[2])
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [row.split() for row in tables[0] + tables[1]]
    listening = [row[1].rpartition(":") for row in rows if row[3] == "0A"]
    own = {host for host, _, number in listening if int(number, 16) == port}
    assert own
    assert own <= {"0100007F", "00000000000000000000000001000000"}


def test_the_first_look_is_a_real_photo_and_a_real_network(visitor, by_hand):
    result = settle_down(visitor.page).shows(by_hand)
    assert (result.network.name, result.name) == ("efficientnet_lite0", "coffee")
    assert re.match(r"consomme 0\.\d\d -> consomme", visitor.line())
    visitor.choose("denoiser", "wavelet")
    assert re.match(r"consomme 0\.\d\d -> espresso", visitor.line())
    visitor.shows(by_hand)


def test_a_skunk_turns_back_into_a_badger(visitor, by_hand):
    visitor.choose("denoiser", "none")
    # The network that is quick and has many pictures.
    visitor.choose("classifier", "demo")
    assert visitor.line().startswith("skunk 0.5")
    visitor.choose("denoiser", "wavelet")
    assert re.match(r"skunk 0\.5\d -> badger", visitor.line())
    visitor.shows(by_hand)
    expect(visitor.root.locator(".pdx-verdict")).to_contain_text("deflection alone had done it")
    # No code, no numbers of cells.
    assert "In [" not in visitor.page.inner_text("body")


def test_moves_made_quickly_end_in_the_last_and_nothing_flickers(visitor, by_hand):
    blank = visitor.root.evaluate(
        """async (root) => {
            const canvas = root.querySelectorAll('.pdx-stage > canvas:first-child')[2];
            const slider = root.querySelector('[name=deflections]');
            let blank = 0, ended = false;
            const look = () => {
                const drawn = document.createElement('canvas').getContext('2d');
                drawn.drawImage(canvas, 0, 0);
                blank += drawn.getImageData(3, 3, 1, 1).data[3] === 0;
                if (!ended) requestAnimationFrame(look);
            };
            look();
            for (let i = 1; i <= 30; i += 1) {
                slider.value = 20 * i;
                slider.dispatchEvent(new Event('input', { bubbles: true }));
                await new Promise((go) => setTimeout(go, 15));
            }
            slider.dispatchEvent(new Event('change', { bubbles: true }));
            while (root.dataset.asked !== root.dataset.shown) {
                await new Promise(requestAnimationFrame);
            }
            ended = true;
            return blank;
        }"""
    )
    assert blank == 0
    assert visitor.shows(by_hand).settings.deflections == 600


def test_a_wrong_number_leaves_a_sentence_and_the_page_lives_on(visitor, by_hand):
    before = visitor.line()
    visitor.control("seed").fill("-5")
    visitor.control("seed").press("Enter")
    alert = visitor.root.get_by_role("alert")
    expect(alert).to_have_text(re.compile(r"seed: expected a whole number from 0 to \d+, got -5"))
    assert visitor.line() == before
    expect(visitor.control("seed")).to_have_value("0")
    visitor.button("New draw")
    visitor.settled()
    expect(alert).to_be_hidden()
    assert visitor.shows(by_hand).settings.seed == 1


def test_pictures_of_ones_own(visitor, by_hand, tmp_path):
    alert = visitor.root.get_by_role("alert")
    png = demo_image("otter_001").image.read_bytes()

    def upload(name: str, content: bytes) -> None:
        file = {"name": name, "mimeType": "image/png", "buffer": content}
        visitor.root.locator("input[type=file]").set_input_files(file)
        visitor.settled()

    upload("broken.png", png[:900])
    expect(alert).to_contain_text("broken.png: expected a picture that can be read")
    expect(alert).not_to_contain_text("Traceback")
    upload("large.png", png + b"\0" * 8_000_000)
    expect(alert).to_have_text(re.compile(r"large\.png: expected at most 8 MB, got 8\.\d MB"))
    upload("my_otter.png", png)
    expect(alert).to_be_hidden()
    assert "otter" in visitor.bars(0)[0]
    own = tmp_path / "own.png"
    own.write_bytes(png)
    wanted = visitor.root.evaluate("root => root.querySelector('.pdx-thumbs input:checked').value")
    assert re.fullmatch(r"own/\d/my-otter\.png", wanted)
    expect(visitor.root).to_contain_text("Nobody said what this shows")
    expect(visitor.root).to_contain_text("This network knows badger, skunk,")
    visitor.control("label").fill("hamster")
    visitor.control("label").press("Enter")
    visitor.settled()
    expect(visitor.root.locator(".pdx-verdict")).to_contain_text("takes hamster for otter")
    np.testing.assert_array_equal(
        visitor.pixels(0), by_hand.result(Settings(image=str(own), attack="none")).clean
    )
    visitor.picture("badger")


def test_what_is_saved_or_copied_gives_the_same_again(visitor, by_hand):
    with visitor.page.expect_download() as download:
        visitor.button("Save settings")
    kept = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "badger_000-settings.json"
    result = by_hand.result(Settings.from_dict(kept["settings"]))
    with visitor.page.expect_download() as download:
        visitor.button("Save picture")
    assert download.value.suggested_filename == "badger_000-defended.png"
    with Image.open(download.value.path()) as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), on_grid(result.defended))
    visitor.button("Copy as code")
    expect(visitor.root.get_by_text("copied")).to_be_visible()
    names: dict = {}
    exec(visitor.page.evaluate("navigator.clipboard.readText()"), names)
    result = by_hand.result(visitor.settings())
    np.testing.assert_array_equal(names["found"], result.probabilities)


def test_one_can_go_back_to_the_last_results(visitor, by_hand):
    rows = visitor.root.locator(".pdx-history button")
    assert rows.count() >= 3
    first = rows.last
    words = first.locator("b").inner_text()
    first.click()
    visitor.settled()
    assert visitor.line() == words.replace("→", "->")
    expect(first).to_have_attribute("aria-current", "true")
    assert visitor.shows(by_hand).settings.denoiser == "none"


def test_the_lens_shows_the_same_place_in_all_pictures(visitor):
    lenses = visitor.root.locator(".pdx-lens")
    visitor.root.locator(".pdx-stage").nth(1).hover(position={"x": 80, "y": 90})
    for i in range(6):
        expect(lenses.nth(i)).to_be_visible()
    places = lenses.evaluate_all("all => all.map(l => [l.style.left, l.style.top, l.width])")
    assert len({tuple(place) for place in places}) == 1
    visitor.page.mouse.move(2, 2)
    expect(lenses.first).to_be_hidden()
    pictures = visitor.root.get_by_role("group", name=re.compile("Six pictures"))
    pictures.press("ArrowRight")
    expect(lenses.nth(4)).to_be_visible()
    pictures.press("Escape")
    expect(lenses.nth(4)).to_be_hidden()


def test_every_control_is_reached_by_the_keyboard_and_has_a_label(visitor):
    visitor.choose("attack", "weak")
    visitor.choose("denoiser", "wavelet")
    visitor.switch("R-CAM")
    visitor.page.locator("h1").click()
    reached = set()
    for _ in range(60):
        visitor.page.keyboard.press("Tab")
        name, label = visitor.page.evaluate(
            """() => {
                const node = document.activeElement;
                const words = node.labels?.[0]?.innerText || node.ariaLabel || node.innerText
                    || node.labels?.[0]?.querySelector('img')?.alt;
                return [(node.name || node.innerText || '').split('-').pop().trim(), words];
            }"""
        )
        assert label, name
        reached.add(name)
    controls = {"classifier", "attack", "eps", "steps", "deflections", "window", "reading"}
    controls |= {"activation", "combine", "k", "denoiser", "sigma", "mode", "sigma_scale"}
    controls |= {"runs", "seed", "New draw", "image", "Copy as code", "Save picture"}
    assert controls <= reached
    visitor.choose("attack", "shipped")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800, 390])
def test_axe_finds_nothing_serious(visitor, width, scheme):
    settle_down(visitor.page)
    visitor.page.emulate_media(color_scheme=scheme)
    visitor.page.set_viewport_size({"width": width, "height": 900})
    expect(visitor.root).to_have_attribute("data-theme", scheme)
    assert axe_violations(visitor.page) == []
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    visitor.page.set_viewport_size({"width": 1280, "height": 900})


def test_the_address_holds_what_is_seen_for_a_link_a_reload_and_the_way_back(
    visitor, browser, site, by_hand
):
    page = visitor.page
    visitor.choose("denoiser", "median")
    before = page.url
    page.wait_for_timeout(1600)
    visitor.choose("denoiser", "wavelet")
    wanted = visitor.settings()
    assert f"#classifier={wanted.classifier}&image={wanted.image}" in page.url
    page.go_back()
    expect(visitor.control("denoiser")).to_have_value("median")
    assert page.url == before
    page.go_forward()
    expect(visitor.control("denoiser")).to_have_value("wavelet")
    page.reload()
    assert settle_down(page).settings() == wanted
    visitor.button("Copy link")
    context = browser.new_context()
    other = context.new_page()
    other.goto(page.evaluate("navigator.clipboard.readText()"))
    neighbour = settle_down(other)
    assert neighbour.shows(by_hand).settings == wanted
    neighbour.choose("denoiser", "none")
    assert visitor.settings() == wanted
    context.close()


def test_the_first_visit_has_a_tour_and_the_second_none(browser, site):
    context = browser.new_context()
    page = context.new_page()
    page.goto(site)
    tour = page.get_by_role("region", name="For your first visit")
    expect(tour).to_contain_text("Which single knob brings the espresso back?")
    tour.get_by_role("button", name="Got it").click()
    page.reload()
    settle_down(page)
    expect(tour).to_have_count(0)
    context.close()


def test_a_server_that_is_gone_leaves_grey_pictures_and_a_button_that_finds_the_next(
    browser, by_hand
):
    address = f"http://localhost:{free_port()}"
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    gone = page.get_by_text("The connection to the server is lost")
    with served(made("app", address, "--classifier demo"), address, {}):
        page.goto(f"{address}/#classifier=demo&image=fox_000&denoiser=wavelet")
        face = settle_down(page)
        face.press("window", "ArrowRight")
        wanted = face.shows(by_hand).settings
    expect(gone).to_be_visible()
    canvas = face.root.locator(".pdx-stage > canvas:first-child").first
    assert "grayscale" in canvas.evaluate("c => getComputedStyle(c).filter")
    assert not re.search(r"\d\.\d\d", face.root.inner_text())
    with served(made("app", address, "--classifier demo"), address, {}):
        page.get_by_role("button", name="Connect again").click()
        expect(gone).to_be_hidden()
        # The first result of the new visit, which no move has asked for.
        expect(page.locator(".pdx[data-shown='']")).to_be_attached()
        assert face.shows(by_hand).settings == wanted
    page.close()


def test_two_visitors_do_not_disturb_each_other(visitor, browser, site, by_hand):
    before = visitor.settings()
    page = browser.new_page()
    with watched(page, site) as seen:
        page.goto(site, wait_until="commit")
        other = settle_down(page)
        other.choose("classifier", "demo")
        other.picture("fox")
        other.choose("denoiser", "median")
        visitor.press("window", "ArrowRight")
        own = visitor.shows(by_hand).settings
        assert (own.image, own.window) == (before.image, before.window + 1)
        theirs = other.shows(by_hand).settings
        assert (theirs.image, theirs.denoiser, theirs.window) == ("fox_000", "median", 10)
    page.close()
    # In all that nothing failed, and no other machine was asked.
    for found in (seen, visitor.seen):
        assert found.errors == found.foreign == []


#: A kernel with TensorFlow takes long to start; what the sliders do does not depend on it.
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


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """JupyterLab on notebook 9, with the network that is quick, and on a notebook of sliders."""
    home = tmp_path_factory.mktemp("lab")
    path = home / "collection" / "notebooks" / "09_explorer.ipynb"
    shutil.copytree(demo_root() / "notebooks", path.parent)
    own = path.read_text("utf-8")
    path.write_text(own.replace('classifier = \\"efficientnet_lite0\\"', 'classifier = \\"demo\\"'))
    assert path.read_text("utf-8") != own
    shown = f"display({', '.join(CALLS.values())})"
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in (SETUP, shown)]
    # Without its name JupyterLab would ask for a kernel.
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    sliders = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(sliders, path.parent / "sliders.ipynb")
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--ServerApp.token=", "--ServerApp.port_retries=0"]
    command += [f"--notebook-dir={home / 'collection'}", "--LabApp.expose_app_in_browser=True"]
    with served(command, f"http://localhost:{port}", lab_settings(home)) as address:
        yield address


def does(page: Page, command: str) -> None:
    """Have JupyterLab carry out a command."""
    page.evaluate("command => { window.jupyterapp.commands.execute(command); }", command)


def ends(page: Page, how: str) -> None:
    """End the kernel of the notebook that is open."""
    page.evaluate(f"() => window.jupyterapp.shell.currentWidget.sessionContext.{how}")


def run_all(page: Page) -> None:
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=PATIENCE)
    page.wait_for_function(
        """() => {
            const { sessionContext } = window.jupyterapp?.shell?.currentWidget ?? {};
            return sessionContext?.isReady && sessionContext.session?.kernel?.status === 'idle';
        }"""
    )
    does(page, "notebook:run-all-cells")


@contextmanager
def opened(browser: Browser, lab: str, name: str) -> Iterator[Face]:
    """Open a notebook in JupyterLab, and run it from top to end."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    with watched(page, lab) as seen:
        # In a workspace of its own, else what another page had open would be opened too.
        page.goto(f"{lab}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb")
        run_all(page)
        face = Face(page)
        face.seen = seen
        yield face
    page.close()


@pytest.fixture(scope="module")
def notebook(browser, lab) -> Iterator[Face]:
    with opened(browser, lab, "09_explorer") as face:
        find(face)
        yield face


def find(face: Face) -> None:
    """Scroll to the explorer; JupyterLab draws only the cells that can be seen."""
    find = """() => {
        const { content } = window.jupyterapp.shell.currentWidget;
        const at = content.widgets.findIndex((cell) =>
            cell.model.sharedModel.source.startsWith('explorer('));
        content.activeCellIndex = at;
        content.scrollToItem(at, 'start');
        return Boolean(document.querySelector('.pdx[data-shown]'));
    }"""
    face.page.wait_for_function(find, polling=500, timeout=PATIENCE)


def test_in_jupyterlab_every_control_changes_what_is_shown(notebook, by_hand):
    face, kept = notebook, [notebook.shows(by_hand).settings]
    for act, name, *value in (
        (face.press, "deflections", "ArrowRight", "ArrowRight"),
        (face.press, "window", "ArrowRight", "ArrowRight"),
        (face.choose, "reading", "paper"),
        (face.choose, "denoiser", "wavelet"),
        (face.choose, "sigma_scale", "rgb"),
        (face.press, "sigma", "ArrowRight"),
        (face.switch, "hard"),
        (face.switch, "R-CAM"),
        (face.choose, "combine", "geometric"),
        (face.press, "k", "ArrowLeft"),
        (face.press, "runs", "ArrowRight"),
        (face.choose, "attack", "strong"),
        (face.press, "eps", "ArrowLeft"),
        (face.press, "steps", "ArrowLeft"),
        (face.picture, "fox"),
    ):
        act(name, *value)
        settings = face.shows(by_hand).settings
        assert settings not in kept
        kept.append(settings)


def test_in_jupyterlab_nothing_warns_and_axe_finds_nothing_serious(notebook):
    outputs = notebook.page.evaluate(
        """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
            .flatMap((cell) => cell.outputs ?? [])"""
    )
    assert outputs
    assert [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"] == []
    assert notebook.seen.foreign == []
    assert axe_violations(notebook.page, ".pdx") == []


def test_in_jupyterlab_it_works_when_opened_again(notebook, by_hand):
    wanted, page = notebook.settings(), notebook.page
    for command in ("docmanager:save", "application:close"):
        page.evaluate(f"() => window.jupyterapp.commands.execute('{command}')")
    expect(page.locator(".pdx")).to_have_count(0)
    page.evaluate(
        """() => window.jupyterapp.commands.execute('docmanager:open',
            { path: 'notebooks/09_explorer.ipynb' })"""
    )
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    find(notebook)
    # JupyterLab may draw the output of a notebook that it opens twice: what is there goes again.
    for patience in reversed(range(20)):
        try:
            assert notebook.shows(by_hand).settings == wanted
            break
        except AssertionError:
            if not patience:
                raise
            page.wait_for_timeout(500)
    notebook.press("window", "ArrowRight")
    assert notebook.shows(by_hand).settings.window == wanted.window + 1


def test_in_jupyterlab_a_kernel_that_is_shut_down_leaves_grey_pictures(notebook):
    gone = notebook.page.get_by_text("has lost its kernel")
    expect(gone).to_be_hidden()
    ends(notebook.page, "shutdown()")
    expect(gone).to_be_visible()
    canvas = notebook.root.locator(".pdx-stage > canvas:first-child").first
    assert "grayscale" in canvas.evaluate("c => getComputedStyle(c).filter")
    # Nothing is left to move, and no number to read.
    parts = notebook.root.locator("input, select, button").all()
    assert not any(part.is_visible() for part in parts)
    assert not re.search(r"\d\.\d|\d\d", notebook.root.inner_text())


class Board:
    """The sliders in a page, each held against the same in this process, set without a browser."""

    def __init__(self, page: Page) -> None:
        names: dict = {}
        exec(SETUP, names)
        self.page = page
        self.by_hand: dict[str, Sliders] = {n: eval(call, names) for n, call in CALLS.items()}
        self.drawn()

    def drawn(self) -> None:
        expect(self.page.locator(".pdutils-sliders figcaption")).to_have_count(len(CALLS))

    def widget(self, name: str) -> Locator:
        return self.page.locator(".pdutils-sliders").nth(list(CALLS).index(name))

    def handle(self, name: str, control: str) -> Locator:
        words = self.by_hand[name].controls[control].description
        row = self.widget(name).locator(".widget-hslider", has_text=re.compile(f"^{words}"))
        return row.locator(".noUi-handle")

    def shows(self, name: str) -> str:
        text = self.by_hand[name].text
        expect(self.widget(name).locator("figcaption")).to_have_text(text)
        return text.partition(": ")[2]


@pytest.fixture(scope="module")
def board(browser, lab) -> Iterator[Board]:
    with opened(browser, lab, "sliders") as face:
        yield Board(face.page)


@pytest.mark.parametrize(
    "moved", ["deflection.window", "deflection.seed", "denoising.sigma", "placement.deflections"]
)
def test_a_slider_is_moved_from_the_keyboard(board, moved):
    name, _, control = moved.partition(".")
    moved, read = board.by_hand[name].controls[control], {board.shows(name)}
    for key, by in (("ArrowLeft", -1), ("ArrowRight", 1), ("ArrowRight", 1)):
        if 0 <= moved.index + by < len(moved.options):
            board.handle(name, control).press(key)
            moved.index += by
            read.add(board.shows(name))
    assert len(read) >= 2


def test_a_switch_is_pressed_from_the_keyboard(board):
    for name, control, option in (
        ("denoising", "mode", "hard"),
        ("denoising", "before", "nothing"),
        ("placement", "with_map", "none"),
    ):
        before, switched = board.shows(name), board.by_hand[name].controls[control]
        board.widget(name).get_by_role("button", name=option, exact=True).press("Enter")
        switched.value = dict(switched.options)[option]
        assert board.shows(name) != before


def test_a_slider_that_is_dragged_acts_when_it_is_let_go(board):
    board.shows("deflection")
    handle, mouse = board.handle("deflection", "deflections"), board.page.mouse
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(box["x"] + 300, box["y"] + box["height"] / 2, steps=20)
    board.page.wait_for_timeout(500)
    board.shows("deflection")
    mouse.up()
    board.by_hand["deflection"].controls["deflections"].value = 5000
    board.shows("deflection")
    # The reader sees one picture.
    expect(board.page.locator(".jp-OutputArea-output img")).to_have_count(len(CALLS))


@pytest.mark.parametrize("end", ["restartKernel()", "changeKernel({ name: 'python3' })"])
def test_a_kernel_that_ends_leaves_a_grey_picture_and_a_sentence(board, end):
    for name in CALLS:
        expect(board.widget(name).get_by_text("lost their kernel")).to_be_hidden()
        expect(board.widget(name).locator("figcaption")).to_be_visible()
    ends(board.page, end)
    for name in CALLS:
        widget = board.widget(name)
        widget.scroll_into_view_if_needed()
        expect(widget.get_by_text("lost their kernel")).to_be_visible()
        assert "grayscale" in widget.locator("img").evaluate("i => getComputedStyle(i).filter")
        # No control that moves, no number in words.
        for part in (".noUi-handle", "button", "figcaption"):
            assert not any(one.is_visible() for one in widget.locator(part).all())
    if end == "restartKernel()":
        # What a new kernel knows nothing of is run again; what the old one left goes first.
        does(board.page, "notebook:clear-all-cell-outputs")
        expect(board.page.locator(".pdutils-sliders")).to_have_count(0)
        run_all(board.page)
        board.drawn()
