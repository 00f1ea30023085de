"""Work on many cores or machines: processes of this machine, or those of a Dask cluster.

Source: Rocklin 2015, DOI 10.25080/Majora-7b98e3ed-013.
"""

import hashlib
import logging
import os
import platform
import re
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import cache
from importlib import metadata
from itertools import chain, islice
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from pdutils._utils import extra

Task = TypeVar("Task")
Result = TypeVar("Result")

_LOCAL = re.compile(r"local:([1-9]\d*)")
_ADDRESS = re.compile(r"[a-z]+://[^\s/]+:\d+")

#: What a worker must have in this process's version: a result is a matter of all of them.
_PACKAGES = ("numpy", "tensorflow", "keras", "distributed", "pdutils")

#: Seconds until a scheduler that does not answer is taken to be absent; to wait for a worker while
#: there is none; between two looks at whether there still is one.
_CONNECT, _PATIENCE, _LOOK = 20.0, 120.0, 1.0

#: How many tasks are under way for each worker, and how many processes may die over one of them.
_AHEAD, _DEATHS = 2, 3

_LOST = (
    "the connection to the scheduler was lost; what was finished before is kept, and the same "
    "command goes on from there"
)


class ClusterError(OSError):
    """Workers that cannot be used; the message says why."""


def finished(
    work: Callable[[Task], Result], tasks: Iterable[Task], *, scheduler: str
) -> Iterator[Result]:
    """Give `work(task)` for each task, in the order in which they are finished.

    `scheduler` is `local:N` for N processes on this machine, or the address of a Dask scheduler.
    `work` travels once to each worker and stays there; tasks are drawn as there is room for them.
    What a worker that dies had not finished is done again by another. All that was started is ended
    when the iterator is exhausted or closed, by an error or by Ctrl-C: take it in `closing`.
    """
    local = _LOCAL.fullmatch(scheduler)
    if not local and not _ADDRESS.fullmatch(scheduler):
        raise ValueError(
            "scheduler: expected an address such as tcp://host:8786, or local:N for N processes "
            f"on this machine, got {scheduler!r}"
        )
    if local:
        return _on_processes(int(local[1]), work, iter(tasks))
    return _on_cluster(scheduler, work, iter(tasks))


def _on_processes(n: int, work: Any, tasks: Iterator[Any]) -> Iterator[Any]:
    deaths: Counter[Any] = Counter()
    with closing(_Processes(n, work)) as processes:
        while True:
            # A pool breaks as a whole: nobody knows over which of these tasks a process has died.
            broken: list[Any] = []
            yield from _answers(processes.submit, lambda: n, tasks, broken)
            if not broken:
                return
            deaths.update(broken)
            processes.restart()
            for task in (task for task in broken if deaths[task] == _DEATHS - 1):
                # Alone, so that the next death has a name.
                try:
                    yield processes.submit(task).result()
                except BrokenProcessPool:
                    raise ClusterError(
                        f"{task}: given up after {_DEATHS} processes had died while they worked "
                        "on it, as they do when the memory is short; what was finished before is "
                        "kept"
                    ) from None
            tasks = chain([task for task in broken if deaths[task] < _DEATHS - 1], tasks)


def _answers(
    submit: Callable[[Any], "Future[Any]"],
    workers: Callable[[], int],
    tasks: Iterator[Any],
    broken: list[Any],
) -> Iterator[Any]:
    """Keep the workers busy until the tasks are done, or list those that died with their pool."""
    running: dict[Future[Any], Any] = {}
    while True:
        room = 0 if broken else _AHEAD * max(1, workers()) - len(running)
        for task in islice(tasks, max(0, room)):
            running[submit(task)] = task
        if not running:
            return
        done, _ = wait(running, timeout=_LOOK, return_when=FIRST_COMPLETED)
        for future in done:
            task = running.pop(future)
            try:
                answer = future.result()
            except BrokenProcessPool:
                broken.append(task)
            else:
                yield answer


class _Processes:
    """Processes of this machine, with the work to do; they end when this is closed, or killed."""

    def __init__(self, n: int, work: Any) -> None:
        self._n, self._work = n, work
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        # The other end is closed by this process, or by the system when this process is killed.
        ending, self._ending = context.Pipe(duplex=False)
        threads = str(max(1, (os.cpu_count() or 1) // self._n))
        self._pool = ProcessPoolExecutor(
            self._n,
            mp_context=context,
            initializer=_begin,
            initargs=(ending, self._work, _versions(), threads),
        )

    def submit(self, task: Any) -> "Future[Any]":
        try:
            with _deaf_to_interrupts():
                return self._pool.submit(_do_here, task)
        except BrokenProcessPool as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        self._ending.close()
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach.

    The terminal sends it to all of them; it is for this one alone, which ends the others.
    """
    # Its start, with the first process, would undo the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_here: list[Any] = []


def _begin(ending: Any, work: Any, versions: dict[str, str], threads: str) -> None:
    """Set a new process up, which ends when the other end of a pipe does."""

    def end() -> None:
        ending.poll(None)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
    # TensorFlow would start a thread a core in every process.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", threads)
    _here[:] = [work, versions]


def _do_here(task: Any) -> Any:
    work, versions = _here
    return _do(work, versions, task)


def _do(work: Any, versions: dict[str, str], task: Any) -> Any:
    """Carry out a task on a worker that is as the process which sent it."""
    differences = _differences(versions, _own_versions())
    if differences:
        raise ClusterError(_refused(f"process {os.getpid()}", differences))
    return work(task)


def _on_cluster(address: str, work: Any, tasks: Iterator[Any]) -> Iterator[Any]:
    with extra("cluster"):
        from distributed import KilledWorker

    with _quiet(), closing(_client(address)) as client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            raise ClusterError(
                f"{address}: 1 worker expected, and not there after {_PATIENCE:.0f} seconds; "
                f"`dask worker {address}` starts one"
            ) from None
        _check_versions(client)
        watch, versions = _Watch(client), _versions()
        # Not scattered: what is scattered is lost with the worker that holds it.
        kept = client.submit(_same, work, pure=False)
        executor = client.get_executor(pure=False)
        try:
            yield from _answers(
                lambda task: executor.submit(_do, kept, versions, task), watch, tasks, []
            )
        except KilledWorker as error:
            raise ClusterError(
                f"a task was given up after {error.allowed_failures + 1} workers had died while "
                "they worked on it, as they do when the memory is short; the last was "
                f"{error.last_worker.address}"
            ) from None
        except CancelledError:
            raise ClusterError(_LOST) from None


def _same(work: Any) -> Any:
    return work


class _Watch:
    """Counts the threads of a cluster's workers, and tells if it has had none for long."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._last_seen = time.monotonic()

    def __call__(self) -> int:
        if self._client.status != "running":
            raise ClusterError(_LOST)
        try:
            threads = int(sum(self._client.nthreads().values()))
        except OSError:
            raise ClusterError(_LOST) from None
        now = time.monotonic()
        if threads:
            self._last_seen = now
        elif now - self._last_seen > _PATIENCE:
            raise ClusterError(f"the cluster has had no worker for {_PATIENCE:.0f} seconds")
        return threads


def _client(address: str) -> Any:
    with extra("cluster"):
        from distributed import Client

    try:
        with warnings.catch_warnings():
            # Other versions are told later, in a sentence.
            warnings.simplefilter("ignore")
            return Client(address, timeout=_CONNECT, set_as_default=False)
    except OSError:
        raise ClusterError(
            f"{address}: no Dask scheduler answers there; `dask scheduler` starts one, and "
            "local:N needs none"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's own reports from the terminal: what matters is told by an exception."""
    handlers = logging.getLogger("distributed").handlers
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


def _check_versions(client: Any) -> None:
    """Ask every worker before work begins; later ones are asked with their first task."""
    for address, theirs in client.run(_versions, on_error="return").items():
        if isinstance(theirs, BaseException):
            raise ClusterError(
                f"the worker {address} has not this package as it is here: it answers {theirs!r}"
            )
        differences = _differences(_versions(), theirs)
        if differences:
            raise ClusterError(_refused(address, differences))


def _refused(address: str, differences: str) -> str:
    return f"the worker {address} has other versions than this process: {differences}"


def _differences(ours: dict[str, str], theirs: dict[str, str]) -> str:
    return ", ".join(
        f"{name} {theirs.get(name, 'unknown')} instead of {version}"
        for name, version in ours.items()
        if theirs.get(name) != version
    )


def _versions() -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    found = {"Python": python} | {package: _version(package) for package in _PACKAGES}
    # The version of a checkout stays while its code changes.
    return found | {"code of pdutils": _code()}


_own_versions = cache(_versions)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _code() -> str:
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n{path.read_text(encoding='utf-8')}".encode())
    return digest.hexdigest()[:8]
