"""Work spread over the processes of a Dask cluster, on this machine or on many.

Source: Rocklin 2015, DOI 10.25080/Majora-7b98e3ed-013.
"""

import asyncio
import hashlib
import logging
import os
import platform
import re
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from importlib import metadata
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from distributed import Client, KilledWorker, LocalCluster, Status, WorkerPlugin, get_worker

Task = TypeVar("Task")
Result = TypeVar("Result")

_LOCAL = re.compile(r"local:([1-9]\d*)")
_ADDRESS = re.compile(r"[a-z]+://[^\s/]+:\d+")

#: What a worker must have in the client's version: a result is a matter of all of them.
_PACKAGES = ("numpy", "tensorflow", "keras", "distributed", "pdutils")

#: Seconds until a scheduler that does not answer is taken to be absent.
_CONNECT = 20.0

#: Seconds to wait for a worker while the cluster has none.
_PATIENCE = 120.0

#: Seconds between two looks at whether the cluster still has workers.
_LOOK = 1.0

_LOST = (
    "the connection to the scheduler was lost; what was finished before is kept, and the same "
    "command goes on from there"
)


class ClusterError(OSError):
    """A cluster that cannot be used; the message says why."""


def scattered(
    work: Callable[[Task], Result], tasks: Iterable[Task], *, scheduler: str, ahead: int = 2
) -> Iterator[tuple[Task, Result]]:
    """Carry out `work(task)` for each task on a Dask cluster.

    `work` travels once to each worker and stays there, so it may keep what it loads, such as a
    classifier. A worker with several threads calls it from all of them. What a worker that dies
    had not finished is done again by another. All that was started is ended when the iterator is
    exhausted or closed, by an error or by Ctrl-C: take it in `contextlib.closing`, so that this is
    at once.

    Parameters
    ----------
    work : callable
        It must be picklable, as its tasks and results must.
    tasks : iterable
        They are drawn as the cluster has room for them.
    scheduler : str
        The address of a scheduler, such as `tcp://host:8786`, or `local:N` for N processes of one
        thread each on this machine, which are ended afterwards.
    ahead : int
        How many tasks may be under way for each thread of the workers, at least 1.

    Yields
    ------
    (task, result)
        In the order in which they are finished.

    Raises
    ------
    ValueError
        If `scheduler` or `ahead` is none of the above; at once, before anything is drawn.
    ClusterError
        If the scheduler does not answer or goes away, it has no worker, a worker has another
        version of Python, NumPy, TensorFlow, Keras, Distributed or this package than the client,
        or a task has outlived too many workers.
    Exception
        Whatever `work` raises, as it is.
    """
    local = _LOCAL.fullmatch(scheduler)
    if not local and not _ADDRESS.fullmatch(scheduler):
        raise ValueError(
            "scheduler: expected an address such as tcp://host:8786, or local:N for N processes "
            f"on this machine, got {scheduler!r}"
        )
    if ahead < 1:
        raise ValueError(f"ahead: expected at least 1, got {ahead}")
    return _scattered(work, iter(tasks), scheduler, int(local[1]) if local else 0, ahead)


def _scattered(
    work: Callable[[Task], Result], tasks: Iterator[Task], scheduler: str, local: int, ahead: int
) -> Iterator[tuple[Task, Result]]:
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        address = stack.enter_context(_processes(local)) if local else scheduler
        client = stack.enter_context(_connection(address, max(1, local)))
        _check_versions(client)
        name = stack.enter_context(_spread(client, _Work(work)))
        yield from _carried_out(client, name, tasks, ahead)


def _carried_out(client: Any, name: str, tasks: Iterator[Any], ahead: int) -> Iterator[Any]:
    """Keep the cluster busy, and give what is done as it is done."""
    done: SimpleQueue[Any] = SimpleQueue()
    running: dict[Any, Any] = {}
    while True:
        room = ahead * max(1, _threads(client)) - len(running)
        for task in islice(tasks, max(0, room)):
            future = client.submit(_call, name, task, pure=False)
            running[future] = task
            future.add_done_callback(done.put)
        if not running:
            return
        future = _next(client, done)
        task = running.pop(future)
        yield task, _result(client, future)


def _next(client: Any, done: "SimpleQueue[Any]") -> Any:
    last_seen = time.monotonic()
    while True:
        try:
            return done.get(timeout=_LOOK)
        except Empty:
            last_seen = _check_workers(client, last_seen)


def _result(client: Any, future: Any) -> Any:
    last_seen = time.monotonic()
    while True:
        try:
            return future.result(timeout=_PATIENCE)
        except KilledWorker as error:
            raise ClusterError(
                f"a task was given up after {error.allowed_failures + 1} workers had died while "
                "they worked on it, as they do when the memory is short; the last was "
                f"{error.last_worker.address}"
            ) from None
        except CancelledError:
            raise ClusterError(_LOST) from None
        except TimeoutError:
            # The task's own, or a result whose worker has died in the meantime.
            if future.status == "error":
                raise
            last_seen = _check_workers(client, last_seen)


def _check_workers(client: Any, last_seen: float) -> float:
    """Give the time at which a worker was last seen, unless that is too long ago."""
    now = time.monotonic()
    if _threads(client) > 0:
        return now
    if now - last_seen > _PATIENCE:
        raise ClusterError(f"the cluster has had no worker for {_PATIENCE:.0f} seconds")
    return last_seen


def _threads(client: Any) -> int:
    if client.status != "running":
        raise ClusterError(_LOST)
    try:
        return sum(client.nthreads().values())
    except OSError:
        raise ClusterError(_LOST) from None


@contextmanager
def _processes(n: int) -> Iterator[str]:
    """Start n worker processes of one thread, that listen on this machine alone."""
    with ExitStack() as stack:
        with _uninterrupted(), _deaf_to_interrupts(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cluster = LocalCluster(
                n_workers=0,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                # Without a dashboard there is still a server, at a fixed port by default.
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                # Dask would halt workers by what the machine's memory holds besides them.
                memory_limit=0,
                silence_logs=logging.CRITICAL,
                env=_environment(n),
            )
            stack.enter_context(cluster)
        stack.callback(cluster.sync, _settled, cluster)
        cluster.scale(n)
        yield cluster.scheduler_address


async def _settled(cluster: Any) -> None:
    """Wait until every process runs or is gone: Dask fails to close one that is being started."""
    nannies = list(cluster.workers.values())
    for nanny in nannies:
        # From now on, a process that dies is not replaced.
        nanny.close_gracefully()
    end = time.monotonic() + _PATIENCE
    while not all(_is_settled(nanny) for nanny in nannies) and time.monotonic() < end:
        await asyncio.sleep(0.05)


def _is_settled(nanny: Any) -> bool:
    if nanny.process is None:
        return True
    # The status of a process that died young can pass to the one after it, which is not alive yet.
    return bool(nanny.is_alive()) and nanny.process.status == Status.running


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off to the end of the block: what is half started cannot be ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Start threads, and what they start in turn, that Ctrl-C does not reach.

    The terminal sends it to all processes; it is for the client alone, which ends the others.
    """
    # Its start, with the first process, would undo the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment(n: int) -> dict[str, str]:
    """Share the processor out: TensorFlow would start a thread a core in every process."""
    threads = max(1, (os.cpu_count() or 1) // n)
    given = os.environ.get("TF_NUM_INTRAOP_THREADS", str(threads))
    return {"TF_NUM_INTRAOP_THREADS": given}


@contextmanager
def _connection(address: str, workers: int) -> Iterator[Any]:
    with ExitStack() as stack:
        with _uninterrupted():
            client = stack.enter_context(_client(address))
        try:
            client.wait_for_workers(workers, timeout=_PATIENCE)
        except TimeoutError:
            raise ClusterError(
                f"{address}: {workers} worker(s) expected, and not there after {_PATIENCE:.0f} "
                f"seconds; `dask worker {address}` starts one"
            ) from None
        yield client


def _client(address: str) -> Any:
    try:
        with warnings.catch_warnings():
            # Other versions are told later, in a sentence.
            warnings.simplefilter("ignore")
            return Client(address, timeout=_CONNECT, set_as_default=False)
    except (OSError, ImportError):
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


class _Work(WorkerPlugin):  # type: ignore[misc]
    """The work, on a worker: those that come later get it too."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work
        self.versions = _versions()
        self.refusal = ""

    def setup(self, worker: Any) -> None:
        self.refusal = _differences(self.versions, _versions())


@contextmanager
def _spread(client: Any, plugin: _Work) -> Iterator[str]:
    name = f"pdutils-{uuid.uuid4().hex}"
    client.register_plugin(plugin, name=name)
    try:
        yield name
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(name)


def _call(name: str, task: Any) -> Any:
    worker = get_worker()
    plugin = worker.plugins[name]
    if plugin.refusal:
        raise ClusterError(_refused(worker.address, plugin.refusal))
    return plugin.work(task)


def _check_versions(client: Any) -> None:
    """Ask every worker before work begins; those that come later are asked on arrival."""
    answers = client.run(_versions, on_error="return")
    ours = _versions()
    for address, theirs in answers.items():
        if isinstance(theirs, BaseException):
            raise ClusterError(
                f"the worker {address} has not this package as it is here: it answers {theirs!r}"
            )
        differences = _differences(ours, theirs)
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
