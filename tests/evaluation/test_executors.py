import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from contextlib import closing
from multiprocessing.context import SpawnProcess
from pathlib import Path

import psutil
import pytest
from distributed import LocalCluster

from pdutils.evaluation import executors
from pdutils.evaluation.executors import ClusterError, scattered

#: Seconds in which what was told to end has ended, on the slowest machine.
PATIENCE = 300


@pytest.fixture(scope="module")
def running():
    """A cluster of two processes that others have started."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as started:
            yield started


@pytest.fixture
def bare():
    """A scheduler without a worker."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with LocalCluster(
            n_workers=0, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as started:
            yield started


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
    time.sleep(0.05)
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


class Die:
    def __call__(self, x: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


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


def test_every_task_is_done_once_and_quietly(running, capfd):
    found = dict(scattered(square, range(20), scheduler=running.scheduler_address))
    assert found == {x: x * x for x in range(20)}
    assert capfd.readouterr() == ("", "")


def test_both_processes_work(running):
    found = scattered(process, range(20), scheduler=running.scheduler_address)
    assert len({pid for _, pid in found} - {os.getpid()}) == 2


def test_tasks_are_drawn_when_there_is_room(running):
    tasks = Counted(30)
    results = scattered(square, tasks, scheduler=running.scheduler_address, ahead=3)
    assert tasks.drawn == 0
    for finished, _ in enumerate(results, 1):
        # Those under way when this one was finished, it among them.
        assert tasks.drawn - (finished - 1) <= 3 * 2
    assert tasks.drawn == 30


def test_the_work_travels_once_and_remembers(running):
    address = running.scheduler_address
    found = [answer for _, answer in scattered(Remember(), range(12), scheduler=address)]
    by_process = {pid: sorted(n for p, n in found if p == pid) for pid, _ in found}
    assert all(calls == list(range(1, len(calls) + 1)) for calls in by_process.values())
    again = list(scattered(Remember(), [0], scheduler=address))
    assert again[0][1][1] == 1


def test_a_closure_is_work_too(running):
    offset = 7
    assert list(scattered(lambda x: x + offset, [1], scheduler=running.scheduler_address)) == [
        (1, 8)
    ]


def test_no_task_is_no_result(running):
    assert list(scattered(square, [], scheduler=running.scheduler_address)) == []


def test_what_the_work_raises_is_raised_here(running):
    tasks = Counted(1000)
    with pytest.raises(LookupError, match="three"):
        list(scattered(refuse_three, tasks, scheduler=running.scheduler_address))
    assert tasks.drawn < 500
    with pytest.raises(TimeoutError, match="the task's own"):
        list(scattered(out_of_time, [1], scheduler=running.scheduler_address))


def test_a_cluster_of_others_is_left_as_it_was(running):
    address = running.scheduler_address
    with closing(scattered(slow, range(50), scheduler=address)) as results:
        next(results)
    while running.scheduler.tasks:
        time.sleep(0.05)
    assert not [name for name in running.scheduler.worker_plugins if "pdutils" in name]
    assert dict(scattered(square, range(3), scheduler=address)) == {0: 0, 1: 1, 2: 4}


@pytest.mark.parametrize(
    "scheduler", ["", "local", "local:0", "local:-1", "local:two", "localhost:8786", "tcp://host"]
)
def test_an_address_of_another_form_is_refused_at_once(scheduler):
    tasks = Counted(3)
    with pytest.raises(ValueError, match="scheduler: expected"):
        scattered(square, tasks, scheduler=scheduler)
    with pytest.raises(ValueError, match="ahead: expected at least 1, got 0"):
        scattered(square, tasks, scheduler="local:1", ahead=0)
    assert tasks.drawn == 0


def test_a_scheduler_that_is_not_there_is_told_soon(monkeypatch, capfd):
    assert executors._CONNECT <= 20
    monkeypatch.setattr(executors, "_CONNECT", 0.5)
    with pytest.raises(ClusterError, match=r"tcp://127\.0\.0\.1:9: no Dask scheduler answers"):
        list(scattered(square, [1], scheduler="tcp://127.0.0.1:9"))
    assert capfd.readouterr() == ("", "")


def test_a_scheduler_without_workers_is_told_after_a_wait(bare, monkeypatch):
    monkeypatch.setattr(executors, "_PATIENCE", 0.3)
    with pytest.raises(ClusterError, match=r"1 worker\(s\) expected, and not there after"):
        list(scattered(square, [1], scheduler=bare.scheduler_address))


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("keras", r"keras \S+ instead of 9\.9$"),
        ("pdutils", r"pdutils \S+ instead of 9\.9$"),
        ("numpy", r"numpy \S+ instead of 9\.9$"),
        ("tensorflow", r"tensorflow \S+ instead of 9\.9$"),
    ],
)
def test_workers_with_other_versions_are_refused_before_work_begins(
    running, monkeypatch, package, message
):
    version = executors._version
    monkeypatch.setattr(executors, "_version", lambda p: "9.9" if p == package else version(p))
    tasks = Counted(3)
    with pytest.raises(ClusterError, match=message):
        list(scattered(square, tasks, scheduler=running.scheduler_address))
    assert tasks.drawn == 0


def test_workers_with_another_python_or_other_code_are_refused(running, monkeypatch):
    monkeypatch.setattr(executors.platform, "python_version_tuple", lambda: ("3", "99", "1"))
    monkeypatch.setattr(executors, "_code", lambda: "0123abcd")
    with pytest.raises(ClusterError, match=r"Python 3\.\d+ instead of 3\.99, code of pdutils \S+ "):
        list(scattered(square, [1], scheduler=running.scheduler_address))


def test_a_worker_that_comes_later_is_asked_for_its_versions_too(running, monkeypatch):
    monkeypatch.setattr(executors, "_check_versions", lambda client: None)
    monkeypatch.setattr(executors, "_code", lambda: "0123abcd")
    with pytest.raises(ClusterError, match=r"tcp://\S+ has other versions .* instead of 0123abcd"):
        list(scattered(square, [1], scheduler=running.scheduler_address))


def test_a_worker_that_lacks_the_package_is_refused(running, monkeypatch):
    def versions():
        import pdutils_of_another_time  # noqa: F401

    monkeypatch.setattr(executors, "_versions", lambda: {})
    client_run = executors.Client.run
    monkeypatch.setattr(
        executors.Client, "run", lambda self, _, **options: client_run(self, versions, **options)
    )
    with pytest.raises(ClusterError, match=r"has not this package as it is here: .*ModuleNotFound"):
        list(scattered(square, [1], scheduler=running.scheduler_address))


def test_workers_that_all_leave_are_told_after_a_wait(bare, monkeypatch):
    bare.scale(1)
    bare.wait_for_workers(1)
    monkeypatch.setattr(executors, "_PATIENCE", 0.5)
    monkeypatch.setattr(executors, "_LOOK", 0.1)
    with closing(scattered(slow, range(50), scheduler=bare.scheduler_address)) as results:
        next(results)
        bare.scale(0)
        with pytest.raises(ClusterError, match="has had no worker for"):
            list(results)


def test_a_scheduler_that_goes_away_is_told(bare):
    bare.scale(1)
    bare.wait_for_workers(1)
    with closing(scattered(slow, range(50), scheduler=bare.scheduler_address)) as results:
        next(results)
        bare.close()
        with pytest.raises(ClusterError, match="the connection to the scheduler was lost"):
            list(results)


def test_processes_of_this_machine_survive_a_death_and_are_ended(tmp_path, capfd, workers):
    with closing(scattered(DieOnce(tmp_path / "died"), range(16), scheduler="local:2")) as results:
        found = dict(results)
    assert (tmp_path / "died").exists()
    assert found == {x: x * x for x in range(16)}
    assert capfd.readouterr() == ("", "")
    assert not workers()


@pytest.mark.slow
def test_a_worker_killed_from_outside_changes_no_result(workers):
    with closing(scattered(slow, range(12), scheduler="local:2")) as results:
        found = [next(results)]
        min(workers(), key=lambda worker: worker.pid).kill()
        found += results
    assert sorted(found) == [(x, x) for x in range(12)]


def test_processes_are_ended_after_an_error_and_listen_to_this_machine_alone(workers):
    with closing(scattered(refuse_three, range(9), scheduler="local:2")) as results:
        next(results)
        assert len(workers()) == 2
        everyone = [psutil.Process(), *workers()]
        listening = [c for p in everyone for c in p.net_connections() if c.status == "LISTEN"]
        assert listening
        assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
        with pytest.raises(LookupError):
            list(results)
    assert not workers()


@pytest.mark.slow
def test_a_task_that_kills_every_worker_is_given_up(workers):
    with pytest.raises(ClusterError, match="given up after 4 workers had died"):
        list(scattered(Die(), [1], scheduler="local:2"))
    assert not workers()


@pytest.mark.slow
def test_closing_waits_for_a_process_that_is_just_being_started(monkeypatch, workers):
    # A worker that has died is replaced: here the last replacement is under way at the end.
    start = SpawnProcess.start

    def start_late(process):
        time.sleep(1)
        start(process)

    monkeypatch.setattr(SpawnProcess, "start", start_late)
    with pytest.raises(ClusterError, match="given up after 4 workers had died"):
        list(scattered(Die(), [1], scheduler="local:2"))
    assert not workers()


_SCRIPT = """
    import time
    from pdutils.evaluation.executors import scattered

    def slow(x):
        time.sleep(0.2)
        return x

    if __name__ == "__main__":
        print("started", flush=True)
        for found in scattered(slow, range(1000), scheduler="local:2"):
            print(found, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 3])
def test_control_c_ends_all_processes(tmp_path, lines):
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
        everyone = [script, *psutil.Process(script.pid).children(recursive=True)]
        # As a terminal does it: to the whole group, and once.
        os.killpg(script.pid, signal.SIGINT)
        _, err = script.communicate(timeout=PATIENCE)
    _, alive = psutil.wait_procs(everyone[1:], timeout=PATIENCE)
    assert not alive
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert err.count("Traceback") == 1
