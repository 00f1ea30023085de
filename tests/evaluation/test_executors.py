import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import closing, contextmanager
from functools import partial
from operator import length_hint
from pathlib import Path

import psutil
import pytest

from pdutils.evaluation import executors
from pdutils.evaluation.executors import ClusterError, finished

#: Seconds in which what was told to end has ended, on the slowest machine.
PATIENCE = 300


@contextmanager
def _cluster(n: int, **options):
    # Not above: processes of this machine load this file, and would wait for it.
    from distributed import LocalCluster

    own = {"threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with LocalCluster(n_workers=n, **own) as started:
            yield started


@pytest.fixture(scope="module")
def running():
    """A cluster of two processes that others have started."""
    with _cluster(2) as started:
        yield started


@pytest.fixture(params=["processes", "cluster"])
def scheduler(request) -> str:
    local = request.param == "processes"
    return "local:2" if local else request.getfixturevalue("running").scheduler_address


def trouble(x: int, error: type[Exception] | None = None, mark: Path | None = None) -> int:
    """Meet the number 3 with an error, or the end of the process; with a mark only once."""
    if x == 3 and error:
        raise error("the task's own")
    if x == 3 and not (mark and mark.exists()):
        if mark:
            mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


class Remember:
    """Counts its own calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: int) -> tuple[int, int, int, str | None]:
        self.calls += 1
        time.sleep(0.1)
        return x * x, os.getpid(), self.calls, os.environ.get("TF_NUM_INTRAOP_THREADS")


@pytest.fixture
def workers():
    """A function that gives the processes which this test has started and which still run."""

    def children() -> set[psutil.Process]:
        found = psutil.Process().children(recursive=True)
        return {child for child in found if "spawn_main" in " ".join(child.cmdline())}

    before = children()
    return lambda: children() - before


def test_every_task_is_done_once_quietly_and_by_several_to_whom_the_work_travels_once(
    scheduler, capfd, workers, monkeypatch
):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    found = list(finished(Remember(), range(20), scheduler=scheduler))
    assert sorted(answer for answer, *_ in found) == [x * x for x in range(20)]
    by_process = {pid: sorted(n for _, p, n, _ in found if p == pid) for _, pid, _, _ in found}
    assert len(by_process.keys() - {os.getpid()}) == 2
    # A worker of a cluster may have its copy from another that has begun.
    assert all(calls == [*range(calls[0], calls[0] + len(calls))] for calls in by_process.values())
    assert 1 in {calls[0] for calls in by_process.values()}
    if scheduler == "local:2":
        # They share the processor.
        assert {threads for *_, threads in found} == {str(max(1, os.cpu_count() // 2))}
    assert capfd.readouterr() == ("", "")
    assert not workers()


def test_a_cluster_of_others_draws_tasks_when_there_is_room_and_is_left_as_it_was(running):
    address, tasks, offset = running.scheduler_address, iter(range(30)), 7
    results = finished(abs, tasks, scheduler=address)
    assert length_hint(tasks) == 30
    for done, _ in enumerate(results, 1):
        # Those under way when this one was finished, and those that were finished with it.
        assert 30 - length_hint(tasks) - (done - 1) <= 2 * 2 * 2
    assert done == 30
    with closing(finished(time.sleep, [0.2] * 50, scheduler=address)) as results:
        next(results)
    while running.scheduler.tasks:
        time.sleep(0.05)
    # A closure is work too, and no task is no result.
    for given, expected in ([1], [8]), ([], []), (range(3), [7, 8, 9]):
        assert sorted(finished(lambda x: x + offset, given, scheduler=address)) == expected


def test_what_the_work_raises_is_raised_here_and_all_is_ended(scheduler, workers):
    tasks = iter(range(1000))
    with pytest.raises(TimeoutError, match="the task's own"):
        list(finished(partial(trouble, error=TimeoutError), tasks, scheduler=scheduler))
    assert length_hint(tasks) > 500
    assert not workers()


def test_a_worker_that_dies_changes_no_result(scheduler, tmp_path, capfd, workers):
    work = partial(trouble, mark=tmp_path / "died")
    assert sorted(finished(work, range(16), scheduler=scheduler)) == [*range(16)]
    assert (tmp_path / "died").exists()
    assert capfd.readouterr().out == ""
    # Of a cluster, what has died is begun anew by whoever began it.
    assert not workers() or scheduler != "local:2"


def test_a_task_that_kills_every_worker_is_given_up(running, monkeypatch, workers):
    with pytest.raises(ClusterError, match=r"^3: given up after 3 processes had died while they"):
        list(finished(trouble, [3, 0, 1], scheduler="local:1"))
    assert not workers()
    monkeypatch.setattr(running.scheduler, "allowed_failures", 0)
    with pytest.raises(ClusterError, match="a task was given up after 1 workers had died"):
        list(finished(trouble, [3], scheduler=running.scheduler_address))


def test_an_address_of_another_form_or_where_nobody_answers_is_refused_soon(monkeypatch, capfd):
    for address in (
        "",
        "local",
        "local:0",
        "local:-1",
        "local:two",
        "localhost:8786",
        "tcp://host",
    ):
        with pytest.raises(ValueError, match="scheduler: expected"):
            finished(abs, [1], scheduler=address)
    assert executors._CONNECT <= 20
    monkeypatch.setattr(executors, "_CONNECT", 0.5)
    with pytest.raises(ClusterError, match=r"tcp://127\.0\.0\.1:9: no Dask scheduler answers"):
        list(finished(abs, [1], scheduler="tcp://127.0.0.1:9"))
    assert capfd.readouterr() == ("", "")


def test_workers_with_other_versions_are_refused_before_work_begins(running, monkeypatch):
    real, tasks = executors.installed, iter(range(3))
    for package in ("keras", "pdutils", "numpy", "tensorflow"):
        other = {package: "9.9"}
        monkeypatch.setattr(executors, "installed", lambda p, o=other: o.get(p) or real(p))
        with pytest.raises(ClusterError, match=rf"{package} \S+ instead of 9\.9$"):
            list(finished(abs, tasks, scheduler=running.scheduler_address))
    assert length_hint(tasks) == 3


def test_workers_with_another_python_or_other_code_are_refused(scheduler, monkeypatch):
    monkeypatch.setattr(executors.platform, "python_version_tuple", lambda: ("3", "99", "1"))
    monkeypatch.setattr(executors, "_code", lambda: "0123abcd")
    with pytest.raises(ClusterError, match=r"Python 3\.\d+ instead of 3\.99, code of pdutils \S+ "):
        list(finished(abs, [1], scheduler=scheduler))


def test_a_worker_that_comes_later_or_lacks_the_package_is_refused_too(running, monkeypatch):
    from distributed import Client

    def versions():
        import pdutils_of_another_time  # noqa: F401

    address, client_run = running.scheduler_address, Client.run
    monkeypatch.setattr(Client, "run", lambda self, _, **kept: client_run(self, versions, **kept))
    with pytest.raises(ClusterError, match=r"has not this package as it is here: .*ModuleNotFound"):
        list(finished(abs, [1], scheduler=address))
    monkeypatch.setattr(Client, "run", lambda *_, **kept: {})
    monkeypatch.setattr(executors, "_code", lambda: "0123abcd")
    with pytest.raises(ClusterError, match=r"process \d+ has other versions .* of 0123abcd"):
        list(finished(abs, [1], scheduler=address))


def test_workers_that_leave_or_are_not_there_and_a_lost_scheduler_are_told(monkeypatch):
    monkeypatch.setattr(executors, "_LOOK", 0.1)
    with _cluster(1, processes=False, protocol="tcp://") as single:
        address = single.scheduler_address
        with closing(finished(time.sleep, [0.2] * 50, scheduler=address)) as results:
            next(results)
            with monkeypatch.context() as patch:
                patch.setattr(executors, "_PATIENCE", 0.5)
                single.scale(0)
                with pytest.raises(ClusterError, match="has had no worker for"):
                    list(results)
                with pytest.raises(ClusterError, match=rf"{address}: no worker is there after"):
                    list(finished(abs, [1], scheduler=address))
        single.scale(1)
        with closing(finished(time.sleep, [0.2] * 50, scheduler=address)) as results:
            next(results)
            single.close()
            with pytest.raises(ClusterError, match="the connection to the scheduler was lost"):
                list(results)


_SCRIPT = """
import time
from pdutils.evaluation.executors import finished

if __name__ == "__main__":
    print("started", flush=True)
    for _ in finished(time.sleep, [0.2] * 1000, scheduler="local:2"):
        print("slept", flush=True)
"""


# As a terminal ends it: the whole group at once. Or as a kill does: the one process alone.
@pytest.mark.parametrize(
    ("lines", "how"), [(1, signal.SIGINT), (3, signal.SIGINT), (3, signal.SIGKILL)]
)
def test_control_c_and_a_kill_end_all_processes(tmp_path, lines, how):
    (tmp_path / "script.py").write_text(_SCRIPT)
    command, pipes = [sys.executable, tmp_path / "script.py"], {"stdout": -1, "stderr": -1}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as script:
        for _ in range(lines):
            script.stdout.readline()
        time.sleep(0.3)
        everyone = psutil.Process(script.pid).children(recursive=True)
        (os.killpg if how == signal.SIGINT else os.kill)(script.pid, how)
        _, err = script.communicate(timeout=PATIENCE)
    assert not psutil.wait_procs(everyone, timeout=PATIENCE)[1]
    if how == signal.SIGINT:
        assert err.rstrip().endswith("KeyboardInterrupt")
        assert err.count("Traceback") == 1


_OWNERS = """
from multiprocessing import get_context
from pdutils.evaluation.executors import finished

kept = []

def work(x):
    kept.append(get_context("spawn").Lock())
    return x

if __name__ == "__main__":
    print(sorted(finished(work, range(4), scheduler="local:2")))
"""


def test_processes_whose_work_is_done_leave_nothing_that_python_would_tell_of(tmp_path):
    (tmp_path / "script.py").write_text(_OWNERS)
    command = [sys.executable, tmp_path / "script.py"]
    script = subprocess.run(command, text=True, capture_output=True, timeout=PATIENCE)
    assert (script.stdout, script.stderr) == ("[0, 1, 2, 3]\n", "")
