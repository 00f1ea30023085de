"""Gradient attacks.

Every result lies on the 8-bit grid, so that an adversary that is saved as a PNG is the very one
that was measured.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import Array, Rng, as_batch, check_whole, is_number, on_grid, streams
from pdutils.classifiers import Classifier, Labels

StopAt = float | Literal["success"] | None
LabelsLike = int | Sequence[int] | Labels

#: The least probability whose logarithm is taken: float32 knows none below.
LEAST = np.finfo(np.float32).tiny

#: From images on the 8-bit grid, and their numbers, to gradients, and whether each image goes on.
Slope = Callable[[Array, NDArray[np.intp]], tuple[Array, NDArray[np.bool_]]]


def fgsm(
    classifier: Classifier,
    images: Array,
    labels: LabelsLike,
    *,
    eps: float = 8.0,
    targeted: bool = False,
    batch_size: int = 32,
) -> Array:
    """Take one step of eps along the sign of the gradient.

    Source: Goodfellow, Shlens, Szegedy 2015, arXiv 1412.6572.

    Parameters
    ----------
    classifier : Classifier
        The network to fool.
    images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
        RGB in [0, 255]; they are rounded to 8 bits first.
    labels : int, or N of them
        The true classes; with `targeted`, the classes to reach.
    eps : float
        Greatest change of a channel, in grey levels of 255, at least 1; its fraction is cut off.
    targeted : bool
        Whether to go towards the labels instead of away from them.
    batch_size : int
        How many images the network sees at once.

    Returns
    -------
    ndarray of float32, the shape of `images`, whole values in [0, 255]
    """
    paths = _paths(classifier, images, labels, eps, eps, 1, targeted, None, batch_size)
    return _last(images, paths)


def igsm(
    classifier: Classifier,
    images: Array,
    labels: LabelsLike,
    *,
    eps: float = 8.0,
    step: float = 1.0,
    iterations: int = 50,
    targeted: bool = False,
    stop_at: StopAt = None,
    batch_size: int = 32,
) -> Array:
    """Take small steps along the sign of the gradient, inside a box of eps (IGSM, also BIM).

    Source: Kurakin, Goodfellow, Bengio 2017, arXiv 1607.02533.

    Parameters
    ----------
    classifier, images, labels, eps, targeted, batch_size
        As in `fgsm`.
    step : float
        Size of a step in grey levels, above 0. It may be a fraction: the iterate is kept in full
        precision, and the network is shown its rounding.
    iterations : int
        Number of steps, at least 1.
    stop_at : None, "success" or float in [0, 1)
        When to leave an image as it is: never; as soon as the network is fooled; as soon as it is
        fooled and gives its wrong class (with `targeted`, the label) at least this probability.

    Returns
    -------
    ndarray of float32, the shape of `images`, whole values in [0, 255]
        Where the attack never gets there, what the last step gave.
    """
    paths = _paths(classifier, images, labels, eps, step, iterations, targeted, stop_at, batch_size)
    return _last(images, paths)


def igsm_path(
    classifier: Classifier,
    image: Array,
    label: int,
    *,
    eps: float = 8.0,
    step: float = 1.0,
    iterations: int = 50,
) -> Array:
    """Give what `igsm` has after each of its steps, for no more than the last one takes.

    Parameters
    ----------
    classifier, label, eps, step, iterations
        As in `igsm`, which is not told to stop.
    image : ndarray of float32, shape (H, W, 3)
        RGB in [0, 255]; it is rounded to 8 bits first.

    Returns
    -------
    ndarray of float32, shape (iterations + 1, H, W, 3), whole values in [0, 255]
        The image itself, and the adversary after 1, 2, 3, ... steps.
    """
    if np.ndim(image) != 3:
        raise ValueError(f"image: expected one of shape (H, W, 3), got {np.shape(image)}")
    paths = _paths(classifier, image, label, eps, step, iterations)
    return np.concatenate([on_grid(iterate) for iterate in paths])


def pgd(
    classifier: Classifier,
    images: Array,
    labels: LabelsLike,
    *,
    eps: float = 8.0,
    step: float = 1.0,
    iterations: int = 50,
    targeted: bool = False,
    stop_at: StopAt = None,
    random_start: bool = True,
    rng: Rng = None,
    batch_size: int = 32,
) -> Array:
    """Do as `igsm`, from a random point of the box.

    Source: Madry et al. 2018, arXiv 1706.06083.

    Parameters
    ----------
    classifier, images, labels, eps, step, iterations, targeted, stop_at, batch_size
        As in `igsm`.
    random_start : bool
        Whether to begin at a uniform draw from the box; without it this is `igsm`.
    rng : int, numpy.random.Generator, list of Generator, or None
        Each image draws its start from a stream of its own, see `pdutils._utils`.
    """

    def start(clean: Array) -> Array:
        shape, radius = clean.shape[1:], np.floor(eps)
        draws = [stream.uniform(-radius, radius, shape) for stream in streams(rng, len(clean))]
        started: Array = (clean + np.stack(draws)).astype(np.float32)
        return started

    begin = start if random_start else None
    paths = _paths(
        classifier, images, labels, eps, step, iterations, targeted, stop_at, batch_size, begin
    )
    return _last(images, paths)


def check_box(eps: float, step: float, iterations: int) -> None:
    """Check how far an attack may go, and in what steps."""
    if not is_number(eps) or not 1 <= eps <= 255:
        raise ValueError(
            f"eps: expected 1 to 255 grey levels (the result is on the 8-bit grid), got {eps!r}"
        )
    if not is_number(step) or not 0 < step <= 255:
        raise ValueError(f"step: expected a number of grey levels in (0, 255], got {step!r}")
    check_whole("iterations", iterations, 1)


def as_clean_batch(images: Array) -> tuple[Array, bool]:
    """Check images and give them as a batch on the 8-bit grid, and whether it was one image."""
    batch, single = as_batch(images)
    return on_grid(batch), single


def walk(
    clean: Array, start: Array, slope: Slope, eps: float, step: float, iterations: int
) -> Iterator[Array]:
    """Step each image along the sign of its slope, inside the box, until it is there.

    Gives the start and what each step leaves, in full precision: one array, which the next step
    moves. An image that is there leaves the batch.
    """
    # Whole bounds around whole images: rounding the iterate cannot leave the box.
    radius = np.float32(np.floor(eps))
    low, high = np.maximum(clean - radius, 0), np.minimum(clean + radius, 255)
    iterate = np.clip(start, low, high)
    yield iterate
    active = np.arange(len(clean))
    for _ in range(iterations):
        gradient, going = slope(on_grid(iterate[active]), active)
        active, gradient = active[going], gradient[going]
        if len(active) == 0:
            break
        stepped = iterate[active] + np.float32(step) * np.sign(gradient)
        iterate[active] = np.clip(stepped, low[active], high[active])
        yield iterate


def _paths(
    classifier: Classifier,
    images: Array,
    labels: LabelsLike,
    eps: float,
    step: float,
    iterations: int,
    targeted: bool = False,
    stop_at: StopAt = None,
    batch_size: int = 32,
    start: Callable[[Array], Array] | None = None,
) -> Iterator[Array]:
    """Follow the gradient of the loss, as `igsm` describes it."""
    check_box(eps, step, iterations)
    if stop_at not in (None, "success") and not (is_number(stop_at) and 0 <= stop_at < 1):
        raise ValueError(
            f"stop_at: expected None, 'success' or a number in [0, 1), got {stop_at!r}"
        )
    clean, _ = as_clean_batch(images)
    goals = classifier.check_labels(labels, len(clean))
    confidence: Any = 0.0 if stop_at == "success" else stop_at

    def slope(shown: Array, active: NDArray[np.intp]) -> tuple[Array, NDArray[np.bool_]]:
        gradient, seen = classifier.loss_gradient(shown, goals[active], batch_size=batch_size)
        if confidence is None:
            return gradient, np.ones(len(active), dtype=np.bool_)
        won = (seen.argmax(axis=1) == goals[active]) == targeted
        return gradient, ~(won & (seen.max(axis=1) >= confidence))

    begin = clean if start is None else start(clean)
    return walk(clean, begin, slope, eps, -step if targeted else step, iterations)


def _last(images: Array, iterates: Iterator[Array]) -> Array:
    *_, last = iterates
    return on_grid(last[0] if images.ndim == 3 else last)


def log_probabilities(classifier: Classifier, images: Array, *, batch_size: int = 32) -> Array:
    """Give the logarithms of the probabilities (N, K), also of images off the 8-bit grid.

    They are the logits but for one number an image, which no difference of logits sees.
    """
    shown = _shown(images)
    return _log(classifier.predict(shown, batch_size=batch_size)[: len(images)])


def loss_gradient(
    classifier: Classifier, images: Array, labels: Labels, *, batch_size: int = 32
) -> tuple[Array, Array]:
    """Do as `Classifier.loss_gradient`, also off the 8-bit grid, and give log-probabilities."""
    shown = _shown(images)
    padded = np.resize(labels, len(shown))
    gradient, probabilities = classifier.loss_gradient(shown, padded, batch_size=batch_size)
    return gradient[: len(images)], _log(probabilities[: len(images)])


def _log(probabilities: Array) -> Array:
    return np.log(np.maximum(probabilities, LEAST))


def _shown(images: Array) -> Array:
    """Add a white image to a batch so dark that it would be taken for one in [0, 1]."""
    if images.size and images.max() <= 1:
        return np.concatenate([images, np.full_like(images[:1], 255)])
    return images
