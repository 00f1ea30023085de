"""The explorer as a page: one process for all who look, a `Visit` for each of them."""

import asyncio
import errno
import ipaddress
import json
import logging
import signal
import socket
import webbrowser
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pdutils._utils import extra
from pdutils.demo.examples import results_folder
from pdutils.explorer.engine import Explorer, Settings
from pdutils.explorer.workshop import Workshop

with extra("app"):
    from tornado import httpserver, iostream, netutil, web, websocket

    from pdutils.explorer.visit import FACE, UPLOAD_LIMIT, Visit

#: So many may look at once; whoever comes later is told so.
VISITORS = 60

#: Seconds between signs of life to a page, and until a page that shows none is lost.
BEAT, LOST = 2, 30

_LOCAL = ("localhost", "127.0.0.1", "::1")
_STATIC = Path(__file__).parent / "static"
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}

#: What the page may load and who may show it: nothing and nobody but this server.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

#: What of `results/` is the site; a page of it may style and run what stands in it.
_SITE = r"((?:[\w-]+/)*[\w.-]*\w\.(?:html|css|js|json|png|svg|webp|woff2|ipynb))"
_OPEN = {"Content-Security-Policy": "frame-ancestors 'none'"}


def serve(
    start: Settings, *, host: str = "localhost", port: int | None = None, browser: bool = True
) -> None:
    """Serve the explorer until Ctrl-C.

    Parameters
    ----------
    start : Settings
        What the page begins with.
    host : str
        The name or address to listen at: ``localhost`` for this machine alone, ``0.0.0.0`` for
        the whole network that it is in.
    port : int, optional
        By default 8866, or the next that is free.
    browser : bool
        Whether a browser is opened on the page.
    """
    # Whoever ends it by a signal means the same.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(start, host, port, browser))


async def _serve(start: Settings, host: str, port: int | None, browser: bool) -> None:
    sockets, number = _bound(host, port)
    room = Room(start)
    server = httpserver.HTTPServer(application(room, host), max_buffer_size=2 * UPLOAD_LIMIT)
    server.add_sockets(sockets)
    room.warm()
    address = f"http://{_shown(host)}:{number}/"
    lines = [f"The explorer is at {address} until Ctrl-C.", *_warning(host, number)]
    print(*lines, sep="\n", flush=True)
    if browser:
        webbrowser.open(address)
    ending = asyncio.Event()
    # Not on Windows. An exception in whatever runs just then would end that alone.
    with suppress(NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    try:
        await ending.wait()
    finally:
        server.stop()
        room.close()


def application(room: "Room", host: str) -> web.Application:
    """Give what answers at the addresses of the page; `host` is where it listens."""
    own = {"hosts": _names(host)}
    site = own | {"path": str(results_folder())}
    return web.Application(
        [
            (r"/()", _Static, own),
            (r"/(explorer\.js|explorer\.css|page\.js|page\.css)", _Static, own),
            (r"/visit", _Connection, own | {"room": room}),
            (rf"/site/{_SITE}", _Site, site),
            (r".*", _Nothing, own),
        ],
        websocket_ping_interval=LOST,
        websocket_ping_timeout=LOST,
        websocket_max_message_size=UPLOAD_LIMIT + 10_000,
        log_function=_log,
    )


class Room:
    """The visits of one process, and what they share."""

    def __init__(self, start: Settings, workshop: Workshop | None = None) -> None:
        self.start = start
        self.workshop = workshop or Workshop()
        self.visits: set[Visit] = set()
        # The loop alone would let go of them.
        self.tasks: set[asyncio.Task[None]] = set()
        # Many threads would take memory each; but who waits for a network keeps no other waiting.
        self.pool = ThreadPoolExecutor(8, "explorer")
        self.loading = ThreadPoolExecutor(VISITORS, "loading")

    def warm(self) -> None:
        """Load the network and make the first picture, for nobody yet."""

        def make() -> None:
            # Whatever goes wrong is told to the first visitor.
            with suppress(Exception):
                explorer = Explorer(workshop=self.workshop)
                explorer.warm(explorer.result(self.start).settings)
                # What every visit begins with stays at hand.
                with self.workshop.turns:
                    self.workshop.pin()

        self.loading.submit(make)

    def start_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Have the loop of this thread do something by the way."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def close(self) -> None:
        """End all visits; what is being computed ends as soon as it can."""
        for visit in self.visits:
            visit.close()
        for pool in (self.pool, self.loading):
            pool.shutdown(wait=False, cancel_futures=True)


class _Answer(web.RequestHandler):
    """Answers those alone who asked for this server by its name or address."""

    def initialize(self, hosts: frozenset[str]) -> None:
        self.hosts = hosts

    def prepare(self) -> None:
        # A page elsewhere whose name was made to lead here would be of one origin with this one.
        if not _is_own(self.request.host, self.hosts):
            raise web.HTTPError(403, reason="Not the name of this server")

    def set_default_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    def write_error(self, status_code: int, **_: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status_code}: {self._reason}.\n")


class _Nothing(_Answer):
    def prepare(self) -> None:
        super().prepare()
        raise web.HTTPError(404, reason="Nothing is here; the explorer is at /")


class _Static(_Answer):
    def get(self, name: str) -> None:
        name = name or "page.html"
        self.set_header("Content-Type", f"{_KINDS[Path(name).suffix]}; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        # The face is one module, as a widget's is.
        names = FACE if name == "explorer.js" else [name]
        text = "".join((_STATIC / each).read_text("utf-8") for each in names)
        if name == "page.html":
            built = (results_folder() / "index.html").is_file()
            text = text.replace("<body", '<body data-site="/site/index.html"', 1) if built else text
        self.finish(text)


class _Site(_Answer, web.StaticFileHandler):
    def initialize(self, hosts: frozenset[str], path: str) -> None:  # type: ignore[override]
        _Answer.initialize(self, hosts)
        web.StaticFileHandler.initialize(self, path)

    def set_default_headers(self) -> None:
        super().set_default_headers()
        for name, value in _OPEN.items():
            self.set_header(name, value)


class _Connection(_Answer, websocket.WebSocketHandler):
    """Carries a visit to its page and back; the origin of a page is checked by Tornado."""

    visit: Visit | None = None

    def initialize(self, hosts: frozenset[str], room: Room) -> None:  # type: ignore[override]
        super().initialize(hosts)
        self.room, self.loop = room, asyncio.get_running_loop()
        self.sent: asyncio.Future[None] | None = None
        self.receiving = asyncio.Lock()

    def open(self, *_: str) -> None:
        if len(self.room.visits) >= VISITORS:
            self.close(4000, f"The explorer is full: {VISITORS} look at it already.")
            return
        self.visit = Visit(self.room.start, self.tell, self.room.workshop, self.begin)
        self.room.visits.add(self.visit)
        self.beating = self.loop.create_task(self.beat())

    async def on_message(self, message: str | bytes) -> None:
        if self.visit is None:
            return
        try:
            content, buffers = unpacked(message)
        except ValueError as error:
            self.close(4001, f"expected a message of the explorer's page: {error}"[:120])
            return
        if content.get("type") == "hello":
            act: Callable[[], None] = partial(self.visit.open, content.get("settings"))
        else:
            act = partial(self.visit.receive, content, buffers)
        async with self.receiving:
            await asyncio.to_thread(act)

    def on_close(self) -> None:
        if self.visit is not None:
            self.room.visits.discard(self.visit)
            self.beating.cancel()
            self.room.start_task(self.end(self.visit))

    async def end(self, visit: Visit) -> None:
        async with self.receiving:
            await asyncio.to_thread(visit.close)

    async def beat(self) -> None:
        """Let the page know that the server is there, though it has nothing to say."""
        while True:
            await asyncio.sleep(BEAT)
            self.send(packed({}))

    def tell(self, changes: Mapping[str, Any]) -> None:
        """Send what is new, from whatever thread."""
        self.loop.call_soon_threadsafe(self.send, packed(changes))

    def send(self, frame: bytes) -> None:
        with suppress(websocket.WebSocketClosedError, iostream.StreamClosedError):
            self.sent = self.write_message(frame, binary=True)

    def begin(self, work: Callable[[], None], loads: bool) -> None:
        """Begin a piece of work as soon as the page has taken what was sent before."""
        pool = self.room.loading if loads else self.room.pool
        self.loop.call_soon_threadsafe(lambda: self.room.start_task(self.begin_soon(work, pool)))

    async def begin_soon(self, work: Callable[[], None], pool: ThreadPoolExecutor) -> None:
        if self.sent is not None:
            try:
                await asyncio.wait_for(asyncio.shield(self.sent), LOST)
            except TimeoutError:
                self.close()
            except (websocket.WebSocketClosedError, iostream.StreamClosedError):
                pass
        pool.submit(work)


def packed(state: Mapping[str, Any]) -> bytes:
    """Write a state as bytes: the length of its JSON in 4, the JSON, and what it holds of bytes.

    Bytes in the state are `{"bytes": [from, to]}` in the JSON, counted from its end.
    """
    parts, end = list[bytes](), 0

    def place(value: Any) -> dict[str, list[int]]:
        nonlocal end
        if not isinstance(value, bytes):
            raise TypeError(f"expected what JSON holds, or bytes, got {type(value).__name__}")
        parts.append(value)
        end += len(value)
        return {"bytes": [end - len(value), end]}

    head = json.dumps(state, default=place).encode()
    return b"".join([len(head).to_bytes(4, "big"), head, *parts])


def unpacked(message: str | bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Read a message of the page: JSON, or as bytes its length in 4, JSON and one buffer."""
    head, buffers = message, list[bytes]()
    if isinstance(message, bytes):
        end = 4 + int.from_bytes(message[:4], "big")
        head, buffers = message[4:end], [message[end:]]
    content = json.loads(head)
    if not isinstance(content, dict) or not isinstance(content.get("settings", {}), dict):
        raise ValueError("no settings by their names")
    return content, buffers


def _bound(host: str, port: int | None) -> tuple[list[socket.socket], int]:
    for number in range(8866, 8966) if port is None else [port]:
        try:
            sockets = netutil.bind_sockets(number, host)
        except OSError as error:
            if port is None and error.errno in (errno.EADDRINUSE, errno.EACCES):
                continue
            reason = error.strerror or error
            raise OSError(f"{host}, port {number}: cannot listen there ({reason})") from error
        return sockets, sockets[0].getsockname()[1]
    raise OSError("no port from 8866 to 8965 is free; name another one by --port")


def _is_own(host: str, names: frozenset[str]) -> bool:
    """Tell whether a request names this server, or an address, which nobody can forge."""
    with suppress(ValueError):
        name = (urlsplit(f"//{host}").hostname or "").lower()
        with suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return name in names
    return False


def _names(host: str) -> frozenset[str]:
    if host in _LOCAL:
        return frozenset(_LOCAL)
    machine = socket.gethostname().lower()
    return frozenset({*_LOCAL, host.lower(), machine, f"{machine.partition('.')[0]}.local"})


def _shown(host: str) -> str:
    name = _address() if host in ("0.0.0.0", "", "::") else host
    return f"[{name}]" if ":" in name else name


def _address() -> str:
    """Give this machine's address in its network: that from which another one would be reached."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        # Nothing is sent: the address is one that is kept free for documentation.
        way.connect(("192.0.2.1", 9))
        return str(way.getsockname()[0])
    return "localhost"


def _warning(host: str, port: int) -> list[str]:
    if host in _LOCAL:
        return []
    return [
        f"Whoever is in the same network can open that address: up to {VISITORS} of them can let "
        "this computer compute, and send it pictures, which it keeps until they leave.",
        "They see none of its files and run no code. Nothing is encrypted, and nobody is asked "
        "for a password: use it in a network that you trust.",
    ]


def _log(handler: web.RequestHandler) -> None:
    if handler.get_status() >= 500:
        logging.getLogger(__name__).error("%s %s", handler.get_status(), handler.request.path)
