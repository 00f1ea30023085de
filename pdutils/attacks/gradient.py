"""Gradient attacks, and how strong a perturbation is.

Every result lies on the 8-bit grid, so that an adversary that is saved as a PNG is the very one
that was measured.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import Rng, check_whole, is_number, streams
from pdutils.classifiers import Classifier, Labels
from pdutils.images import Array, as_batch, on_grid

StopAt = float | Literal["success"] | None


LabelsLike = int | Sequence[int] | Labels


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

    Raises
    ------
    ValueError
        If the images break their contract, a label is no class, or eps is below 1.
    """
    return igsm(
        classifier,
        images,
        labels,
        eps=eps,
        step=eps,
        iterations=1,
        targeted=targeted,
        batch_size=batch_size,
    )


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
    classifier : Classifier
        The network to fool.
    images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
        RGB in [0, 255]; they are rounded to 8 bits first.
    labels : int, or N of them
        The true classes; with `targeted`, the classes to reach.
    eps : float
        Greatest change of a channel, in grey levels of 255, at least 1; its fraction is cut off.
    step : float
        Size of a step in grey levels, above 0. It may be a fraction: the iterate is kept in full
        precision, and the network is shown its rounding.
    iterations : int
        Number of steps, at least 1.
    targeted : bool
        Whether to go towards the labels instead of away from them.
    stop_at : None, "success" or float in [0, 1)
        When to leave an image as it is: never; as soon as the network is fooled; as soon as it is
        fooled and gives its wrong class (with `targeted`, the label) at least this probability.
    batch_size : int
        How many images the network sees at once.

    Returns
    -------
    ndarray of float32, the shape of `images`, whole values in [0, 255]
        Where the attack never gets there, what the last step gave.

    Raises
    ------
    ValueError
        If the images break their contract, a label is no class, or a knob is out of its range.
    """
    check_box(eps, step)
    check_whole("iterations", iterations, 1)
    clean, single = _clean(images)
    goal = _Goal(classifier, classifier.check_labels(labels, len(clean)), targeted, stop_at)
    adversaries = _descend(goal, clean, clean, eps, step, iterations, batch_size)
    return adversaries[0] if single else adversaries


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
    classifier, eps, step, iterations
        As in `igsm`, which is not told to stop.
    image : ndarray of float32, shape (H, W, 3)
        RGB in [0, 255]; it is rounded to 8 bits first.
    label : int
        Its true class.

    Returns
    -------
    ndarray of float32, shape (iterations + 1, H, W, 3), whole values in [0, 255]
        The image itself, and the adversary after 1, 2, 3, ... steps.

    Raises
    ------
    ValueError
        As `igsm`, or if there is more than one image.
    """
    check_box(eps, step)
    check_whole("iterations", iterations, 1)
    clean, single = _clean(image)
    if not single:
        raise ValueError(f"image: expected one of shape (H, W, 3), got {image.shape}")
    goal = _Goal(classifier, classifier.check_labels(label, 1), targeted=False, stop_at=None)
    iterates = _iterates(goal, clean, clean, eps, step, iterations, batch_size=1)
    return np.concatenate([on_grid(iterate) for iterate in iterates])


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

    Returns
    -------
    ndarray of float32, the shape of `images`, whole values in [0, 255]

    Raises
    ------
    ValueError
        As `igsm`.
    """
    check_box(eps, step)
    check_whole("iterations", iterations, 1)
    clean, single = _clean(images)
    goal = _Goal(classifier, classifier.check_labels(labels, len(clean)), targeted, stop_at)
    start = clean
    if random_start:
        shape, radius = clean.shape[1:], np.floor(eps)
        draws = [stream.uniform(-radius, radius, shape) for stream in streams(rng, len(clean))]
        start = (clean + np.stack(draws)).astype(np.float32)
    adversaries = _descend(goal, clean, start, eps, step, iterations, batch_size)
    return adversaries[0] if single else adversaries


def check_box(eps: float, step: float) -> None:
    """Check how far an attack may go, and in what steps.

    Parameters
    ----------
    eps, step
        As in `igsm`.

    Raises
    ------
    ValueError
        If one of them is out of its range.
    """
    if not is_number(eps) or not 1 <= eps <= 255:
        raise ValueError(
            f"eps: expected 1 to 255 grey levels (the result is on the 8-bit grid), got {eps!r}"
        )
    if not is_number(step) or not 0 < step <= 255:
        raise ValueError(f"step: expected a number of grey levels in (0, 255], got {step!r}")


class _Goal:
    """What an attack is after, and whether an image is there."""

    def __init__(
        self, classifier: Classifier, labels: Labels, targeted: bool, stop_at: StopAt
    ) -> None:
        if stop_at not in (None, "success") and not (is_number(stop_at) and 0 <= stop_at < 1):
            raise ValueError(
                f"stop_at: expected None, 'success' or a number in [0, 1), got {stop_at!r}"
            )
        self.classifier = classifier
        self.labels = labels
        self.direction = -1.0 if targeted else 1.0
        self.targeted = targeted
        self.confidence = None if stop_at is None else 0.0 if stop_at == "success" else stop_at

    def reached(self, probabilities: Array, labels: Labels) -> NDArray[np.bool_]:
        """Tell for each image whether its attack may stop."""
        if self.confidence is None:
            return np.zeros(len(labels), dtype=np.bool_)
        won: NDArray[np.bool_] = (probabilities.argmax(axis=1) == labels) == self.targeted
        sure: NDArray[np.bool_] = probabilities.max(axis=1) >= self.confidence
        return won & sure


def _descend(
    goal: _Goal,
    clean: Array,
    start: Array,
    eps: float,
    step: float,
    iterations: int,
    batch_size: int,
) -> Array:
    """Give the last of `_iterates`, on the 8-bit grid."""
    *_, last = _iterates(goal, clean, start, eps, step, iterations, batch_size)
    return on_grid(last)


def _iterates(
    goal: _Goal,
    clean: Array,
    start: Array,
    eps: float,
    step: float,
    iterations: int,
    batch_size: int,
) -> Iterator[Array]:
    """Step each image until it is there; a finished image leaves the batch.

    The start and what each step leaves, in full precision: one array, which the next step moves.
    """
    # Whole bounds around whole images: rounding the iterate cannot leave the box.
    radius = np.float32(np.floor(eps))
    low, high = np.maximum(clean - radius, 0), np.minimum(clean + radius, 255)
    iterate = np.clip(start, low, high)
    yield iterate
    active = np.arange(len(clean))
    for _ in range(iterations):
        labels = goal.labels[active]
        gradient, probabilities = goal.classifier.loss_gradient(
            on_grid(iterate[active]), labels, batch_size=batch_size
        )
        going = ~goal.reached(probabilities, labels)
        active, gradient = active[going], gradient[going]
        if len(active) == 0:
            break
        stepped = iterate[active] + np.float32(goal.direction * step) * np.sign(gradient)
        iterate[active] = np.clip(stepped, low[active], high[active])
        yield iterate


def _clean(images: Array) -> tuple[Array, bool]:
    batch, single = as_batch(images)
    return on_grid(batch), single
