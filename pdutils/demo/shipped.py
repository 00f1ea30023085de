"""What is shipped of the demo: network, images, adversaries, maps; each file checked by hash."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdutils._utils import DataError, has_hash, load_tensorflow
from pdutils.demo.drawing import CLASS_NAMES

#: Where a wheel has what lies beside the package in a checkout; setup.py puts it there.
_SHIPPED = "_shipped"


@dataclass(frozen=True)
class DemoImage:
    """One shipped image of the demo, with the paths of what belongs to it.

    Attributes
    ----------
    name : str
        File name, the same in every folder, such as `badger_000.png`.
    label, adversarial_label : str
        The class that is drawn, and the one that the adversary reached against the demo's network.
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
    """Give the checkout that the package is part of; None where it was installed from a wheel."""
    package = Path(__file__).resolve().parents[1]
    return None if (package / _SHIPPED).is_dir() else package.parent


def demo_root() -> Path:
    """Give the folder of `data/`, `maps/` and `app/`: the checkout, or what is in the wheel."""
    return checkout() or Path(__file__).resolve().parents[1] / _SHIPPED


def results_folder() -> Path:
    """Give `results/` of the checkout, or without one of the working directory."""
    return (checkout() or Path.cwd()) / "results"


def demo_weights() -> Path:
    """Give the path of the demo network's weights, checked against the manifest."""
    entry = _manifest()["weights"]
    return _checked(demo_root() / "data" / entry["file"], entry["sha256"])


def demo_network(seed: int | None = None) -> Any:
    """Build the network with random weights.

    Five convolutions end in a 14 x 14 feature map, fine enough for a class activation map to
    follow the animal; global average pooling and one dense layer make the map of a class a
    weighted sum of the feature maps.

    It goes from images (N, 224, 224, 3) in [-1, 1] to 10 probabilities.
    """
    load_tensorflow()
    import keras

    seeds = [None if seed is None else 100 * seed + i for i in range(6)]
    inputs = keras.Input((224, 224, 3))
    x = _convolution(inputs, 24, 5, 2, seeds[0])
    for channels, layer_seed in zip((48, 64, 96), seeds[1:4], strict=True):
        x = keras.layers.MaxPooling2D()(x)
        x = _convolution(x, channels, 3, 1, layer_seed)
    x = _convolution(x, 128, 3, 1, seeds[4])
    x = keras.layers.GlobalAveragePooling2D()(x)
    start = keras.initializers.GlorotUniform(seeds[5])
    outputs = keras.layers.Dense(len(CLASS_NAMES), "softmax", kernel_initializer=start)(x)
    return keras.Model(inputs, outputs, name="demo")


def _convolution(x: Any, channels: int, width: int, stride: int, seed: int | None) -> Any:
    from keras import initializers, layers

    start = initializers.GlorotUniform(seed)
    return layers.Conv2D(
        channels, width, stride, padding="same", activation="relu", kernel_initializer=start
    )(x)


def demo_images() -> list[DemoImage]:
    """List the shipped images of the demo, in the order of the manifest, hashes checked."""
    return [_demo_image(entry) for entry in _manifest()["images"]]


def demo_image(name: str) -> DemoImage | None:
    """Find a shipped image by its file name, with or without its ending; None if there is none."""
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
    if not has_hash(path, f"sha256:{sha256}"):
        raise DataError(f"{path} is not the file that the manifest lists (its SHA-256 differs)")
    return path
