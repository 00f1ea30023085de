"""What the explorer's page needs: its server in a process of its own, and visitors who use it."""

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from tornado.httpclient import AsyncHTTPClient

from benchmarks.timing import Measurement
from benchmarks.visitors import PATIENCE, Visitor

if TYPE_CHECKING:
    from benchmarks.measures import Sizes

ROOT = Path(__file__).resolve().parents[1]

#: The network that the page begins with.
NETWORK = "efficientnet_lite0"

#: Seconds between a visitor's moves, and from one look of the watcher at the memory to the next.
PAUSE, WATCH = 5, 0.05

#: What a slider may be dragged over, as the page has it; `LIVE` ones show each step on the way.
SLIDERS = {
    "deflections": (20, 3000, 20),
    "window": (1, 50, 1),
    "sigma": (0.005, 0.2, 0.005),
    "seed": (0, 1000, 1),
    "runs": (1, 20, 1),
    "k": (1, 10, 1),
    "eps": (1, 32, 1),
}
LIVE = SLIDERS.keys() - {"eps"}

#: One of these is drawn for a drag, then one of its sliders: the seed and the runs share a place.
KINDS = (("deflections",), ("window",), ("sigma",), ("seed", "runs"), ("k",), ("eps",))

#: With these settings each of the sliders changes something; the attack is the weak one.
DRAGGED: dict[str, Any] = {
    "attack": "igsm",
    "stop": True,
    "activation": "rcam",
    "denoiser": "wavelet",
}

#: What the page loads before it speaks with the server.
_FILES = ("", "page.css", "explorer.css", "page.js", "explorer.js")

Say = Callable[[str], None]


@dataclass
class Server:
    """A server of the page in a process of its own, and what is known of it from outside."""

    process: psutil.Process
    port: int
    log: Path
    folder: Path
    first_lines: str = ""
    peak: int = 0

    @property
    def memory(self) -> int:
        """Bytes of resident memory."""
        return int(self.process.memory_info().rss)

    @property
    def logged(self) -> str:
        """What it has said beyond its first lines."""
        return self.log.read_text().removeprefix(self.first_lines)

    @property
    def held(self) -> dict[str, int]:
        """Count what a visit must not leave behind."""
        connections = self.process.net_connections("tcp")
        return {
            "visits": sum(c.status == psutil.CONN_ESTABLISHED for c in connections),
            "files": self.process.num_fds(),
            "threads": self.process.num_threads(),
            "folders": len(list(self.folder.glob("pdutils-explorer-*"))),
        }

    async def watch(self) -> None:
        """Keep the greatest memory that is seen."""
        while True:
            self.peak = max(self.peak, self.memory)
            await asyncio.sleep(WATCH)


@asynccontextmanager
async def served(network: str | None = None) -> AsyncIterator[Server]:
    """Start a server, wait until it has nothing more to load or to compile, and end it."""
    command = [sys.executable, "-m", "pdutils", "app", "--no-browser", "--port", "0"]
    command += ["--classifier", network or NETWORK]
    with tempfile.TemporaryDirectory() as name, (Path(name) / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "TMPDIR": name}
        )
        try:
            path = Path(name) / "log"
            port = await asyncio.wait_for(_port(path, process), PATIENCE)
            server = Server(psutil.Process(process.pid), port, path, Path(name))
            server.first_lines = path.read_text()
            # The second answer comes when all that the first one had to load is there.
            visitor = await Visitor.opened(port)
            await visitor.move(deflections=20)
            visitor.close()
            watching = asyncio.create_task(server.watch())
            try:
                yield server
            finally:
                watching.cancel()
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 20)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _port(log: Path, process: asyncio.subprocess.Process) -> int:
    """Wait until the server says where it is."""
    while not (found := re.search(r"http://localhost:(\d+)/ ", text := log.read_text())):
        if process.returncode is not None:
            raise RuntimeError(f"the server ended at once: {text}")
        await asyncio.sleep(0.05)
    return int(found[1])


async def look(port: int) -> tuple[float, Visitor]:
    """Open the page as a browser does; give the seconds until its first picture, and the visit."""
    client = AsyncHTTPClient()
    start = time.perf_counter()
    page, *others = (f"http://localhost:{port}/{name}" for name in _FILES)
    await client.fetch(page)
    await asyncio.gather(*map(client.fetch, others))
    visitor = await Visitor.opened(port)
    return time.perf_counter() - start, visitor


def wishes(rng: np.random.Generator, images: Sequence[str], moves: int) -> list[dict[str, Any]]:
    """Draw moves of all kinds; each kind comes before one comes again."""
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"seed": int(rng.integers(1000))},
        lambda: {"image": str(rng.choice(images))},
        lambda: {"deflections": int(rng.integers(3000)), "window": int(rng.integers(1, 50))},
        lambda: {"denoiser": "wavelet", "sigma": float(rng.uniform(0.01, 0.2))},
        lambda: {"activation": "rcam", "k": int(rng.integers(1, 11))},
        lambda: {"attack": "igsm", "stop": True, "eps": int(rng.integers(1, 33))},
        lambda: {"activation": "cam", "runs": int(rng.integers(1, 6))},
        lambda: {"attack": "igsm", "stop": False, "steps": int(rng.integers(5, 20))},
        lambda: {"attack": "fgsm", "eps": int(rng.integers(1, 33))},
        lambda: {"denoiser": str(rng.choice(["none", "dct", "tv"])), "runs": 1},
    ]
    order = [i for _ in range(0, moves, len(kinds)) for i in rng.permutation(len(kinds))]
    return [kinds[i]() for i in order[:moves]]


async def wander(visitor: Visitor, rng: np.random.Generator, moves: int, pause: float) -> None:
    """Make moves of all kinds, and look at each result for a while."""
    images = [image["name"] for image in visitor.state["images"] if not image["own"]]
    for wish in wishes(rng, images, moves):
        answer = await visitor.move(**wish)
        if "text" in answer:
            raise ValueError(f"{wish}: {answer['text']}")
        await visitor.rest(rng.uniform(0, 2 * pause))


def page_memory(sizes: "Sizes") -> Measurement:
    """Compare the server's peak memory with many visitors at once and with one, of as many moves.

    The moves are those of one of the many.
    """

    async def peak(visitors: int) -> int:
        async with served() as server:
            opened = [await Visitor.opened(server.port) for _ in range(visitors)]
            streams = np.random.default_rng(0).spawn(visitors)
            moves = sizes.page_moves
            await _all(wander(*each, moves, 0.2) for each in zip(opened, streams, strict=True))
            for visitor in opened:
                visitor.close()
            return server.peak

    many, one = (_run(peak(n)) for n in (sizes.visitors, 1))
    settings = {
        "above": f"{sizes.visitors} visitors at once",
        "below": "one visitor",
        "above_peak_mb": round(many / 1e6),
        "below_peak_mb": round(one / 1e6),
        "moves_each": sizes.page_moves,
        "classifier": NETWORK,
        "repeats": 1,
    }
    return Measurement([many / one], settings)


def page_first_look(sizes: "Sizes") -> Measurement:
    """Time from opening the page to its first picture, on a server that is warm and at rest."""

    async def looks() -> list[float]:
        async with served() as server:
            found = []
            for _ in range(sizes.repeats):
                seconds, visitor = await look(server.port)
                visitor.close()
                found.append(seconds)
            return found

    settings = {"unit": "seconds", "repeats": sizes.repeats, "classifier": NETWORK}
    return Measurement(_run(looks()), settings)


def page_crowd(sizes: "Sizes") -> Measurement:
    """Give the seconds from a slider's release to its picture that 95 of 100 stay below."""
    return _crowd(sizes, sizes.visitors, PAUSE)


def page_alone(sizes: "Sizes") -> Measurement:
    """Do the same with one visitor, who moves more often: there is nobody to be kept waiting."""
    return _crowd(sizes, 1, PAUSE / 4)


@dataclass
class Drags:
    """Seconds from release to picture, by slider."""

    found: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def summary(self, seconds: Sequence[float]) -> dict[str, float]:
        """Say how many there are, and how they are spread."""
        half, most = round(median(seconds), 3), round(max(seconds), 3)
        return {"n": len(seconds), "median": half, "max": most}

    def measurement(self, **settings: Any) -> Measurement:
        """Give the 95th percentile, and beside it the parts."""
        every = [seconds for part in self.found.values() for seconds in part]
        split = {slider: self.summary(self.found[slider]) for slider in sorted(self.found)}
        said = {"unit": "seconds", **self.summary(every), "sliders": split}
        return Measurement([float(np.percentile(every, 95))], said | settings)


def _crowd(sizes: "Sizes", visitors: int, pause: float) -> Measurement:
    drags = Drags()

    async def drag(visitor: Visitor, rng: np.random.Generator) -> None:
        images = [image["name"] for image in visitor.state["images"]]
        await visitor.move(**DRAGGED, image=str(rng.choice(images)))
        now = asyncio.get_running_loop().time
        end = now() + sizes.crowd_seconds
        await visitor.rest(rng.uniform(0, pause))
        while now() < end:
            next_one = now() + rng.uniform(0.8, 1.2) * pause
            slider = str(rng.choice(KINDS[rng.integers(len(KINDS))]))
            values = dragged(slider, rng)
            drags.found[slider].append(await visitor.drag(slider, values))
            if slider == "runs":
                await visitor.rest(rng.uniform(1, 2))
                await visitor.move(runs=1)
            await visitor.rest(next_one - now())
        visitor.close()

    async def crowd() -> None:
        async with served() as server:
            opened = [await Visitor.opened(server.port) for _ in range(visitors)]
            streams = np.random.default_rng(0).spawn(visitors)
            await _all(drag(*each) for each in zip(opened, streams, strict=True))

    _run(crowd())
    return drags.measurement(
        visitors=visitors,
        seconds_between_drags=pause,
        seconds=sizes.crowd_seconds,
        classifier=NETWORK,
        repeats=1,
    )


def dragged(slider: str, rng: np.random.Generator) -> list[float]:
    """Draw the values that a slider is dragged over: some on the way, and that of its release."""
    low, high, step = SLIDERS[slider]
    first, last = rng.uniform(low, high, 2)
    steps = np.linspace(first, last, 7 if slider in LIVE else 2)[1:]
    return [round(step * round(value / step), 3) if step < 1 else int(value) for value in steps]


async def _all(work: Any) -> None:
    """Do all at once; the first that fails ends the others."""
    async with asyncio.TaskGroup() as group:
        for each in work:
            group.create_task(each)


def _run(work: Awaitable[Any], seconds: float = 600) -> Any:
    return asyncio.run(asyncio.wait_for(work, seconds))
