"""Visitors of the explorer's page without a browser: they speak with the server as page.js does."""

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

#: Seconds until a server must have said something of a move.
PATIENCE = 120


class Visitor:
    """One visit: what its page knows, and the moves that it makes."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.connection = connection
        self.state: dict[str, Any] = {}
        self.moves = itertools.count(1)
        self.coming: asyncio.Future[str | bytes | None] | None = None

    @classmethod
    async def opened(cls, port: int, settings: Mapping[str, Any] | None = None) -> "Visitor":
        """Open the page, by a link to settings or without, and wait for its first picture."""
        origin = f"http://localhost:{port}"
        request = HTTPRequest(f"ws://localhost:{port}/visit", headers={"Origin": origin})
        visitor = cls(await websocket_connect(request, max_message_size=50_000_000))
        try:
            await visitor.hear()
            await visitor.say({"type": "hello", "settings": settings or {}})
            await visitor.until(lambda state: state.get("shown") or state.get("error"))
        except BaseException:
            visitor.vanish()
            raise
        return visitor

    async def say(self, content: Mapping[str, Any], buffer: bytes | None = None) -> None:
        """Send a message, with the bytes of a picture or without."""
        head = json.dumps(content).encode()
        if buffer is None:
            await self.connection.write_message(head.decode())
        else:
            packed = len(head).to_bytes(4, "big") + head + buffer
            await self.connection.write_message(packed, binary=True)

    async def hear(self, seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait for the next message and take over what it tells; an EOFError at the end."""
        if self.coming is None:
            self.coming = asyncio.ensure_future(self.connection.read_message())
        # A message that comes later is not lost by this.
        await asyncio.wait([self.coming], timeout=max(0, seconds))
        if not self.coming.done():
            raise TimeoutError(f"no word of the server in {seconds:g} s")
        message, self.coming = self.coming.result(), None
        if message is None:
            raise EOFError(f"the server ended the visit: {self.connection.close_reason}")
        news = read(message)
        self.state |= news
        return news

    async def until(self, is_there: Any) -> None:
        """Hear until the state is as wanted."""
        while not is_there(self.state):
            await self.hear()

    async def move(self, final: bool = True, **changes: Any) -> dict[str, Any]:
        """Change settings and wait for the answer: what is shown then, or an error."""
        return await self.ask({"type": "move", "settings": changes, "final": final})

    async def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """Bring a picture and wait for the answer."""
        return await self.ask({"type": "upload", "name": name}, content)

    async def ask(self, content: Mapping[str, Any], buffer: bytes | None = None) -> dict[str, Any]:
        """Send what wants an answer, and wait for that."""
        number = await self.send(content, buffer)
        await self.until(lambda _: self.answer(number))
        found = self.answer(number)
        assert found is not None
        return found

    async def send(self, content: Mapping[str, Any], buffer: bytes | None = None) -> str:
        """Send what wants an answer, and give its number."""
        number = f"m{next(self.moves)}"
        await self.say({**content, "id": number}, buffer)
        return number

    def answer(self, number: str) -> dict[str, Any] | None:
        """Give what is shown or complained of in answer to a number, None before that."""
        answers: list[dict[str, Any]] = [self.state[name] for name in ("shown", "error")]
        return next((answer for answer in answers if answer.get("id") == number), None)

    async def drag(self, slider: str, values: Sequence[float], seconds: float = 0.5) -> float:
        """Drag a slider over values for some seconds and release it at the last of them.

        Like the face, it only remembers where the slider is while an answer is on its way. Gives
        the seconds from the release to its picture.
        """
        *passed, last = values
        number, later, now = "", None, asyncio.get_running_loop().time
        for value in passed:
            later, until = value, now() + seconds / len(passed)
            while now() < until:
                if later is not None and (not number or self.answer(number)):
                    move = {"type": "move", "settings": {slider: later}, "final": False}
                    number, later = await self.send(move), None
                with suppress(TimeoutError):
                    await self.hear(until - now())
        released = time.perf_counter()
        answer = await self.move(**{slider: last})
        if "text" in answer:
            raise ValueError(f"{slider} {last}: {answer['text']}")
        return time.perf_counter() - released

    async def rest(self, seconds: float) -> None:
        """Hear for some seconds what the server says."""
        now = asyncio.get_running_loop().time
        end = now() + seconds
        while now() < end:
            with suppress(TimeoutError):
                await self.hear(end - now())

    def close(self) -> None:
        """Leave as a page does that is closed."""
        self.connection.close()

    def vanish(self) -> None:
        """Leave as a computer does that is switched off: without a word."""
        self.connection.stream.close()
        self.connection.close()


def read(message: bytes) -> dict[str, Any]:
    """Read a message of the server: its JSON, with the bytes that belong into it."""
    end = 4 + int.from_bytes(message[:4], "big")

    def revive(value: dict[str, Any]) -> Any:
        if isinstance(value.get("bytes"), list):
            first, last = value["bytes"]
            return message[end + first : end + last]
        return value

    return json.loads(message[4:end], object_hook=revive)
