"""What a notebook works on: a clean image with its adversary, many images, what is shipped.

Of the demo a network, images, adversaries and maps are shipped, each file checked by its hash.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdutils import downloads
from pdutils._utils import Array, DataError, check_whole, generator, has_hash, load_backend
from pdutils.attacks.gradient import igsm
from pdutils.classifiers import Classifier, Labels
from pdutils.demo.drawing import CLASS_NAMES, draw_animal
from pdutils.images import find_pictures, label_from_name, load_image
from pdutils.metrics import linf, relative_l2

#: scikit-image's own photos that ImageNet has a class for; the first is shown by default.
PHOTOS = {"coffee": "espresso", "chelsea": "Egyptian_cat", "rocket": "missile"}

#: The name that the authors' clean badger goes by, where it is cached.
BADGER = "badger"

#: How an adversary is made where none is at hand: IGSM in steps of half a grey level, until the
#: network is fooled by what they round to. Steps of 1 overshoot the border of a class.
EPS, STEP, ITERATIONS = 16.0, 0.5, 100

_PACKAGE = Path(__file__).resolve().parents[1]

#: Where a wheel has what lies beside the package in a checkout; setup.py puts it there.
_SHIPPED = _PACKAGE / "_shipped"

#: Where the files of a shipped image lie.
_FOLDERS = {"image": "data/images", "adversary": "data/adversaries", "mask": "data/masks"}
_FOLDERS["map"] = "maps"


@dataclass(frozen=True)
class Case:
    """A clean image and an adversary that was made against the classifier at hand.

    Both are (H, W, 3), RGB in [0, 255] on the 8-bit grid. `label` is the true class,
    `attacked_label` what the classifier sees in the adversary; `origin` says in words where the
    adversary comes from; `mask` (H, W) is True on the object, where that is known.
    """

    name: str
    clean: Array
    adversary: Array
    label: int
    attacked_label: int
    origin: str
    mask: NDArray[np.bool_] | None = None

    def __str__(self) -> str:
        norm, greatest = relative_l2(self.clean, self.adversary), linf(self.clean, self.adversary)
        return (
            f"{self.name}; adversary {self.origin}; "
            f"strength: L2 {norm:.4f} of the image's, L-infinity {greatest:.0f} of 255"
        )


@dataclass(frozen=True)
class Collection:
    """Many images (N, H, W, 3) that the classifier gets right, with their true classes (N,).

    `masks` (N, H, W) are True on the objects, where they are known; `origin` says in words where
    the images come from and how many were passed over.
    """

    images: Array
    labels: Labels
    masks: NDArray[np.bool_] | None
    origin: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DemoImage:
    """One shipped image of the demo, with the paths of what belongs to it.

    `name` is the file's in every folder, such as `badger_000.png`; `label` is drawn there, and the
    demo's network takes the adversary for `adversarial_label`; `attack` says how it was made, and
    its strength; `activation_map` is its robust CAM.
    """

    name: str
    label: str
    adversarial_label: str
    attack: dict[str, Any]
    image: Path
    adversary: Path
    mask: Path
    activation_map: Path


def load_case(
    classifier: Classifier, image: str | os.PathLike[str] = "", *, label: str = ""
) -> Case:
    """Load an image with an adversary against this very classifier.

    The demo's adversary is taken for the demo's own weights, the authors' for ResNet-50's
    published weights. For any other pair, IGSM makes one: steps of half a grey level until the
    network is fooled, 100 at most, within 16 grey levels. Where the network is wrong about the
    clean image, it is led away from what it saw there.

    Parameters
    ----------
    classifier : Classifier
        The network to fool.
    image : str or path
        A picture file, or a name: of a shipped drawing, such as `badger_000`; `coffee`, `chelsea`
        or `rocket`, scikit-image's photos; `badger`, the authors' photo, where it is cached.
        Empty: the first of `image_names`.
    label : str
        The true class. Empty: that of the drawing or the photo, or what the file name says before
        its first underscore; failing that, what the network sees in the clean image.
    """
    name = str(image) or image_names(classifier)[0]
    path, _ = _found(classifier, name)
    drawing, authors = demo_image(name), downloads.authors_file("images", path.name)
    clean, known = load_clean(classifier, name, label=label)
    seen = int(classifier.predict(clean).argmax())
    if drawing and classifier.name == "demo" and classifier.published:
        adversary = load_image(drawing.adversary)
        origin = "shipped with the demo, made by IGSM against it"
    elif authors and classifier.name == "resnet50" and classifier.published:
        adversary = load_image(authors)
        origin = "published by the paper's authors, made against ResNet-50"
    else:
        knobs: dict[str, Any] = {"eps": EPS, "step": STEP, "iterations": ITERATIONS}
        adversary = igsm(classifier, clean, seen, **knobs, stop_at="success")
        origin = f"made now, by IGSM against {classifier.name}"
    attacked = int(classifier.predict(adversary).argmax())
    if attacked == seen:
        origin += f", which did not succeed in {ITERATIONS} steps"
    mask = load_image(drawing.mask)[..., 0] > 127 if drawing else None
    true = seen if known is None else known
    return Case(Path(name).stem, clean, adversary, true, attacked, origin, mask)


def load_clean(
    classifier: Classifier, image: str | os.PathLike[str], *, label: str = ""
) -> tuple[Array, int | None]:
    """Load an image without an adversary, as in `load_case`, and its true class if that is told."""
    path, told = _found(classifier, str(image))
    clean = load_image(path, classifier.input_size)
    if label:
        return clean, classifier.index(label)
    try:
        return clean, classifier.index(told or label_from_name(path))
    except ValueError:
        return clean, None


def load_collection(
    classifier: Classifier, n: int, *, folder: str | os.PathLike[str] = "", seed: int = 0
) -> Collection:
    """Gather up to n images that the classifier gets right, as the paper counts them.

    Parameters
    ----------
    classifier : Classifier
        The network.
    n : int
        How many to gather, at least 1; there may be fewer at hand.
    folder : str or path
        Labelled pictures, see `pdutils.images.find_pictures`; a random choice of them, by the
        seed. Empty: fresh drawings for the demo, never those it was trained on; for ImageNet,
        the few photos that come with scikit-image and those of the authors in the cache.
    seed : int
        Of the choice, or of the drawings.
    """
    check_whole("n", n, 1)
    stream, unreadable = generator(seed), list[Path]()
    found = find_pictures(folder) if folder else None
    drawn = not folder and classifier.class_names == CLASS_NAMES
    if found:
        where, files = f"photos from {Path(folder).name}", found.labelled()
        files = [files[i] for i in stream.permutation(len(files))]
    elif drawn:
        where, files = f"fresh drawings (seed {seed})", []
    else:
        where, files = "the few photos at hand", photos_at_hand()
    drawings = _drawings(stream, 20 * n + 100)
    tried, right = 0, list[tuple[Array, int, Any]]()
    for image, label, mask in drawings if drawn else _photos(classifier, files, unreadable):
        tried += 1
        if classifier.predict(image).argmax() == label:
            right.append((image, label, mask))
            if len(right) == n:
                break
    origin = f"{where}, {len(right)} right of {tried} {'drawn' if drawn else 'read'}"
    origin += f", {len(unreadable)} unreadable" if unreadable else ""
    origin += f"; {found}" if found and found.passed_over else ""
    if not right:
        raise ValueError(f"the classifier is right about no image: {origin}")
    images, labels, masks = zip(*right, strict=True)
    stacked = np.stack(masks) if drawn else None
    return Collection(np.stack(images), np.array(labels, dtype=np.int64), stacked, origin)


def _drawings(stream: np.random.Generator, most: int) -> Iterator[tuple[Array, int, Any]]:
    # An untrained network would be right one time in ten; nobody waits for more than that.
    for i in range(most):
        drawing = draw_animal(i % len(CLASS_NAMES), rng=stream.spawn(1)[0])
        yield drawing.image, drawing.label, drawing.mask


def _photos(
    classifier: Classifier, files: list[tuple[Path, str]], unreadable: list[Path]
) -> Iterator[tuple[Array, int, Any]]:
    for path, name in files:
        label = classifier.index(name)
        try:
            image = load_image(path, classifier.input_size)
        except (ValueError, OSError):
            unreadable.append(path)
        else:
            yield image, label, None


def photos_at_hand() -> list[tuple[Path, str]]:
    """List scikit-image's photos, and the authors' where they are cached, with their labels."""
    cached = [downloads.authors_file("originals", name) for name in downloads.AUTHORS_IMAGES]
    photos = [(photo_path(name), label) for name, label in PHOTOS.items()]
    return photos + [(path, label_from_name(path)) for path in cached if path is not None]


def image_names(classifier: Classifier) -> list[str]:
    """List the drawings or photos that go by a name and suit a classifier, its first look first."""
    if classifier.class_names == CLASS_NAMES:
        return [Path(drawing.name).stem for drawing in demo_images()]
    return [*PHOTOS, *([BADGER] if _authors_badger() else [])]


def photo_path(name: str) -> Path:
    """Give the file of one of scikit-image's own photos."""
    import skimage.data

    return next(Path(skimage.data.__file__).parent.glob(f"{name}.*"))


def _authors_badger() -> Path | None:
    return downloads.authors_file("originals", downloads.AUTHORS_IMAGES[0])


def _found(classifier: Classifier, name: str) -> tuple[Path, str | None]:
    """Find the file of an image that is given by name or by path, and what its name says it is."""
    drawing, badger = demo_image(name), _authors_badger()
    if drawing:
        return drawing.image, drawing.label
    if name in PHOTOS:
        return photo_path(name), PHOTOS[name]
    if name == BADGER and badger:
        return badger, BADGER
    if not Path(name).exists():
        names = ", ".join(image_names(classifier))
        raise FileNotFoundError(f"{name}: no such file; images with a name: {names}")
    return Path(name), None


# --- what is shipped


def checkout() -> Path | None:
    """Give the checkout that the package is part of; None where it was installed from a wheel."""
    return None if _SHIPPED.is_dir() else _PACKAGE.parent


def demo_root() -> Path:
    """Give the folder of `data/` and `maps/`: the checkout, or what is in the wheel."""
    return checkout() or _SHIPPED


def results_folder() -> Path:
    """Give `results/` of the checkout, or without one of the working directory."""
    return (checkout() or Path.cwd()) / "results"


def demo_weights() -> Path:
    """Give the path of the demo network's weights, checked against the manifest."""
    entry = _manifest()["weights"]
    return _checked(demo_root() / "data" / entry["file"], entry["sha256"])


def demo_network(seed: int | None = None) -> Any:
    """Build the network with random weights: images (N, 224, 224, 3) in [-1, 1], 10 probabilities.

    The last of five convolutions gives 14 x 14, fine enough for a map that follows the animal;
    average pooling and one dense layer make a class's map a weighted sum of the feature maps.
    """
    load_backend()
    from keras import Input, Model, initializers, layers

    starts = [
        initializers.GlorotUniform(None if seed is None else 100 * seed + i) for i in range(6)
    ]
    x = inputs = Input((224, 224, 3))
    for i, channels in enumerate((24, 48, 64, 96, 128)):
        if 1 <= i <= 3:
            x = layers.MaxPooling2D()(x)
        size = {"kernel_size": 5, "strides": 2} if i == 0 else {"kernel_size": 3}
        options = {"padding": "same", "activation": "relu", "kernel_initializer": starts[i]}
        x = layers.Conv2D(channels, **size, **options)(x)
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(len(CLASS_NAMES), "softmax", kernel_initializer=starts[5])(x)
    return Model(inputs, outputs, name="demo")


def demo_images() -> list[DemoImage]:
    """List the shipped images of the demo, in the order of the manifest, hashes checked."""
    return [_demo_image(entry) for entry in _manifest()["images"]]


def demo_image(name: str) -> DemoImage | None:
    """Find a shipped image by its file name, with or without its ending; None if there is none."""
    for entry in _manifest()["images"]:
        if name in (entry["name"], Path(entry["name"]).stem):
            return _demo_image(entry)
    return None


def _demo_image(entry: dict[str, Any]) -> DemoImage:
    name, hashes = entry["name"], entry["sha256"]
    files = (_checked(demo_root() / _FOLDERS[part] / name, hashes[part]) for part in _FOLDERS)
    return DemoImage(name, entry["label"], entry["adversary"], entry["attack"], *files)


def _manifest() -> dict[str, Any]:
    return dict(json.loads(_checked(demo_root() / "data" / "manifest.json").read_text("utf-8")))


def _checked(path: Path, sha256: str | None = None) -> Path:
    if not path.is_file():
        cure = (
            "`python -m tools.make_demo make` writes it" if checkout() else "install pdutils again"
        )
        raise DataError(f"{path} is missing; {cure}")
    if sha256 and not has_hash(path, f"sha256:{sha256}"):
        raise DataError(f"{path} is not the file that the manifest lists (its SHA-256 differs)")
    return path
