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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from pdutils._notation import literal
from pdutils._utils import extra, whole_file
from pdutils.demo.examples import checkout, demo_root

with extra("notebooks"):
    import nbformat
    import zmq
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import ensure_event_loop
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

#: Seconds that one notebook may take, once its kernel is there: many times what the demo's take.
TIMEOUT = 3600

#: Seconds until a kernel must answer; the first one on a cold disk takes its time.
START_TIMEOUT = 600

_NUMBERED = re.compile(r"\d\d_\w+\.ipynb")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_MARKER = "papermill-error-cell-tag"


class UsageError(ValueError):
    """What was asked for does not exist; the message lists what does."""


@dataclass(frozen=True)
class Failure:
    """The error that ended a notebook (name and message), and the source of the cell that did."""

    error: str
    source: str


@dataclass(frozen=True)
class Outcome:
    """How the run of a notebook, named without suffix, ended; no failure if it ran to its end."""

    name: str
    seconds: float
    failure: Failure | None


def find_notebooks(folder: Path | None = None) -> list[Path]:
    """List what is named `NN_topic.ipynb` in a folder, by default the checkout's, in its order."""
    found = (folder or demo_root() / "notebooks").glob("*.ipynb")
    return sorted(path for path in found if _NUMBERED.fullmatch(path.name))


def choose_notebooks(
    names: Sequence[str] = (), *, everything: bool = False, folder: Path | None = None
) -> list[Path]:
    """Find the notebooks that are meant, each once, in the order of their names.

    A name is a number (`03`), a name with or without suffix (`03_wavelet_denoising`), or a path,
    which alone finds one outside a checkout. Without names: the blog, 01 to 09, or everything. A
    UsageError lists those that there are.
    """
    known = find_notebooks(folder)
    by_path = bool(names) and all(Path(name).is_file() for name in names)
    if not by_path and folder is None and checkout() is None:
        raise UsageError(
            "the notebooks are not in the installed package but in its repository: run this in a "
            "clone of it, or name a notebook by its path"
        )
    if names:
        chosen = {_choose(name, known) for name in names}
    else:
        chosen = {path for path in known if everything or path.name < "10"}
    if not chosen:
        raise UsageError(f"no notebook NN_topic.ipynb in {folder or demo_root() / 'notebooks'}")
    return sorted(chosen, key=lambda path: path.name)


def _choose(name: str, known: Sequence[Path]) -> Path:
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path
    stem = name.removesuffix(".ipynb")
    for notebook in known:
        if stem in (notebook.stem, notebook.stem[:2]):
            return notebook
    listed = ", ".join(notebook.stem for notebook in known) or "none"
    raise UsageError(f"no notebook {name!r}; known: {listed}")


def _defaults(notebook: Path) -> dict[str, Any]:
    """Give the parameters of a notebook with their own values; None where that is no literal.

    Papermill's own inspection goes by lines, and drops one whose text holds a second equals sign,
    as that of an attack does.
    """
    cells = [cell for cell in _read(notebook).cells if _is_tagged(cell, "parameters")]
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

    A text stays as it was typed; for a number comes a number (for a whole one, any: many a knob has
    a whole default); for true or false one of these; for a list or a dictionary a literal of
    Python, whose entries take the kind of the default's first. Without a default what reads as a
    literal of Python, true, false or none is one, and all else is a text.
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


def _of_kind(value: Any, default: Any) -> Any:
    """Bring a value to the kind of another; a TypeError says which kind that is."""
    expected, right = "", True
    if isinstance(default, bool):
        expected, right = "true or false", isinstance(value, bool)
    elif isinstance(default, (int, float)):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        expected, right = "a number", is_number and -math.inf < value < math.inf
    elif isinstance(default, str):
        expected, right = "a text in quotes", isinstance(value, str)
    elif isinstance(default, (list, tuple)):
        expected, right = f"a list such as {list(default)}", isinstance(value, list)
    elif isinstance(default, dict):
        expected, right = f"a dictionary such as {default}", isinstance(value, dict)
    if not right:
        raise TypeError(expected)
    if isinstance(default, (list, tuple, dict)):
        entries = default.values() if isinstance(default, dict) else default
        try:
            return _each(value, next(iter(entries), None))
        except TypeError:
            raise TypeError(expected) from None
    is_real = isinstance(default, (int, float)) and not isinstance(default, bool)
    return _number(value, whole=isinstance(default, int)) if is_real else value


def _each(value: Any, default: Any) -> Any:
    if isinstance(value, dict):
        return {key: _of_kind(entry, default) for key, entry in value.items()}
    return [_of_kind(entry, default) for entry in value]


def _number(value: float, *, whole: bool) -> float:
    if whole:
        return int(value) if value == int(value) else value
    try:
        return float(value)
    except OverflowError:
        raise TypeError("a number that a float can hold") from None


def assign_parameters(
    notebooks: Sequence[Path], parameters: Mapping[str, Any]
) -> dict[Path, dict[str, Any]]:
    """Give each notebook those parameters that it knows, each in the kind of its own value.

    A text is read by `parse_value`; any other value is passed as it is. A UsageError says if none
    of the notebooks knows one of the parameters, or a value is of another kind.
    """
    known = {path: _defaults(path) for path in notebooks}
    every = sorted({name for names in known.values() for name in names})
    for name in parameters:
        if name not in every:
            where = notebooks[0].stem if len(notebooks) == 1 else "any of the notebooks"
            raise UsageError(
                f"no parameter {name!r} in {where}; known: {', '.join(every) or 'none'}"
            )
    return {
        path: {
            name: _assigned(path, name, value, defaults[name])
            for name, value in parameters.items()
            if name in defaults
        }
        for path, defaults in known.items()
    }


def _assigned(notebook: Path, name: str, value: Any, default: Any) -> Any:
    if not isinstance(value, str):
        return value
    # A notebook is a file in UTF-8.
    written = value.encode("utf-8", "backslashreplace").decode("utf-8")
    if written != value:
        raise UsageError(f"{name}: expected a text in UTF-8, got {written}")
    try:
        return parse_value(value, default)
    except ValueError as error:
        raise UsageError(f"{name}: {error} ({notebook.stem})") from None


def run_notebooks(
    notebooks: Sequence[Path],
    output: Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    timeout: int = TIMEOUT,
    jobs: int = 1,
) -> list[Outcome]:
    """Execute notebooks in this order, `jobs` at once, and leave each in a folder, which is made.

    Each gets those parameters that it knows, and `timeout` seconds from its first cell to its last.
    One that fails does not stop the others; what it did until then and its error are written too.
    Each file appears whole or not at all, as soon as its notebook has ended, so that an interrupted
    run leaves what was finished. Progress goes to stderr: a bar on a terminal, else one line a
    notebook. Where OPENBLAS_NUM_THREADS is not set, those that run at once share the cores.
    """
    if timeout < 1 or jobs < 1:
        raise ValueError(f"expected a timeout and jobs of at least 1, got {timeout} and {jobs}")
    assigned = assign_parameters(notebooks, parameters or {})
    output.mkdir(parents=True, exist_ok=True)
    cells = sum(_count_cells(*task) for task in assigned.items())
    run = _Run(output, timeout, jobs, cells)
    # What papermill would say stands in the outcomes.
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        return run.all(list(assigned.items()))
    finally:
        logger.setLevel(level)


class _Kernel(AsyncKernelManager):
    """A kernel of this very interpreter; the subclass of a run knows those that it started."""

    started: ClassVar[list["_Kernel"]]
    environment: ClassVar[dict[str, str]]

    def __init__(self, **options: Any) -> None:
        super().__init__(
            kernel_spec_manager=_ThisInterpreter(self.environment),
            transport_encryption="auto" if zmq.has("curve") else "disabled",
            **options,
        )
        self.started.append(self)

    def kill(self) -> None:
        process = getattr(self.provisioner, "process", None)
        if process is not None:
            process.kill()


def _kernel_class(jobs: int) -> type[_Kernel]:
    # Each OpenBLAS has a thread a core, which spins while those of other notebooks work.
    threads = str(max(1, (os.cpu_count() or 1) // jobs))

    class RunKernel(_Kernel):
        started: ClassVar[list[_Kernel]] = []
        environment: ClassVar[dict[str, str]] = {
            # A bar in an executed notebook would be a hundred lines of its stages.
            "TQDM_DISABLE": "1",
            "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS", threads),
        }

    return RunKernel


class _ThisInterpreter(KernelSpecManager):
    # What is installed as `python3` on a machine may be another environment's Python.
    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__()
        self._environment = environment

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict(), env=self._environment)


class _Run:
    """What the notebooks of one run share: their kernels, the bar, the folder of the results."""

    def __init__(self, output: Path, timeout: int, jobs: int, cells: int) -> None:
        self.output = output
        self.timeout = timeout
        self.lock = threading.Lock()
        self.stopped = False
        self.jobs = jobs
        self.kernel_class = _kernel_class(jobs)
        self.active: list[str] = []
        self.bar = tqdm(total=cells, unit="cell", disable=None, dynamic_ncols=True)

    def all(self, tasks: Sequence[tuple[Path, dict[str, Any]]]) -> list[Outcome]:
        # The main thread only waits, since Ctrl-C reaches no other.
        with self.bar, ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self.one, path, parameters) for path, parameters in tasks]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self.stop(futures)
                raise

    def stop(self, futures: Sequence[Future[Outcome]]) -> None:
        """End the kernels that live, and those that a notebook is just about to start."""
        self.stopped = True
        for future in futures:
            future.cancel()
        while wait(futures, timeout=0.1).not_done:
            for kernel in self.kernel_class.started:
                kernel.kill()

    def one(self, path: Path, parameters: dict[str, Any]) -> Outcome:
        self.begin(path.stem)
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            executed = Path(folder) / path.name
            error = self.execute(path, executed, parameters)
            if self.stopped:
                raise InterruptedError(f"{path.stem} was stopped")
            notebook = _read(executed if executed.exists() else path)
        failure = None if error is None else self.failure(error, notebook, path)
        outcome = Outcome(path.stem, time.monotonic() - start, failure)
        with self.lock:
            with whole_file(self.output / path.name) as place:
                place.write_text(nbformat.writes(_finished(notebook, outcome)), "utf-8")
            self.end(outcome)
        return outcome

    def execute(self, path: Path, executed: Path, parameters: dict[str, Any]) -> Exception | None:
        try:
            with _own_event_loop():
                execute_notebook(
                    path.resolve(),
                    executed,
                    parameters,
                    kernel_name="python3",
                    progress_bar=False,
                    start_timeout=START_TIMEOUT,
                    timeout_func=_Remaining(self.timeout),
                    kernel_manager_class=self.kernel_class,
                    on_cell_executed=self.step,
                    shutdown_kernel="immediate",
                )
        except Exception as error:
            # Whatever ends a notebook (its own code, a dead kernel, a cell out of time, a full
            # disk) is that notebook's failure: the others go on.
            return error
        return None

    def failure(self, error: Exception, notebook: Any, path: Path) -> Failure:
        if isinstance(error, PapermillExecutionError):
            return Failure(_plain(f"{error.ename}: {error.evalue}"), error.source)
        kind, reason = type(error).__name__, str(error)
        if kind == "CellTimeoutError":
            less = ", and -p images N less to do" if "images" in _defaults(path) else ""
            reason = f"the {self.timeout} s of the notebook are over: --timeout S gives it more"
            reason += less
        cell = _last_started(notebook)
        return Failure(_plain(f"{kind}: {reason}"), cell.source if cell else "")

    def begin(self, name: str) -> None:
        with self.lock:
            self.active.append(name)
            self.bar.set_description(", ".join(self.active))

    def step(self, **_: Any) -> None:
        with self.lock:
            self.bar.update()

    def end(self, outcome: Outcome) -> None:
        self.active.remove(outcome.name)
        self.bar.set_description(", ".join(self.active))
        state = "failed" if outcome.failure else "ok"
        self.bar.write(f"{outcome.name}  {outcome.seconds:.1f} s  {state}", file=sys.stderr)


class _Remaining:
    """How many of a notebook's seconds are left for a cell; they begin with the first one."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self.deadline: float | None = None

    def __call__(self, _: Any) -> int:
        now = time.monotonic()
        if self.deadline is None:
            self.deadline = now + self.seconds
        # No time at all would be no limit to the client.
        return max(1, math.ceil(self.deadline - now))


@contextmanager
def _own_event_loop() -> Iterator[None]:
    # The client leaves its thread's loop open, and in it what waits for a kernel that has died.
    try:
        yield
    finally:
        loop = ensure_event_loop()
        waiting = asyncio.all_tasks(loop)
        for task in waiting:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        loop.close()


def _finished(notebook: Any, outcome: Outcome) -> Any:
    """Put into an executed notebook how its run ended, in place of papermill's own marks."""
    notebook.cells = [cell for cell in notebook.cells if not _is_tagged(cell, _MARKER)]
    record = notebook.metadata.setdefault("papermill", nbformat.NotebookNode())
    record.update(duration=outcome.seconds, exception=outcome.failure is not None)
    for path in ("input_path", "output_path"):
        record.pop(path, None)
    if outcome.failure is not None:
        record["error"] = outcome.failure.error
        _show_error(notebook, outcome.failure.error)
    return notebook


def _show_error(notebook: Any, error: str) -> None:
    # A kernel that is stopped or dies leaves no error among the outputs.
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    cell = _last_started(notebook)
    if cell and not any(output.output_type == "error" for output in outputs):
        name, _, message = error.partition(": ")
        shown = nbformat.v4.new_output("error", ename=name, evalue=message, traceback=[error])
        cell.outputs.append(shown)


def _last_started(notebook: Any) -> Any:
    """Give the code cell that was last to start, else the first one, else None."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    started = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    return started[-1] if started else next(iter(cells), None)


def _read(path: Path) -> Any:
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path}: expected a notebook: {reason}") from error


def _is_tagged(cell: Any, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def _count_cells(notebook: Path, parameters: Mapping[str, Any]) -> int:
    """Count the cells that the bar will see: those with code, and the one with the parameters."""
    cells = _read(notebook).cells
    code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    return len(code) + bool(parameters)


def _plain(text: str) -> str:
    return _ANSI.sub("", text).strip()
