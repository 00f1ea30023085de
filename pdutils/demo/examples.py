"""What a notebook works on: a clean image with its adversary, or many images that are right."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pdutils import downloads
from pdutils._utils import Array, check_whole, generator
from pdutils.attacks.gradient import igsm
from pdutils.classifiers import Classifier, Labels
from pdutils.demo import shipped
from pdutils.demo.drawing import CLASS_NAMES, Drawing, draw_animal
from pdutils.images import find_pictures, label_from_name, load_image
from pdutils.metrics import linf, relative_l2

#: scikit-image's own photos that ImageNet has a class for; the first is shown by default.
PHOTOS = {"coffee": "espresso", "chelsea": "Egyptian_cat", "rocket": "missile"}

#: The name that the authors' clean badger goes by, where it is cached.
BADGER = "badger"

#: How an adversary is made where none is at hand: IGSM in steps of half a grey level, until the
#: network is fooled by what they round to. Steps of 1 overshoot the border of a class.
EPS, STEP, ITERATIONS = 16.0, 0.5, 100


@dataclass(frozen=True)
class Case:
    """A clean image and an adversary that was made against the classifier at hand.

    Attributes
    ----------
    clean, adversary : ndarray of float32, shape (H, W, 3)
        RGB in [0, 255], on the 8-bit grid.
    label, attacked_label : int
        The true class, and the one that the classifier sees in the adversary.
    origin : str
        Where the adversary comes from, in words.
    mask : ndarray of bool, shape (H, W), or None
        True on the object, where that is known.
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
    """Many images that the classifier gets right.

    Attributes
    ----------
    images : ndarray of float32, shape (N, H, W, 3)
        RGB in [0, 255].
    labels : ndarray of int64, shape (N,)
        Their true classes.
    masks : ndarray of bool, shape (N, H, W), or None
        True on the object, where that is known.
    origin : str
        Where they come from and how many were passed over, in words.
    """

    images: Array
    labels: Labels
    masks: NDArray[np.bool_] | None
    origin: str

    def __len__(self) -> int:
        return len(self.labels)


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

    Returns
    -------
    Case
    """
    name = str(image) or image_names(classifier)[0]
    drawing = shipped.demo_image(name)
    clean, known = load_clean(classifier, name, label=label)
    seen = int(classifier.predict(clean).argmax())
    true = seen if known is None else known
    adversary, origin = _at_hand(classifier, _picture(classifier, name), drawing)
    if adversary is None:
        adversary = igsm(
            classifier, clean, seen, eps=EPS, step=STEP, iterations=ITERATIONS, stop_at="success"
        )
    attacked = int(classifier.predict(adversary).argmax())
    if attacked == seen:
        origin += f", which did not succeed in {ITERATIONS} steps"
    mask = None if drawing is None else load_image(drawing.mask)[..., 0] > 127
    return Case(Path(name).stem, clean, adversary, true, attacked, origin, mask)


def load_clean(
    classifier: Classifier, image: str | os.PathLike[str], *, label: str = ""
) -> tuple[Array, int | None]:
    """Load an image without an adversary, as in `load_case`, and its true class if that is told."""
    name = str(image)
    clean = load_image(_picture(classifier, name), classifier.input_size)
    return clean, classifier.index(label) if label else _known_label(classifier, name)


def load_collection(
    classifier: Classifier, n: int, *, folder: str | os.PathLike[str] = "", seed: int = 0
) -> Collection:
    """Gather up to n images that the classifier gets right, as the paper counts them.

    Parameters
    ----------
    classifier : Classifier
        The network.
    n : int
        How many to gather, at least 1.
    folder : str or path
        Labelled pictures, see `pdutils.images.labelled_files`; a random choice of them, by the
        seed. Empty: fresh drawings for the demo, never those it was trained on; for ImageNet,
        the few photos that come with scikit-image and those of the authors in the cache.
    seed : int
        Of the choice, or of the drawings.

    Returns
    -------
    Collection
        Fewer than n where no more are at hand.
    """
    check_whole("n", n, 1)
    if folder or not _knows_drawings(classifier):
        return _photos(classifier, n, folder, seed)
    return _drawings(classifier, n, seed)


def image_names(classifier: Classifier) -> list[str]:
    """List the images that go by a name and suit a classifier, its first look first.

    One that knows the classes of the demo is shown the drawings, any other photos.
    """
    if _knows_drawings(classifier):
        return [Path(drawing.name).stem for drawing in shipped.demo_images()]
    return [*PHOTOS, *([] if _authors_badger() is None else [BADGER])]


def photo_path(name: str) -> Path:
    """Give the file of one of scikit-image's own photos."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    found = sorted(folder.glob(f"{name}.*"))
    if not found:
        raise FileNotFoundError(f"{name}: scikit-image has no such photo in {folder}")
    return found[0]


def _knows_drawings(classifier: Classifier) -> bool:
    return classifier.class_names == CLASS_NAMES


def _authors_badger() -> Path | None:
    return downloads.authors_file("originals", downloads.AUTHORS_IMAGES[0])


def _picture(classifier: Classifier, name: str) -> Path:
    """Find the file of an image that is given by name or by path."""
    drawing, badger = shipped.demo_image(name), _authors_badger()
    if drawing is not None:
        return drawing.image
    if name in PHOTOS:
        return photo_path(name)
    if name == BADGER and badger is not None:
        return badger
    if not Path(name).exists():
        raise FileNotFoundError(
            f"{name}: no such file; images with a name: {', '.join(image_names(classifier))}"
        )
    return Path(name)


def _known_label(classifier: Classifier, name: str) -> int | None:
    """Give the class that an image's name stands for; None if the classifier has none such."""
    drawing = shipped.demo_image(name)
    try:
        by_name = {**PHOTOS, BADGER: "badger"}
        known = drawing.label if drawing else by_name.get(name) or label_from_name(name)
        return classifier.index(known)
    except ValueError:
        return None


def _at_hand(
    classifier: Classifier, path: Path, drawing: shipped.DemoImage | None
) -> tuple[Array | None, str]:
    """Find an adversary that was made against this classifier, and say where it comes from."""
    if drawing is not None and classifier.name == "demo" and classifier.published:
        return load_image(drawing.adversary), "shipped with the demo, made by IGSM against it"
    authors = downloads.authors_file("images", path.name)
    if authors is not None and classifier.name == "resnet50" and classifier.published:
        return load_image(authors), "published by the paper's authors, made against ResNet-50"
    return None, f"made now, by IGSM against {classifier.name}"


def _drawings(classifier: Classifier, n: int, seed: int) -> Collection:
    right: list[Drawing] = []
    stream, drawn = generator(seed), 0
    # An untrained network would be right one time in ten; nobody waits for more than that.
    while len(right) < n and drawn < 20 * n + 100:
        drawing = draw_animal(drawn % len(classifier.class_ids), rng=stream.spawn(1)[0])
        drawn += 1
        if classifier.predict(drawing.image).argmax() == drawing.label:
            right.append(drawing)
    origin = f"fresh drawings (seed {seed}), {len(right)} right of {drawn} drawn"
    images, labels = [d.image for d in right], [d.label for d in right]
    return _collection(images, labels, [d.mask for d in right], origin)


def _photos(
    classifier: Classifier, n: int, folder: str | os.PathLike[str], seed: int
) -> Collection:
    found = find_pictures(folder) if folder else None
    files = found.labelled() if found else _photos_at_hand()
    order = generator(seed).permutation(len(files)) if folder else np.arange(len(files))
    images: list[Array] = []
    labels: list[int] = []
    read = unreadable = 0
    for i in order:
        if len(labels) == n:
            break
        path, name = files[i]
        label = classifier.index(name)
        try:
            image = load_image(path, classifier.input_size)
        except (ValueError, OSError):
            unreadable += 1
            continue
        read += 1
        if classifier.predict(image).argmax() == label:
            images.append(image)
            labels.append(label)
    where = f"photos from {Path(folder).name}" if folder else "the few photos at hand"
    origin = f"{where}, {len(labels)} right of {read} read"
    if unreadable:
        origin += f", {unreadable} unreadable"
    if found and found.passed_over:
        origin += f"; {found}"
    return _collection(images, labels, None, origin)


def _photos_at_hand() -> list[tuple[Path, str]]:
    cached = [downloads.authors_file("originals", name) for name in downloads.AUTHORS_IMAGES]
    photos = [(photo_path(name), label) for name, label in PHOTOS.items()]
    return photos + [(path, label_from_name(path)) for path in cached if path is not None]


def _collection(
    images: list[Array], labels: list[int], masks: list[NDArray[np.bool_]] | None, origin: str
) -> Collection:
    if not images:
        raise ValueError(f"the classifier is right about no image: {origin}")
    stacked = None if masks is None else np.stack(masks)
    return Collection(np.stack(images), np.array(labels, dtype=np.int64), stacked, origin)
