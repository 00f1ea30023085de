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
from conftest import photo

from pdutils import downloads, images
from pdutils import files as files_module
from pdutils.demo import shipped
from pdutils.downloads import DataError, Download, DownloadError
from pdutils.images import save_image

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


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PDUTILS_CACHE", str(tmp_path / "mine"))
    assert downloads.cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("PDUTILS_CACHE", "~/mine")
    assert downloads.cache_dir() == Path.home() / "mine"


def test_the_cache_is_the_platform_s_own_by_default(monkeypatch):
    monkeypatch.delenv("PDUTILS_CACHE", raising=False)
    own = downloads.cache_dir()
    assert own.is_absolute()
    assert "pdutils" in own.parts
    monkeypatch.setenv("PDUTILS_CACHE", "")
    assert downloads.cache_dir() == own


def test_a_file_in_the_cache_needs_no_network(cache, no_network):
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "a.bin").write_bytes(CONTENT)
    source = Download("https://example.org/a.bin", sha256(CONTENT))
    assert downloads.download("models/a.bin", source) == cache / "models" / "a.bin"


@pytest.fixture
def keras_models(tmp_path, monkeypatch) -> Path:
    """The folder where Keras keeps what it downloads."""
    folder = tmp_path / "keras" / "models"
    folder.mkdir(parents=True)
    monkeypatch.setenv("KERAS_HOME", str(folder.parent))
    return folder


@pytest.mark.parametrize("kept", ["nothing", "damaged"])
def test_what_keras_has_downloaded_is_not_downloaded_again(cache, keras_models, no_network, kept):
    (keras_models / "a.bin").write_bytes(CONTENT)
    if kept == "damaged":
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


def test_what_keras_has_counts_as_cached(cache, keras_models, no_network):
    (keras_models / "a.bin").write_bytes(CONTENT)
    source = Download("https://example.org/a.bin", sha256(CONTENT))
    assert downloads.find_cached("models/a.bin", source) == keras_models / "a.bin"


@pytest.mark.parametrize("digest", ["sha256", "md5"])
def test_a_download_is_kept_under_its_name_and_asked_for_once(cache, server, digest):
    known = f"{digest}:{hashlib.new(digest, CONTENT).hexdigest()}"
    for _ in range(2):
        path = downloads.download("models/a.bin", Download(f"{server.url}/a.bin", known))
        assert path == cache / "models" / "a.bin"
        assert path.read_bytes() == CONTENT
    assert server.asked == ["/a.bin"]
    assert files(cache) == ["models/a.bin"]


def test_a_download_without_a_known_hash_is_kept(cache, server):
    path = downloads.download("a.bin", Download(f"{server.url}/a.bin", None))
    assert path.read_bytes() == CONTENT
    downloads.download("a.bin", Download(f"{server.url}/a.bin", None))
    assert server.asked == ["/a.bin"]


def test_a_damaged_file_in_the_cache_is_replaced(cache, server):
    cache.mkdir()
    (cache / "a.bin").write_bytes(CONTENT[:-1])
    path = downloads.download("a.bin", Download(f"{server.url}/a.bin", sha256(CONTENT)))
    assert path.read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_not_used_without_a_network(cache, no_network):
    cache.mkdir()
    (cache / "a.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match="no network connection"):
        downloads.download("a.bin", Download("https://example.org/a.bin", sha256(CONTENT)))


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


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/cut", "the download was cut off"),
        ("/status/404", "the server answered 404"),
        ("/status/503", "the server answered 503"),
    ],
)
@pytest.mark.parametrize("known", [sha256(CONTENT), None])
def test_a_failed_download_leaves_nothing_and_says_why(cache, server, path, reason, known):
    with pytest.raises(DownloadError) as caught:
        downloads.download("models/a.bin", Download(server.url + path, known))
    check_refusal(caught.value, "models/a.bin", server.url + path, reason)
    assert files(cache) == []


@pytest.mark.parametrize("path", ["/silent", "/stalled"])
def test_a_server_that_falls_silent_does_not_hang_the_reader(cache, server, monkeypatch, path):
    monkeypatch.setattr(downloads, "TIMEOUT", (0.2, 0.2))
    with pytest.raises(DownloadError) as caught:
        downloads.download("a.bin", Download(server.url + path, None))
    check_refusal(caught.value, "a.bin", server.url + path, "did not answer in time")
    assert files(cache) == []


def test_a_file_with_another_hash_is_not_kept(cache, server):
    with pytest.raises(DownloadError) as caught:
        downloads.download("a.bin", Download(f"{server.url}/a.bin", sha256(b"another")))
    check_refusal(caught.value, "a.bin", f"{server.url}/a.bin", "not the expected file")
    assert files(cache) == []


def test_a_failed_download_does_not_touch_the_damaged_file(cache, server):
    cache.mkdir()
    (cache / "a.bin").write_bytes(b"old")
    with pytest.raises(DownloadError):
        downloads.download("a.bin", Download(f"{server.url}/cut", sha256(CONTENT)))
    assert files(cache) == ["a.bin"]
    assert (cache / "a.bin").read_bytes() == b"old"


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


def test_a_login_page_in_place_of_weights_is_not_kept(cache, server):
    server.content = b"<html>please log in</html>"
    with pytest.raises(DownloadError) as caught:
        downloads.download("models/a.h5", Download(f"{server.url}/a.h5", None))
    check_refusal(caught.value, "models/a.h5", f"{server.url}/a.h5", "not the expected file")
    assert files(cache) == []


def test_weights_without_a_known_hash_are_kept_if_whole(cache, server, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(10_000)
    whole = (tmp_path / "a.h5").read_bytes()
    server.content = whole[: len(whole) // 2]
    with pytest.raises(DownloadError, match="not the expected file"):
        downloads.download("a.h5", Download(f"{server.url}/a.h5", None))
    server.content = whole
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


def test_what_is_cached_is_found_without_a_network_and_only_whole(cache, no_network):
    source = Download("https://example.org/a.bin", sha256(CONTENT))
    with pytest.raises(DownloadError, match=r"a\.bin is not in the cache"):
        downloads.find_cached("a.bin", source)
    cache.mkdir()
    (cache / "a.bin").write_bytes(CONTENT)
    assert downloads.find_cached("a.bin", source) == cache / "a.bin"
    (cache / "a.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match=r"a\.bin is not in the cache"):
        downloads.find_cached("a.bin", source)


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


# The shipped demo


@pytest.fixture
def demo(tmp_path, monkeypatch) -> Path:
    """A checkout with one demo image."""
    entry = {
        "name": "badger_000.png",
        "label": "badger",
        "adversary": "skunk",
        "sha256": {},
        "attack": {"linf": 3.0},
    }
    folders = {"image": "data/images", "adversary": "data/adversaries", "mask": "data/masks"}
    for part, folder in {**folders, "map": "maps"}.items():
        content = part.encode()
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / entry["name"]).write_bytes(content)
        entry["sha256"][part] = hashlib.sha256(content).hexdigest()
    (tmp_path / "data" / "demo.weights.h5").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    manifest = {
        "version": 1,
        "weights": {"file": "demo.weights.h5", "sha256": digest},
        "images": [entry],
    }
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(shipped, "demo_root", lambda: tmp_path)
    return tmp_path


def test_the_demo_s_files_are_found(demo):
    (image,) = shipped.demo_images()
    assert (image.name, image.label, image.adversarial_label) == (
        "badger_000.png",
        "badger",
        "skunk",
    )
    assert image.image.read_bytes() == b"image"
    assert image.adversary.read_bytes() == b"adversary"
    assert image.mask.read_bytes() == b"mask"
    assert image.activation_map.read_bytes() == b"map"
    assert image.attack == {"linf": 3.0}
    assert shipped.demo_weights().read_bytes() == b"weights"


def test_a_demo_image_is_found_by_its_name_with_and_without_the_suffix(demo):
    assert shipped.demo_image("badger_000.png") == shipped.demo_images()[0]
    assert shipped.demo_image("badger_000") == shipped.demo_images()[0]
    assert shipped.demo_image("badger") is None
    assert shipped.demo_image("") is None


@pytest.mark.parametrize("folder", ["data/images", "data/adversaries", "data/masks", "maps"])
def test_a_missing_or_changed_file_of_the_demo_is_named(demo, folder):
    path = demo / folder / "badger_000.png"
    path.write_bytes(b"another")
    with pytest.raises(DataError, match=f"{path} is not the file that the manifest lists"):
        shipped.demo_images()
    path.unlink()
    with pytest.raises(DataError, match=f"{path} is missing; .*demo make"):
        shipped.demo_image("badger_000")


def test_missing_or_changed_weights_of_the_demo_are_named(demo):
    path = demo / "data" / "demo.weights.h5"
    path.write_bytes(b"another")
    with pytest.raises(DataError, match=r"demo\.weights\.h5 is not the file"):
        shipped.demo_weights()
    path.unlink()
    with pytest.raises(DataError, match=r"demo\.weights\.h5 is missing"):
        shipped.demo_weights()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"version": 2}', "expected version 1, got 2"),
        ("{}", "expected version 1, got None"),
        ("[1]", "expected version 1, got None"),
        ('{"version"', "expected a manifest in JSON"),
    ],
)
def test_a_manifest_that_is_none_is_named(demo, content, message):
    path = demo / "data" / "manifest.json"
    path.write_text(content)
    with pytest.raises(DataError, match=f"{path}: {message}"):
        shipped.demo_images()


def test_a_missing_manifest_says_how_to_make_it(demo):
    (demo / "data" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json is missing; .*demo make"):
        shipped.demo_image("badger_000")


def test_the_demo_lies_beside_the_package():
    assert (shipped.demo_root() / "pdutils" / "downloads.py").is_file()


# A user's folder


def make(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    return folder


def test_labels_come_from_the_names_of_the_files(tmp_path):
    make(tmp_path, "skunk_2.PNG", "badger_1.jpg", "badger_2.jpeg", "notes.txt", "README_first.md")
    assert files_module.labelled_files(tmp_path) == [
        (tmp_path / "badger_1.jpg", "badger"),
        (tmp_path / "badger_2.jpeg", "badger"),
        (tmp_path / "skunk_2.PNG", "skunk"),
    ]


def test_labels_come_from_the_names_of_the_folders(tmp_path):
    make(tmp_path, "n02447366/a.jpg", "n02447366/b_c.png", "n02445715/deep/er/d.webp")
    assert files_module.labelled_files(str(tmp_path)) == [
        (tmp_path / "n02445715" / "deep" / "er" / "d.webp", "n02445715"),
        (tmp_path / "n02447366" / "a.jpg", "n02447366"),
        (tmp_path / "n02447366" / "b_c.png", "n02447366"),
    ]


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    make(tmp_path / "x", ".owl_1.png", ".cache/owl_2.png", "owl/._3.png", "owl/4.png")
    assert files_module.labelled_files(tmp_path / "x") == [
        (tmp_path / "x" / "owl" / "4.png", "owl")
    ]


def test_a_folder_inside_a_hidden_one_is_read(tmp_path):
    make(tmp_path / ".hidden", "owl_1.png")
    assert len(files_module.labelled_files(tmp_path / ".hidden")) == 1


def test_a_folder_that_is_named_like_a_picture_is_none(tmp_path):
    make(tmp_path, "owl_1.png/a.txt", "owl_2.png")
    assert files_module.labelled_files(tmp_path) == [(tmp_path / "owl_2.png", "owl")]


def test_a_name_without_an_underscore_is_named(tmp_path):
    make(tmp_path, "badger_1.png", "badger.png")
    with pytest.raises(ValueError, match=r"<label>_<anything>\.png, got badger\.png"):
        files_module.labelled_files(tmp_path)


@pytest.mark.parametrize("paths", [(), ("notes.txt", ".owl_1.png")])
def test_a_folder_without_pictures_is_an_error(tmp_path, paths):
    make(tmp_path, *paths)
    with pytest.raises(ValueError, match=f"{tmp_path}: expected pictures .* found none"):
        files_module.labelled_files(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"away: no such folder"):
        files_module.labelled_files(tmp_path / "away")


def test_a_file_is_no_folder(tmp_path):
    save_image(tmp_path / "owl_1.png", photo())
    with pytest.raises(ValueError, match=r"owl_1\.png: expected a folder of pictures, got a file"):
        files_module.labelled_files(tmp_path / "owl_1.png")


def test_what_is_no_picture_is_told_where_there_is_none(tmp_path):
    make(tmp_path, "owl_1.heic", "owl_2.heic", "notes.txt")
    with pytest.raises(ValueError, match=r"found none; passed over 3 entries: 2 \.heic, 1 \.txt"):
        files_module.labelled_files(tmp_path)


def test_a_class_folder_that_is_a_link_labels_its_pictures(tmp_path):
    make(tmp_path, "away/1.png", "root/owl_2.jfif")
    (tmp_path / "root" / "yak").symlink_to(tmp_path / "away")
    assert files_module.labelled_files(tmp_path / "root") == [
        (tmp_path / "root" / "owl_2.jfif", "owl"),
        (tmp_path / "root" / "yak" / "1.png", "yak"),
    ]
