import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from pdutils.cli import runner

PLACE = """import json, os, sys
print(json.dumps([sys.executable, os.getcwd(), os.getpid(), os.environ['OPENBLAS_NUM_THREADS']]))"""
BARS = "import sys\nfrom tqdm import tqdm\nfor _ in tqdm(range(3), file=sys.stdout):\n    pass"
RESULTS = "from IPython.display import JSON\nJSON({'headline': f'x is {x}', 'x': x, 'both': both})"


def write(path: Path, *cells: str, parameters: str = "both = 1") -> Path:
    """Write a notebook of a heading, a first cell, one of parameters, and cells of code."""
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    first = [new_markdown_cell(f"# {path.stem}\n\nProse."), new_code_cell("first = None"), tagged]
    notebook = new_notebook(cells=[*first, *map(new_code_cell, cells)])
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "-"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


def outputs(path: Path) -> list:
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells for output in cell.get("outputs", [])]


def printed(path: Path) -> str:
    return "".join(output.text for output in outputs(path) if output.output_type == "stream")


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("source") / "notebooks"
    sleep, bad = "import time\ntime.sleep", "raise ValueError('\\x1b[31mred\\x1b[0m')"
    return [
        write(folder / "01_good.ipynb", PLACE, BARS, RESULTS, parameters="x = 1\nboth = 1"),
        write(folder / "02_bad.ipynb", "print('before')", f"first = 1\n{bad}", "print('after')"),
        write(folder / "03_slow.ipynb", f"{sleep}(3600)"),
        write(folder / "04_dead.ipynb", "import os\nos._exit(3)"),
        write(folder / "05_again.ipynb", PLACE, "print('x' in globals())\nprint(both)"),
        # No cell of it takes long.
        write(folder / "06_long.ipynb", *[f"{sleep}(2.5)"] * 3, parameters="images = 9"),
    ]


@pytest.fixture(scope="module")
def run(notebooks, tmp_path_factory):
    """Run them all, on a machine whose `python3` kernel is a program that fails."""
    wrong = tmp_path_factory.mktemp("jupyter")
    spec = {"argv": ["false"], "display_name": "wrong", "language": "python"}
    (wrong / "kernels" / "python3").mkdir(parents=True)
    (wrong / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    output = tmp_path_factory.mktemp("run") / "results"
    log = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(log):
        patch.setenv("JUPYTER_PATH", str(wrong))
        patch.setenv("OPENBLAS_NUM_THREADS", "3")
        patch.chdir(output.parent)
        asked = {"x": 5, "both": [1, "two"]}
        outcomes = runner.run_notebooks(notebooks, output, asked, timeout=6, jobs=4)
    return output, {outcome.name: outcome for outcome in outcomes}, log.getvalue()


def test_one_failure_does_not_stop_the_others(run, notebooks):
    output, outcomes, log = run
    assert list(outcomes) == [path.stem for path in notebooks]
    assert [n for n, outcome in outcomes.items() if not outcome.error] == ["01_good", "05_again"]
    assert {path.name for path in output.iterdir()} == {f"{name}.ipynb" for name in outcomes}
    # The log has one line a notebook.
    states = {line.split()[0]: line.split()[2:] for line in log.splitlines()}
    assert len(log.splitlines()) == len(states) == len(outcomes)
    assert (states["01_good"], states["02_bad"]) == (["s", "ok"], ["s", "failed"])


OVER = "CellTimeoutError: the 6 s of the notebook are over: --timeout S gives it more"


@pytest.mark.parametrize(
    ("name", "error", "source"),
    [
        ("03_slow", OVER, "time.sleep(3600)"),
        ("06_long", f"{OVER}, and -p images N less to do", "time.sleep(2.5)"),
        ("04_dead", "DeadKernelError: Kernel died", "os._exit(3)"),
        ("02_bad", "ValueError: red", "first = 1\nraise ValueError('\\x1b[31mred\\x1b[0m')"),
    ],
)
def test_a_failure_has_its_plain_error_and_its_cell_and_what_was_done_before_is_kept(
    run, name, error, source
):
    output, outcomes, _ = run
    assert outcomes[name].error == error
    assert outcomes[name].source.endswith(source)
    last = outputs(output / f"{name}.ipynb")[-1]
    assert (last.output_type, last.ename) == ("error", error.partition(": ")[0])
    assert re.sub(r"\x1b\[\d+m", "", last.evalue) == error.partition(": ")[2]
    assert printed(output / f"{name}.ipynb") == ("before\n" if name == "02_bad" else "")


def test_each_notebook_gets_the_parameters_that_it_knows_in_a_fresh_kernel(run, notebooks):
    good, again = run[0] / "01_good.ipynb", run[0] / "05_again.ipynb"
    shown = [found.data for found in outputs(good) if "data" in found]
    assert shown[-1]["application/json"] == {"headline": "x is 5", "x": 5, "both": [1, "two"]}
    # Bars do not litter the outputs.
    (first,), (other, *rest) = printed(good).splitlines(), printed(again).splitlines()
    assert rest == ["False", "[1, 'two']"]
    places = [json.loads(first), json.loads(other)]
    assert [place[:2] for place in places] == [[sys.executable, str(run[0].parent)]] * 2
    assert places[0][2] != places[1][2]
    assert [place[3] for place in places] == ["3", "3"]
    assert not any(outputs(path) for path in notebooks)


def test_notebooks_that_run_at_once_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert runner._kernel_class(jobs=2).kernel_spec.env["OPENBLAS_NUM_THREADS"] == "2"


def test_a_terminal_gets_a_bar_over_the_cells(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    path = write(tmp_path / "01_bar.ipynb", "1", "", "2", parameters="a = 1")
    monkeypatch.setattr(sys, "stderr", Terminal())
    runner.run_notebooks([path], tmp_path / "results", {"a": 2})
    # Three cells, the parameters, and those that replace them; the empty cell does not run.
    assert "01_bar" in sys.stderr.getvalue()
    assert "5/5" in sys.stderr.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_the_kernel_and_leaves_what_was_finished(tmp_path, number, status):
    write(tmp_path / "01_done.ipynb", "print('done')")
    slow = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(3600)"
    write(tmp_path / "02_slow.ipynb", slow)
    results = tmp_path / "results"
    write(results / "02_slow.ipynb", "'an earlier result'")
    before = (results / "02_slow.ipynb").read_bytes()
    command = [sys.executable, "-m", "pdutils", "run", "01_done.ipynb", "02_slow.ipynb"]
    command += ["--output", "results", "--jobs", "1"]
    pid, pipe = tmp_path / "pid", subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stderr=pipe, text=True) as process:
        while not pid.exists() or not pid.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, log = process.communicate(timeout=300)
    assert process.returncode == status
    assert "Traceback" not in log
    assert printed(results / "01_done.ipynb") == "done\n"
    assert (results / "02_slow.ipynb").read_bytes() == before
    assert {path.suffix for path in results.iterdir()} == {".ipynb"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_notebook_goes_by_number_name_or_path_and_the_blog_is_01_to_09(tmp_path):
    for name in ("01_a", "09_b", "10_c", "notes", "1_d"):
        write(tmp_path / f"{name}.ipynb")

    def found(*names: str, **options) -> list[str]:
        chosen = runner.choose_notebooks(names, **{"folder": tmp_path, **options})
        return [path.stem for path in chosen]

    assert found() == ["01_a", "09_b"]
    assert found(everything=True) == ["01_a", "09_b", "10_c"]
    for name in ("09", "09_b", "09_b.ipynb"):
        assert found(name) == ["09_b"]
        assert found("10", name, "01") == ["01_a", "09_b", "10_c"]
    assert found(str(tmp_path / "10_c.ipynb"), folder=tmp_path / "empty") == ["10_c"]
    with pytest.raises(runner.UsageError, match=r"no notebook '7'; known: 01_a, 09_b, 10_c$"):
        found("01", "7")
    with pytest.raises(runner.UsageError, match="no notebook NN_topic"):
        found(folder=tmp_path / "empty")


def test_an_unknown_parameter_lists_the_known_ones(tmp_path):
    one = write(tmp_path / "01_one.ipynb", "hidden = 1", parameters="a = 1\nb = 'x'  # why")
    two = write(tmp_path / "02_two.ipynb", parameters="c = [1, 2]")
    with pytest.raises(runner.UsageError, match=r"no parameter 'c' in 01_one; known: a, b$"):
        runner.run_notebooks([one], tmp_path / "results", {"a": 1, "c": 1})
    with pytest.raises(runner.UsageError, match=r"'hidden' in any of .*; known: a, b, c$"):
        runner.run_notebooks([one, two], tmp_path / "results", {"hidden": 1})
    assert not (tmp_path / "results").exists()
    assert runner.assign_parameters([one, two], {"a": 1, "c": 2}) == {one: {"a": 1}, two: {"c": 2}}


def test_what_cannot_be_run_is_refused(tmp_path):
    (tmp_path / "01_text.ipynb").write_text("no JSON")
    with pytest.raises(runner.UsageError, match="expected a notebook"):
        runner.run_notebooks([tmp_path / "01_text.ipynb"], tmp_path / "results")
    for options in ({"timeout": 0}, {"jobs": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            runner.run_notebooks([], tmp_path, **options)


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("5", None, 5), ("-1", None, -1), ("0.04", None, 0.04), ("1e-3", None, 1e-3),
        ("True", None, True), ("false", None, False), ("None", None, None), ("null", None, None),
        ("[1, 2.5]", None, [1, 2.5]), ("(1, 2)", None, [1, 2]), ("{'a': 1}", None, {"a": 1}),
        ("'5'", None, "5"), ("mobilenet_v2", None, "mobilenet_v2"), ("007", None, "007"),
        ("../a b/c.png", None, "../a b/c.png"), ("1+2j", None, "1+2j"), ("", None, ""),
        ("{1, 2}", None, "{1, 2}"), ("none", None, None),
        # A value takes the kind of the notebook's own.
        ("2024", "", "2024"), ("None", "", "None"), ("true", "channel", "true"), ("[1]", "", "[1]"),
        ("'x'", "", "'x'"), ("", "badger", ""), ("400", 200, 400), ("1e2", 200, 100), ("-1", 0, -1),
        ("0.5", 1, 0.5), ("1", 0.04, 1.0), ("1e-3", 0.04, 1e-3), ("False", True, False),
        ("[1, 2e0, 0.5]", [4, 8], [1, 2, 0.5]), ("1, 2", [4, 8], [1, 2]), ("[]", [4, 8], []),
        ("[1, 'x']", [], [1, "x"]), ("{'a': 'b'}", {"FGSM": "fgsm"}, {"a": "b"}),
    ],
)  # fmt: skip
def test_values_are_read_as_literals_in_the_kind_of_the_notebook_s_own(text, default, value):
    read = runner.parse_value(text, default)
    # Types too.
    assert repr(read) == repr(value)


NUMBER, BOX = "a number", {"FGSM": "fgsm"}


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("many", 200, NUMBER), ("none", 0, NUMBER), ("True", 0, NUMBER), ("nan", 0.04, NUMBER),
        ("[1]", 1, NUMBER), ("1e999", 0.04, f"{NUMBER} that a float can hold"),
        ("9" * 400, 0.04, f"{NUMBER} that a float can hold"), ("1", True, "true or false"),
        ("4", [4, 8], "a list such as [4, 8]"), ("[1, 'x']", (4, 8), "a list such as [4, 8]"),
        ("{'a': 1}", BOX, f"a dictionary such as {BOX}"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused(text, default, expected):
    with pytest.raises(ValueError, match=f"^{re.escape(f'expected {expected}, got {text!r}')}$"):
        runner.parse_value(text, default)


def test_each_notebook_reads_a_value_in_its_own_kind(tmp_path):
    first = write(tmp_path / "01_one.ipynb", parameters="folder = ''\nstep = 1.0\nboth: int = 2")
    other = write(tmp_path / "02_two.ipynb", parameters="folder = None\nstep = 1\na = b = -1")
    asked = {"folder": "2024", "step": "1e0", "b": "3", "both": "4"}
    found = runner.assign_parameters([first, other], asked)
    own = {"folder": "2024", "step": 1.0, "both": 4}, {"folder": 2024, "step": 1, "b": 3}
    assert found == dict(zip((first, other), own, strict=True))
    assert [type(values["step"]) for values in found.values()] == [float, int]
    assert runner.assign_parameters([first], {"both": [1]}) == {first: {"both": [1]}}
    said = r"step: expected a number, got 'many' \(01_one\)"
    with pytest.raises(runner.UsageError, match=said):
        runner.run_notebooks([first], tmp_path / "results", {"step": "many"})
    with pytest.raises(runner.UsageError, match=r"step: .* text in UTF-8, got caf\\udce9"):
        runner.run_notebooks([first], tmp_path / "results", {"step": os.fsdecode(b"caf\xe9")})
