"""Visitors of the explorer's page without a browser: they speak with the server as page.js does."""

import asyncio
import itertools
import json
from collections.abc import Mapping
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
            visitor.close()
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

    async def hear(self) -> dict[str, Any]:
        """Wait for the next message and take over what it tells; an EOFError at the end."""
        message = await asyncio.wait_for(self.connection.read_message(), PATIENCE)
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
        number = f"m{next(self.moves)}"
        await self.say({**content, "id": number}, buffer)
        answers = ("shown", "error")
        await self.until(lambda state: number in [state[name].get("id") for name in answers])
        return next(self.state[name] for name in answers if self.state[name].get("id") == number)

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
