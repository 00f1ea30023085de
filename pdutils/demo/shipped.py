"""What is shipped: the demo's images, adversaries, maps and weights, each checked by its hash."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdutils.downloads import DataError, is_whole

#: Where a wheel has what lies beside the package in a checkout; setup.py puts it there.
_SHIPPED = "_shipped"


@dataclass(frozen=True)
class DemoImage:
    """One shipped image of the demo, with the paths of what belongs to it.

    Attributes
    ----------
    name : str
        File name, the same in every folder, such as `badger_000.png`.
    label : str
        The class that is drawn.
    adversarial_label : str
        The class that the adversary reached against the demo's network.
    image, adversary, mask, activation_map : Path
        The clean image, its adversary, the animal's mask, the robust CAM of the adversary.
    attack : dict
        How the adversary was made, and its strength.
    """

    name: str
    label: str
    adversarial_label: str
    image: Path
    adversary: Path
    mask: Path
    activation_map: Path
    attack: dict[str, Any]


def checkout() -> Path | None:
    """Give the checkout that the package is part of.

    Returns
    -------
    Path or None
        None if the package was installed from a wheel: nothing is written beside it then.
    """
    package = Path(__file__).resolve().parents[1]
    return None if (package / _SHIPPED).is_dir() else package.parent


def demo_root() -> Path:
    """Give the folder that holds `data/`, `maps/` and `app/`.

    Returns
    -------
    Path
        The checkout that the package is part of, or in a package that was installed from a wheel
        the folder that travelled in it.
    """
    return checkout() or Path(__file__).resolve().parents[1] / _SHIPPED


def results_folder() -> Path:
    """Give the folder where results are written by default.

    Returns
    -------
    Path
        `results/` of the checkout; without one, of the working directory.
    """
    return (checkout() or Path.cwd()) / "results"


def demo_weights() -> Path:
    """Give the path of the demo network's weights, checked against the manifest.

    Returns
    -------
    Path

    Raises
    ------
    DataError
        If the file is missing or its SHA-256 is not the manifest's.
    """
    entry = _manifest()["weights"]
    return _checked(demo_root() / "data" / entry["file"], entry["sha256"])


def demo_images() -> list[DemoImage]:
    """List the shipped images of the demo, in the order of the manifest, hashes checked.

    Returns
    -------
    list of DemoImage

    Raises
    ------
    DataError
        If a file is missing or its SHA-256 is not the manifest's.
    """
    return [_demo_image(entry) for entry in _manifest()["images"]]


def demo_image(name: str) -> DemoImage | None:
    """Find a shipped image of the demo by its file name.

    Parameters
    ----------
    name : str
        Such as `badger_000.png`, or `badger_000`.

    Returns
    -------
    DemoImage or None
        None if no shipped image has that name.

    Raises
    ------
    DataError
        If one of its files is missing or damaged.
    """
    for entry in _manifest()["images"]:
        if name in (entry["name"], Path(entry["name"]).stem):
            return _demo_image(entry)
    return None


def _manifest() -> dict[str, Any]:
    path = demo_root() / "data" / "manifest.json"
    if not path.is_file():
        raise DataError(f"{path} is missing; {_cure()}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected a manifest in JSON: {error}") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != 1:
        raise DataError(f"{path}: expected version 1, got {version!r}")
    return dict(manifest)


def _cure() -> str:
    if checkout() is None:
        return "install pdutils again"
    return "`python -m tools.make_demo make` writes it"


def _demo_image(entry: dict[str, Any]) -> DemoImage:
    data, name, digests = demo_root() / "data", entry["name"], entry["sha256"]
    return DemoImage(
        name=name,
        label=entry["label"],
        adversarial_label=entry["adversary"],
        image=_checked(data / "images" / name, digests["image"]),
        adversary=_checked(data / "adversaries" / name, digests["adversary"]),
        mask=_checked(data / "masks" / name, digests["mask"]),
        activation_map=_checked(demo_root() / "maps" / name, digests["map"]),
        attack=entry["attack"],
    )


def _checked(path: Path, sha256: str) -> Path:
    if not path.is_file():
        raise DataError(f"{path} is missing; {_cure()}")
    if not is_whole(path, f"sha256:{sha256}"):
        raise DataError(f"{path} is not the file that the manifest lists (its SHA-256 differs)")
    return path
