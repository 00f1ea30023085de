"""What can be downloaded, and where it is kept.

The cache is the folder that the environment variable PDUTILS_CACHE names, or the platform's own
cache folder. What lies there under the right name, with the right hash, is never downloaded; nor is
what lies in Keras's own cache, `~/.keras/models` or where KERAS_HOME says.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from pdutils._utils import has_hash, keras_home, progress_bar, whole_file

#: Seconds to wait for a connection, and for the next bytes of a download.
TIMEOUT = (5.0, 30.0)


class Download(NamedTuple):
    """A file that can be downloaded: its address and its hash, as `algorithm:hex`."""

    url: str
    known_hash: str | None


class DownloadError(OSError):
    """A file is neither in the cache nor to be had from the network; `brief` says it in short."""

    brief = ""


def _table(name: str) -> list[list[str]]:
    text = Path(__file__).with_name(name).read_text("utf-8")
    return [line.split() for line in text.splitlines()]


#: What can be downloaded by name, apart from Keras's weights: what the paper's authors published.
REGISTRY = {
    f"pixel-deflection/{file}": Download(
        "https://raw.githubusercontent.com/iamaaditya/pixel-deflection/"
        f"0997669e94c711521896a01cc9c0e27723df0841/{file}",
        known_hash,
    )
    for file, known_hash in _table("authors_files.txt")
}

#: The names of the authors' images, without the folder.
AUTHORS_IMAGES = tuple(Path(name).name for name in REGISTRY if "/images/" in name)


def cache_dir() -> Path:
    """Give the folder where downloads are kept; it need not exist."""
    import platformdirs

    chosen = os.environ.get("PDUTILS_CACHE") or platformdirs.user_cache_dir("pdutils")
    return Path(chosen).expanduser()


def fetch(name: str) -> Path:
    """Give the path of a file of the registry, downloading it if the cache lacks it."""
    if name not in REGISTRY:
        raise KeyError(f"no download named {name!r}; known: {', '.join(REGISTRY)}")
    return download(name, REGISTRY[name])


def download(name: str, source: Download) -> Path:
    """Give the path of a file in the cache, downloading it if it is missing or damaged.

    Its `name` is its path inside the cache; a whole copy of that name in Keras's own cache is taken
    where it lies. What is downloaded gets its name only when its hash is right; without a known
    hash, its length is checked, and that what ends in .h5 is such a file. All that fails is a
    `DownloadError`, which says how to go on without the download.
    """
    import requests

    target = cache_dir() / name
    try:
        found = find_cached(name, source)
        if found is not None:
            return found
        with whole_file(target) as temporary:
            _transfer(source.url, temporary)
            if not is_whole(temporary, source.known_hash):
                raise ValueError("What came is not the expected file")
    except (requests.RequestException, OSError, ValueError) as error:
        reason = _reason(error)
        failure = DownloadError(
            f"{reason}: {name} is not in the cache ({cache_dir()}) and could not be downloaded; "
            f"put the file there from {source.url}, or use the classifier 'efficientnet_lite0' "
            "or 'demo', which need no download."
        )
        failure.brief = f"{reason}: {Path(name).name} could not be downloaded. "
        failure.brief += "efficientnet_lite0 and demo need no download."
        raise failure from error
    return target


def find_cached(name: str, source: Download) -> Path | None:
    """Find a file in our cache, or where Keras would have put it; what is damaged is not taken."""
    ours, keras_s = cache_dir() / name, keras_home() / "models" / name.removeprefix("models/")
    if is_whole(ours, source.known_hash):
        return ours
    try:
        return keras_s if is_whole(keras_s, source.known_hash) else None
    except OSError:
        # What of Keras's cannot be read is passed over.
        return None


def authors_file(kind: str, name: str) -> Path | None:
    """Find one of the files that the paper's authors published; None if it is not in the cache.

    The kinds are `originals`, the clean images; `images`, the adversaries made against Keras's
    ResNet-50; and `maps`, their robust CAMs. The names are `AUTHORS_IMAGES`.
    """
    key = f"pixel-deflection/{kind}/{name}"
    path, source = cache_dir() / key, REGISTRY.get(key)
    return path if source and is_whole(path, source.known_hash) else None


def class_index() -> list[tuple[str, str]]:
    """Give the WordNet ids and Keras's names of ImageNet's 1000 classes, in their order."""
    return [(line[0], line[1]) for line in _table("imagenet_classes.txt")]


def keras_weights() -> dict[str, tuple[str, Download]]:
    """Give the ImageNet weights of `keras.applications` with their names in the cache.

    The keys are the models' names; where options choose among weights those follow, such as
    `mobilenet_v2_0.35_96` (alpha, rows). Keras itself shows its hashes nowhere.
    """
    return {
        model: (f"models/{file}", Download(url, None if known_hash == "-" else known_hash))
        for model, file, url, known_hash in _table("keras_weights.txt")
    }


def is_whole(path: Path, known_hash: str | None) -> bool:
    """Tell whether a file is there with its hash, or without a known one, .h5 alone, is HDF5."""
    if not path.is_file():
        return False
    if known_hash is not None:
        return has_hash(path, known_hash)
    if path.suffix != ".h5":
        return True
    import h5py

    try:
        # A file that was cut off does not open: its header holds its length.
        with h5py.File(path):
            return True
    except OSError:
        return False


def _transfer(url: str, path: Path) -> None:
    import pooch

    # pooch asks whether there is a bar, and tqdm takes a bar of length 0 for none.
    bar = progress_bar(total=1, desc=url.rpartition("/")[2], unit="B", unit_scale=True)
    with bar, path.open("wb") as file, ExitStack() as stack:

        def close_at_the_end(response: Any, **_: Any) -> None:
            # pooch itself leaves it open where the download fails.
            stack.callback(response.close)

        hooks = {"response": close_at_the_end}
        pooch.HTTPDownloader(bar, 1 << 16, timeout=TIMEOUT, hooks=hooks)(url, file, None)


def _reason(error: Exception) -> str:
    import requests

    # A server that falls silent in the middle is no Timeout to requests, but its words say so.
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "The server did not answer in time"
    if isinstance(error, requests.HTTPError):
        return f"The server answered {error.response.status_code}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "The download was cut off"
    if isinstance(error, requests.RequestException):
        return "No network connection"
    if isinstance(error, OSError):
        return f"The cache cannot be used ({error.strerror or error})"
    return str(error)
