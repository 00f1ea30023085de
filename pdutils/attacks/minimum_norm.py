"""Attacks that look for the smallest perturbation that fools the network.

It ends on the border between two classes, and rounding to 8 bits takes it away. So success is
judged after rounding: `fgsm_smallest` and `jsma` walk on the grid, `lbfgs` rounds what each weight
gives, and what `deepfool` and `carlini_wagner` find is made longer in steps of 5%, up to ten times,
until its rounding succeeds. An image that is there already comes back as it is.

`classifier`, `images`, `labels`, `targeted`, `batch_size` and what comes back are those of
`pdutils.attacks.gradient.fgsm`. `deepfool`, `carlini_wagner` and `jsma` are ART's (Nicolae et al.
2018, arXiv 1807.01069), and need the extra "art".
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import ABOVE_0, Array, as_batch, check_number, check_whole, on_grid
from pdutils.attacks.gradient import Classifier, Labels, LabelsLike
from pdutils.metrics import relative_l2

#: The longer and longer perturbations that are tried until one survives its rounding.
_FACTORS = 1.05 ** np.arange(48)


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
    judge = _Judge(classifier, images, labels, targeted, batch_size)
    if judge.goals.size:
        gradient, _ = classifier.loss_gradient(judge.clean, judge.goals, batch_size=batch_size)
        step = -np.sign(gradient) if targeted else np.sign(gradient)
        judge.found = judge.clean + max_eps * step
        judge.take_first_success(step, range(1, max_eps + 1))
    return judge.adversaries()


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

    It goes to the nearest other class, never to a target. Source: Moosavi-Dezfooli, Fawzi, Frossard
    2016, arXiv 1511.04599.

    Parameters
    ----------
    iterations : int
        Greatest number of steps, at least 1.
    overshoot : float
        By what share of itself the perturbation goes beyond the border, at least 0.
    candidates : int
        How many of the most probable classes count, at least 2; the paper takes 10.
    """
    if targeted:
        raise ValueError("targeted: expected False, for DeepFool has no targeted form")
    check_whole("iterations", iterations, 1)
    check_whole("candidates", candidates, 2)
    check_number("overshoot", overshoot, 0)
    judge = _Judge(classifier, images, labels, False, batch_size)
    if judge.goals.size:
        from pdutils.attacks import _art

        clean = judge.clean
        ranked = np.argsort(-classifier.predict(clean, batch_size=batch_size), kind="stable")
        shown = ranked[:, :candidates]
        # A pass takes the gradients of all candidates of a few images.
        few = max(1, batch_size // shown.shape[1])
        knobs = {"max_iter": int(iterations), "epsilon": overshoot}
        knobs |= {"nb_grads": shown.shape[1], "batch_size": few}
        for part in (slice(start, start + few) for start in range(0, len(clean), few)):
            about = clean[part], shown[part], overshoot, batch_size
            bridge = _art.CandidateClassifier(classifier, *about)
            judge.found[part] = _art.by_art("DeepFool", bridge, clean[part], None, **knobs)
        judge.take_first_success(judge.found - clean, _FACTORS)
    return judge.adversaries()


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

    ART's form of it searches along each gradient for the length of the step. Where nothing
    succeeds, the clean image comes back. Source: Carlini, Wagner 2017, arXiv 1608.04644, section V.

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
    check_number("confidence", confidence, 0)
    check_number("learning_rate", learning_rate, ABOVE_0)
    check_whole("iterations", iterations, 1)
    check_whole("search_steps", search_steps, 1)
    check_number("initial_const", initial_const, ABOVE_0)
    judge = _Judge(classifier, images, labels, targeted, batch_size)
    if judge.goals.size:
        knobs = {"confidence": confidence, "targeted": targeted, "learning_rate": learning_rate}
        knobs |= {"binary_search_steps": int(search_steps), "max_iter": int(iterations)}
        knobs["initial_const"] = initial_const
        judge.take_from_art("CarliniL2Method", judge.goals, knobs)
        judge.take_first_success(judge.found - judge.clean, _FACTORS)
    return judge.adversaries()


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

    ART's form of it looks at the gradient of the target alone: without `targeted`, that is the
    most probable class but the label. Source: Papernot et al. 2016, arXiv 1511.07528.

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
    check_number("max_share", max_share, ABOVE_0, 1)
    judge = _Judge(classifier, images, labels, targeted, batch_size)
    if judge.goals.size:
        knobs = {"theta": step / 255, "gamma": max_share}
        judge.take_from_art("SaliencyMapMethod", judge.targets(), knobs)
    return judge.adversaries()


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
    check_whole("iterations", iterations, 1)
    check_whole("search_steps", search_steps, 1)
    check_number("initial_const", initial_const, ABOVE_0)
    judge = _Judge(classifier, images, labels, targeted, batch_size)
    for i, target in enumerate(judge.targets() if judge.goals.size else []):
        const, least = initial_const, np.inf
        # The last weight that failed and the last one that succeeded.
        ends: dict[bool, float] = {}
        for _ in range(search_steps):
            result = on_grid(_lbfgs(classifier, judge.clean[i], target, const, iterations))
            success = bool(judge.fooled(result[np.newaxis], judge.goals[i])[0])
            norm = float(np.linalg.norm(result - judge.clean[i])) if success else np.inf
            if norm < least or least == np.inf:
                judge.found[i], least = result, norm
            ends[success] = const
            if len(ends) == 2:
                const = float(np.sqrt(ends[True] * ends[False]))
            else:
                const = const * 10 if success else const / 10
    return judge.adversaries()


def rescale(images: Array, adversaries: Array, l2: float) -> Array:
    """Make each perturbation longer or shorter until it has a relative L2, its direction the same.

    After rounding to 8 bits it comes as near as whole grey levels from 0 to 255 allow; what is not
    there yet at 255 times its length stays at that.

    Parameters
    ----------
    images, adversaries : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
        RGB in [0, 255]. What comes back has their shape, and whole values.
    l2 : float
        ||x' - x|| / ||x|| of an image x and what comes back, above 0.
    """
    check_number("l2", l2, ABOVE_0)
    clean, single = as_batch(images)
    clean = on_grid(clean)
    step = as_batch(adversaries)[0] - clean

    def stretched(factors: NDArray[np.floating]) -> Array:
        return on_grid(clean + factors.astype(np.float32).reshape(-1, 1, 1, 1) * step)

    # The norm of what is rounded and clipped never falls while the factor grows.
    low, high = np.zeros(len(clean)), np.full(len(clean), 255.0)
    for _ in range(24):
        middle = (low + high) / 2
        short = relative_l2(clean, stretched(middle)) < l2
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    below, above = stretched(low), stretched(high)
    gaps = [abs(relative_l2(clean, found) - l2) for found in (below, above)]
    above[gaps[0] < gaps[1]] = below[gaps[0] < gaps[1]]
    return above[0] if single else above


def _lbfgs(
    classifier: Classifier, image: Array, target: np.int64, const: float, iterations: int
) -> Array:
    """Minimise const * ||z - x||^2 + cross-entropy(z, target) for z in [0, 1]."""
    from scipy.optimize import Bounds, minimize

    origin = image.astype(np.float64).ravel() / 255

    def objective(z: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        shown = (z * 255).reshape(1, *image.shape).astype(np.float32)
        # The iterate may be all but black, which the door of the classifier takes for scaled.
        gradient, (seen,) = classifier.run("gradient", shown, np.array([target]))
        change = z - origin
        by_z = 2 * const * change + 255 * gradient.ravel().astype(np.float64)
        logit = np.log(np.maximum(seen[target], np.finfo(np.float32).tiny))
        return const * float(change @ change) - float(logit), by_z

    # A list of as many pairs as there are values would be read twice, one by one.
    bounds = Bounds(np.zeros_like(origin), np.ones_like(origin))
    options = {"maxiter": iterations}
    result = minimize(
        objective, origin, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    return np.asarray(result.x * 255, dtype=np.float32).reshape(image.shape)


class _Judge:
    """Who decides whether an image is there; `clean` and `goals` are of those that are not yet."""

    def __init__(
        self, classifier: Classifier, images: Array, labels: LabelsLike, targeted: bool, size: int
    ) -> None:
        self.classifier, self.targeted, self.size = classifier, targeted, size
        batch, self.single = as_batch(images)
        self.all, goals = on_grid(batch), classifier.check_labels(labels, len(batch))
        self.todo = np.flatnonzero(~self.fooled(self.all, goals))
        self.clean, self.goals = self.all[self.todo], goals[self.todo]
        self.found = self.clean.copy()

    def fooled(self, images: Array, goals: Labels) -> NDArray[np.bool_]:
        seen = self.classifier.predict(images, batch_size=self.size).argmax(axis=1)
        return np.asarray((seen == goals) == self.targeted)

    def adversaries(self) -> Array:
        self.all[self.todo] = on_grid(self.found)
        return self.all[0] if self.single else self.all

    def take_first_success(self, step: Array, lengths: Iterable[float]) -> None:
        """Go one length of the step after the other; an image that is there leaves the batch."""
        # Of nothing no length is any more.
        active = np.flatnonzero(step.any(axis=(1, 2, 3)))
        for length in lengths:
            if len(active) == 0:
                break
            tried = on_grid(self.clean[active] + np.float32(length) * step[active])
            there = self.fooled(tried, self.goals[active])
            self.found[active[there]] = tried[there]
            active = active[~there]

    def take_from_art(self, name: str, goals: Labels, knobs: dict[str, Any]) -> None:
        from pdutils.attacks import _art

        knobs["batch_size"] = self.size
        bridge = _art.art_classifier(self.classifier, clip_values=(0, 1), batch_size=self.size)
        self.found = _art.by_art(name, bridge, self.clean, goals, **knobs)

    def targets(self) -> Labels:
        """Give the classes to reach: the goals, or the most probable class of each but its goal."""
        if self.targeted:
            return self.goals
        probabilities = self.classifier.predict(self.clean, batch_size=self.size)
        probabilities[np.arange(len(self.goals)), self.goals] = -1
        return np.asarray(probabilities.argmax(axis=1))
