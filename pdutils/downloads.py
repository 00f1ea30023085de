"""What can be downloaded, and where it is kept.

The cache is the folder that the environment variable PDUTILS_CACHE names, or the platform's own
cache folder. What lies there under the right name, with the right hash, is never downloaded; nor is
what lies in Keras's own cache, `~/.keras/models` or where KERAS_HOME says.
"""

import hashlib
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from pdutils._utils import keras_home, progress_bar
from pdutils.images import whole_file

_AUTHORS_COMMIT = "0997669e94c711521896a01cc9c0e27723df0841"
_AUTHORS_URL = f"https://raw.githubusercontent.com/iamaaditya/pixel-deflection/{_AUTHORS_COMMIT}/"

#: Seconds to wait for a connection, and for the next bytes of a download.
TIMEOUT = (5.0, 30.0)

#: The names of the authors' images, without the folder.
AUTHORS_IMAGES = ("n02447366_00008562.png", "n02443114_00000055.png", "n02443114_00032317.png")

#: The SHA-256 of the authors' files, in the order of their images.
# fmt: off
_AUTHORS_HASHES = {
    "images": (
        "b7bd952f63e32cbefcbc98622b1cc5e6e350cc47ff8ec92c2c85d87a55019475",
        "b9bd3a51c0492eea407ba0ff0ca4b006e5792135c2ab68b20e49184e3470b2cb",
        "2173e208303c78fd54ead3de003c6acfc2e45b5d55e5bce60614d34f820cc2ee",
    ),
    "maps": (
        "d342039f81e985eabea88178932e867530424d8a84fe8845e9ee70ccaacdc70d",
        "bb4ef51e3ff52e51b2410357f4d4d0f4f6a49a4d29620731f24a06f696cb99db",
        "c9355ade1eddcb9696dfb55b54145a57c2a098db0fc6d552ba548d5201677b45",
    ),
    "originals": (
        "943b7b55e579948e5f1f9c870e7aed10fea3eb861b5f8325e26aab1da86d8a26",
        "8969e82f5e014141f4a3562fc32c76860b601cb7f8769cb7de67d3c73e477ff8",
        "4b965a27afd89c590fd5d00b715ecccc215277378346f52544c916775d864d3a",
    ),
}
# fmt: on


class Download(NamedTuple):
    """A file that can be downloaded: its address and its hash, as `algorithm:hex`."""

    url: str
    known_hash: str | None


#: What can be downloaded by name, apart from Keras's weights.
REGISTRY: dict[str, Download] = {
    f"pixel-deflection/{kind}/{name}": Download(f"{_AUTHORS_URL}{kind}/{name}", f"sha256:{digest}")
    for kind, digests in _AUTHORS_HASHES.items()
    for name, digest in zip(AUTHORS_IMAGES, digests, strict=True)
}


class DataError(ValueError):
    """A file that is shipped or installed is missing, or is not the expected one."""


class DownloadError(OSError):
    """A file is neither in the cache nor to be had from the network."""


def cache_dir() -> Path:
    """Give the folder where downloads are kept; it need not exist."""
    import platformdirs

    chosen = os.environ.get("PDUTILS_CACHE") or platformdirs.user_cache_dir("pdutils")
    return Path(chosen).expanduser()


def is_cached(name: str) -> bool:
    """Tell whether a file of the registry lies in our cache with the right hash."""
    return is_whole(cache_dir() / name, REGISTRY[name].known_hash)


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
        found = _in_a_cache(name, source.known_hash)
        if found is not None:
            return found
        with whole_file(target) as temporary:
            _transfer(source.url, temporary)
            if not is_whole(temporary, source.known_hash):
                raise ValueError("what came is not the expected file")
    except (requests.RequestException, OSError, ValueError) as error:
        raise DownloadError(
            f"{name} is not in the cache ({cache_dir()}) and could not be downloaded, since "
            f"{_reason(error)}: put the file there from {source.url}, or use the classifier "
            "'efficientnet_lite0' or 'demo', which need no download."
        ) from error
    return target


def find_cached(name: str, source: Download) -> Path:
    """Give the path of a file in our cache or in Keras's own; a `DownloadError` if it lacks."""
    found = _in_a_cache(name, source.known_hash)
    if found is None:
        raise DownloadError(f"{name} is not in the cache ({cache_dir()})")
    return found


def class_index() -> list[tuple[str, str]]:
    """Give the WordNet ids and Keras's names of ImageNet's 1000 classes, in their order."""
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text("utf-8").splitlines()
    return [(line.split()[0], line.split()[1]) for line in lines]


def keras_weights() -> dict[str, tuple[str, Download]]:
    """Give the ImageNet weights of `keras.applications` with their names in the cache.

    The keys are the models' names; where options choose among weights those follow, such as
    `mobilenet_v2_0.35_96` (alpha, rows). Keras itself shows its hashes nowhere.
    """
    lines = Path(__file__).with_name("keras_weights.txt").read_text("utf-8").splitlines()
    parts = [line.split() for line in lines]
    return {
        model: (f"models/{file}", Download(url, None if known_hash == "-" else known_hash))
        for model, file, url, known_hash in parts
    }


def authors_file(kind: str, name: str) -> Path | None:
    """Find one of the files that the paper's authors published; None if it is not in the cache.

    The kinds are `originals`, the clean images; `images`, the adversaries made against Keras's
    ResNet-50; and `maps`, their robust CAMs. The names are `AUTHORS_IMAGES`.
    """
    key = f"pixel-deflection/{kind}/{name}"
    return cache_dir() / key if key in REGISTRY and is_cached(key) else None


def is_whole(path: Path, known_hash: str | None) -> bool:
    """Tell whether a file is there with its hash, `algorithm:hex`, or without one is HDF5."""
    if not path.is_file():
        return False
    if known_hash is None:
        return path.suffix != ".h5" or _is_hdf5(path)
    algorithm, _, digest = known_hash.partition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest() == digest


def _in_a_cache(name: str, known_hash: str | None) -> Path | None:
    """Find a file in our cache, or where Keras would have put it."""
    ours = cache_dir() / name
    return ours if is_whole(ours, known_hash) else _in_keras_cache(name, known_hash)


def _in_keras_cache(name: str, known_hash: str | None) -> Path | None:
    """Find a file where Keras would have put it; what cannot be read there is passed over."""
    path = keras_home() / "models" / name.removeprefix("models/")
    try:
        return path if is_whole(path, known_hash) else None
    except OSError:
        return None


def _is_hdf5(path: Path) -> bool:
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

        fetch_to = pooch.HTTPDownloader(
            bar, 1 << 16, timeout=TIMEOUT, hooks={"response": close_at_the_end}
        )
        fetch_to(url, file, None)


def _reason(error: Exception) -> str:
    import requests

    # A server that falls silent in the middle is no Timeout to requests, but its words say so.
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "the server did not answer in time"
    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the download was cut off"
    if isinstance(error, requests.RequestException):
        return "there is no network connection to its server"
    if isinstance(error, OSError):
        return f"the cache cannot be used ({error.strerror or error})"
    return str(error)
