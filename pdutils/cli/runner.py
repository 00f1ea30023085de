"""The notebooks through papermill: each in a kernel of its own, all in one go."""

import ast
import asyncio
import logging
import math
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tqdm import tqdm

from pdutils._notation import literal
from pdutils._utils import extra, whole_file
from pdutils.demo.examples import checkout, demo_root

with extra("notebooks"):
    import nbformat
    import zmq
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import ensure_event_loop
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError


class UsageError(ValueError):
    """What was asked for does not exist; the message lists what does."""


class Outcome(NamedTuple):
    """How a notebook, named without suffix, ended: its error, or none, and the cell it is from."""

    name: str
    seconds: float
    error: str
    source: str


def find_notebooks(folder: Path | None = None) -> list[Path]:
    """List what is named `NN_topic.ipynb` in a folder, by default the checkout's, in its order."""
    found = (folder or demo_root() / "notebooks").glob("*.ipynb")
    return sorted(path for path in found if re.fullmatch(r"\d\d_\w+\.ipynb", path.name))


def choose_notebooks(
    names: Sequence[str] = (), *, everything: bool = False, folder: Path | None = None
) -> list[Path]:
    """Find notebooks by number (`03`), name or path, in the order of their names, each once.

    Outside a checkout only a path finds one. Without names: the blog, 01 to 09, or everything.
    """
    known = find_notebooks(folder)
    files = [name for name in names if name.endswith(".ipynb") and Path(name).is_file()]
    if len(set(files)) < max(len(names), 1) and folder is None and checkout() is None:
        raise UsageError(
            "the notebooks are not in the installed package but in its repository: run this in a "
            "clone of it, or name a notebook by its path"
        )
    by_name = {name: path for path in known for name in (path.stem, path.name, path.name[:2])}
    by_name |= {name: Path(name) for name in files}
    for name in names:
        if name not in by_name:
            listed = ", ".join(path.stem for path in known) or "none"
            raise UsageError(f"no notebook {name!r}; known: {listed}")
    blog = [path for path in known if everything or path.name < "10"]
    chosen = {by_name[name] for name in names} if names else set(blog)
    if not chosen:
        raise UsageError(f"no notebook NN_topic.ipynb in {folder or demo_root() / 'notebooks'}")
    return sorted(chosen, key=lambda path: path.name)


def _defaults(notebook: Path) -> dict[str, Any]:
    """Give the parameters of a notebook with their own values; None where that is no literal.

    Papermill's own inspection goes by lines, and drops one whose text holds a second equals sign.
    """
    cells = [c for c in _read(notebook).cells if "parameters" in c.metadata.get("tags", [])]
    found: dict[str, Any] = {}
    for node in ast.parse(cells[0].source).body if cells else []:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            found |= dict.fromkeys(names)
            with suppress(ValueError):
                found |= dict.fromkeys(names, ast.literal_eval(node.value or ast.Constant(None)))
    return found


def parse_value(text: str, default: Any = None) -> Any:
    """Read a parameter's value as it is typed; it takes the kind of the notebook's own, `default`.

    A whole number may become any, since many a knob has a whole default. Without a default what
    reads as a literal of Python, true, false or none is one, and all else is a text.
    """
    if isinstance(default, str):
        return text
    value = literal(text)
    value = list(value) if isinstance(value, tuple) else value
    if not isinstance(value, (int, float, str, list, dict, type(None))):
        value = text
    try:
        return _of_kind(value, default)
    except TypeError as error:
        raise ValueError(f"expected {error}, got {text!r}") from None


#: What a value may be, by what the notebook's own is; the first that fits counts.
_KINDS: dict[Any, str] = {
    bool: "true or false",
    (int, float): "a number",
    str: "a text in quotes",
    list: "a list such as {}",
    dict: "a dictionary such as {}",
}


def _of_kind(value: Any, default: Any) -> Any:
    """Bring a value to the kind of another; a TypeError says which kind that is."""
    default = list(default) if isinstance(default, tuple) else default
    kind: Any = next((kind for kind in _KINDS if isinstance(default, kind)), object)
    error = TypeError(_KINDS.get(kind, "").format(default))
    if not isinstance(value, kind) or (kind == (int, float) and isinstance(value, bool)):
        raise error
    if kind in (list, dict):
        first = next(iter(default.values() if kind is dict else default), None)
        try:
            if kind is dict:
                return {key: _of_kind(entry, first) for key, entry in value.items()}
            return [_of_kind(entry, first) for entry in value]
        except TypeError:
            raise error from None
    if kind != (int, float):
        return value
    if not abs(value) <= sys.float_info.max:
        raise TypeError("a number that a float can hold")
    is_whole = isinstance(default, int) and value == int(value)
    return int(value) if is_whole else float(value)


def assign_parameters(
    notebooks: Sequence[Path], parameters: Mapping[str, Any]
) -> dict[Path, dict[str, Any]]:
    """Give each notebook those parameters that it knows; texts take the kind of its own value."""
    known = {path: _defaults(path) for path in notebooks}
    every = sorted({name for names in known.values() for name in names})
    assigned: dict[Path, dict[str, Any]] = {path: {} for path in notebooks}
    for name, value in parameters.items():
        if name not in every:
            where = notebooks[0].stem if len(notebooks) == 1 else "any of the notebooks"
            listed = ", ".join(every) or "none"
            raise UsageError(f"no parameter {name!r} in {where}; known: {listed}")
        # A notebook is a file in UTF-8.
        written = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
        if written != str(value):
            raise UsageError(f"{name}: expected a text in UTF-8, got {written}")
        for path, defaults in known.items():
            if name in defaults:
                is_typed, own = isinstance(value, str), defaults[name]
                try:
                    assigned[path][name] = parse_value(value, own) if is_typed else value
                except ValueError as error:
                    raise UsageError(f"{name}: {error} ({path.stem})") from None
    return assigned


def run_notebooks(
    notebooks: Sequence[Path],
    output: Path,
    parameters: Mapping[str, Any] | None = None,
    timeout: int = 3600,
    jobs: int = 1,
) -> list[Outcome]:
    """Execute notebooks in this order, `jobs` at once, and leave each in a folder, which is made.

    Each has `timeout` seconds from its first cell on. One that fails does not stop the others; its
    error is written too. Each file appears whole or not at all, as soon as its notebook has ended.
    """
    if timeout < 1 or jobs < 1:
        raise ValueError(f"expected a timeout and jobs of at least 1, got {timeout} and {jobs}")
    assigned = assign_parameters(notebooks, parameters or {})
    output.mkdir(parents=True, exist_ok=True)
    # What papermill would say stands in the outcomes.
    logging.getLogger("papermill").setLevel(logging.CRITICAL + 1)
    # The cells that the bar will see: those with code, and the one with the parameters.
    cells = [cell for path in assigned for cell in _read(path).cells]
    code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    total = len(code) + sum(map(bool, assigned.values()))
    run = _Run(output, timeout, jobs, total)
    # The main thread only waits, since Ctrl-C reaches no other.
    with run.bar, ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run.one, *task) for task in assigned.items()]
        try:
            return [future.result() for future in futures]
        except BaseException:
            # The kernels that live end, and those that a notebook is just about to start.
            run.stopped = True
            for future in futures:
                future.cancel()
            while wait(futures, timeout=0.1).not_done:
                for kernel in run.kernel_class.started:
                    if process := getattr(kernel.provisioner, "process", None):
                        process.kill()
            raise


def _kernel_class(jobs: int) -> Any:
    """Make the class of the kernels of one run: of this very interpreter, and known to it."""
    # Each OpenBLAS has a thread a core, which spins while those of other notebooks work.
    threads, share = "OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs))
    # A bar in an executed notebook would be a hundred lines of its stages.
    own = {"TQDM_DISABLE": "1"} | {threads: os.environ.get(threads, share)}

    class Kernel(AsyncKernelManager):
        started: ClassVar[list[Any]] = []
        # What is installed as `python3` on a machine may be another environment's Python.
        kernel_spec = KernelSpec(**get_kernel_dict(), env=own)

        def __init__(self, **options: Any) -> None:
            encryption = "auto" if zmq.has("curve") else "disabled"
            super().__init__(transport_encryption=encryption, **options)
            self.started.append(self)

    return Kernel


class _Run:
    """What the notebooks of one run share: their kernels, the bar, the folder of the results."""

    def __init__(self, output: Path, timeout: int, jobs: int, cells: int) -> None:
        self.output, self.timeout = output, timeout
        self.lock = threading.Lock()
        self.stopped = False
        self.kernel_class = _kernel_class(jobs)
        self.bar = tqdm(total=cells, unit="cell", disable=None, dynamic_ncols=True)
        self.active: list[str] = []

    def one(self, path: Path, parameters: dict[str, Any]) -> Outcome:
        with self.lock:
            self.active.append(path.stem)
            self.bar.set_description(", ".join(self.active))
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            executed = Path(folder) / path.name
            error = self.execute(path, executed, parameters)
            if self.stopped:
                raise InterruptedError(f"{path.stem} was stopped")
            notebook = _read(executed if executed.exists() else path)
        failure = self.failure(error, notebook, path) if error else ("", "")
        outcome = Outcome(path.stem, time.monotonic() - start, *failure)
        with self.lock:
            with whole_file(self.output / path.name) as place:
                place.write_text(nbformat.writes(_finished(notebook, outcome)), "utf-8")
            self.active.remove(path.stem)
            self.bar.set_description(", ".join(self.active))
            state = "failed" if error else "ok"
            self.bar.write(f"{path.stem}  {outcome.seconds:.1f} s  {state}", file=sys.stderr)
        return outcome

    def execute(self, path: Path, executed: Path, parameters: dict[str, Any]) -> Exception | None:
        begun = cache(time.monotonic)

        def left(_: Any) -> int:
            # Counted from the first cell on; no time at all would be no limit to the client.
            return max(1, math.ceil(begun() + self.timeout - time.monotonic()))

        # The client leaves its thread's loop open, and in it what waits for a dead kernel.
        with asyncio.Runner(loop_factory=ensure_event_loop):
            try:
                execute_notebook(
                    path.resolve(),
                    executed,
                    parameters,
                    kernel_name="python3",
                    progress_bar=False,
                    # Seconds until a kernel must answer; the first on a cold disk takes its time.
                    start_timeout=600,
                    timeout_func=left,
                    kernel_manager_class=self.kernel_class,
                    on_cell_executed=self.step,
                    shutdown_kernel="immediate",
                )
            except Exception as error:
                # Whatever ends a notebook (its own code, a dead kernel, a cell out of time, a full
                # disk) is that notebook's failure: the others go on.
                return error
        return None

    def step(self, **_: Any) -> None:
        with self.lock:
            self.bar.update()

    def failure(self, error: Exception, notebook: Any, path: Path) -> tuple[str, str]:
        """Give the error and the source of the cell that it came from."""
        kind, reason, cell = type(error).__name__, str(error), _last_started(notebook)
        source = cell.source if cell else ""
        if isinstance(error, PapermillExecutionError):
            kind, reason, source = error.ename, error.evalue, error.source
        elif kind == "CellTimeoutError":
            reason = f"the {self.timeout} s of the notebook are over: --timeout S gives it more"
            if "images" in _defaults(path):
                reason += ", and -p images N less to do"
        return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", f"{kind}: {reason}").strip(), source


def _finished(notebook: Any, outcome: Outcome) -> Any:
    """Put into an executed notebook how its run ended, in place of papermill's own marks."""
    marker = "papermill-error-cell-tag"
    notebook.cells = [c for c in notebook.cells if marker not in c.metadata.get("tags", [])]
    record = notebook.metadata.setdefault("papermill", nbformat.NotebookNode())
    record.update(duration=outcome.seconds, exception=bool(outcome.error))
    for path in ("input_path", "output_path"):
        record.pop(path, None)
    if outcome.error:
        record["error"] = outcome.error
        # A kernel that is stopped or dies leaves no error among the outputs.
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        cell = _last_started(notebook)
        if cell and not any(output.output_type == "error" for output in outputs):
            name, _, message = outcome.error.partition(": ")
            told = {"ename": name, "evalue": message, "traceback": [outcome.error]}
            cell.outputs.append(nbformat.v4.new_output("error", **told))
    return notebook


def _last_started(notebook: Any) -> Any:
    """Give the code cell that was last to start, else the first one, else None."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    started = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    return (started[-1:] or cells[:1] or [None])[0]


def _read(path: Path) -> Any:
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise UsageError(f"{path}: expected a notebook: {str(error).splitlines()[0]}") from error
