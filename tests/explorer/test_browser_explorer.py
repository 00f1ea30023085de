import io
import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import (
    PATIENCE,
    axe_violations,
    chromium,
    free_port,
    jupyterlab,
    made,
    served,
    watched,
)
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from pdutils._utils import on_grid
from pdutils.classifiers import load_classifier
from pdutils.demo.examples import demo_image, demo_root
from pdutils.explorer.engine import RANGES, Explorer, Result, Settings

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


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """JupyterLab on notebook 9, with the network that is quick."""
    home = tmp_path_factory.mktemp("lab")
    path = home / "collection" / "notebooks" / "09_explorer.ipynb"
    shutil.copytree(demo_root() / "notebooks", path.parent)
    own = path.read_text("utf-8")
    path.write_text(own.replace('classifier = \\"efficientnet_lite0\\"', 'classifier = \\"demo\\"'))
    assert path.read_text("utf-8") != own
    with jupyterlab(home, home / "collection") as address:
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

    def settled(self) -> None:
        self.page.wait_for_function(
            """() => {
                const { asked, shown, failed } = document.querySelector('.pdx').dataset;
                return asked === shown || asked === failed;
            }""",
            timeout=PATIENCE,
        )

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
    page.set_default_timeout(PATIENCE)
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


def test_the_page_says_what_it_is_while_it_loads(visitor):
    page = visitor.page
    expect(page.get_by_role("heading", level=1)).to_have_text("Bring the right answer back")
    expect(page.get_by_text("Starting the explorer")).to_be_visible()
    assert page.title() == "Pixel deflection: the explorer"
    assert "notebooks" in page.locator("header").inner_text()


def test_the_page_listens_on_this_machine_alone(site):
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


def test_sliders_of_the_page_change_the_picture(visitor, by_hand):
    visitor.press("deflections", "PageUp")
    visitor.press("sigma", "ArrowRight", "ArrowRight")
    settings = visitor.shows(by_hand).settings
    assert settings.deflections > 200
    assert settings.sigma == 0.05


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
    visitor.press("seed", "Enter")
    alert = visitor.root.get_by_role("alert")
    expect(alert).to_have_text(re.compile(r"seed: expected a whole number from 0 to \d+, got -5"))
    assert visitor.line() == before
    expect(visitor.control("seed")).to_have_value("0")
    visitor.root.get_by_role("button", name="New draw").click()
    visitor.settled()
    expect(alert).to_be_hidden()
    assert visitor.shows(by_hand).settings.seed == 1


def upload(face: Face, name: str, content: bytes) -> None:
    file = {"name": name, "mimeType": "image/png", "buffer": content}
    face.root.locator("input[type=file]").set_input_files(file)
    face.settled()


def test_pictures_of_ones_own(visitor, by_hand, tmp_path):
    alert = visitor.root.get_by_role("alert")
    png = demo_image("otter_001").image.read_bytes()
    upload(visitor, "broken.png", png[:900])
    expect(alert).to_contain_text("broken.png: expected a picture that can be read")
    expect(alert).not_to_contain_text("Traceback")
    upload(visitor, "large.png", png + b"\0" * 8_000_000)
    expect(alert).to_have_text(re.compile(r"large\.png: expected at most 8 MB, got 8\.\d MB"))
    upload(visitor, "my_otter.png", png)
    expect(alert).to_be_hidden()
    assert "otter" in visitor.bars(0)[0]
    own = tmp_path / "own.png"
    own.write_bytes(png)
    wanted = visitor.root.evaluate("root => root.querySelector('.pdx-thumbs input:checked').value")
    assert wanted.endswith("my-otter.png")
    np.testing.assert_array_equal(
        visitor.pixels(0), by_hand.result(Settings(image=str(own), attack="none")).clean
    )
    visitor.picture("badger")


def test_what_is_saved_gives_the_same_again(visitor, by_hand):
    with visitor.page.expect_download() as download:
        visitor.root.get_by_role("button", name="Save settings").click()
    kept = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "badger_000-settings.json"
    result = by_hand.result(Settings.from_dict(kept["settings"]))
    with visitor.page.expect_download() as download:
        visitor.root.get_by_role("button", name="Save picture").click()
    assert download.value.suggested_filename == "badger_000-defended.png"
    with Image.open(download.value.path()) as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), on_grid(result.defended))


def test_the_copied_code_gives_the_same_again(visitor, by_hand):
    visitor.root.get_by_role("button", name="Copy as code").click()
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
    stage = visitor.root.locator(".pdx-stage").nth(1)
    stage.hover(position={"x": 80, "y": 90})
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
@pytest.mark.parametrize("width", [1280, 800])
def test_axe_finds_nothing_serious(visitor, width, scheme):
    visitor.page.emulate_media(color_scheme=scheme)
    visitor.page.set_viewport_size({"width": width, "height": 900})
    expect(visitor.root).to_have_attribute("data-theme", scheme)
    assert axe_violations(visitor.page) == []
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    visitor.page.set_viewport_size({"width": 1280, "height": 900})


def test_two_visitors_do_not_disturb_each_other(visitor, browser, site, by_hand):
    before = visitor.settings(), visitor.line()
    page = browser.new_page()
    with watched(page, site) as seen:
        page.goto(site, wait_until="commit")
        other = settle_down(page)
        other.choose("classifier", "demo")
        other.picture("fox")
        other.choose("denoiser", "median")
        visitor.press("window", "ArrowRight")
        assert visitor.shows(by_hand).settings.image == before[0].image
        assert visitor.settings().window == before[0].window + 1
        settings = other.shows(by_hand).settings
        assert (settings.image, settings.denoiser) == ("fox_000", "median")
        assert settings.window == 10
    page.close()
    assert seen.errors == seen.foreign == []


def test_in_all_that_nothing_failed_and_no_other_machine_was_asked(visitor):
    assert visitor.seen.errors == []
    assert visitor.seen.foreign == []


@pytest.fixture(scope="module")
def notebook(browser, lab) -> Iterator[Face]:
    """Notebook 9 in JupyterLab, run from top to end."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    with watched(page, lab) as seen:
        page.goto(f"{lab}/lab/tree/notebooks/09_explorer.ipynb")
        face = Face(page)
        face.seen = seen
        run_all(face)
        yield face
    page.close()


def run_all(face: Face, command: str = "notebook:run-all-cells") -> None:
    face.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=PATIENCE)
    face.page.wait_for_function(
        """() => {
            const { sessionContext } = window.jupyterapp?.shell?.currentWidget ?? {};
            return sessionContext?.isReady && sessionContext.session?.kernel?.status === 'idle';
        }"""
    )
    face.page.evaluate("command => { window.jupyterapp.commands.execute(command); }", command)
    find(face)


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
    face, kept = notebook, []

    def changed() -> None:
        settings = face.shows(by_hand).settings
        assert settings not in kept
        kept.append(settings)

    changed()
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
        changed()
    face.control("seed").fill("7")
    face.press("seed", "Enter")
    changed()


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
    wanted = notebook.settings()
    page = notebook.page
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.evaluate("() => window.jupyterapp.commands.execute('application:close')")
    expect(page.locator(".pdx")).to_have_count(0)
    page.evaluate(
        """() => window.jupyterapp.commands.execute('docmanager:open',
            { path: 'notebooks/09_explorer.ipynb' })"""
    )
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    find(notebook)
    assert notebook.shows(by_hand).settings == wanted
    notebook.press("window", "ArrowRight")
    assert notebook.shows(by_hand).settings.window == wanted.window + 1


def only_grey_pictures(face: Face) -> None:
    """Check that nothing is left to move, and no number to read."""
    expect(face.page.get_by_text("has lost its kernel")).to_be_visible()
    canvas = face.root.locator(".pdx-stage > canvas:first-child").first
    assert "grayscale" in canvas.evaluate("c => getComputedStyle(c).filter")
    assert not any(one.is_visible() for one in face.root.locator("input, select, button").all())
    assert not re.search(r"\d\.\d|\d\d", face.root.inner_text())


def test_in_jupyterlab_it_works_after_a_restart(notebook, by_hand):
    page = notebook.page
    expect(page.get_by_text("has lost its kernel")).to_be_hidden()
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
    only_grey_pictures(notebook)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    expect(page.locator(".pdx")).to_have_count(0)
    run_all(notebook)
    assert notebook.shows(by_hand).settings.image in ("", "badger_000")
    notebook.press("deflections", "PageUp")
    assert notebook.shows(by_hand).settings.deflections > 200


def test_in_jupyterlab_a_kernel_that_is_shut_down_leaves_grey_pictures(notebook):
    page = notebook.page
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    only_grey_pictures(notebook)
