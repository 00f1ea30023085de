"""The attacker who knows of the defence: gradients through what has none, averaged over its draws.

Sources: Athalye, Carlini, Wagner 2018, arXiv 1802.00420 (BPDA: what cannot be differentiated is
taken for the identity on the way back); Athalye et al. 2018, arXiv 1707.07397 (EOT: the mean over
random draws); both against pixel deflection, Athalye and Carlini 2018, arXiv 1804.03286.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import Array, Rng, as_batch, check_one_of, check_whole, on_grid, streams
from pdutils.attacks.gradient import Classifier, LabelsLike, check_box, last_of, walk
from pdutils.defenses.pipeline import Defense
from pdutils.deflection import apply_writes, draw_writes

BackwardPass = Literal["identity", "wavelet", "exact"]

#: Defends images, with their map, once: the result, and what takes a gradient back, if anything.
Forward = Callable[[Array, Array | None, list[np.random.Generator]], tuple[Array, Any]]


def bpda(
    classifier: Classifier,
    images: Array,
    labels: LabelsLike,
    *,
    defense: Any,
    eps: float = 4.0,
    step: float = 0.5,
    iterations: int = 20,
    draws: int = 1,
    gradient: BackwardPass = "identity",
    targeted: bool = False,
    rng: Rng = None,
    batch_size: int = 32,
) -> Array:
    """Take small steps along the sign of the gradient at the defended image, in a box of eps.

    At each step the iterate is defended afresh, and the gradient of the loss is taken where the
    network looks: at the defended image. Then it goes back through the defence, see `gradient`.
    The attacker's draws are not those of whoever defends the result later, so no step may be the
    last because it succeeded: the last iterate is what comes back.

    The other arguments are those of `pdutils.attacks.gradient.igsm`; the network is the one behind
    the defence.

    Parameters
    ----------
    defense : object like `pdutils.defenses.pipeline.Defense`, or None
        It has `transform` and `activation_map`; the map is made anew of each iterate. None: no
        defence, which makes this `igsm`.
    draws : int
        Over how many draws of the defence the gradient of a step is averaged, at least 1.
    gradient : {"identity", "wavelet", "exact"}
        How the gradient goes back through the defence, see `expected_gradient`.
    rng : int, numpy.random.Generator, list of Generator, or None
        Each image's draws come one after the other from a stream of its own.
    """
    check_box(eps, step, iterations)
    clean = on_grid(as_batch(images)[0])
    mean = _mean_gradient(classifier, len(clean), labels, defense, draws, gradient, rng, batch_size)

    def slope(shown: Array, active: NDArray[np.intp]) -> tuple[Array, NDArray[np.bool_]]:
        return mean(shown), np.ones(len(active), dtype=np.bool_)

    return last_of(walk(clean, clean, slope, eps, -step if targeted else step, iterations), images)


def expected_gradient(
    classifier: Classifier,
    images: Array,
    labels: LabelsLike,
    *,
    defense: Any,
    draws: int = 1,
    gradient: BackwardPass = "identity",
    rng: Rng = None,
    batch_size: int = 32,
) -> Array:
    """Give the gradient that `bpda` follows: of the loss behind a defence, averaged over its draws.

    The loss is the cross-entropy of the labels. What comes back has the shape of `images`, which
    are not rounded, in units of the loss per grey level. The other arguments are those of `bpda`.

    Parameters
    ----------
    gradient : {"identity", "wavelet", "exact"}
        How the gradient goes back through the defence.

        - ``identity``: as it is, whatever the defence does.
        - ``wavelet``: by the derivative of the wavelet denoiser, and through pixel deflection as
          it is.
        - ``exact``: by the derivative of the denoiser, if there is one, and of the very writes
          that were drawn: a place that was written to passes its gradient on to the place that it
          was copied from. That the map depends on the image is left out.

        The last two need a `Defense`, or an object that holds one as its attribute `defense`, with
        Haar wavelets (db1), BayesShrink and YCbCr.
    """
    batch, single = as_batch(images)
    mean = _mean_gradient(classifier, len(batch), labels, defense, draws, gradient, rng, batch_size)
    slopes = mean(batch)
    return slopes[0] if single else slopes


def _mean_gradient(
    classifier: Classifier,
    n: int,
    labels: LabelsLike,
    defense: Any,
    draws: int,
    gradient: BackwardPass,
    rng: Rng,
    batch_size: int,
) -> Callable[[Array], Array]:
    """Make the function from n images to their gradients, a batch at a time."""
    check_whole("draws", draws, 1)
    check_whole("batch_size", batch_size, 1)
    goals = classifier.check_labels(labels, n)
    forward = _forward(classifier, defense, gradient)
    generators = streams(rng, n)

    def mean(images: Array) -> Array:
        total = np.zeros_like(images)
        for part in (slice(start, start + batch_size) for start in range(0, n, batch_size)):
            shown = images[part]
            chances = None if defense is None else defense.activation_map(classifier, shown)
            for _ in range(draws):
                defended, pull_back = forward(shown, chances, generators[part])
                slope, _ = classifier.loss_gradient(defended, goals[part], batch_size=batch_size)
                total[part] += pull_back(slope) if pull_back else slope
        return total / np.float32(draws)

    return mean


def _forward(classifier: Classifier, defense: Any, gradient: BackwardPass) -> Forward:
    """Find what defends, and for all but the identity deflects and denoises with derivatives."""
    check_one_of("gradient", gradient, get_args(BackwardPass))
    if gradient == "identity" and defense is None:
        return lambda images, chances, rng: (images, None)
    if gradient == "identity":
        return lambda images, chances, rng: (
            defense.transform(classifier, images, rng=rng, activation_map=chances),
            None,
        )
    defense = getattr(defense, "defense", defense)
    if not isinstance(defense, Defense):
        raise ValueError(
            f"gradient: {gradient!r} needs a Defense to differentiate, got {defense!r}; "
            "'identity' takes any"
        )
    if gradient == "wavelet" and defense.denoiser is None:
        raise ValueError(
            "gradient: 'wavelet' needs a wavelet denoiser, got a defence without a denoiser"
        )
    from pdutils.defenses.layers import wavelet_layer

    layer = wavelet_layer(defense.denoiser, defense.denoiser_options)
    knobs = defense.deflections, defense.window

    def forward(
        images: Array, chances: Array | None, generators: list[np.random.Generator]
    ) -> tuple[Array, Any]:
        maps = [None] * len(images) if chances is None else chances
        writes = [
            draw_writes(images.shape[1:3], *knobs, one, defense.reading, stream)
            for one, stream in zip(maps, generators, strict=True)
        ]
        deflected = np.stack([apply_writes(*pair) for pair in zip(images, writes, strict=True)])
        defended, undenoised = layer.with_derivative(deflected) if layer else (deflected, None)
        if gradient == "wavelet":
            return defended, undenoised
        # Where the values of a deflected image come from shows when places are deflected.
        places: Any = np.arange(images[0].size).reshape(images.shape[1:])

        def before_writes(slope: Array) -> Array:
            given = undenoised(slope) if undenoised else slope
            sums = [
                np.bincount(apply_writes(places, drawn).ravel(), values.ravel(), places.size)
                for values, drawn in zip(given, writes, strict=True)
            ]
            return np.stack(sums).astype(np.float32).reshape(images.shape)

        return defended, before_writes

    return forward
