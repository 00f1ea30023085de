"""What can be downloaded, and where it is kept.

The cache is the folder that the environment variable PDUTILS_CACHE names, or the platform's own
cache folder. What lies there under the right name, with the right hash, is never downloaded; nor is
what lies in Keras's own cache, `~/.keras/models` or where KERAS_HOME says.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pdutils._utils import keras_home, progress_bar
from pdutils.images import whole_file

_AUTHORS_COMMIT = "0997669e94c711521896a01cc9c0e27723df0841"


_AUTHORS_URL = f"https://raw.githubusercontent.com/iamaaditya/pixel-deflection/{_AUTHORS_COMMIT}/"


#: Seconds to wait for a connection, and for the next bytes of a download.
TIMEOUT = (5.0, 30.0)


#: The names of the authors' images, without the folder.
AUTHORS_IMAGES = (
    "n02447366_00008562.png",
    "n02443114_00000055.png",
    "n02443114_00032317.png",
)


@dataclass(frozen=True)
class Download:
    """A file that can be downloaded: its address and its hash, as `algorithm:hex`."""

    url: str
    known_hash: str | None


#: What can be downloaded by name, apart from Keras's weights: those, Keras itself names.
REGISTRY: dict[str, Download] = {
    f"pixel-deflection/{file}": Download(_AUTHORS_URL + file, f"sha256:{digest}")
    for file, digest in {
        "images/n02443114_00000055.png": (
            "b9bd3a51c0492eea407ba0ff0ca4b006e5792135c2ab68b20e49184e3470b2cb"
        ),
        "images/n02443114_00032317.png": (
            "2173e208303c78fd54ead3de003c6acfc2e45b5d55e5bce60614d34f820cc2ee"
        ),
        "images/n02447366_00008562.png": (
            "b7bd952f63e32cbefcbc98622b1cc5e6e350cc47ff8ec92c2c85d87a55019475"
        ),
        "maps/n02443114_00000055.png": (
            "bb4ef51e3ff52e51b2410357f4d4d0f4f6a49a4d29620731f24a06f696cb99db"
        ),
        "maps/n02443114_00032317.png": (
            "c9355ade1eddcb9696dfb55b54145a57c2a098db0fc6d552ba548d5201677b45"
        ),
        "maps/n02447366_00008562.png": (
            "d342039f81e985eabea88178932e867530424d8a84fe8845e9ee70ccaacdc70d"
        ),
        "originals/n02443114_00000055.png": (
            "8969e82f5e014141f4a3562fc32c76860b601cb7f8769cb7de67d3c73e477ff8"
        ),
        "originals/n02443114_00032317.png": (
            "4b965a27afd89c590fd5d00b715ecccc215277378346f52544c916775d864d3a"
        ),
        "originals/n02447366_00008562.png": (
            "943b7b55e579948e5f1f9c870e7aed10fea3eb861b5f8325e26aab1da86d8a26"
        ),
    }.items()
}


class DataError(ValueError):
    """A file that is shipped or installed is missing, or is not the expected one."""


class DownloadError(RuntimeError):
    """A file is neither in the cache nor to be had from the network."""


def cache_dir() -> Path:
    """Give the folder where downloads are kept.

    Returns
    -------
    Path
        PDUTILS_CACHE if that environment variable is set, else the platform's cache folder for
        `pdutils`. The folder need not exist.
    """
    import platformdirs

    chosen = os.environ.get("PDUTILS_CACHE") or platformdirs.user_cache_dir("pdutils")
    return Path(chosen).expanduser()


def is_cached(name: str) -> bool:
    """Tell whether a file of the registry lies in the cache with the right hash.

    Parameters
    ----------
    name : str
        A key of `REGISTRY`.

    Returns
    -------
    bool
    """
    return is_whole(cache_dir() / name, REGISTRY[name].known_hash)


def fetch(name: str) -> Path:
    """Give the path of a file of the registry, downloading it if the cache lacks it.

    Parameters
    ----------
    name : str
        A key of `REGISTRY`, such as `pixel-deflection/maps/n02447366_00008562.png`.

    Returns
    -------
    Path

    Raises
    ------
    KeyError
        If the registry has no such name.
    DownloadError
        As `download`.
    """
    if name not in REGISTRY:
        raise KeyError(f"no download named {name!r}; known: {', '.join(REGISTRY)}")
    return download(name, REGISTRY[name])


def download(name: str, source: Download) -> Path:
    """Give the path of a file in the cache, downloading it if it is missing or damaged.

    A whole copy in Keras's own cache is taken where it lies. Otherwise the file is downloaded once,
    with a bar and a time-out, under a temporary name; it gets its own name only when its hash is
    right.

    Parameters
    ----------
    name : str
        Its path inside the cache; Keras keeps it by the same name, in `models/`.
    source : Download
        Where it comes from. Without a known hash its length is checked, and that what ends in
        .h5 is such a file.

    Returns
    -------
    Path

    Raises
    ------
    DownloadError
        If there is no network, the server refuses, the hash is another, or the cache cannot be
        written to. The message names the file and says how to go on without the download.
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
    """Give the path of a file in the cache or in Keras's own, without a download.

    Parameters
    ----------
    name : str
        Its path inside the cache.
    source : Download
        As in `download`.

    Returns
    -------
    Path

    Raises
    ------
    DownloadError
        If it is not there, or not whole.
    """
    found = _in_a_cache(name, source.known_hash)
    if found is None:
        raise DownloadError(f"{name} is not in the cache ({cache_dir()})")
    return found


def class_index() -> list[tuple[str, str]]:
    """Give ImageNet's 1000 classes in their order, named as Keras names them.

    Returns
    -------
    list of (str, str)
        WordNet id and name, such as `("n02447366", "badger")`.
    """
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text("utf-8").splitlines()
    return [(line.split()[0], line.split()[1]) for line in lines]


def authors_file(kind: str, name: str) -> Path | None:
    """Find one of the files that the paper's authors published, if it is in the cache.

    Parameters
    ----------
    kind : {"originals", "images", "maps"}
        The clean image, the adversary made against Keras's ResNet-50, or its robust CAM.
    name : str
        One of `AUTHORS_IMAGES`.

    Returns
    -------
    Path or None
        None if it is not cached; nothing is downloaded.
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
    import requests

    with requests.get(url, stream=True, timeout=TIMEOUT) as response, path.open("wb") as file:
        response.raise_for_status()
        length = int(response.headers.get("content-length", 0)) or None
        name = url.rpartition("/")[2]
        with progress_bar(total=length, desc=name, unit="B", unit_scale=True) as bar:
            for chunk in response.iter_content(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))


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
