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
        RGB in [0, 255]; they are rounded to 8 bits first. What comes back has their shape, and
        whole values.
    labels : int, or N of them
        The true classes; with `targeted`, the classes to reach.
    eps : float
        Greatest change of a channel, in grey levels of 255, at least 1; its fraction is cut off.
    targeted : bool
        Whether to go towards the labels instead of away from them.
    batch_size : int
        How many images the network sees at once.
    """
    knobs: dict[str, Any] = {"step": eps, "iterations": 1, "targeted": targeted}
    return igsm(classifier, images, labels, eps=eps, batch_size=batch_size, **knobs)


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

    Where it never gets to where it stops, what the last step gave comes back.
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
    """
    paths = _paths(classifier, images, labels, eps, step, iterations, targeted, stop_at, batch_size)
    return last_of(paths, images)


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

    Of one image (H, W, 3) it gives (iterations + 1, H, W, 3): the image itself, rounded to 8 bits,
    and the adversary after 1, 2, 3, ... steps. The other arguments are those of `igsm`.
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
    """Do as `igsm`, from a random point of the box, with its arguments and two more.

    Source: Madry et al. 2018, arXiv 1706.06083.

    Parameters
    ----------
    random_start : bool
        Whether to begin at a uniform draw from the box; without it this is `igsm`.
    rng : int, numpy.random.Generator, list of Generator, or None
        Each image draws its start from a stream of its own, see `pdutils._utils`.
    """
    knobs = eps, step, iterations, targeted, stop_at, batch_size, random_start, rng
    return last_of(_paths(classifier, images, labels, *knobs), images)


def check_box(eps: float, step: float, iterations: int) -> None:
    """Check how far an attack may go, and in what steps."""
    if not is_number(eps) or not 1 <= eps <= 255:
        raise ValueError(
            f"eps: expected 1 to 255 grey levels (the result is on the 8-bit grid), got {eps!r}"
        )
    if not is_number(step) or not 0 < step <= 255:
        raise ValueError(f"step: expected a number of grey levels in (0, 255], got {step!r}")
    check_whole("iterations", iterations, 1)


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


def last_of(iterates: Iterator[Array], images: Array) -> Array:
    """Give the last iterate, on the 8-bit grid, as one image where one image was given."""
    *_, last = iterates
    return on_grid(last[0] if images.ndim == 3 else last)


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
    random_start: bool = False,
    rng: Rng = None,
) -> Iterator[Array]:
    """Follow the gradient of the loss, as `igsm` describes it."""
    check_box(eps, step, iterations)
    if stop_at not in (None, "success") and not (is_number(stop_at) and 0 <= stop_at < 1):
        raise ValueError(
            f"stop_at: expected None, 'success' or a number in [0, 1), got {stop_at!r}"
        )
    clean = on_grid(as_batch(images)[0])
    goals = classifier.check_labels(labels, len(clean))
    confidence: Any = 0.0 if stop_at == "success" else stop_at

    def slope(shown: Array, active: NDArray[np.intp]) -> tuple[Array, NDArray[np.bool_]]:
        gradient, seen = classifier.loss_gradient(shown, goals[active], batch_size=batch_size)
        if confidence is None:
            return gradient, np.ones(len(active), dtype=np.bool_)
        won = (seen.argmax(axis=1) == goals[active]) == targeted
        return gradient, ~(won & (seen.max(axis=1) >= confidence))

    start, radius = clean, np.floor(eps)
    if random_start:
        draws = [one.uniform(-radius, radius, clean.shape[1:]) for one in streams(rng, len(clean))]
        start = np.asarray(clean + np.stack(draws), dtype=np.float32)
    return walk(clean, start, slope, eps, -step if targeted else step, iterations)
