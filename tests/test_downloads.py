import errno
import hashlib
import io
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
import tqdm

from pdutils import downloads, images
from pdutils.downloads import Download, DownloadError

MAP = f"pixel-deflection/maps/{downloads.AUTHORS_IMAGES[0]}"
CONTENT = bytes(range(256)) * 1000


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PDUTILS_CACHE", str(folder))
    return folder


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Whatever asks the network fails the test's machine, as one without a cable."""

    def unplugged(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unplugged)
    monkeypatch.setattr(socket.socket, "connect", unplugged)


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`, or fails as the path says."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path.startswith("/status/"):
            self.send_error(int(self.path.rpartition("/")[2]))
        elif self.path == "/silent":
            self.server.over.wait()
        else:
            self._send()

    def _send(self) -> None:
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        cut = self.path in ("/cut", "/stalled", "/cut.h5")
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if self.path == "/stalled":
            self.wfile.flush()
            self.server.over.wait()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    """A server on this machine that counts what it is asked for."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "TIMEOUT", (20.0, 20.0))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.content, running.asked, running.over = CONTENT, [], threading.Event()
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.over.set()
        running.shutdown()
        thread.join()


def files(folder: Path) -> list[str]:
    """What lies in a folder and below, hidden and temporary files too."""
    if not folder.exists():
        return []
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def check_refusal(error: DownloadError, name: str, url: str, reason: str) -> None:
    """One sentence: which file, why, and two ways to go on."""
    text = str(error)
    assert name in text
    assert url in text
    assert reason in text
    assert "'demo'" in text
    assert text.count(". ") == 0
    assert "\n" not in text
    assert text.endswith(".")


# The cache


def test_the_cache_is_where_the_variable_says_or_the_platform_s_own(monkeypatch, tmp_path):
    for chosen, expected in ((str(tmp_path), tmp_path), ("~/mine", Path.home() / "mine")):
        monkeypatch.setenv("PDUTILS_CACHE", chosen)
        assert downloads.cache_dir() == expected
    monkeypatch.delenv("PDUTILS_CACHE")
    own = downloads.cache_dir()
    assert own.is_absolute()
    assert "pdutils" in own.parts
    monkeypatch.setenv("PDUTILS_CACHE", "")
    assert downloads.cache_dir() == own


@pytest.fixture
def keras_models(tmp_path, monkeypatch) -> Path:
    """The folder where Keras keeps what it downloads."""
    folder = tmp_path / "keras" / "models"
    folder.mkdir(parents=True)
    monkeypatch.setenv("KERAS_HOME", str(folder.parent))
    return folder


def test_what_keras_has_is_taken_for_a_damaged_file_of_ours(cache, keras_models, no_network):
    (keras_models / "a.bin").write_bytes(CONTENT)
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "a.bin").write_bytes(CONTENT[:-1])
    source = Download("https://example.org/a.bin", sha256(CONTENT))
    assert downloads.download("models/a.bin", source) == keras_models / "a.bin"


def test_what_keras_has_is_looked_at_as_closely_as_what_the_cache_has(cache, keras_models, server):
    for known in (sha256(CONTENT), f"md5:{hashlib.md5(CONTENT).hexdigest()}"):
        (keras_models / "a.bin").write_bytes(CONTENT[:-1])
        path = downloads.download("models/a.bin", Download(f"{server.url}/a.bin", known))
        assert path == cache / "models" / "a.bin"
    # Without a known hash, weights must at least be whole.
    with h5py.File(keras_models / "b.h5", "w") as file:
        file["x"] = np.arange(5000)
    whole = server.content = (keras_models / "b.h5").read_bytes()
    source = Download(f"{server.url}/b.h5", None)
    assert downloads.download("models/b.h5", source) == keras_models / "b.h5"
    (keras_models / "b.h5").write_bytes(whole[:-100])
    assert downloads.download("models/b.h5", source) == cache / "models" / "b.h5"


def test_a_folder_of_keras_that_cannot_be_read_is_passed_over(
    cache, keras_models, server, monkeypatch
):
    def closed(path: Path) -> bool:
        if keras_models in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return os.path.isfile(path)

    monkeypatch.setattr(Path, "is_file", closed)
    path = downloads.download("models/a.bin", Download(f"{server.url}/a.bin", sha256(CONTENT)))
    assert path == cache / "models" / "a.bin"


@pytest.mark.parametrize("digest", ["sha256", "md5"])
def test_a_download_is_kept_under_its_name_and_asked_for_once(cache, server, digest):
    known = f"{digest}:{hashlib.new(digest, CONTENT).hexdigest()}"
    for _ in range(2):
        path = downloads.download("models/a.bin", Download(f"{server.url}/a.bin", known))
        assert path == cache / "models" / "a.bin"
        assert path.read_bytes() == CONTENT
    assert server.asked == ["/a.bin"]
    assert files(cache) == ["models/a.bin"]


def test_a_damaged_file_in_the_cache_is_replaced_and_one_without_a_hash_is_kept(cache, server):
    cache.mkdir()
    (cache / "a.bin").write_bytes(CONTENT[:-1])
    for known in (sha256(CONTENT), None):
        path = downloads.download("a.bin", Download(f"{server.url}/a.bin", known))
        assert path.read_bytes() == CONTENT
    assert server.asked == ["/a.bin"]
    downloads.download("b.bin", Download(f"{server.url}/b.bin", None))
    assert server.asked == ["/a.bin", "/b.bin"]


def test_a_download_has_a_bar_that_reaches_its_end(cache, server, monkeypatch):
    bars = []

    class Recorded(tqdm.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **{**options, "disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr("pdutils._utils.tqdm", Recorded)
    downloads.download("models/a.bin", Download(f"{server.url}/a.bin", sha256(CONTENT)))
    (bar,) = bars
    assert bar.n == bar.total == len(CONTENT)
    assert bar.desc.startswith("a.bin")


# Downloads that fail

HALF_OF_A_FILE = b"\x89HDF\r\n\x1a\nhalf"


@pytest.mark.parametrize(
    ("path", "content", "known", "reason"),
    [
        ("/cut", CONTENT, sha256(CONTENT), "the download was cut off"),
        ("/cut", CONTENT, None, "the download was cut off"),
        ("/status/404", CONTENT, sha256(CONTENT), "the server answered 404"),
        ("/status/503", CONTENT, None, "the server answered 503"),
        ("/silent", CONTENT, None, "did not answer in time"),
        ("/stalled", CONTENT, None, "did not answer in time"),
        ("/a.h5", CONTENT, sha256(b"another"), "not the expected file"),
        # A login page in place of weights, and some that are cut off before they are sent.
        ("/a.h5", b"<html>please log in</html>", None, "not the expected file"),
        ("/a.h5", HALF_OF_A_FILE, None, "not the expected file"),
    ],
)
def test_a_failed_download_leaves_what_there_was_and_says_why(
    cache, server, monkeypatch, path, content, known, reason
):
    if reason == "did not answer in time":
        monkeypatch.setattr(downloads, "TIMEOUT", (0.2, 0.2))
    server.content = content
    for before in (None, b"old"):
        if before:
            (cache / "models").mkdir(parents=True, exist_ok=True)
            (cache / "models" / "a.h5").write_bytes(before)
        with pytest.raises(DownloadError) as caught:
            downloads.download("models/a.h5", Download(server.url + path, known))
        check_refusal(caught.value, "models/a.h5", server.url + path, reason)
        assert files(cache) == (["models/a.h5"] if before else [])
    assert (cache / "models" / "a.h5").read_bytes() == b"old"


def test_a_refused_connection_is_one_clear_sentence(cache):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a.bin"
    with pytest.raises(DownloadError) as caught:
        downloads.download("a.bin", Download(url, None))
    check_refusal(caught.value, "a.bin", url, "no network connection")
    assert files(cache) == []


def test_no_network_is_one_clear_sentence(cache, no_network):
    with pytest.raises(DownloadError) as caught:
        downloads.fetch(MAP)
    check_refusal(caught.value, MAP, downloads.REGISTRY[MAP].url, "no network connection")
    assert str(cache) in str(caught.value)
    # What is damaged is not used either.
    (cache / "a.bin").parent.mkdir(parents=True, exist_ok=True)
    (cache / "a.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match="no network connection"):
        downloads.download("a.bin", Download("https://example.org/a.bin", sha256(CONTENT)))


def test_weights_without_a_known_hash_are_kept_if_whole(cache, server, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(10_000)
    whole = server.content = (tmp_path / "a.h5").read_bytes()
    assert downloads.download("a.h5", Download(f"{server.url}/a.h5", None)).read_bytes() == whole


# A cache that cannot be written to


def test_a_file_in_place_of_the_cache_is_one_clear_sentence(tmp_path, monkeypatch, server):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("PDUTILS_CACHE", str(tmp_path / "taken"))
    with pytest.raises(DownloadError) as caught:
        downloads.download("models/a.bin", Download(f"{server.url}/a.bin", None))
    check_refusal(caught.value, "models/a.bin", f"{server.url}/a.bin", "cache cannot be used")


def test_a_read_only_cache_is_one_clear_sentence(cache, monkeypatch, server):
    def denied(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(cache))

    monkeypatch.setattr(images.tempfile, "mkstemp", denied)
    with pytest.raises(DownloadError) as caught:
        downloads.download("a.bin", Download(f"{server.url}/a.bin", None))
    check_refusal(caught.value, "a.bin", f"{server.url}/a.bin", "(Permission denied)")
    assert server.asked == []


def test_a_full_cache_is_one_clear_sentence_and_leaves_nothing(cache, monkeypatch, server):
    class Full(io.FileIO):
        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r": Full(path, "w") if "w" in mode else opened(path, mode)
    )
    with pytest.raises(DownloadError) as caught:
        downloads.download("a.bin", Download(f"{server.url}/a.bin", sha256(CONTENT)))
    check_refusal(caught.value, "a.bin", f"{server.url}/a.bin", "(No space left on device)")
    assert files(cache) == []


# The registry


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match=rf"nothing\.h5.*{MAP}"):
        downloads.fetch("nothing.h5")


def test_every_entry_has_a_safe_address_and_a_hash():
    for name, source in downloads.REGISTRY.items():
        assert source.url.startswith("https://")
        algorithm, _, digest = source.known_hash.partition(":")
        assert len(digest) == 2 * hashlib.new(algorithm).digest_size, name


def test_the_classes_are_imagenet_s_in_their_order(no_network):
    classes = downloads.class_index()
    assert len(classes) == 1000
    ids = [class_id for class_id, _ in classes]
    assert ids == sorted(set(ids))
    assert classes[0] == ("n01440764", "tench")
    assert classes[361:363] == [("n02445715", "skunk"), ("n02447366", "badger")]
    assert classes[999] == ("n15075141", "toilet_tissue")


@pytest.mark.parametrize("where", ["cache/models", "keras/models"])
def test_what_is_cached_is_found_without_a_network_and_only_whole(
    cache, keras_models, no_network, where
):
    source = Download("https://example.org/a.bin", sha256(CONTENT))
    path = cache.parent / where / "a.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    for content in (None, CONTENT[:-1], CONTENT):
        if content is not None:
            path.write_bytes(content)
        if content == CONTENT:
            assert downloads.find_cached("models/a.bin", source) == path
            assert downloads.download("models/a.bin", source) == path
        else:
            with pytest.raises(DownloadError, match=r"a\.bin is not in the cache"):
                downloads.find_cached("models/a.bin", source)


def test_an_authors_file_is_found_only_if_it_is_the_right_one(cache, monkeypatch, no_network):
    name = downloads.AUTHORS_IMAGES[0]
    path = cache / "pixel-deflection" / "maps" / name
    assert downloads.authors_file("maps", name) is None
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another map")
    assert downloads.authors_file("maps", name) is None
    key = f"pixel-deflection/maps/{name}"
    monkeypatch.setitem(downloads.REGISTRY, key, Download("https://x", sha256(b"another map")))
    assert downloads.authors_file("maps", name) == path
    assert downloads.authors_file("maps", "unknown.png") is None
    assert downloads.authors_file("sketches", name) is None


@pytest.mark.real
def test_the_real_cache_is_found_by_name_and_hash_without_a_network(real, monkeypatch, no_network):
    monkeypatch.setenv("PDUTILS_CACHE", str(real / "cache"))
    for name in downloads.REGISTRY:
        assert downloads.is_cached(name)
        assert downloads.fetch(name) == real / "cache" / name
    for kind in ("originals", "images", "maps"):
        for name in downloads.AUTHORS_IMAGES:
            path = real / "cache" / "pixel-deflection" / kind / name
            assert downloads.authors_file(kind, name) == path


@pytest.mark.real
def test_the_names_of_the_classes_are_keras_s(real):
    index = json.loads((real / "cache" / "imagenet_class_index.json").read_text())
    assert downloads.class_index() == [tuple(index[str(i)]) for i in range(1000)]


@pytest.mark.real
def test_a_damaged_copy_of_a_real_file_is_not_taken(real, cache, no_network):
    name = f"pixel-deflection/images/{downloads.AUTHORS_IMAGES[0]}"
    (cache / name).parent.mkdir(parents=True)
    shutil.copyfile(real / "cache" / name, cache / name)
    assert downloads.is_cached(name)
    content = bytearray((cache / name).read_bytes())
    content[len(content) // 2] ^= 1
    (cache / name).write_bytes(content)
    assert not downloads.is_cached(name)
    with pytest.raises(DownloadError, match="no network connection"):
        downloads.fetch(name)
