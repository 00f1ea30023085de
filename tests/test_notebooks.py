import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import unescape
from importlib import import_module
from itertools import product
from pathlib import Path
from statistics import median
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from browser import axe_violations, chromium, watched
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from pdutils.cli import runner
from pdutils.demo.examples import demo_root

NOTEBOOKS = runner.find_notebooks()

#: Counts that every notebook takes lower, so that all of them run in a minute.
SMALL = {
    "images": 2,
    "images_slow": 1,
    "draws": 2,
    "runs": 2,
    "iterations": 2,
    "max_share": 0.0002,
    "steps_on": 2,
    "targeted_iterations": 2,
    "epsilons": [2, 8],
    "step_counts": [2],
    "draw_counts": [1],
    "confidences": [0, 0.9],
    "windows": [2, 20],
    "deflection_counts": [200],
    "sigmas": [0.02],
    "ks": [1],
    "attacks": {
        "FGSM": "fgsm:eps=8",
        "IGSM": "igsm:eps=8,iterations=2",
        "DeepFool": "deepfool:iterations=2",
        "JSMA": "jsma:max_share=0.0002",
        "L-BFGS": "lbfgs:iterations=2,search_steps=1",
        "C&W": "carlini_wagner:iterations=2,search_steps=1",
    },
    # These two must fool the network.
    "deepfool": "deepfool:iterations=5",
    "carlini_wagner": "carlini_wagner:iterations=5,search_steps=4",
}

#: Before each notebook of a shared kernel: its names are taken away, but a network is built once.
AFRESH = """\
%reset -f
import functools
from pdutils import classifiers
if not hasattr(classifiers.load_classifier, "cache_info"):
    classifiers.load_classifier = functools.cache(classifiers.load_classifier)
del functools, classifiers
"""

SEED = 3

#: Those that follow one image begin with a real network; the rest needs many images, or outlines.
FOLLOW_ONE_IMAGE = {"01", "02", "03", "05", "06", "07", "08", "09"}

#: Where a knob is met, the function of `pdutils.explorer.sliders` that moves it.
SLIDERS = {
    "01": "attack",
    "02": "deflection",
    "03": "denoising",
    "05": "maps",
    "06": "placement",
}

SHARES = re.compile(r"(true|attacked|target)_|rates|by_|fooled|share|area")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def load(path: Path) -> list:
    return nbformat.read(path, as_version=4).cells


def code(path: Path) -> list:
    return [cell for cell in load(path) if cell.cell_type == "code"]


def prose(path: Path) -> list[str]:
    return [cell.source for cell in load(path) if cell.cell_type == "markdown"]


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ .*$", "\n".join(prose(path)), flags=re.MULTILINE)


def tagged(path: Path, tag: str) -> list:
    return [cell for cell in code(path) if tag in cell.metadata.get("tags", [])]


def parameters(path: Path) -> dict:
    (cell,) = tagged(path, "parameters")
    tree = ast.parse(cell.source)
    assert all(isinstance(node, ast.Assign) and len(node.targets) == 1 for node in tree.body)
    return {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}


def test_the_collection_is_all_there():
    numbers = [f"{number:02d}" for number in range(1, 16)]
    assert set(numbers) <= {path.name[:2] for path in NOTEBOOKS}


@each
def test_the_name_and_the_only_h1_come_first(path):
    tops = [heading for heading in headings(path) if heading.startswith("# ")]
    assert len(tops) == 1
    assert prose(path)[0].startswith(tops[0])
    assert load(path)[0].cell_type == "markdown"
    assert tops[0].startswith(f"# {int(path.name[:2])}. ")


@each
def test_one_early_cell_holds_the_parameters_as_literals(path):
    values = parameters(path)
    # Beyond the blog a notebook works on many images, not on one.
    expected = {"classifier", "weights", "seed"} | ({"image"} if path.name < "10" else {"images"})
    assert expected <= set(values)
    real = path.name[:2] in FOLLOW_ONE_IMAGE
    assert values["classifier"] == ("efficientnet_lite0" if real else "demo")
    assert code(path).index(tagged(path, "parameters")[0]) <= 2


@each
def test_its_cells_are_short_call_the_package_and_keep_nothing_of_a_run(path):
    cells = code(path)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    lengths = [len(cell.source.splitlines()) for cell in cells]
    assert max(lengths) <= 40
    assert median(lengths) <= 7
    source = "\n".join(cell.source for cell in cells)
    assert not re.search(r"^\s*[!%]|sys\.path|subprocess", source, flags=re.MULTILINE)
    nodes = list(ast.walk(ast.parse(source)))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert all(node.end_lineno - node.lineno < 6 for node in functions)
    assert not any(isinstance(node, ast.ClassDef) for node in nodes)


@each
def test_prose_stands_between_the_code_and_one_figure_is_the_main_one(path):
    assert "cccc" not in "".join(cell.cell_type[0] for cell in load(path))
    assert len(tagged(path, "main-figure")) == 1


@each
def test_it_ends_with_a_computed_summary_limits_references_and_its_folded_results(path):
    cells, last = load(path), prose(path)[-1]
    assert headings(path)[-1] == "## Summary"
    assert "**Limits.**" in last
    assert "**References.**" in last
    assert cells[-1].cell_type == "code"
    (summary,) = [i for i, cell in enumerate(cells) if cell.source.startswith("## Summary")]
    assert "published." in "".join(cell.source for cell in cells[summary:])
    folded = [cell for cell in cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert "results = {" in folded[0].source
    assert folded[-1] == cells[-1]
    assert "results" in cells[-1].source


@each
def test_links_inside_the_collection_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(path))):
        if not target.startswith(("http://", "https://", "#")):
            assert (path.parent / target.partition("#")[0]).exists(), target


@pytest.fixture(scope="session")
def executed(tmp_path_factory) -> Path:
    """Run all of them at small settings, with another seed than their own."""
    output = tmp_path_factory.mktemp("notebooks") / "results"
    runner.run_notebooks(NOTEBOOKS[:1], output, overrides(NOTEBOOKS[:1]), timeout=3600)
    # Each start of TensorFlow is seconds of work, so that the others share a kernel whose names are
    # taken away before each of them.
    with shared_kernel() as kernel:
        for path in NOTEBOOKS[1:]:
            run_in(kernel, path, output, overrides([path]))
    return output


@contextmanager
def shared_kernel() -> Iterator[AsyncKernelManager]:
    kernel = runner._kernel_class(1)()
    run_sync(kernel.start_kernel)()
    try:
        yield kernel
    finally:
        run_sync(kernel.shutdown_kernel)(now=True)


def run_in(kernel: AsyncKernelManager, path: Path, output: Path, values: dict) -> None:
    notebook = parameterize_notebook(load_notebook_node(str(path)), values)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(AFRESH))
    client = NotebookClient(notebook, km=kernel)
    # What fails is told by the tests of what it left.
    with suppress(CellExecutionError):
        client.execute()
    client.kc.stop_channels()
    del notebook.cells[0]
    nbformat.write(notebook, output / path.name)


def overrides(notebooks=NOTEBOOKS) -> dict:
    known = {name for path in notebooks for name in parameters(path)}
    return {"seed": SEED} | {name: value for name, value in SMALL.items() if name in known}


def results(path: Path) -> dict:
    """Read what the last cell shows as data."""
    (output,) = [output for output in code(path)[-1].outputs if "data" in output]
    return output.data["application/json"]


def numbers(value, name: str = "") -> list[float]:
    if isinstance(value, dict):
        return [n for key, item in value.items() if key != "n" for n in numbers(item, key)]
    if isinstance(value, list):
        return [n for item in value for n in numbers(item)]
    # Where an attack never succeeded there is no rate of what was turned back.
    return [] if value is None else [float(value)]


@pytest.mark.slow
@each
def test_it_runs_to_its_end_and_warns_of_nothing_and_draws_no_bars(path, executed):
    outputs = [output for cell in code(executed / path.name) for output in cell.outputs]
    assert [o.evalue for o in outputs if o.output_type == "error"] == []
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []
    (cell,) = tagged(executed / path.name, "main-figure")
    assert any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.slow
@each
def test_its_results_are_probabilities_and_shares(path, executed):
    found = results(executed / path.name)
    shares = [n for key, value in found.items() if SHARES.match(key) for n in numbers(value)]
    assert shares
    assert all(0 <= share <= 1 for share in shares)
    assert len(found["headline"].split()) >= 4


@pytest.mark.slow
@each
def test_its_settings_are_those_that_were_passed(path, executed):
    passed = {name: value for name, value in overrides().items() if name in parameters(path)}
    settings = results(executed / path.name)["settings"]
    expected = {**parameters(path), **passed}
    assert passed.items() <= settings.items()
    # An empty image stands for the network's first one, whose name is shown.
    assert {name: value for name, value in settings.items() if expected[name] != value}.keys() <= {
        "image"
    }


@pytest.mark.slow
@each
def test_an_override_takes_effect(path, executed):
    found, own = results(executed / path.name), parameters(path)
    if "draws" in own:
        rows = [row for key in found if key.startswith("true_class") for row in found[key].values()]
        assert {len(row) for row in rows if isinstance(row, list)} <= {1, SMALL["draws"]}
    if "images" in own:
        assert 1 <= found["n"] <= SMALL["images"] < own["images"]
    injected = tagged(executed / path.name, "injected-parameters")
    assert f"seed = {SEED}" in injected[0].source


@pytest.mark.parametrize("number", SLIDERS)
def test_its_slider_begins_with_the_parameters(number):
    (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
    (cell,) = (cell for cell in code(path) if f"sliders.{SLIDERS[number]}(" in cell.source)
    call = ast.parse(cell.source).body[-1].value
    assert [arg.id for arg in call.args[:2]] == ["network", "case"]
    assert call.keywords
    assert len(cell.source.splitlines()) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("number", SLIDERS)
def test_its_slider_is_a_picture_where_no_widget_can_be_shown(number, executed, site):
    (path,) = executed.glob(f"{number}_*.ipynb")
    (cell,) = (cell for cell in code(path) if f"sliders.{SLIDERS[number]}(" in cell.source)
    (output,) = cell.outputs
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(output.data)
    alt = output.metadata["image/png"]["alt"]
    assert alt.startswith("Controls, a still picture. ")
    assert alt in (site / "notebooks" / f"{path.stem}.html").read_text()


@pytest.mark.slow
@pytest.mark.real
def test_they_run_on_a_photo_and_an_imagenet_network(real, tmp_path, monkeypatch):
    monkeypatch.setenv("PDUTILS_CACHE", str(real / "cache"))
    options = {
        "classifier": "mobilenet_v2",
        "weights": str(real / "weights" / "mobilenet_v2.weights.h5"),
        "image": str(real / "cache/pixel-deflection/originals/n02447366_00008562.png"),
    }
    # Those that follow one image have run on a photo and such a network above: the first is enough.
    # Beyond the blog they all ask the same functions.
    chosen = [path for path in NOTEBOOKS if path.name[:2] in ("01", "04", "10")]
    # An image costs an ImageNet network far more than the demo's.
    asked = overrides(chosen) | {"images": 2} | options
    with shared_kernel() as kernel:
        for path in chosen:
            known = parameters(path)
            run_in(kernel, path, tmp_path, {n: v for n, v in asked.items() if n in known})
    for path in chosen:
        found = json.dumps(results(tmp_path / path.name))
        assert '"classifier": "mobilenet_v2"' in found
    assert "badger 0.8" in results(tmp_path / "01_classify.ipynb")["headline"]


#: What only a site shows: an error, a table that comes neither in order nor as texts would sort.
RATES = ["0.5 [0.38, 0.62]", "-", "0.10 [0.06, 0.17]", "-0.2 [-0.30, -0.10]", "1.00 [0.96, 1.00]"]
SORTED = ["-0.2 [-0.30, -0.10]", "0.10 [0.06, 0.17]", "0.5 [0.38, 0.62]", "1.00 [0.96, 1.00]", "-"]
FAILED = "16_failed"


def failed_notebook() -> nbformat.NotebookNode:
    v4 = nbformat.v4
    table = pd.DataFrame({"rate": RATES}).rename_axis("step")._repr_html_()
    raised = v4.new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])
    cells = [
        v4.new_markdown_cell(
            "# 16. A failure\n\nWhat is seen of it, after [one](01_classify.ipynb)."
        ),
        v4.new_code_cell("1 / 2", outputs=[v4.new_output("display_data", {"text/html": table})]),
        v4.new_code_cell("fail()", outputs=[raised]),
    ]
    record = {"duration": 3.2, "error": "ValueError: no", "parameters": {"seed": 7}}
    return v4.new_notebook(cells=cells, metadata={"papermill": record})


def build_site(folder: Path) -> None:
    """Build it as `make docs` does; a warning, as of a link that leads nowhere, is an error."""
    command = [sys.executable, "-m", "tools.site", "--output", str(folder)]
    done = subprocess.run(command, cwd=demo_root(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("open ")


@pytest.fixture(scope="session")
def site(executed) -> Path:
    """The site of what they gave, and of a notebook that failed."""
    nbformat.write(failed_notebook(), executed / f"{FAILED}.ipynb")
    build_site(executed)
    return executed


def links(page: Path) -> list[tuple[str, str]]:
    """Which elements of a page lead where."""
    pattern = r'<(a|link|script|img|iframe)\b[^>]*?\s(?:href|src)="([^"]*)"'
    return [(tag, unescape(link)) for tag, link in re.findall(pattern, page.read_text("utf-8"))]


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    pages = {page: page.read_text("utf-8") for page in site.glob("[!_.]*/*.html")}
    pages |= {page: page.read_text("utf-8") for page in site.glob("*.html")}
    places = {page: set(re.findall(r'\sid="([^"]+)"', html)) for page, html in pages.items()}
    broken = []
    for page in pages:
        for tag, link in links(page):
            path, _, anchor = unquote(re.sub(r"\?[^#]*", "", link)).partition("#")
            target = (page.parent / path).resolve() if path else page
            found = target.exists() and (not anchor or anchor in places.get(target, {anchor}))
            away = tag == "a" and link.startswith(("https://", "http://localhost"))
            if not found and not away and not link.startswith("data:"):
                broken.append((page.name, link))
    assert broken == []
    built = [p for p in site.rglob("*") if ".site" not in p.parts and p.suffix != ".ipynb"]
    assert sum(path.stat().st_size for path in built) < 25_000_000


@pytest.mark.slow
def test_the_reference_has_every_public_name_and_those_that_notebooks_use_lead_to_it(site):
    html = "".join(page.read_text() for page in site.glob("reference/*.html"))
    documented = set(re.findall(r'<dt class="sig[^>]* id="(pdutils[^"]+)"', html))
    for room in ("", ".defenses", ".attacks", ".demo", ".evaluation", ".explorer"):
        module = import_module(f"pdutils{room}")
        modules = {path.stem for path in Path(module.__file__).parent.iterdir()}
        elsewhere = {"load_classifier", "load_collection", "published"} if "eval" in room else set()
        for name in set(module.__all__) - modules - elsewhere:
            assert any(re.fullmatch(rf"pdutils{room}\b.*\.{name}", one) for one in documented), name
    used = {link for page in site.glob("notebooks/*.html") for _, link in links(page)}
    assert {
        f"../reference/attacks.html#pdutils.attacks.gradient.{name}" for name in ("igsm", "pgd")
    } <= used
    igsm = html.partition('id="pdutils.attacks.gradient.igsm"')[2].partition('<dt class="sig')[0]
    assert "../notebooks/01_classify.html#" in igsm
    assert "https://arxiv.org/abs/1607.02533" in igsm


browser = pytest.fixture(chromium, scope="module")


@pytest.fixture
def visit(browser, site):
    """A function that opens a page of the site; the test fails if one complains or asks out."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    with watched(page) as seen:

        def go(name: str):
            page.goto((site / f"{name}.html").as_uri())
            return page

        yield go
    assert (seen.errors, seen.foreign) == ([], [])
    page.close()


@pytest.mark.slow
def test_the_site_can_be_read_by_everybody_and_is_no_wider_than_its_window(visit):
    pages = ["index", "notebooks/07_comparison", "reference/attacks"]
    page = visit("index")
    for name, (width, theme) in product(pages, ((1280, "light"), (800, "dark"), (390, "light"))):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)
        visit(name)
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", color)[0]) < 128) == (theme == "dark")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert axe_violations(page) == [], (name, width, theme)
        if width == 1280:
            wide = "tables => tables.map(t => t.offsetWidth - t.parentElement.clientWidth)"
            assert max([0, *page.locator("article table").evaluate_all(wide)]) <= 0, name


@pytest.mark.slow
def test_the_first_page_leads_to_a_notebook_and_that_to_its_neighbours(visit):
    page = visit("index")
    assert page.locator(".sd-card").count() == len(NOTEBOOKS) + 1
    failed = page.locator(".sd-card").last
    assert failed.locator("p.failed").inner_text() == "Ended with an error: ValueError: no"
    assert failed.locator(".settings .passed").text_content() == "seed7"
    failed.locator("p.failed a").click()
    assert page.url.endswith(f"notebooks/{FAILED}.html#failed")
    page.locator(".left-prev").click()
    page.locator(".left-prev").click()
    page.get_by_role("link", name="IGSM").first.click()
    assert page.url.endswith("glossary.html#igsm")


@pytest.mark.slow
def test_the_search_finds_words_of_prose_and_docstrings_from_the_file_system(visit):
    page = visit("search")
    page.goto(page.url + "?q=BayesShrink")
    # Results come one after another.
    for name in ("glossary.html", "03_wavelet", "reference/core.html"):
        page.locator(f"#search-results li a[href*='{name}']").first.wait_for()


@pytest.mark.slow
def test_a_table_sorts_numbers_as_numbers_and_a_figure_enlarges(visit):
    page = visit(f"notebooks/{FAILED}")
    button = page.get_by_role("button", name="rate")
    for expected in (SORTED, [*SORTED[-2::-1], "-"], RATES):
        button.press("Enter")
        shown = page.locator("article td").all_inner_texts()
        assert [text.replace("\xa0", " ") for text in shown] == expected
    page = visit("notebooks/01_classify")
    figure, viewer = page.locator("a.picture").first, page.get_by_role("dialog")
    figure.press("Enter")
    assert axe_violations(page) == []
    alts = page.locator("a.picture img").evaluate_all("all => all.map(image => image.alt)")
    assert viewer.locator("p").inner_text() == alts[0]
    page.keyboard.press("ArrowRight")
    assert viewer.locator("p").inner_text() == alts[1]
    page.set_viewport_size({"width": 390, "height": 800})
    assert viewer.locator("img").bounding_box()["width"] > 2 * 390 - 60
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert figure.evaluate("figure => figure === document.activeElement")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    page.emulate_media(media="print")
    page.wait_for_function("document.documentElement.dataset.theme === 'light'")
    assert page.locator("header:visible, nav:visible, button:visible:not(.sort)").count() == 0
