import errno
import hashlib
import io
import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
import tqdm

from pdutils import _utils, downloads
from pdutils.downloads import Download, DownloadError

MAP = f"pixel-deflection/maps/{downloads.AUTHORS_IMAGES[0]}"
CONTENT = bytes(range(256)) * 1000
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
FAR = "https://example.org/a.bin"


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and a folder where Keras would keep what it downloads."""
    monkeypatch.setenv("PDUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "keras" / "models").mkdir(parents=True)
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Whatever asks the network fails, as without a cable."""

    def unplugged(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unplugged)
    monkeypatch.setattr(socket.socket, "connect", unplugged)


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`, or fails as the path says."""

    def do_GET(self):
        self.server.asked.append(self.path)
        content, fault = self.server.content, self.path.rpartition("/")[2]
        if fault.isdigit():
            return self.send_error(int(fault))
        if fault == "silent":
            return self.server.over.wait()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault in ("cut", "stalled") else content)
        if fault == "stalled":
            self.wfile.flush()
            self.server.over.wait()

    def log_message(self, *args):
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
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def refusal(name: str, url: str, known: str | None = None) -> str:
    """What is said of a download that fails: one sentence of which file and two ways to go on."""
    with pytest.raises(DownloadError) as caught:
        downloads.download(name, Download(url, known))
    text = str(caught.value)
    assert f": {name} is not in the cache (" in text
    assert text.endswith(
        f"; put the file there from {url}, or use the classifier 'efficientnet_lite0' or 'demo', "
        "which need no download."
    )
    reason = text.partition(":")[0]
    assert caught.value.brief == (
        f"{reason}: {Path(name).name} could not be downloaded. "
        "efficientnet_lite0 and demo need no download."
    )
    assert text.count(". ") == text.count("\n") == 0
    return text


def test_the_cache_is_where_the_variable_says_or_the_platform_s_own(monkeypatch, tmp_path):
    found = []
    for chosen in (str(tmp_path), "~/mine", ""):
        monkeypatch.setenv("PDUTILS_CACHE", chosen)
        found.append(downloads.cache_dir())
    monkeypatch.delenv("PDUTILS_CACHE")
    own = downloads.cache_dir()
    assert found == [tmp_path, Path.home() / "mine", own]
    assert own.is_absolute()
    assert "pdutils" in own.parts


def test_a_download_is_kept_under_its_name_and_asked_for_once_behind_a_bar(
    cache, server, monkeypatch
):
    bars = []

    class Recorded(tqdm.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **{**options, "disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr("pdutils._utils.tqdm", Recorded)
    for name, known in (("a.bin", sha256(CONTENT)), ("b.bin", MD5), ("a.bin", MD5)):
        path = downloads.download(f"models/{name}", Download(f"{server.url}/{name}", known))
        assert path == cache / "models" / name
        assert path.read_bytes() == CONTENT
    assert server.asked == ["/a.bin", "/b.bin"]
    assert files(cache) == ["models/a.bin", "models/b.bin"]
    assert [(bar.n, bar.total, bar.desc[:5]) for bar in bars] == [
        (len(CONTENT), len(CONTENT), name) for name in ("a.bin", "b.bin")
    ]


@pytest.mark.parametrize("where", ["cache/models", "keras/models"])
def test_what_is_cached_is_found_without_a_network_and_only_whole(cache, no_network, where):
    path = cache.parent / where / "a.bin"
    (cache / "models").mkdir(parents=True)
    for known in (sha256(CONTENT), MD5):
        (cache / "models" / "a.bin").write_bytes(b"damaged")
        path.write_bytes(CONTENT[:-1])
        assert downloads.find_cached("models/a.bin", Download(FAR, known)) is None
        assert "No network connection: " in refusal("models/a.bin", FAR, known)
        path.write_bytes(CONTENT)
        assert downloads.find_cached("models/a.bin", Download(FAR, known)) == path
        assert downloads.download("models/a.bin", Download(FAR, known)) == path


def test_a_damaged_file_is_replaced_and_without_a_hash_what_is_whole_is_kept(
    cache, server, monkeypatch
):
    cache.mkdir()
    (cache / "a.bin").write_bytes(CONTENT[:-1])
    for known in (sha256(CONTENT), None):
        path = downloads.download("a.bin", Download(f"{server.url}/a.bin", known))
        assert path.read_bytes() == CONTENT
    assert server.asked == ["/a.bin"]
    # Weights must at least be whole.
    weights = cache.parent / "keras" / "models" / "b.h5"
    with h5py.File(weights, "w") as file:
        file["x"] = np.arange(5000)
    whole = server.content = weights.read_bytes()
    source = Download(f"{server.url}/b.h5", None)
    assert downloads.download("models/b.h5", source) == weights
    weights.write_bytes(whole[:-100])
    assert downloads.download("models/b.h5", source).read_bytes() == whole
    assert server.asked == ["/a.bin", "/b.h5"]

    # A folder of Keras's that cannot be read is passed over.
    def closed(path):
        if cache.parent / "keras" in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return os.path.isfile(path)

    (cache / "models" / "b.h5").unlink()
    monkeypatch.setattr(Path, "is_file", closed)
    assert downloads.download("models/b.h5", source) == cache / "models" / "b.h5"


@pytest.mark.parametrize(
    ("path", "content", "known", "reason"),
    [
        ("/cut", CONTENT, sha256(CONTENT), "The download was cut off"),
        ("/cut", CONTENT, None, "The download was cut off"),
        ("/404", CONTENT, sha256(CONTENT), "The server answered 404"),
        ("/503", CONTENT, None, "The server answered 503"),
        ("/silent", CONTENT, None, "did not answer in time"),
        ("/stalled", CONTENT, None, "did not answer in time"),
        ("/a.h5", CONTENT, sha256(b"another"), "not the expected file"),
        # A login page in place of weights, and some that are cut off before they are sent.
        ("/a.h5", b"<html>please log in</html>", None, "not the expected file"),
        ("/a.h5", b"\x89HDF\r\n\x1a\nhalf", None, "not the expected file"),
    ],
)
def test_a_failed_download_leaves_what_there_was_and_says_why(
    cache, server, monkeypatch, path, content, known, reason
):
    if reason == "did not answer in time":
        monkeypatch.setattr(downloads, "TIMEOUT", (0.2, 0.2))
    server.content = content
    assert reason in refusal("models/a.h5", server.url + path, known)
    assert files(cache) == []
    (cache / "models" / "a.h5").write_bytes(b"old")
    assert reason in refusal("models/a.h5", server.url + path, known)
    assert (cache / "models" / "a.h5").read_bytes() == b"old"
    assert files(cache) == ["models/a.h5"]


def test_no_connection_is_one_clear_sentence(cache, request):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a.bin"
    assert "No network connection: " in refusal("a.bin", url)
    assert files(cache) == []
    request.getfixturevalue("no_network")
    assert "No network connection: " in refusal("a.bin", FAR)
    with pytest.raises(DownloadError, match="No network connection: "):
        downloads.fetch(MAP)


def test_a_cache_that_cannot_be_used_is_one_clear_sentence(cache, monkeypatch, server):
    url = f"{server.url}/a.bin"
    cache.write_text("a file in its place")
    assert "cache cannot be used" in refusal("models/a.bin", url)
    cache.unlink()

    def denied(*args, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(cache))

    with monkeypatch.context() as patch:
        patch.setattr(_utils.tempfile, "mkstemp", denied)
        assert "(Permission denied)" in refusal("a.bin", url)
    assert server.asked == []

    class Full(io.FileIO):
        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r": Full(path, "w") if "w" in mode else opened(path, mode)
    )
    assert "(No space left on device)" in refusal("a.bin", url, sha256(CONTENT))
    assert files(cache) == []


def test_every_entry_has_a_safe_address_and_a_hash_and_an_unknown_name_lists_them():
    assert len(downloads.REGISTRY) == 9
    for name, source in downloads.REGISTRY.items():
        assert source.url.startswith("https://")
        algorithm, _, digest = source.known_hash.partition(":")
        assert len(digest) == 2 * hashlib.new(algorithm).digest_size, name
    with pytest.raises(KeyError, match=rf"nothing\.h5.*{MAP}"):
        downloads.fetch("nothing.h5")


def test_the_classes_are_imagenet_s_in_their_order(no_network):
    classes = downloads.class_index()
    ids = [class_id for class_id, _ in classes]
    assert len(ids) == 1000
    assert ids == sorted(set(ids))
    assert classes[0] == ("n01440764", "tench")
    assert classes[361:363] == [("n02445715", "skunk"), ("n02447366", "badger")]
    assert classes[999] == ("n15075141", "toilet_tissue")


def test_an_authors_file_is_found_only_if_it_is_the_right_one(cache, monkeypatch, no_network):
    name = downloads.AUTHORS_IMAGES[0]
    assert downloads.authors_file("maps", name) is None
    (cache / MAP).parent.mkdir(parents=True)
    (cache / MAP).write_bytes(b"another map")
    assert downloads.authors_file("maps", name) is None
    monkeypatch.setitem(downloads.REGISTRY, MAP, Download("https://x", sha256(b"another map")))
    assert downloads.authors_file("maps", name) == downloads.fetch(MAP) == cache / MAP
    assert downloads.authors_file("maps", "unknown.png") is None
    assert downloads.authors_file("sketches", name) is None


@pytest.mark.real
def test_the_real_cache_is_found_by_name_and_hash_without_a_network(real, monkeypatch, no_network):
    monkeypatch.setenv("PDUTILS_CACHE", str(real / "cache"))
    for kind in ("originals", "images", "maps"):
        for name in downloads.AUTHORS_IMAGES:
            path = real / "cache" / "pixel-deflection" / kind / name
            assert downloads.authors_file(kind, name) == path
    for name in downloads.REGISTRY:
        assert downloads.fetch(name) == real / "cache" / name
    index = json.loads((real / "cache" / "imagenet_class_index.json").read_text())
    assert downloads.class_index() == [tuple(index[str(i)]) for i in range(1000)]
