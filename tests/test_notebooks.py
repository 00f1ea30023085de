import ast
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from pdutils.cli import runner
from tools import pages

NOTEBOOKS = runner.find_notebooks()

#: Counts that every notebook takes lower, so that all of them run in a minute.
SMALL = {
    "images": 3,
    "images_slow": 1,
    "draws": 2,
    "runs": 2,
    "iterations": 2,
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
    pages.build(output)
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
def test_its_slider_is_a_picture_where_no_widget_can_be_shown(number, executed):
    (path,) = executed.glob(f"{number}_*.ipynb")
    (cell,) = (cell for cell in code(path) if f"sliders.{SLIDERS[number]}(" in cell.source)
    (output,) = cell.outputs
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(output.data)
    alt = output.metadata["image/png"]["alt"]
    assert alt.startswith("Controls, a still picture. ")
    assert alt in path.with_suffix(".html").read_text()


@pytest.mark.slow
def test_the_pages_are_small_and_need_no_network(executed):
    pages = sorted(executed.glob("*.html"))
    assert len(pages) == len(NOTEBOOKS) + 1
    for page in pages:
        html = page.read_text()
        assert not re.search(r"<(script\s|link\b|iframe\b)|src=\"(?!data:)", html)
    assert sum(path.stat().st_size for path in executed.iterdir()) < 20_000_000


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
    # Beyond the blog they all ask the same functions; 14 has the attacker who needs most of them.
    chosen = [path for path in NOTEBOOKS if path.name[:2] in ("01", "04", "10", "14")]
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
