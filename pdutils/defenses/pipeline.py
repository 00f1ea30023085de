"""The defence as a pipeline: image -> map -> pixel deflection -> denoising -> prediction."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from pdutils._utils import Rng, check_one_of, check_whole, streams
from pdutils.activation import Combine, Upscale, cam, check_upscale, robust_cam
from pdutils.classifiers import Classifier
from pdutils.deflection import Reading, pixel_deflection
from pdutils.denoising import denoise
from pdutils.images import Array, as_batch

MapKind = Literal["none", "cam", "rcam"]
Aggregate = Literal["mean", "vote"]


@dataclass(frozen=True, kw_only=True)
class Defense:
    """Pixel deflection with its map and its denoiser, each of which can be left out.

    Attributes
    ----------
    deflections, window, reading
        As in `pdutils.deflection.pixel_deflection`; 0 deflections leave it out.
    activation : {"none", "cam", "rcam"}
        The map that spares pixels: none; the CAM of the most probable class; the robust CAM. It is
        made of the very image that is defended.
    k, combine
        As in `pdutils.activation.robust_cam`.
    upscale
        As in `pdutils.activation.cam`, for either map.
    denoiser : str or None
        As `method` in `pdutils.denoising.denoise`; None leaves it out.
    denoiser_options : mapping
        For that denoiser.
    runs : int
        How many times the image is defended and classified, at least 1.
    aggregate : {"mean", "vote"}
        How the runs become one prediction: the mean probability of each class, or the share of
        runs in which it was the most probable.

    Raises
    ------
    ValueError
        If `activation`, `upscale`, `aggregate` or `runs` is out of its range. The other knobs are
        checked by the functions that they belong to.
    """

    deflections: int = 200
    window: int = 10
    reading: Reading = "blog"
    activation: MapKind = "none"
    k: int | None = None
    combine: Combine = "paper"
    upscale: Upscale = "half_pixel"
    denoiser: str | None = "wavelet"
    denoiser_options: Mapping[str, Any] = field(default_factory=dict)
    runs: int = 1
    aggregate: Aggregate = "mean"

    def __post_init__(self) -> None:
        check_one_of("activation", self.activation, get_args(MapKind))
        check_upscale(self.upscale)
        check_one_of("aggregate", self.aggregate, get_args(Aggregate))
        check_whole("runs", self.runs, 1)

    def activation_map(self, classifier: Classifier, images: Array) -> Array | None:
        """Make the map that this defence uses.

        Parameters
        ----------
        classifier : Classifier
            The network whose map it is.
        images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
            RGB in [0, 255], as they are to be defended.

        Returns
        -------
        ndarray of float32, shape (H, W) or (N, H, W), or None without a map

        Raises
        ------
        ValueError
            As `pdutils.activation.robust_cam`.
        """
        if self.activation == "none" or self.deflections == 0:
            return None
        if self.activation == "rcam":
            return robust_cam(
                classifier, images, k=self.k, combine=self.combine, upscale=self.upscale
            )
        best = np.atleast_2d(classifier.predict(images)).argmax(axis=1)
        return cam(classifier, images, best, upscale=self.upscale)

    def transform(
        self,
        classifier: Classifier,
        images: Array,
        *,
        rng: Rng = None,
        activation_map: Array | None = None,
    ) -> Array:
        """Defend images once: deflect, then denoise.

        Parameters
        ----------
        classifier : Classifier
            The network that the map is made with.
        images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
            RGB in [0, 255].
        rng : int, numpy.random.Generator, list of Generator, or None
            Each image draws from a stream of its own, see `pdutils._utils`.
        activation_map : ndarray of float32, shape (H, W) or (N, H, W), optional
            Use this map instead of making one.

        Returns
        -------
        ndarray of float32, the shape of `images`
            What is denoised may leave [0, 255] a little, see `pdutils.denoising.denoise`.

        Raises
        ------
        ValueError
            As the functions that it calls.
        """
        if activation_map is None:
            activation_map = self.activation_map(classifier, images)
        deflected = pixel_deflection(
            images,
            self.deflections,
            self.window,
            activation_map=activation_map,
            reading=self.reading,
            rng=rng,
        )
        if self.denoiser is None:
            return deflected
        return denoise(deflected, self.denoiser, **self.denoiser_options)

    def predict(
        self,
        classifier: Classifier,
        images: Array,
        *,
        rng: Rng = None,
        activation_map: Array | None = None,
    ) -> Array:
        """Defend images `runs` times and classify them.

        Parameters
        ----------
        classifier : Classifier
            The network to put the defence before.
        images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
            RGB in [0, 255], of the classifier's size.
        rng : int, numpy.random.Generator, list of Generator, or None
            Each image draws from a stream of its own, and each run but the first from a part of
            that; the first run's images are those of `transform` with the same `rng`.
        activation_map : ndarray of float32, shape (H, W) or (N, H, W), optional
            Use this map instead of making one.

        Returns
        -------
        ndarray of float32, shape (K,) or (N, K)
            Mean probabilities, or shares of the votes.

        Raises
        ------
        ValueError
            As the functions that it calls.
        """
        probabilities = self.predict_runs(
            classifier, images, rng=rng, activation_map=activation_map
        )
        if self.aggregate == "vote":
            classes = probabilities.shape[-1]
            probabilities = np.eye(classes, dtype=np.float32)[probabilities.argmax(axis=-1)]
        mean: Array = probabilities.mean(axis=0)
        return mean

    def predict_runs(
        self,
        classifier: Classifier,
        images: Array,
        *,
        rng: Rng = None,
        activation_map: Array | None = None,
    ) -> Array:
        """Do as `predict`, but give every run by itself.

        Parameters
        ----------
        classifier, images, rng, activation_map
            As in `predict`.

        Returns
        -------
        ndarray of float32, shape (runs, K) or (runs, N, K)

        Raises
        ------
        ValueError
            As `predict`.
        """
        batch, single = as_batch(images)
        if activation_map is None:
            activation_map = self.activation_map(classifier, batch)
        # The first run is the very one that `transform` gives for the same rng.
        by_image = [[stream, *stream.spawn(self.runs - 1)] for stream in streams(rng, len(batch))]
        results = []
        for run in range(self.runs):
            generators = [generators[run] for generators in by_image]
            defended = self.transform(
                classifier, batch, rng=generators, activation_map=activation_map
            )
            results.append(classifier.predict(defended))
        stacked = np.stack(results)
        return stacked[:, 0] if single else stacked
