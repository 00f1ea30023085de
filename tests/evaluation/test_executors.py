import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from pdutils.evaluation import executors
from pdutils.evaluation.executors import ClusterError, finished

#: Seconds in which what was told to end has ended, on the slowest machine.
PATIENCE = 300


@pytest.fixture(scope="module")
def running():
    """A cluster of two processes that others have started."""
    yield from _cluster(2)


@pytest.fixture
def single():
    """A cluster of one worker, to be ended."""
    yield from _cluster(1)


def _cluster(n: int):
    # Not above: processes of this machine load this file, and would wait for it.
    from distributed import LocalCluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with LocalCluster(
            n_workers=n, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as started:
            yield started


@pytest.fixture(params=["processes", "cluster"])
def scheduler(request) -> str:
    if request.param == "processes":
        return "local:2"
    return request.getfixturevalue("running").scheduler_address


def square(x: int) -> int:
    return x * x


def refuse_three(x: int) -> int:
    if x == 3:
        raise LookupError("three")
    return x


def slow(x: int) -> int:
    time.sleep(0.2)
    return x


def process(x: int) -> int:
    time.sleep(0.2)
    return os.getpid()


def out_of_time(x: int) -> int:
    raise TimeoutError("the task's own")


class DieOnce:
    """Squares; the process that is first to meet the number 5 is killed."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, x: int) -> int:
        if x == 5 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return x * x


def die_at_three(x: int) -> int:
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


class Remember:
    """Counts its own calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: int) -> tuple[int, int]:
        self.calls += 1
        return os.getpid(), self.calls


class Counted:
    """Counts what is drawn from it."""

    def __init__(self, n: int) -> None:
        self.n, self.drawn = n, 0

    def __iter__(self):
        for i in range(self.n):
            self.drawn += 1
            yield i


@pytest.fixture
def workers():
    """A function that gives the processes which this test has started and which still run."""
    before = _children()
    return lambda: _children() - before


def _children() -> set[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return {child for child in children if "spawn_main" in " ".join(child.cmdline())}


def test_every_task_is_done_once_quietly_and_by_several(scheduler, capfd, workers):
    with closing(finished(square, range(20), scheduler=scheduler)) as results:
        assert sorted(results) == [x * x for x in range(20)]
    assert len({*finished(process, range(12), scheduler=scheduler)} - {os.getpid()}) == 2
    assert capfd.readouterr() == ("", "")
    assert not workers()


def test_tasks_are_drawn_when_there_is_room(running):
    tasks = Counted(30)
    results = finished(square, tasks, scheduler=running.scheduler_address)
    assert tasks.drawn == 0
    for done, _ in enumerate(results, 1):
        # Those under way when this one was finished, and those that were finished with it.
        assert tasks.drawn - (done - 1) <= 2 * 2 * 2
    assert tasks.drawn == 30


def test_the_work_travels_once_and_remembers(scheduler):
    found = list(finished(Remember(), range(12), scheduler=scheduler))
    by_process = {pid: sorted(n for p, n in found if p == pid) for pid, _ in found}
    # A worker of a cluster may have its copy from another that has begun.
    assert all(calls == [*range(calls[0], calls[0] + len(calls))] for calls in by_process.values())
    assert 1 in {calls[0] for calls in by_process.values()}


def test_a_closure_is_work_of_a_cluster_too_and_no_task_is_no_result(running):
    offset, address = 7, running.scheduler_address
    assert list(finished(lambda x: x + offset, [1], scheduler=address)) == [8]
    assert list(finished(square, [], scheduler=address)) == []


def test_what_the_work_raises_is_raised_here_and_all_is_ended(scheduler, workers):
    tasks = Counted(1000)
    with pytest.raises(LookupError, match="three"):
        list(finished(refuse_three, tasks, scheduler=scheduler))
    assert tasks.drawn < 500
    with pytest.raises(TimeoutError, match="the task's own"):
        list(finished(out_of_time, [1], scheduler=scheduler))
    assert not workers()


def test_a_worker_that_dies_changes_no_result(scheduler, tmp_path, capfd, workers):
    with closing(finished(DieOnce(tmp_path / "died"), range(16), scheduler=scheduler)) as results:
        found = sorted(results)
    assert (tmp_path / "died").exists()
    assert found == [x * x for x in range(16)]
    assert capfd.readouterr().out == ""
    # Of a cluster, what has died is begun anew by whoever began it.
    assert not workers() or scheduler != "local:2"


def test_a_task_that_kills_every_process_is_named_and_the_others_are_done(workers):
    found: list[int] = []
    with pytest.raises(ClusterError, match=r"^3: given up after 3 processes had died while they"):
        found.extend(finished(die_at_three, [3, 0, 1], scheduler="local:2"))
    assert set(found) <= {0, 1}
    assert not workers()


@pytest.mark.slow
def test_a_task_that_kills_every_worker_of_a_cluster_is_given_up(running):
    with pytest.raises(ClusterError, match="given up after 4 workers had died"):
        list(finished(die_at_three, [3], scheduler=running.scheduler_address))


def test_a_cluster_of_others_is_left_as_it_was(running):
    address = running.scheduler_address
    with closing(finished(slow, range(50), scheduler=address)) as results:
        next(results)
    while running.scheduler.tasks:
        time.sleep(0.05)
    assert sorted(finished(square, range(3), scheduler=address)) == [0, 1, 4]


@pytest.mark.parametrize(
    "scheduler", ["", "local", "local:0", "local:-1", "local:two", "localhost:8786", "tcp://host"]
)
def test_an_address_of_another_form_is_refused_at_once(scheduler):
    tasks = Counted(3)
    with pytest.raises(ValueError, match="scheduler: expected"):
        finished(square, tasks, scheduler=scheduler)
    assert tasks.drawn == 0


def test_a_scheduler_that_is_not_there_is_told_soon(monkeypatch, capfd):
    assert executors._CONNECT <= 20
    monkeypatch.setattr(executors, "_CONNECT", 0.5)
    with pytest.raises(ClusterError, match=r"tcp://127\.0\.0\.1:9: no Dask scheduler answers"):
        list(finished(square, [1], scheduler="tcp://127.0.0.1:9"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["keras", "pdutils", "numpy", "tensorflow"])
def test_workers_with_other_versions_are_refused_before_work_begins(running, monkeypatch, package):
    version = executors._version
    monkeypatch.setattr(executors, "_version", lambda p: "9.9" if p == package else version(p))
    tasks = Counted(3)
    with pytest.raises(ClusterError, match=rf"{package} \S+ instead of 9\.9$"):
        list(finished(square, tasks, scheduler=running.scheduler_address))
    assert tasks.drawn == 0


def test_workers_with_another_python_or_other_code_are_refused(scheduler, monkeypatch):
    monkeypatch.setattr(executors.platform, "python_version_tuple", lambda: ("3", "99", "1"))
    monkeypatch.setattr(executors, "_code", lambda: "0123abcd")
    with pytest.raises(ClusterError, match=r"Python 3\.\d+ instead of 3\.99, code of pdutils \S+ "):
        list(finished(square, [1], scheduler=scheduler))


def test_a_worker_that_comes_later_is_asked_for_its_versions_too(running, monkeypatch):
    monkeypatch.setattr(executors, "_check_versions", lambda client: None)
    monkeypatch.setattr(executors, "_code", lambda: "0123abcd")
    with pytest.raises(ClusterError, match=r"process \d+ has other versions .* of 0123abcd"):
        list(finished(square, [1], scheduler=running.scheduler_address))


def test_a_worker_that_lacks_the_package_is_refused(running, monkeypatch):
    from distributed import Client

    def versions():
        import pdutils_of_another_time  # noqa: F401

    client_run = Client.run
    monkeypatch.setattr(Client, "run", lambda self, _, **kept: client_run(self, versions, **kept))
    with pytest.raises(ClusterError, match=r"has not this package as it is here: .*ModuleNotFound"):
        list(finished(square, [1], scheduler=running.scheduler_address))


def test_workers_that_are_not_there_or_leave_are_told_after_a_wait(single, monkeypatch):
    monkeypatch.setattr(executors, "_LOOK", 0.1)
    with closing(finished(slow, range(50), scheduler=single.scheduler_address)) as results:
        next(results)
        monkeypatch.setattr(executors, "_PATIENCE", 0.5)
        single.scale(0)
        with pytest.raises(ClusterError, match="has had no worker for"):
            list(results)
    with pytest.raises(ClusterError, match="1 worker expected, and not there after"):
        list(finished(square, [1], scheduler=single.scheduler_address))


def test_a_scheduler_that_goes_away_is_told(single):
    with closing(finished(slow, range(50), scheduler=single.scheduler_address)) as results:
        next(results)
        single.close()
        with pytest.raises(ClusterError, match="the connection to the scheduler was lost"):
            list(results)


def test_processes_share_the_processor(monkeypatch):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    found = list(finished(threads, [1], scheduler="local:2"))
    assert found == [str(max(1, os.cpu_count() // 2))]


def threads(_: int) -> str | None:
    return os.environ.get("TF_NUM_INTRAOP_THREADS")


_SCRIPT = """
    import time
    from pdutils.evaluation.executors import finished

    def slow(x):
        time.sleep(0.2)
        return x

    if __name__ == "__main__":
        print("started", flush=True)
        for found in finished(slow, range(1000), scheduler="local:2"):
            print(found, flush=True)
"""


# As a terminal ends it: the whole group at once. Or as a kill does: the one process alone.
@pytest.mark.parametrize(
    ("lines", "how"), [(1, signal.SIGINT), (3, signal.SIGINT), (3, signal.SIGKILL)]
)
def test_control_c_and_a_kill_end_all_processes(tmp_path, lines, how):
    (tmp_path / "script.py").write_text(textwrap.dedent(_SCRIPT))
    with subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as script:
        for _ in range(lines):
            script.stdout.readline()
        time.sleep(0.3)
        everyone = psutil.Process(script.pid).children(recursive=True)
        if how == signal.SIGINT:
            os.killpg(script.pid, how)
        else:
            os.kill(script.pid, how)
        _, err = script.communicate(timeout=PATIENCE)
    _, alive = psutil.wait_procs(everyone, timeout=PATIENCE)
    assert not alive
    if how == signal.SIGINT:
        assert err.rstrip().endswith("KeyboardInterrupt")
        assert err.count("Traceback") == 1
