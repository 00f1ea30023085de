"""The attacker who knows of the defence: gradients through what has none, averaged over its draws.

Sources: Athalye, Carlini, Wagner 2018, arXiv 1802.00420 (BPDA: what cannot be differentiated is
taken for the identity on the way back); Athalye et al. 2018, arXiv 1707.07397 (EOT: the mean over
random draws); both against pixel deflection, Athalye and Carlini 2018, arXiv 1804.03286.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol, get_args

import numpy as np

from pdutils._utils import Rng, check_one_of, check_whole, streams
from pdutils.attacks.gradient import LabelsLike, check_box
from pdutils.classifiers import Classifier, Labels
from pdutils.defenses.pipeline import Defense
from pdutils.deflection import Writes, apply_writes, draw_writes
from pdutils.images import Array, as_batch, on_grid

BackwardPass = Literal["identity", "wavelet", "exact"]

#: Turns the gradient by the defended images into one by the images before the defence.
PullBack = Callable[[Array], Array]

#: Options of the wavelet denoiser that its Keras layer, which has a gradient, knows too.
_LAYER_OPTIONS = frozenset({"sigma", "mode", "sigma_scale"})


class Transformation(Protocol):
    """What can be attacked: anything that defends images as `defenses.pipeline.Defense` does."""

    def activation_map(self, classifier: Classifier, images: Array) -> Array | None:
        """Make the map that `transform` takes, or None."""

    def transform(
        self,
        classifier: Classifier,
        images: Array,
        *,
        rng: Rng = None,
        activation_map: Array | None = None,
    ) -> Array:
        """Defend images once."""


def bpda(
    classifier: Classifier,
    images: Array,
    labels: LabelsLike,
    *,
    defense: Transformation | None,
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

    Sources: Athalye, Carlini, Wagner 2018, arXiv 1802.00420; Athalye et al. 2018, arXiv
    1707.07397; Athalye, Carlini 2018, arXiv 1804.03286.

    Parameters
    ----------
    classifier : Classifier
        The network behind the defence.
    images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
        RGB in [0, 255]; they are rounded to 8 bits first.
    labels : int, or N of them
        The true classes; with `targeted`, the classes to reach.
    defense : object like `pdutils.defenses.pipeline.Defense`, or None
        It has `transform` and `activation_map`; the map is made anew of each iterate. None: no
        defence, which makes this `pdutils.attacks.gradient.igsm`.
    eps : float
        Greatest change of a channel, in grey levels of 255, at least 1; its fraction is cut off.
    step : float
        Size of a step in grey levels, above 0. It may be a fraction: the iterate is kept in full
        precision, and the defence is shown its rounding.
    iterations : int
        Number of steps, at least 1.
    draws : int
        Over how many draws of the defence the gradient of a step is averaged, at least 1.
    gradient : {"identity", "wavelet", "exact"}
        How the gradient goes back through the defence, see `expected_gradient`.
    targeted : bool
        Whether to go towards the labels instead of away from them.
    rng : int, numpy.random.Generator, list of Generator, or None
        Each image's draws come from a stream of its own, see `pdutils._utils`.
    batch_size : int
        How many images are defended and seen at once, at least 1.

    Returns
    -------
    ndarray of float32, the shape of `images`, whole values in [0, 255]

    Raises
    ------
    ValueError
        If the images break their contract, a label is no class, a knob is out of its range, or the
        defence has no such derivative as `gradient` asks for.
    """
    check_box(eps, step)
    _check_counts(iterations=iterations, draws=draws, batch_size=batch_size)
    batch, single = as_batch(images)
    clean = on_grid(batch)
    goals = classifier.check_labels(labels, len(clean))
    passage = _passage(classifier, defense, gradient)
    generators = streams(rng, len(clean))
    signed = -step if targeted else step
    adversaries = np.empty_like(clean)
    for part in _parts(len(clean), batch_size):
        slope = partial(
            _mean_gradient, passage, draws=draws, labels=goals[part], generators=generators[part]
        )
        adversaries[part] = _follow(slope, clean[part], eps, signed, iterations)
    return adversaries[0] if single else adversaries


def expected_gradient(
    classifier: Classifier,
    images: Array,
    labels: LabelsLike,
    *,
    defense: Transformation | None,
    draws: int = 1,
    gradient: BackwardPass = "identity",
    rng: Rng = None,
    batch_size: int = 32,
) -> Array:
    """Give the gradient that `bpda` follows: of the loss behind a defence, averaged over its draws.

    Parameters
    ----------
    classifier, labels, defense, draws, batch_size
        As in `bpda`; the loss is the cross-entropy of the labels.
    images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
        RGB in [0, 255]; they are not rounded.
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
    rng : int, numpy.random.Generator, list of Generator, or None
        Each image's draws come one after the other from a stream of its own.

    Returns
    -------
    ndarray of float32, the shape of `images`
        In units of the loss per grey level.

    Raises
    ------
    ValueError
        As `bpda`.
    """
    _check_counts(draws=draws, batch_size=batch_size)
    batch, single = as_batch(images)
    goals = classifier.check_labels(labels, len(batch))
    passage = _passage(classifier, defense, gradient)
    generators = streams(rng, len(batch))
    slopes = [
        _mean_gradient(
            passage, batch[part], draws=draws, labels=goals[part], generators=generators[part]
        )
        for part in _parts(len(batch), batch_size)
    ]
    return slopes[0][0] if single else np.concatenate(slopes)


def _parts(n: int, batch_size: int) -> list[slice]:
    return [slice(start, start + batch_size) for start in range(0, n, batch_size)]


def _follow(
    slope: Callable[[Array], Array], clean: Array, eps: float, step: float, iterations: int
) -> Array:
    """Step along the sign of the slope at the rounded iterate, inside the box."""
    # Whole bounds around whole images: rounding the iterate cannot leave the box.
    radius = np.float32(np.floor(eps))
    low, high = np.maximum(clean - radius, 0), np.minimum(clean + radius, 255)
    iterate = clean
    for _ in range(iterations):
        stepped = iterate + np.float32(step) * np.sign(slope(on_grid(iterate)))
        iterate = np.clip(stepped, low, high)
    return on_grid(iterate)


def _mean_gradient(
    passage: "_Passage",
    images: Array,
    *,
    draws: int,
    labels: Labels,
    generators: list[np.random.Generator],
) -> Array:
    classifier = passage.classifier
    activation_map = passage.activation_map(images)
    total = np.zeros_like(images)
    for _ in range(draws):
        defended, pull_back = passage.forward(images, activation_map, generators)
        gradient, _ = classifier.loss_gradient(defended, labels, batch_size=len(images))
        total += pull_back(gradient)
    return total / np.float32(draws)


class _Passage:
    """A defence that hands gradients back as they are."""

    def __init__(self, classifier: Classifier, defense: Transformation | None) -> None:
        self.classifier = classifier
        self.defense = defense

    def activation_map(self, images: Array) -> Array | None:
        if self.defense is None:
            return None
        return self.defense.activation_map(self.classifier, images)

    def forward(
        self, images: Array, activation_map: Array | None, generators: list[np.random.Generator]
    ) -> tuple[Array, PullBack]:
        """Defend images once; give the result, and what takes a gradient back from it."""
        if self.defense is None:
            return images, _unchanged
        defended = self.defense.transform(
            self.classifier, images, rng=generators, activation_map=activation_map
        )
        return defended, _unchanged


class _DifferentiablePassage(_Passage):
    """Pixel deflection and wavelet denoising, one after the other, each with its derivative."""

    def __init__(self, classifier: Classifier, defense: Defense, *, through_writes: bool) -> None:
        super().__init__(classifier, defense)
        self.pipeline = defense
        self.through_writes = through_writes
        self.layer = _wavelet_layer(defense)

    def forward(
        self, images: Array, activation_map: Array | None, generators: list[np.random.Generator]
    ) -> tuple[Array, PullBack]:
        maps = [None] * len(images) if activation_map is None else activation_map
        writes = [self._writes(images, *pair) for pair in zip(maps, generators, strict=True)]
        deflected = np.stack([apply_writes(*pair) for pair in zip(images, writes, strict=True)])
        defended, before_denoising = _denoised(deflected, self.layer)
        if not self.through_writes:
            return defended, before_denoising
        return defended, lambda gradient: _before_writes(before_denoising(gradient), writes)

    def _writes(
        self, images: Array, activation_map: Array | None, stream: np.random.Generator
    ) -> Writes:
        knobs = self.pipeline
        return draw_writes(
            images.shape[1:3],
            knobs.deflections,
            knobs.window,
            activation_map,
            knobs.reading,
            stream,
        )


def _passage(
    classifier: Classifier, defense: Transformation | None, gradient: BackwardPass
) -> _Passage:
    check_one_of("gradient", gradient, get_args(BackwardPass))
    if gradient == "identity":
        return _Passage(classifier, defense)
    pipeline = getattr(defense, "defense", defense)
    if not isinstance(pipeline, Defense):
        raise ValueError(
            f"gradient: {gradient!r} needs a Defense to differentiate, got {defense!r}; "
            "'identity' takes any"
        )
    if gradient == "wavelet" and pipeline.denoiser is None:
        raise ValueError(
            "gradient: 'wavelet' needs a wavelet denoiser, got a defence without a denoiser"
        )
    return _DifferentiablePassage(classifier, pipeline, through_writes=gradient == "exact")


def _wavelet_layer(defense: Defense) -> Any:
    """Give the Keras layer of the defence's denoiser, or None if it has no denoiser."""
    if defense.denoiser is None:
        return None
    others = set(defense.denoiser_options) - _LAYER_OPTIONS
    if defense.denoiser != "wavelet" or others:
        raise ValueError(
            "gradient: expected the denoiser 'wavelet' with no other options than "
            f"{', '.join(sorted(_LAYER_OPTIONS))}; got {defense.denoiser!r} with "
            f"{dict(defense.denoiser_options)}; 'identity' takes any"
        )
    from pdutils.defenses.layers import WaveletDenoising

    return WaveletDenoising(**defense.denoiser_options)


def _denoised(images: Array, layer: Any) -> tuple[Array, PullBack]:
    """Denoise images by a layer; give the result, and what takes a gradient back from it."""
    if layer is None:
        return images, _unchanged
    import tensorflow as tf

    inputs = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs)

    def pull_back(gradient: Array) -> Array:
        return np.asarray(tape.gradient(outputs, inputs, output_gradients=tf.constant(gradient)))

    return np.asarray(outputs), pull_back


def _before_writes(gradients: Array, writes: list[Writes]) -> Array:
    """Take gradients by deflected images back to the places that were copied from."""
    return np.stack([_scattered(*pair) for pair in zip(gradients, writes, strict=True)])


def _scattered(gradient: Array, writes: Writes) -> Array:
    # Where the values of a deflected image come from shows when places are deflected.
    places: Any = np.arange(gradient.size).reshape(gradient.shape)
    sources: Any = apply_writes(places, writes)
    sums = np.bincount(sources.ravel(), weights=gradient.ravel(), minlength=gradient.size)
    return sums.astype(np.float32).reshape(gradient.shape)


def _unchanged(gradient: Array) -> Array:
    return gradient


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        check_whole(name, count, 1)
