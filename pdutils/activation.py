"""Class activation maps: CAM, Grad-CAM and the robust CAM over the k most probable classes.

Sources: CAM, Zhou et al. 2016, DOI 10.1109/CVPR.2016.319; Grad-CAM, Selvaraju et al. 2017,
DOI 10.1109/ICCV.2017.74; robust CAM, Prakash et al. 2018, arXiv 1801.08926, the authors' blog, and
`generate_map.py` of their repository image-compression-cnn.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import ROUNDING, Array, as_batch, check_one_of, is_whole, min_max
from pdutils.classifiers import Classifier, Labels

Combine = Literal["paper", "geometric", "repo"]
Upscale = Literal["half_pixel", "tf1"]

#: How many classes the robust map goes over where no number is asked for, as in the paper.
DEFAULT_RANKS = 5
#: Where a map spares at least every second pixel it is hot.
HOT = 0.5


def cam(
    classifier: Classifier,
    images: Array,
    labels: int | Sequence[int] | Labels,
    *,
    upscale: Upscale = "half_pixel",
    batch_size: int = 32,
) -> Array:
    """Show where the network saw a class: the feature maps, weighted as the head weighs them.

    A model whose head is not global average pooling and one dense layer has no such weights; it
    gets Grad-CAM instead, see `grad_cam`.

    Parameters
    ----------
    classifier : Classifier
    images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
        RGB in [0, 255]; the network sees `batch_size` of them at once.
    labels : int, or N of them
        The class of each image to look for.
    upscale : {"half_pixel", "tf1"}
        How the map is scaled up to the image, bilinearly. ``half_pixel``, as everywhere today: the
        middle of the image lies on the middle of the map. ``tf1``, as TensorFlow 1 did, and with it
        the authors' maps: place i of the image lies at i * (side of the map) / (side of the image),
        at most on the last cell: all of the map is moved up and left by half a cell, 16 pixels for
        7 x 7 cells over 224 x 224 pixels.

    Returns
    -------
    ndarray of float32, shape (H, W) or (N, H, W)
        Stretched to [0, 1]; zeros where a map is constant, if only but for rounding.
    """
    check_upscale(upscale)
    weights = classifier.head_weights
    if weights is None:
        return grad_cam(classifier, images, labels, upscale=upscale, batch_size=batch_size)
    # It is the classifier that checks the images.
    features = classifier.features(images, batch_size=batch_size)
    indices = classifier.check_labels(labels, len(features.maps))
    maps, size = _weighted(features.maps, weights.T[indices, np.newaxis])
    return _finished(maps[:, 0], size[:, 0], upscale, images)


def grad_cam(
    classifier: Classifier,
    images: Array,
    labels: int | Sequence[int] | Labels,
    *,
    upscale: Upscale = "half_pixel",
    batch_size: int = 32,
) -> Array:
    """Do as `cam`, for any head: the feature maps weighted by gradients.

    What speaks against the class is 0 (the ReLU of the paper).
    """
    check_upscale(upscale)
    return _finished(*_gradient_maps(classifier, images, labels, batch_size), upscale, images)


def robust_cam(
    classifier: Classifier,
    images: Array,
    *,
    k: int | None = None,
    combine: Combine = "paper",
    upscale: Upscale = "half_pixel",
    batch_size: int = 32,
) -> Array:
    """Combine the maps of the k most probable classes, so that an attack moves the result less.

    Images and maps are as in `cam`. `k` is from 1 to the number of classes that the network knows;
    by default 5, or all of a network that knows fewer. How the maps are combined, see
    `combine_maps`; each is scaled up before by `upscale`, see `cam`. What the authors'
    `generate_map.py` did is ``repo`` with ``tf1``.
    """
    check_upscale(upscale)
    check_combine(combine)
    batch, single = as_batch(images)
    k = number_of_ranks(k, len(classifier.class_ids))
    combined = []
    # A batch at a time: the k maps of every image would fill the memory.
    for start in range(0, len(batch), batch_size):
        part = batch[start : start + batch_size]
        features = classifier.features(part, batch_size=batch_size)
        ranks = np.argsort(-features.probabilities, axis=1, kind="stable")[:, :k]
        if classifier.head_weights is not None:
            found = _weighted(features.maps, classifier.head_weights.T[ranks])
        else:
            each = [_gradient_maps(classifier, part, rank, batch_size) for rank in ranks.T]
            found = np.stack([maps for maps, _ in each], 1), np.stack([size for _, size in each], 1)
        combined += [combine_maps(m, combine=combine) for m in _finished(*found, upscale, part)]
    return combined[0] if single else np.stack(combined)


def combine_maps(maps: Array, *, combine: Combine = "paper") -> Array:
    """Combine the maps of one image's most probable classes into its robust map.

    The maps (k, H, W), the most probable class's first, and what comes of them (H, W) are stretched
    to [0, 1]; it is zeros where it is constant, if only but for rounding.

    - ``paper``: the sum of map i / 2^i, i from 1.
    - ``geometric`` (the blog): the k-th root of the product.
    - ``repo`` (the authors' `generate_map.py`): begin with 1.2 times the last map, then take the
      mean of that and the next one, up to the first.
    """
    check_combine(combine)
    if maps.ndim != 3 or len(maps) == 0:
        raise ValueError(f"maps: expected shape (k, H, W) with k >= 1, got {maps.shape}")
    if combine == "geometric":
        # The root would make much of a 0 that rounding has lifted.
        sure = np.where(maps > ROUNDING, maps.astype(np.float64), 0)
        return min_max(np.prod(sure, axis=0) ** (1 / len(maps)))
    return min_max(np.tensordot(combine_weights(len(maps), combine), maps, axes=1))


def combine_weights(k: int, combine: Combine) -> NDArray[np.float64]:
    """Give the weight of each of k maps in "paper" or "repo", the combinations that are sums.

    For 5 maps: 1/2, 1/4, 1/8, 1/16, 1/32 or 1/2, 1/4, 1/8, 1/16, 1.2/16.
    """
    weights = np.power(0.5, np.arange(1, k + 1))
    if combine == "repo":
        weights[-1] = 1.2 * 0.5 ** (k - 1)
    return weights


def number_of_ranks(k: int | None, classes: int) -> int:
    """Give over how many of its classes, 1 to all, the robust map of a network goes."""
    if k is None:
        return min(DEFAULT_RANKS, classes)
    if not is_whole(k) or not 1 <= k <= classes:
        raise ValueError(
            f"k: expected 1 to {classes} classes, got {k!r}; the network knows no more, and left "
            "out, k is the smaller of 5 and their number"
        )
    return int(k)


def _weighted(maps: Array, weights: Array, reach: Array | None = None) -> tuple[Array, Array]:
    """Sum feature maps (N, h, w, C) by weights (N, k, C) to (N, k, h, w).

    With them comes the size (N, k, 1, 1) of their terms, whose rounding stays where they cancel;
    `reach` is the size of what the weights are sums of, if they are.
    """
    reach = np.abs(weights) if reach is None else reach
    sums: Array = np.einsum("nhwc,nkc->nkhw", maps, weights)
    sizes = np.einsum("nhwc,nkc->nkhw", np.abs(maps), reach)
    return sums, sizes.max(axis=(-2, -1), keepdims=True)


def _gradient_maps(
    classifier: Classifier, images: Array, labels: Any, batch_size: int
) -> tuple[Array, Array]:
    """Give the maps (N, h, w) of Grad-CAM and the size of their terms."""
    maps, slopes = classifier.feature_gradient(images, labels, batch_size=batch_size)
    weights, reach = (x.mean(axis=(1, 2))[:, np.newaxis] for x in (slopes, np.abs(slopes)))
    sums, size = _weighted(maps, weights, reach)
    return np.maximum(sums[:, 0], 0), size[:, 0]


def _finished(maps: Array, size: Array, upscale: Upscale, images: Array) -> Array:
    """Scale maps (N, ..., h, w) up to the images, or the one image, and stretch them to [0, 1]."""
    rows, columns = (
        _interpolation(*sides, upscale)
        for sides in zip(maps.shape[-2:], images.shape[-3:-1], strict=True)
    )
    finished = min_max(rows @ maps @ columns.T, size)
    return finished[0] if images.ndim == 3 else finished


def _interpolation(small: int, large: int, upscale: Upscale) -> Array:
    """Give the weights (large, small) of linear interpolation, as `cam` describes it."""
    middle = 0.5 if upscale == "half_pixel" else 0.0
    places = np.clip((np.arange(large) + middle) * small / large - middle, 0, small - 1)
    weights: Array = np.maximum(0, 1 - np.abs(places[:, np.newaxis] - np.arange(small)))
    return weights.astype(np.float32)


def check_upscale(upscale: str) -> None:
    """Check that `upscale` names a way to scale a map up."""
    check_one_of("upscale", upscale, get_args(Upscale))


def check_combine(combine: str) -> None:
    """Check that `combine` names a combination."""
    check_one_of("combine", combine, get_args(Combine))
