"""Attacks that look for the smallest perturbation that fools the network.

A smallest perturbation ends on the border between two classes, most of its values are below half
a grey level, and rounding to 8 bits takes them away. So success is judged after rounding:
`fgsm_smallest` and `jsma` walk on the grid, `lbfgs` rounds what each weight gives, and what
`deepfool` and `carlini_wagner` find is made longer in steps of 5% until its rounding succeeds.

An image that is there already (misclassified, or seen as the target) comes back as it is. The
attacks that are ART's (Nicolae et al. 2018, arXiv 1807.01069) need the extra "art".

`classifier`, `images`, `labels`, `targeted`, `batch_size` and what comes back are those of
`pdutils.attacks.gradient.fgsm`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import Array, check_whole, is_finite, on_grid
from pdutils.attacks.gradient import (
    Classifier,
    Labels,
    LabelsLike,
    as_clean_batch,
    loss_gradient,
)

#: The longer and longer perturbations that are tried until one survives its rounding.
_FACTORS = 1.05 ** np.arange(48)

_ABOVE_0 = float(np.nextafter(0, 1))

#: From clean images and labels to adversaries; neither is empty.
_Attack = Callable[[Array, Labels], Array]


def fgsm_smallest(
    classifier: Classifier,
    images: Array,
    labels: LabelsLike,
    *,
    max_eps: int = 32,
    targeted: bool = False,
    batch_size: int = 32,
) -> Array:
    """Take the smallest step along the sign of the gradient that succeeds.

    A greater step can fail where a smaller one succeeds, so each whole number of grey levels is
    tried in turn. Source: Goodfellow, Shlens, Szegedy 2015, arXiv 1412.6572.

    Parameters
    ----------
    max_eps : int
        The greatest step that is tried, in grey levels, 1 to 255; it is what comes back where none
        succeeds.
    """
    check_whole("max_eps", max_eps, 1, 255)
    judge = _Judge(classifier, targeted, batch_size)

    def attack(clean: Array, goals: Labels) -> Array:
        gradient, _ = classifier.loss_gradient(clean, goals, batch_size=batch_size)
        step = -np.sign(gradient) if targeted else np.sign(gradient)
        last = clean + max_eps * step
        return judge.first_success(clean, step, range(1, max_eps + 1), goals, last)

    return judge.attacked(images, labels, attack)


def deepfool(
    classifier: Classifier,
    images: Array,
    labels: LabelsLike,
    *,
    iterations: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
    targeted: bool = False,
    batch_size: int = 32,
) -> Array:
    """Step over the nearest border, again and again, as if the network were linear.

    ART's loop, on a few classes of each image. What it finds is made longer until its rounding
    succeeds, up to ten times. Source: Moosavi-Dezfooli, Fawzi, Frossard 2016, arXiv 1511.04599.

    Parameters
    ----------
    iterations : int
        Greatest number of steps, at least 1.
    overshoot : float
        By what share of itself the perturbation goes beyond the border, at least 0.
    candidates : int
        How many of the most probable classes count, at least 2; the paper takes 10.
    targeted : bool
        Must be False: DeepFool goes to the nearest other class.
    """
    if targeted:
        raise ValueError("targeted: expected False, for DeepFool has no targeted form")
    check_whole("iterations", iterations, 1)
    check_whole("candidates", candidates, 2)
    _check_number("overshoot", overshoot, 0)
    judge = _Judge(classifier, False, batch_size)

    def attack(clean: Array, goals: Labels) -> Array:
        from pdutils.attacks._art import CandidateClassifier, by_art

        ranked = np.argsort(-classifier.predict(clean, batch_size=batch_size), kind="stable")
        shown = ranked[:, :candidates]
        # A pass takes the gradients of all candidates of a few images.
        few = max(1, batch_size // shown.shape[1])

        def found(part: slice) -> Array:
            bridge = CandidateClassifier(
                classifier, clean[part], shown[part], overshoot, batch_size
            )
            knobs = {"max_iter": int(iterations), "epsilon": overshoot}
            knobs |= {"nb_grads": shown.shape[1], "batch_size": few}
            return by_art("DeepFool", bridge, clean[part], None, **knobs)

        reached = _in_parts(found, len(clean), few)
        return judge.first_success(clean, reached - clean, _FACTORS, goals, reached)

    return judge.attacked(images, labels, attack)


def carlini_wagner(
    classifier: Classifier,
    images: Array,
    labels: LabelsLike,
    *,
    confidence: float = 0.0,
    learning_rate: float = 0.01,
    iterations: int = 10,
    search_steps: int = 6,
    initial_const: float = 1.0,
    targeted: bool = False,
    batch_size: int = 32,
) -> Array:
    """Minimise the L2 norm and the margin between the logits together.

    ART's form of it, which searches along each gradient for the length of the step. What it finds
    is made longer until its rounding succeeds, up to ten times; where nothing succeeds, the clean
    image comes back. Source: Carlini, Wagner 2017, arXiv 1608.04644, section V.

    Parameters
    ----------
    confidence : float
        The margin of the logits to reach, at least 0 (the paper's kappa).
    learning_rate : float
        The length of the first step, above 0, in the tanh space of images in [0, 1].
    iterations : int
        Steps for each weight, at least 1.
    search_steps : int
        How many weights of the margin are tried, at least 1.
    initial_const : float
        The first of them, above 0, against the squared norm of images in [0, 1].
    """
    _check_number("confidence", confidence, 0)
    _check_number("learning_rate", learning_rate, _ABOVE_0)
    _check_search(iterations, search_steps, initial_const)
    judge = _Judge(classifier, targeted, batch_size)
    knobs = {"confidence": confidence, "targeted": targeted, "learning_rate": learning_rate}
    knobs |= {"binary_search_steps": int(search_steps), "max_iter": int(iterations)}
    knobs |= {"initial_const": initial_const}

    def attack(clean: Array, goals: Labels) -> Array:
        reached = judge.by_art("CarliniL2Method", clean, goals, knobs)
        return judge.first_success(clean, reached - clean, _FACTORS, goals, reached)

    return judge.attacked(images, labels, attack)


def jsma(
    classifier: Classifier,
    images: Array,
    labels: LabelsLike,
    *,
    step: int = 255,
    max_share: float = 0.01,
    targeted: bool = False,
    batch_size: int = 32,
) -> Array:
    """Change two channel values at a time, those that raise the target most.

    ART's form of it, which looks at the gradient of the target alone. Without `targeted`, the
    target is the most probable class but the label. Source: Papernot et al. 2016, arXiv 1511.07528.

    Parameters
    ----------
    step : int
        What is added to a channel value at a time, in grey levels, -255 to 255 but not 0.
    max_share : float
        The greatest share of the channel values that is changed, in (0, 1]. Each two of them cost
        a gradient and a prediction.
    """
    check_whole("step", step, -255, 255)
    if step == 0:
        raise ValueError("step: expected -255 to 255 grey levels but not 0, got 0")
    _check_number("max_share", max_share, _ABOVE_0, 1)
    judge = _Judge(classifier, targeted, batch_size)

    def attack(clean: Array, goals: Labels) -> Array:
        knobs = {"theta": step / 255, "gamma": max_share}
        return judge.by_art("SaliencyMapMethod", clean, judge.targets(clean, goals), knobs)

    return judge.attacked(images, labels, attack)


def lbfgs(
    classifier: Classifier,
    images: Array,
    labels: LabelsLike,
    *,
    iterations: int = 20,
    search_steps: int = 6,
    initial_const: float = 1.0,
    targeted: bool = False,
    batch_size: int = 32,
) -> Array:
    """Minimise the squared L2 norm and the cross-entropy of a target together, by L-BFGS-B.

    The weight of the norm is multiplied by 10 until the rounding of what comes out fails to fool
    the network, or divided by 10 until it succeeds; then it is sought between the two. The shortest
    success is taken, or what came out last. Without `targeted`, the target is the most probable
    class but the label. Source: Szegedy et al. 2014, arXiv 1312.6199, section 4.1.

    Parameters
    ----------
    iterations : int
        Greatest number of steps of L-BFGS-B for each weight, at least 1.
    search_steps : int
        How many weights are tried, at least 1.
    initial_const : float
        The first of them, above 0, for the squared norm of images in [0, 1].
    """
    _check_search(iterations, search_steps, initial_const)
    judge = _Judge(classifier, targeted, batch_size)

    def attack(clean: Array, goals: Labels) -> Array:
        found = np.empty_like(clean)
        targets = judge.targets(clean, goals)
        for i, (image, goal, target) in enumerate(zip(clean, goals, targets, strict=True)):
            search = _Search(image, initial_const)
            for _ in range(search_steps):
                result = on_grid(_lbfgs(classifier, image, target, search.const, iterations))
                search.note(result, bool(judge.fooled(result[np.newaxis], goal)[0]))
            found[i] = search.best
        return found

    return judge.attacked(images, labels, attack)


class _Search:
    """The search for the greatest weight of the norm at which an attack still succeeds."""

    def __init__(self, image: Array, const: float) -> None:
        self.const = const
        self.best = self._image = image
        self._norm = np.inf
        # The last weight that failed and the last one that succeeded.
        self._ends: dict[bool, float] = {}

    def note(self, result: Array, success: bool) -> None:
        """Take in what came out for the weight `const`, and set the next one."""
        norm = float(np.linalg.norm(result - self._image)) if success else np.inf
        if norm < self._norm or self._norm == np.inf:
            self.best, self._norm = result, norm
        self._ends[success] = self.const
        if len(self._ends) == 2:
            self.const = float(np.sqrt(self._ends[True] * self._ends[False]))
        else:
            self.const = self.const * 10 if success else self.const / 10


def _lbfgs(
    classifier: Classifier, image: Array, target: np.int64, const: float, iterations: int
) -> Array:
    """Minimise const * ||z - x||^2 + cross-entropy(z, target) for z in [0, 1]."""
    from scipy.optimize import Bounds, minimize

    origin = image.astype(np.float64).ravel() / 255

    def objective(z: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        shown = (z * 255).reshape(1, *image.shape).astype(np.float32)
        gradient, logits = loss_gradient(classifier, shown, np.array([target]))
        change = z - origin
        by_z = 2 * const * change + 255 * gradient.ravel().astype(np.float64)
        return const * float(change @ change) - float(logits[0, target]), by_z

    result = minimize(
        objective,
        origin,
        jac=True,
        method="L-BFGS-B",
        # A list of as many pairs as there are values would be read twice, one by one.
        bounds=Bounds(np.zeros_like(origin), np.ones_like(origin)),
        options={"maxiter": iterations},
    )
    found: Array = (result.x * 255).reshape(image.shape).astype(np.float32)
    return found


@dataclass(frozen=True)
class _Judge:
    """Who decides whether an image is there."""

    classifier: Classifier
    targeted: bool
    batch_size: int

    def fooled(self, images: Array, goals: Labels) -> NDArray[np.bool_]:
        seen = self.classifier.predict(images, batch_size=self.batch_size).argmax(axis=1)
        there: NDArray[np.bool_] = (seen == goals) == self.targeted
        return there

    def attacked(self, images: Array, labels: LabelsLike, attack: _Attack) -> Array:
        """Check what every attack is given, and attack the images that are not there already."""
        clean, single = as_clean_batch(images)
        goals = self.classifier.check_labels(labels, len(clean))
        todo = np.flatnonzero(~self.fooled(clean, goals))
        adversaries = clean.copy()
        if len(todo):
            adversaries[todo] = on_grid(attack(clean[todo], goals[todo]))
        return adversaries[0] if single else adversaries

    def first_success(
        self, clean: Array, step: Array, lengths: Iterable[float], goals: Labels, failed: Array
    ) -> Array:
        """Go one length of the step after the other; an image that is there leaves the batch."""
        result = failed.copy()
        active = np.arange(len(clean))
        for length in lengths:
            tried = on_grid(clean[active] + np.float32(length) * step[active])
            there = self.fooled(tried, goals[active])
            result[active[there]] = tried[there]
            active = active[~there]
            if len(active) == 0:
                break
        return result

    def by_art(self, name: str, clean: Array, goals: Labels, knobs: dict[str, Any]) -> Array:
        """Attack by ART's class of that name, a batch at a time."""
        from pdutils.attacks._art import art_classifier, by_art

        bridge = art_classifier(self.classifier, clip_values=(0, 1), batch_size=self.batch_size)
        knobs = knobs | {"batch_size": self.batch_size}
        return _in_parts(
            lambda part: by_art(name, bridge, clean[part], goals[part], **knobs),
            len(clean),
            self.batch_size,
        )

    def targets(self, clean: Array, goals: Labels) -> Labels:
        """Give the classes to reach: the goals, or the most probable class of each but its goal."""
        if self.targeted:
            return goals
        probabilities = self.classifier.predict(clean, batch_size=self.batch_size)
        probabilities[np.arange(len(clean)), goals] = -1
        others: Labels = probabilities.argmax(axis=1)
        return others


def _in_parts(attack: Callable[[slice], Array], n: int, size: int) -> Array:
    return np.concatenate([attack(slice(i, i + size)) for i in range(0, n, size)])


def _check_search(iterations: int, search_steps: int, initial_const: float) -> None:
    check_whole("iterations", iterations, 1)
    check_whole("search_steps", search_steps, 1)
    _check_number("initial_const", initial_const, _ABOVE_0)


def _check_number(name: str, value: object, low: float, high: float = np.inf) -> None:
    if not is_finite(value) or not low <= value <= high:
        above = "above 0" if low == _ABOVE_0 else f"of at least {low:g}"
        span = above if high == np.inf else f"{above} and at most {high:g}"
        raise ValueError(f"{name}: expected a number {span}, got {value!r}")
