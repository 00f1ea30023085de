"""`python -m benchmarks.soak`: visitors of the page come and go, and the server stays as it was."""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.page import NETWORK, Server, look, served, wander
from benchmarks.visitors import Visitor

_PICTURES = sorted((Path(__file__).resolve().parents[1] / "data" / "images").glob("*.png"))

#: One in so many visitors brings a picture, and one moves something every so many seconds.
UPLOADS, PAUSE = 5, 5

#: The memory at the end is compared with that after so many visits.
FEW = 30

#: What may be at the end: of the memory and of the first look, a multiple of what was before; of
#: threads, those that stand ready in the pools of the server, of asyncio and of TensorFlow.
GROWTH, SLOWER, THREADS = 1.1, 1.5, 16

#: Seconds until a server that nobody uses any more has finished.
REST = 5

_LONG = {"attack": "igsm", "stop": False, "steps": 100, "eps": 64}


@dataclass
class Soak:
    """Visits of one server, and what they came upon."""

    server: Server
    seconds: float
    rng: np.random.Generator
    looks: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    ended: int = 0
    early: int = 0
    vanished: int = 0
    uploads: int = 0

    async def come(self, numbers: Iterator[int], killed: set[int], whole: float) -> None:
        """Be one place in front of the page, which one visitor after the other takes."""
        await asyncio.sleep(self.rng.uniform(0, whole))
        for number in numbers:
            await self.visit(number, whole, is_killed=number in killed)

    async def visit(self, number: int, whole: float, *, is_killed: bool = False) -> None:
        """Come, use the page for about so many seconds, and go, or vanish in the middle of it."""
        (rng,) = self.rng.spawn(1)
        try:
            seconds, visitor = await look(self.server.port)
            self.looks.append(seconds)
            using = asyncio.create_task(self.use(visitor, rng, number, whole, is_killed))
            stay = whole * (rng.uniform(0, 1) if is_killed else rng.uniform(0.5, 1.5))
            await asyncio.wait([using], timeout=stay or None)
            self.vanished += is_killed
            (visitor.vanish if is_killed else visitor.close)()
            if using.cancel():
                return
            using.result()
        except Exception as error:
            self.errors.append(f"visit {number}: {type(error).__name__}: {error}")
        finally:
            self.ended += 1
            if self.ended == FEW:
                self.early = self.server.memory

    async def use(
        self, visitor: Visitor, rng: np.random.Generator, number: int, whole: float, endless: bool
    ) -> None:
        """Make moves of all kinds, without an end those of a long attack; some bring a picture."""
        if number % UPLOADS == 0:
            path = _PICTURES[number % len(_PICTURES)]
            _check(path.name, await visitor.upload(path.name, path.read_bytes()))
            self.uploads += 1
        names = [image["name"] for image in visitor.state["images"] if not image["own"]]
        while endless and number % 2:
            _check("a long attack", await visitor.move(**_LONG, image=str(rng.choice(names))))
        # More than there is time for: one leaves whatever is being computed.
        moves = round(3 * whole / PAUSE)
        await wander(visitor, rng, max(1, moves), min(PAUSE, whole))

    async def run(self, visits: int, visitors: int, killed: int) -> None:
        """Let the first visitor come alone, then the others, and alone the last two."""
        await self.visit(1, 0)
        *among, last_but_one = range(2, visits)
        numbers = iter(among)
        chosen = set(self.rng.choice(among, killed, replace=False).tolist())
        # The places are taken one by one, so that the first ones stand empty for half a visit.
        whole = self.seconds * visitors / (visits + visitors / 2)
        await asyncio.gather(*(self.come(numbers, chosen, whole) for _ in range(visitors)))
        # What those who left had asked for may still be being computed.
        await asyncio.sleep(REST)
        await self.visit(last_but_one, 0)
        await self.visit(visits, 0)
        await asyncio.sleep(REST)


def _check(what: str, answer: dict[str, Any]) -> None:
    if "text" in answer:
        raise ValueError(f"{what}: {answer['text']}")


async def soaked(options: argparse.Namespace) -> int:
    """Serve the visits, print what came of them, and give 1 where a bound is not kept."""
    async with served(options.classifier) as server:
        seconds = 60 * options.minutes
        soak = Soak(server, seconds, np.random.default_rng(options.seed))
        await asyncio.sleep(REST)
        before = server.held
        began = time.perf_counter()
        work = soak.run(options.visits, options.visitors, options.killed)
        await asyncio.wait_for(work, 2 * seconds + 120)
        took = time.perf_counter() - began
        memory, held, logged = server.memory, server.held, server.logged.strip()
    ratio = memory / soak.early
    first, *crowded, next_, last = soak.looks
    print(
        f"{soak.ended} visits in {took / 60:.1f} minutes, {options.visitors} places, "
        f"{soak.vanished} vanished, {soak.uploads} uploads; "
        f"load {', '.join(f'{load:.1f}' for load in os.getloadavg())}",
        f"memory: {soak.early / 1e6:.0f} MB after {FEW} visits, {memory / 1e6:.0f} MB at the end, "
        f"{server.peak / 1e6:.0f} MB at most; ratio {ratio:.3f}",
        f"first look: the first visitor {first:.2f} s, the last two {next_:.2f} and {last:.2f} s, "
        f"all of them alone; between them {FEW} early ones "
        f"{median(crowded[:FEW]):.2f} s, {FEW} late ones {median(crowded[-FEW:]):.2f} s, "
        f"at most {max(crowded):.2f} s",
        f"held before: {before}; at the end: {held}",
        f"errors: {len(soak.errors)}; logged: {len(logged.splitlines())} lines",
        *soak.errors,
        *logged.splitlines(),
        sep="\n",
    )
    missed = {
        "the memory grew": ratio > GROWTH,
        "the last visitor waited longer than the first": max(next_, last) > SLOWER * first + 0.1,
        "visits, files or folders are left": any(
            held[what] > before[what] for what in ("visits", "files", "folders")
        ),
        "threads are left": held["threads"] > before["threads"] + THREADS,
        "there were errors": bool(soak.errors or logged),
        "not all came": soak.ended < options.visits,
    }
    for what in (what for what, is_so in missed.items() if is_so):
        print(f"missed: {what}")
    return int(any(missed.values()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; 0 where every bound is kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=10, help="how long they come and go (%(default)s)")
    add("--visitors", type=int, default=30, help="never more than these at once (%(default)s)")
    add("--visits", type=int, default=300, help="in all (%(default)s)")
    add("--killed", type=int, default=20, help="of these, so many vanish (%(default)s)")
    add("--seed", type=int, default=0, help="of all that is left to chance (%(default)s)")
    add("--classifier", metavar="NAME", default=NETWORK, help="(%(default)s)")
    return asyncio.run(soaked(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
