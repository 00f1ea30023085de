"""What all visitors of one process share: the networks, what stages gave, and turns at the work."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np

from pdutils.classifiers import Classifier

#: So many networks are kept, the last used ones; each is some hundred MB.
NETWORKS = 3

#: So many bytes of images, maps and answers are kept, the last used ones.
BUDGET = 256_000_000

#: Seconds of a long job after which those who wait have a turn each; with a shorter time it would
#: wait for all of them at each of its steps.
SLICE = 0.2

_T = TypeVar("_T")


class Turns:
    """A lock that goes round in the order of asking; who holds it may take it once more."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[int] = deque()
        self._depth = 0
        self._since = 0.0

    def __len__(self) -> int:
        """How many work or wait."""
        return len(self._line)

    def __enter__(self) -> None:
        with self._changed:
            if self._line and self._line[0] == threading.get_ident():
                self._depth += 1
            else:
                self._wait(1)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._depth -= 1
            if not self._depth:
                self._leave()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the others work while the holder waits for something else, then wait in the line."""
        with self._changed:
            depth = self._depth
            self._leave()
        try:
            yield
        finally:
            with self._changed:
                self._wait(depth)

    def pass_on(self) -> None:
        """In the middle of a long job, let each of those who wait have a turn now and then."""
        if len(self._line) > 1 and time.monotonic() - self._since >= SLICE:
            with self.lent():
                pass

    def _wait(self, depth: int) -> None:
        me = threading.get_ident()
        self._line.append(me)
        try:
            self._changed.wait_for(lambda: self._line[0] == me)
        except BaseException:
            # Whoever is interrupted leaves no gap that the others would wait behind.
            self._line.remove(me)
            self._changed.notify_all()
            raise
        self._depth, self._since = depth, time.monotonic()

    def _leave(self) -> None:
        self._line.popleft()
        self._changed.notify_all()


class Workshop:
    """Keeps networks and what stages gave; what several ask for at once is made once.

    `network` and `once` are for whoever has the turn. `networks` are loaded already, by their name
    and file of weights.
    """

    def __init__(self, networks: Mapping[tuple[str, str], Classifier] | None = None) -> None:
        self.turns = Turns()
        #: For which networks TensorFlow has compiled what the explorer needs.
        self.warm: WeakSet[Classifier] = WeakSet()
        self._networks = OrderedDict(networks or {})
        self._kept: OrderedDict[tuple[Any, ...], tuple[Any, float]] = OrderedDict()
        self._pinned: frozenset[tuple[Any, ...]] = frozenset()
        self._bytes = 0
        self._making: dict[Any, threading.Event] = {}

    def has(self, name: str, weights: str) -> bool:
        """Tell whether a network is loaded; whoever needs another may have to wait for minutes."""
        return (name, weights) in self._networks

    def network(self, name: str, weights: str, load: Callable[[], Classifier]) -> Classifier:
        """Give a network; while it is loaded, which may take minutes, others work on."""
        key = (name, weights)
        with self._alone(key):
            if key not in self._networks:
                with self.turns.lent():
                    network = load()
                self._networks[key] = network
            self._networks.move_to_end(key)
            while len(self._networks) > NETWORKS:
                self._networks.popitem(last=False)
            return self._networks[key]

    def once(self, key: tuple[Any, ...], make: Callable[[], _T]) -> tuple[_T, float, bool]:
        """Give what was made for a key, the seconds that it took, and whether it was made now."""
        with self._alone(key):
            is_new = key not in self._kept
            if is_new:
                start = time.perf_counter()
                value = make()
                self._kept[key] = value, time.perf_counter() - start
                self._bytes += _size(value)
            self._kept.move_to_end(key)
            found: tuple[_T, float] = self._kept[key]
            spare = (old for old in list(self._kept) if old not in self._pinned and old != key)
            while self._bytes > BUDGET and (old := next(spare, None)):
                self._drop(old)
            return *found, is_new

    def pin(self) -> None:
        """Keep what there is now, whatever else is made."""
        self._pinned = frozenset(self._kept)

    def forget(self, image: str) -> None:
        """Drop all that was made of a picture."""
        with self.turns:
            for key in [key for key in self._kept if image in key]:
                self._drop(key)

    def _drop(self, key: tuple[Any, ...]) -> None:
        self._bytes -= _size(self._kept.pop(key)[0])

    @contextmanager
    def _alone(self, key: Any) -> Iterator[None]:
        """Wait, outside of the turn, until nobody else is making the same."""
        mine = threading.Event()
        while (other := self._making.setdefault(key, mine)) is not mine:
            with self.turns.lent():
                other.wait()
        try:
            yield
        finally:
            del self._making[key]
            mine.set()


def _size(value: Any) -> int:
    parts = value if isinstance(value, tuple) else (value,)
    return sum(part.nbytes for part in parts if isinstance(part, np.ndarray))
