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
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from itertools import chain, islice
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Any

from pdutils._utils import extra, installed

_LOCAL, _ADDRESS = re.compile(r"local:([1-9]\d*)"), re.compile(r"[a-z]+://[^\s/]+:\d+")

#: What a worker must have in this process's version: a result is a matter of all of them.
_PACKAGES = ("numpy", "tensorflow", "jax", "keras", "distributed", "pdutils")

#: Seconds until a scheduler that does not answer is taken to be absent; to wait for a worker while
#: there is none; between two looks at whether there still is one.
_CONNECT, _PATIENCE, _LOOK = 20.0, 120.0, 1.0

#: How many tasks are under way for each worker, and how many processes may die over one of them.
_AHEAD, _DEATHS = 2, 3

_LOST = (
    "the connection to the scheduler was lost; what was finished before is kept, and the same "
    "command goes on from there"
)

_GIVEN_UP = "given up after {} had died while they worked on it, as they do when memory is short"


class ClusterError(OSError):
    """Workers that cannot be used; the message says why."""


def finished(work: Callable[[Any], Any], tasks: Iterable[Any], *, scheduler: str) -> Generator[Any]:
    """Give `work(task)` for each task, in the order in which they are finished.

    `scheduler` is `local:N` for N processes on this machine, or the address of a Dask scheduler.
    `work` travels once to each worker and stays there; tasks are drawn as there is room for them.
    What a worker that dies had not finished is done again by another. All that was started is ended
    when the iterator is exhausted or closed, by an error or by Ctrl-C: take it in `closing`.
    """
    if local := _LOCAL.fullmatch(scheduler):
        return _on_processes(int(local[1]), work, iter(tasks))
    if _ADDRESS.fullmatch(scheduler):
        return _on_cluster(scheduler, work, iter(tasks))
    raise ValueError(
        "scheduler: expected an address such as tcp://host:8786, or local:N for N processes on "
        f"this machine, got {scheduler!r}"
    )


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
            try:
                running[submit(task)] = task
            except BrokenProcessPool:
                broken.append(task)
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


def _on_processes(n: int, work: Any, tasks: Iterator[Any]) -> Generator[Any]:
    deaths, broken = Counter[Any](), list[Any]()
    while True:
        with _processes(n, work) as submit:
            for task in (task for task in broken if deaths[task] == _DEATHS - 1):
                # Alone, so that the next death has a name.
                try:
                    yield submit(task).result()
                except BrokenProcessPool:
                    told = _GIVEN_UP.format(f"{_DEATHS} processes")
                    raise ClusterError(f"{task}: {told}; what was finished is kept") from None
            tasks = chain([task for task in broken if deaths[task] < _DEATHS - 1], tasks)
            broken = []
            yield from _answers(submit, lambda: n, tasks, broken)
        if not broken:
            return
        # A pool breaks as a whole: nobody knows over which of these tasks a process has died.
        deaths.update(broken)


@contextmanager
def _processes(n: int, work: Any) -> Iterator[Callable[[Any], "Future[Any]"]]:
    """Start processes of this machine, which end with this context or when this one is killed."""
    context = get_context("spawn")
    # The other end is closed by this process, or by the system when this process is killed.
    ending, other_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(n, context, _begin, (ending, work, _versions(), n))
    # Its start, with the first process, would undo the mask below.
    resource_tracker.ensure_running()

    def submit(task: Any) -> "Future[Any]":
        # It may start a process, which must be deaf to Ctrl-C: the terminal sends that to all of
        # them, and it is for this one alone, which ends the others.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return pool.submit(_do_here, task)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield submit
        # All is done: each process may tidy up behind itself, or Python tells of what it leaves.
        pool.shutdown()
    finally:
        other_end.close()
        pool.shutdown(cancel_futures=True)


_here: dict[str, Any] = {}


def _begin(ending: Any, work: Any, versions: dict[str, str], n: int) -> None:
    """Set a new process up, which ends when the other end of a pipe does."""

    def end() -> None:
        ending.poll(None)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
    # TensorFlow would start a thread a core in every process.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, (os.cpu_count() or 1) // n)))
    _here.update(work=work, versions=versions)


def _do_here(task: Any) -> Any:
    return _do(**_here, task=task)


def _do(work: Any, versions: dict[str, str], task: Any) -> Any:
    """Carry out a task on a worker that is as the process which sent it."""
    _check_same(f"process {os.getpid()}", versions, _own_versions())
    return work(task)


def _on_cluster(address: str, work: Any, tasks: Iterator[Any]) -> Generator[Any]:
    with extra("cluster"):
        from distributed import Client, KilledWorker

    with ExitStack() as stack:
        # Dask's own reports: what matters is told by an exception.
        for handler in logging.getLogger("distributed").handlers:
            stack.callback(handler.setLevel, handler.level)
            handler.setLevel(logging.CRITICAL)
        try:
            with warnings.catch_warnings():
                # Other versions are told later, in a sentence.
                warnings.simplefilter("ignore")
                client = Client(address, timeout=_CONNECT, set_as_default=False)
            stack.enter_context(closing(client))
        except OSError:
            raise ClusterError(
                f"{address}: no Dask scheduler answers there; `dask scheduler` starts one, and "
                "local:N needs none"
            ) from None
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            raise ClusterError(
                f"{address}: no worker is there after {_PATIENCE:.0f} seconds; `dask worker "
                f"{address}` starts one"
            ) from None
        versions = _versions()
        # Later workers are asked with their first task.
        for worker, theirs in client.run(_versions, on_error="return").items():
            _check_same(worker, versions, theirs)
        # Not scattered: what is scattered is lost with the worker that holds it.
        kept = client.submit(lambda: work, pure=False)
        executor = client.get_executor(pure=False)
        try:
            yield from _answers(
                lambda task: executor.submit(_do, kept, versions, task), _watch(client), tasks, []
            )
        except KilledWorker as error:
            told = _GIVEN_UP.format(f"{error.allowed_failures + 1} workers")
            raise ClusterError(f"a task was {told}; {error.last_worker.address} last") from None
        except CancelledError:
            raise ClusterError(_LOST) from None


def _watch(client: Any) -> Callable[[], int]:
    """Count the threads of a cluster's workers, and tell if it has had none for long."""
    last_seen = time.monotonic()

    def threads() -> int:
        nonlocal last_seen
        try:
            found = sum(client.nthreads().values()) if client.status == "running" else None
        except OSError:
            found = None
        if found is None:
            raise ClusterError(_LOST)
        if found:
            last_seen = time.monotonic()
        elif time.monotonic() - last_seen > _PATIENCE:
            raise ClusterError(f"the cluster has had no worker for {_PATIENCE:.0f} seconds")
        return int(found)

    return threads


def _check_same(worker: str, ours: dict[str, str], theirs: Any) -> None:
    if isinstance(theirs, BaseException):
        raise ClusterError(
            f"the worker {worker} has not this package as it is here: it answers {theirs!r}"
        )
    differences = [
        f"{name} {theirs.get(name, 'unknown')} instead of {version}"
        for name, version in ours.items()
        if theirs.get(name) != version
    ]
    if differences:
        raise ClusterError(
            f"the worker {worker} has other versions than this process: {', '.join(differences)}"
        )


def _versions() -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    found = {"Python": python} | {package: installed(package) for package in _PACKAGES}
    # The version of a checkout stays while its code changes.
    return found | {"code of pdutils": _code()}


_own_versions = cache(_versions)


def _code() -> str:
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n{path.read_text(encoding='utf-8')}".encode())
    return digest.hexdigest()[:8]
