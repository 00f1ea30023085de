import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pdutils.explorer import workshop as module
from pdutils.explorer.workshop import Turns, Workshop


def line_up(turns: Turns, length: int) -> None:
    """Wait until so many work or wait."""
    for _ in range(1000):
        if len(turns) == length:
            return
        time.sleep(0.005)
    raise AssertionError(f"{len(turns)} instead of {length}")


@pytest.fixture
def turns():
    return Turns()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as threads:
        yield threads


def test_turns_are_taken_in_the_order_of_asking_and_one_at_a_time(turns, pool):
    order, inside = [], []

    def work(name):
        with turns, turns:
            inside.append(name)
            time.sleep(0.01)
            assert inside == [name]
            inside.remove(name)
            order.append(name)

    with turns:
        waiting = []
        for i in range(6):
            waiting.append(pool.submit(work, i))
            line_up(turns, i + 2)
    for one in waiting:
        one.result(10)
    assert order == list(range(6))
    assert len(turns) == 0


def test_a_long_job_lets_all_who_wait_go_first(turns, pool, monkeypatch):
    order = []

    def work(name):
        with turns:
            order.append(name)

    with turns, turns:
        # There is nobody to wait for.
        turns.pass_on()
        waiting = [pool.submit(work, name) for name in ("a", "b")]
        line_up(turns, 3)
        # It has hardly begun.
        monkeypatch.setattr(module, "SLICE", 1000)
        turns.pass_on()
        assert order == []
        monkeypatch.setattr(module, "SLICE", 0)
        turns.pass_on()
        assert sorted(order) == ["a", "b"]
        order.append("c")
        later = pool.submit(work, "d")
        line_up(turns, 2)
        assert order[2:] == ["c"]
    for one in (*waiting, later):
        one.result(10)
    assert order[2:] == ["c", "d"]


def test_whoever_is_interrupted_while_waiting_leaves_no_gap(turns, pool, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with turns:
        with monkeypatch.context() as patch:
            patch.setattr(turns._changed, "wait_for", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.submit(turns.__enter__).result(10)
        assert len(turns) == 1
        # An error in a turn ends it.
    with pytest.raises(ValueError, match="mine"), turns:
        raise ValueError("mine")
    assert len(turns) == 0


def test_what_several_ask_for_at_once_is_made_once_and_again_if_that_failed(pool):
    shop, made, go = Workshop(), [], threading.Event()

    def make():
        made.append(threading.get_ident())
        with shop.turns.lent():
            assert go.wait(10)
        if len(made) == 1:
            raise ValueError("the first fails")
        return np.zeros(3)

    def ask():
        with shop.turns:
            return shop.once(("stage", "a"), make)

    asked = [pool.submit(ask) for _ in range(5)]
    while not made:
        time.sleep(0.005)
    go.set()
    found = [one.exception(10) or one.result() for one in asked]
    assert sum(isinstance(one, ValueError) for one in found) == 1
    given = [one for one in found if isinstance(one, tuple)]
    assert len(made) == 2
    assert all(value is given[0][0] for value, *_ in given)
    assert sorted(is_new for *_, is_new in given) == [False] * 3 + [True]


def test_the_last_used_are_kept_up_to_a_bound_and_a_picture_can_be_forgotten(monkeypatch):
    monkeypatch.setattr(module, "BUDGET", 3000)
    shop = Workshop()

    def asked(*key):
        with shop.turns:
            return shop.once(key, lambda: (np.zeros(125), "told", None))[2]

    assert [asked("stage", i) for i in (0, 1, 2, 0)] == [True, True, True, False]
    # Of 1000 bytes each; the second is the one that was not used for longest.
    assert [asked("stage", i) for i in (3, 0, 2)] == [True, False, False]
    assert asked("stage", 1)
    assert asked("stage", "mine.png", 5)
    shop.forget("mine.png")
    assert [asked("stage", "mine.png", 5), shop._bytes] == [True, 3000]
    shop.pin()
    assert [asked("stage", i) for i in (7, 8, 9)] == [True, True, True]
    assert not asked("stage", "mine.png", 5)


def test_networks_are_loaded_outside_of_the_turn_and_three_are_kept(pool):
    shop, loaded = Workshop({("a", ""): "A"}), []

    def work():
        with shop.turns:
            pass

    def asked(name):
        def load():
            # Somebody else can work meanwhile.
            pool.submit(work).result(10)
            loaded.append(name)
            return name.upper()

        with shop.turns:
            return shop.network(name, "", load)

    assert [asked(name) for name in "abacad"] == ["A", "B", "A", "C", "A", "D"]
    assert loaded == ["b", "c", "d"]
    assert (asked("a"), asked("b")) == ("A", "B")
    assert loaded == ["b", "c", "d", "b"]
