"""The page's server, in this process; its visitors speak with it as page.js does."""

import asyncio
import gc
import io
import logging
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.websocket import WebSocketClosedError, websocket_connect

from benchmarks.visitors import Visitor, read
from pdutils._utils import on_grid
from pdutils.classifiers import load_classifier
from pdutils.demo.examples import demo_image
from pdutils.explorer import page, workshop
from pdutils.explorer.engine import Explorer, Settings
from pdutils.explorer.page import Room, application, packed, unpacked
from pdutils.explorer.workshop import Workshop


@pytest.fixture(scope="module")
def demo():
    return load_classifier("demo")


@pytest.fixture
def room(demo):
    return Room(Settings(), Workshop({("demo", ""): demo}))


class Door:
    """A room that is served on localhost, and the visitors who came in."""

    def __init__(self, port):
        self.port, self.visitors = port, []

    async def visitor(self, settings=None):
        self.visitors.append(await Visitor.opened(self.port, settings))
        return self.visitors[-1]

    async def fetch(self, path, **options):
        request = HTTPRequest(f"http://127.0.0.1:{self.port}/{path}", **options)
        return await AsyncHTTPClient().fetch(request, raise_error=False)


@asynccontextmanager
async def served(room, host="localhost"):
    sock, port = bind_unused_port(address="127.0.0.1")
    server = HTTPServer(application(room, host))
    server.add_socket(sock)
    door = Door(port)
    try:
        yield door
    finally:
        # Else a socket would be left to be closed in the middle of another test.
        for visitor in door.visitors:
            visitor.vanish()
        server.stop()
        await server.close_all_connections()
        room.close()


def run(scene):
    """Play a scene, which must end in time."""
    asyncio.run(asyncio.wait_for(scene, 120))


async def settled(condition):
    """Wait until something holds that nobody tells of."""
    for _ in range(600):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never came to that")


def folders():
    return set(Path(tempfile.gettempdir()).glob("pdutils-explorer-*"))


def test_a_visitor_sees_what_the_package_gives_and_a_link_opens_the_same(room, demo):
    async def scene():
        async with served(room) as door:
            one = await door.visitor()
            assert one.state["settings"] == {**vars(Settings()), "image": "badger_000"}
            shown = await one.move(deflections=400, denoiser="wavelet", seed=3)
            settings = Settings(image="badger_000", deflections=400, denoiser="wavelet", seed=3)
            result = Explorer({("demo", ""): demo}).result(settings)
            assert shown["verdict"] == result.verdict
            picture = Image.open(io.BytesIO(one.state["picture_defended"]))
            np.testing.assert_array_equal(np.asarray(picture), on_grid(result.defended))

            link = {name: one.state["settings"][name] for name in one.state["offer"]["defaults"]}
            other = await door.visitor(link)
            same = ("settings", "picture_defended", "picture_deflected", "classes")
            assert [other.state[name] for name in same] == [one.state[name] for name in same]
            # What one does is nothing to the other.
            await one.move(image="fox_000")
            assert (await other.move(window=4))["name"] == "badger_000"
            assert len(other.state["history"]) == 2

    run(scene())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"deflections": "abc"}, "deflections: expected a whole number from 0 to 20000, got 'abc'"),
        ({"colour": 1}, "colour: no setting of the explorer"),
        ({"image": "own/3/my-otter.png"}, "my-otter.png was a visitor's own and went with"),
        ({"classifier": "demo", "image": "coffee"}, "no picture 'coffee' on offer"),
    ],
)
def test_a_link_that_cannot_be_followed_leaves_a_sentence_and_the_beginning(room, settings, words):
    async def scene():
        async with served(room) as door:
            one = await door.visitor(settings)
            await one.until(lambda state: state["shown"])
            assert one.state["error"]["text"].startswith(f"This link cannot be followed. {words}")
            assert one.state["settings"]["deflections"] == 200
            await one.move(deflections=20)
            assert one.state["error"] == {}

    run(scene())


def test_a_visit_ends_with_its_page_and_takes_its_pictures_along(room):
    png, before = demo_image("otter_000").image.read_bytes(), folders()

    async def scene():
        async with served(room) as door:
            for leave in (Visitor.close, Visitor.vanish):
                one, other = await door.visitor(), await door.visitor()
                await one.upload("mine.png", png)
                name = one.state["settings"]["image"]
                (path,) = (folders() - before).pop().glob("*/mine.png")
                assert any(str(path) in key for key in room.workshop._kept)
                # Nobody else can look at it, nor see where it lies.
                assert (await other.move(image=name))["text"].startswith("mine.png was a visitor's")
                assert str(path.parent) not in repr(one.state)
                assert len(room.visits) == 2
                leave(one)
                await settled(lambda: len(room.visits) == 1)
                await settled(lambda: folders() == before)
                assert not any(str(path) in key for key in room.workshop._kept)
                assert (await other.move(window=7))["name"] == "badger_000"
                other.close()
                await settled(lambda: not room.visits)

    run(scene())


def test_a_page_that_shows_no_sign_of_life_is_lost(room, monkeypatch):
    async def scene():
        async with served(room) as door:
            one = await door.visitor()
            # What asks it whether it is there gets no answer.
            never = asyncio.get_running_loop().create_future()
            one.connection.protocol._write_frame = lambda *_, **__: never
            await settled(lambda: not room.visits)

    # Asked that often, and given that long, it is gone within two minutes.
    assert 2 * page.LOST <= 120
    monkeypatch.setattr(page, "LOST", 0.3)
    run(scene())


def test_many_wishes_of_one_are_one_and_another_is_served_in_between(room, monkeypatch):
    served_, result = [], Explorer.result

    def slowly(explorer, settings, **options):
        served_.append((settings.image, settings.seed))
        time.sleep(0.1)
        return result(explorer, settings, **options)

    async def scene():
        async with served(room) as door:
            greedy, modest = await door.visitor(), await door.visitor()
            await modest.move(image="fox_000")
            monkeypatch.setattr(Explorer, "result", slowly)
            for seed in range(1, 40):
                await greedy.say({"type": "move", "id": f"s{seed}", "settings": {"seed": seed}})
            assert (await modest.move(seed=99))["name"] == "fox_000"
            await greedy.until(lambda state: state["shown"]["id"] == "s39")

    run(scene())
    seeds = [seed for name, seed in served_ if name == "badger_000"]
    assert len(seeds) < 10
    assert seeds[-1] == 39
    # The modest one did not wait for all of the greedy one's.
    assert served_.index(("fox_000", 99)) < 3


def test_who_wishes_without_end_leaves_the_others_a_thread(room, monkeypatch):
    result = Explorer.result

    def slowly(explorer, settings, **options):
        time.sleep(0.1)
        return result(explorer, settings, **options)

    async def scene():
        async with served(room) as door:
            greedy, modest = await door.visitor(), await door.visitor()
            room.pool = ThreadPoolExecutor(1)
            monkeypatch.setattr(Explorer, "result", slowly)

            async def wish():
                for seed in range(1, 10_000):
                    move = {"type": "move", "id": f"s{seed}", "settings": {"seed": seed}}
                    await greedy.say(move)
                    await asyncio.sleep(0.03)

            wishes = asyncio.create_task(wish())
            await asyncio.sleep(0.5)
            await asyncio.wait_for(modest.move(window=4), 60)
            wishes.cancel()

    run(scene())


def test_for_a_page_that_does_not_take_what_it_asked_for_nothing_more_is_computed(
    room, monkeypatch
):
    seeds, result = [], Explorer.result

    def noted(explorer, settings, **options):
        seeds.append(settings.seed)
        return result(explorer, settings, **options)

    async def scene():
        async with served(room) as door:
            slow, other = await door.visitor(), await door.visitor()
            # More than lies on the way between two sockets.
            large = {"padding": bytes(30_000_000)}
            monkeypatch.setattr(page, "packed", lambda state: packed({**state, **large}))
            monkeypatch.setattr(Explorer, "result", noted)
            for seed in range(1, 30):
                await slow.say({"type": "move", "id": f"s{seed}", "settings": {"seed": seed}})
                await asyncio.sleep(0.05)
            assert len(seeds) < 6
            assert (await other.move(seed=99))["name"] == "badger_000"
            # As soon as it reads again, it gets the newest.
            await slow.until(lambda state: state["shown"]["id"] == "s29")

    run(scene())


def test_while_a_network_is_loaded_for_many_the_others_are_served(room, demo, monkeypatch):
    go = threading.Event()

    def load(name, weights):
        assert go.wait(60)
        return demo

    monkeypatch.setattr("pdutils.explorer.engine.load_classifier", load)

    async def scene():
        async with served(room) as door:
            many = [await door.visitor() for _ in range(12)]
            asked = [asyncio.create_task(one.move(classifier="vgg19")) for one in many]
            await settled(lambda: any("vgg19" in str(v.state["busy"]) for v in room.visits))
            assert (await (await door.visitor()).move(seed=4))["name"] == "badger_000"
            go.set()
            for one in asked:
                await one

    run(scene())


def test_a_long_attack_lets_the_others_work_in_its_middle_and_is_made_once_for_all(room, demo):
    gradients, gradient = [], demo.loss_gradient

    def slowly(*args, **options):
        gradients.append(1)
        time.sleep(0.02)
        return gradient(*args, **options)

    demo.loss_gradient = slowly
    strong = {"attack": "igsm", "stop": False, "steps": 60, "eps": 16}

    async def scene():
        async with served(room) as door:
            slow, twin, quick = [await door.visitor() for _ in range(3)]
            gradients.clear()
            both = [asyncio.create_task(one.move(**strong)) for one in (slow, twin)]
            await settled(lambda: len(gradients) > 3)
            await quick.move(window=3)
            assert len(gradients) < 55
            for task in both:
                assert (await task)["name"] == "badger_000"
            assert len(gradients) == 60

    try:
        run(scene())
    finally:
        del demo.loss_gradient


@pytest.mark.parametrize(("seconds", "after"), [(0, 1), (60, 3)])
def test_a_long_job_lets_the_others_work_when_it_has_had_its_time(monkeypatch, seconds, after):
    monkeypatch.setattr(workshop, "SLICE", seconds)
    turns, done = workshop.Turns(), []

    def work():
        with turns:
            done.append("other")

    other = threading.Thread(target=work)
    with turns:
        other.start()
        while len(turns) < 2:
            time.sleep(0.001)
        for step in range(3):
            done.append(step)
            turns.pass_on()
    other.join()
    assert done.index("other") == after


@pytest.mark.parametrize("final", [False, True])
def test_a_step_of_a_slider_is_given_up_when_it_is_released(room, demo, final):
    predicted, predict = [], demo.predict

    def slowly(*args, **options):
        predicted.append(1)
        time.sleep(0.02)
        return predict(*args, **options)

    async def scene():
        async with served(room) as door:
            one = await door.visitor()
            demo.predict = slowly
            await one.say({"type": "move", "settings": {"runs": 50}, "final": final})
            await one.until(lambda state: state["busy"].get("what") == "Defending")
            assert (await one.move(runs=3))["name"] == "badger_000"
            # What was asked for by a release is shown, though another one came after it.
            assert (len(predicted) < 40) == (not final)

    try:
        run(scene())
    finally:
        del demo.predict


def test_a_slider_that_is_dragged_asks_for_the_newest_only_and_is_timed_from_its_release(
    room, monkeypatch
):
    results, result = [], Explorer.result

    def slowly(explorer, settings, **options):
        results.append(settings.deflections)
        time.sleep(0.25)
        return result(explorer, settings, **options)

    async def scene():
        async with served(room) as door:
            one = await door.visitor()
            # The network is compiled meanwhile.
            await one.move(seed=1)
            monkeypatch.setattr(Explorer, "result", slowly)
            seconds = await one.drag("deflections", [100, 120, 140, 160, 180, 300], 0.5)
            assert 0.25 <= seconds < 5
            assert (results[0], results[-1]) == (100, 300)
            assert len(results) < 6
            assert one.state["settings"]["deflections"] == 300
            with pytest.raises(ValueError, match="window 2000: window: expected"):
                await one.drag("window", [5, 2000])

    run(scene())


@pytest.mark.parametrize("error", [KeyError("odd"), MemoryError(), SystemExit(3), RecursionError()])
def test_an_error_stays_with_whom_it_meets(room, monkeypatch, caplog, error):
    result = Explorer.result

    def fail(explorer, settings, **options):
        if settings.seed == 13:
            raise error
        return result(explorer, settings, **options)

    monkeypatch.setattr(Explorer, "result", fail)

    async def scene():
        async with served(room) as door:
            one, other = await door.visitor(), await door.visitor()
            text = (await one.move(seed=13))["text"]
            assert text.startswith(f"This could not be computed ({type(error).__name__}")
            assert "Traceback" not in text
            assert other.state["error"] == {}
            for visitor in (other, one):
                assert (await visitor.move(seed=4))["name"] == "badger_000"

    run(scene())
    # Whoever runs the server can find it.
    assert [record.exc_info[1] for record in caplog.records] == [error]


@pytest.mark.parametrize(
    "message", ["", "{", "[]", '{"type": "move", "settings": 3}', b"", b"\0\0\0\2{", b"\xff" * 9]
)
def test_what_no_page_sends_ends_the_visit_and_nothing_else(room, message, caplog):
    async def scene():
        async with served(room) as door:
            one, other = await door.visitor(), await door.visitor()
            await one.connection.write_message(message, binary=isinstance(message, bytes))
            with pytest.raises(EOFError, match="expected a message of the explorer's page"):
                await one.until(lambda state: False)
            assert (await other.move(seed=4))["name"] == "badger_000"
            assert len(room.visits) == 1

    run(scene())
    assert not caplog.records


def test_uploads_are_limited(room, monkeypatch):
    async def scene():
        async with served(room) as door:
            one = await door.visitor()
            text = (await one.upload("large.png", bytes(8_000_500)))["text"]
            assert text == "large.png: expected at most 8 MB, got 8.0 MB"
            with pytest.raises((EOFError, WebSocketClosedError)):
                await one.upload("larger.png", bytes(9_000_000))
            await settled(lambda: not room.visits)

    run(scene())


def test_who_comes_when_it_is_full_is_told(room, monkeypatch):
    monkeypatch.setattr(page, "VISITORS", 2)

    async def scene():
        async with served(room) as door:
            first, _ = [await door.visitor() for _ in range(2)]
            with pytest.raises(EOFError, match="The explorer is full: 2 look at it already"):
                await door.visitor()
            first.close()
            await settled(lambda: len(room.visits) == 1)
            await door.visitor()

    run(scene())


HOSTS = [
    ("localhost", "localhost:{port}", 200),
    ("localhost", "127.0.0.1:{port}", 200),
    ("localhost", "[::1]:{port}", 200),
    ("localhost", "elsewhere.example:{port}", 403),
    ("localhost", "localhost.elsewhere.example", 403),
    ("0.0.0.0", "192.168.1.20:{port}", 200),
    ("0.0.0.0", "elsewhere.example", 403),
    ("mine.example", "mine.example:{port}", 200),
]


@pytest.mark.parametrize(("host", "asked", "status"), HOSTS)
def test_it_answers_to_its_own_names_alone(room, host, asked, status):
    async def scene():
        async with served(room, host) as door:
            headers = {"Host": asked.format(port=door.port)}
            for path in ("", "page.js", "nothing"):
                answer = await door.fetch(path, headers=headers)
                assert answer.code == (404 if path == "nothing" and status == 200 else status)
                assert "set-cookie" not in answer.headers
                assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
                assert b"Traceback" not in answer.body

    run(scene())


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost:{port}", 101), ("http://elsewhere.example", 403), ("null", 403)],
)
def test_a_page_of_another_origin_cannot_drive_it(room, origin, status):
    async def scene():
        async with served(room) as door:
            headers = {"Origin": origin.format(port=door.port)}
            request = HTTPRequest(f"ws://localhost:{door.port}/visit", headers=headers)
            if status == 101:
                Visitor(await websocket_connect(request)).vanish()
            else:
                with pytest.raises(HTTPClientError, match=str(status)):
                    await websocket_connect(request)

    run(scene())


def test_it_serves_the_site_and_no_other_results(room, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "results_folder", lambda: tmp_path)
    kept = ("index.html", "notebooks/01_classify.html", "_static/scripts/bootstrap.js")
    for name in (*kept, "mine.sqlite", ".site/index.html", "../setup.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("here")

    async def scene():
        async with served(room) as door:
            codes = {}
            for name in (*kept, "mine.sqlite", ".site/index.html", "..%2Fsetup.html", "x.html"):
                codes[name] = (await door.fetch(f"site/{name}")).code
            assert [name for name, code in codes.items() if code == 200] == list(kept)
            assert set(codes.values()) == {200, 404}
            answer = await door.fetch("")
            assert b'data-site="/site/index.html"' in answer.body

    run(scene())


def test_messages_hold_bytes_wherever_they_stand():
    state = {"a": b"12", "list": [{"picture": b"345", "n": 1}], "none": b""}
    assert read(packed(state)) == state
    assert unpacked(b"\0\0\0\7" + b'{"a":1}' + b"\xff\0") == ({"a": 1}, [b"\xff\0"])
    with pytest.raises(TypeError, match="expected what JSON holds, or bytes, got set"):
        packed({"a": {1}})


# Tornado leaves the socket open that it could not bind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_port_that_is_taken_is_told_or_passed_over():
    (taken,), port = page._bound("127.0.0.1", 0)
    with pytest.raises(OSError, match=f"port {port}: cannot listen there"):
        page._bound("127.0.0.1", port)
    taken.close()
    gc.collect()
    with pytest.raises(OSError, match=r"nowhere\.invalid, port 9: cannot listen there"):
        page._bound("nowhere.invalid", 9)


def test_whoever_opens_it_to_a_network_is_told_what_that_means():
    assert page._warning("localhost", 1) == []
    said = " ".join(page._warning("0.0.0.0", 1))
    for words in ("Whoever is in the same network", "no code", "Nothing is encrypted"):
        assert words in said


def test_the_address_that_is_told_can_be_opened():
    assert page._shown("localhost") == "localhost"
    assert page._shown("::1") == "[::1]"
    assert page._shown("0.0.0.0") not in ("0.0.0.0", "")


def test_nothing_is_logged_of_an_ordinary_visit(room, caplog):
    caplog.set_level(logging.INFO)

    async def scene():
        async with served(room) as door:
            one = await door.visitor()
            await one.move(seed=2)
            one.vanish()
            await settled(lambda: not room.visits)

    run(scene())
    assert [record.getMessage() for record in caplog.records if record.levelno > 20] == []
