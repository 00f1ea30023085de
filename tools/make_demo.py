"""The shipped demo, made again from a seed: the network's training, and the pictures of `data/`.

`train` writes the weights, `make` the images, adversaries, masks, maps and the manifest. All that
is random comes from one seed, split into four streams: drawings to train on, their order, drawings
to test on, drawings to ship. No seed of `draw_animals` gives any of these drawings.
"""

import argparse
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from pdutils._utils import Array, generator, whole_file
from pdutils.activation import robust_cam
from pdutils.attacks.gradient import igsm
from pdutils.classifiers import Classifier, load_classifier
from pdutils.demo.drawing import CLASS_NAMES, Drawing, draw_animal
from pdutils.demo.examples import EPS, ITERATIONS, STEP, demo_network, demo_root
from pdutils.images import save_image, save_map
from pdutils.metrics import linf, relative_l2
from pdutils.stats import Rate

WEIGHTS = "demo.weights.h5"

#: A shipped image is one that the network is at least this sure of.
SURE = 0.9

#: After so many drawings of a class without an image to ship, the network is not what it should be.
TRIES = 500


class _Streams(NamedTuple):
    training: np.random.Generator
    order: np.random.Generator
    held_out: np.random.Generator
    shipped: np.random.Generator


class _Shipped(NamedTuple):
    """A drawing with its adversary and what the network makes of the adversary."""

    drawing: Drawing
    adversary: Array
    reached: int
    probability: float


def train(
    output: Path,
    *,
    seed: int = 0,
    images: int = 4000,
    epochs: int = 4,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    held_out: int = 500,
) -> Rate:
    """Train the demo's network on drawings and write its weights, whole or not at all.

    The same seed starts from the same weights and shows the same drawings in the same order; the
    sums of several threads may still differ in their last bits. Adam's `learning_rate` falls to 0
    along a cosine. A drawing to train on takes 150 kB of memory.

    Returns
    -------
    Rate
        How many held-out drawings the written weights get right.
    """
    if not output.name.endswith(".weights.h5"):
        raise ValueError(f"expected a name that ends in .weights.h5, got {output.name}")
    if not 1 <= batch_size <= images or epochs < 1 or held_out < 1:
        raise ValueError(
            f"expected 1 <= batch_size <= images, epochs >= 1 and held_out >= 1; got batch_size "
            f"{batch_size}, images {images}, epochs {epochs}, held_out {held_out}"
        )
    streams = _streams(seed)
    pictures = _draw(images, streams.training, "drawing")
    model = demo_network(seed)
    _fit(model, pictures, streams.order, epochs, batch_size, learning_rate)
    _save_weights(model, output)
    return _accuracy(output, held_out, streams.held_out)


def make(root: Path, *, seed: int = 0, per_class: int = 2) -> None:
    """Write the shipped pictures and their manifest, by the weights in `root`/data.

    The rule of choice: of each class, drawings are made one after the other. One is kept if the
    network gives its class a probability of at least 0.9 and if untargeted IGSM, which stops at
    the first success, fools the network; the first one kept, number 000, must besides be
    taken for its partner in the pairs of `CLASS_NAMES` (a badger for a skunk). Nothing else
    is looked at, no defence in particular.

    The weights, `data/demo.weights.h5`, and what is made of them lie in `root`. The map of an image
    is the robust CAM of its adversary, which is what a defender sees. The same seed and weights
    give the same files.
    """
    if per_class < 1:
        raise ValueError(f"per_class: expected at least 1, got {per_class}")
    weights = root / "data" / WEIGHTS
    classifier = load_classifier("demo", weights=weights)
    streams = _streams(seed).shipped.spawn(len(CLASS_NAMES))
    entries = []
    for label, stream in enumerate(tqdm(streams, desc="shipping", unit="class")):
        for number, shipped in enumerate(_choose(classifier, label, per_class, stream)):
            name = f"{CLASS_NAMES[label]}_{number:03d}.png"
            entries.append(_write(root, name, shipped, classifier))
    manifest = {
        "version": 1,
        "seed": seed,
        "classes": list(CLASS_NAMES),
        "weights": {"file": WEIGHTS, "sha256": _sha256(weights)},
        "images": entries,
    }
    with whole_file(root / "data" / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _streams(seed: int) -> _Streams:
    return _Streams(*generator(seed).spawn(4))


def _draw(n: int, rng: np.random.Generator, task: str) -> NDArray[np.uint8]:
    """Draw the classes in turn; bytes instead of floats, to take a quarter of the memory."""
    pictures = np.empty((n, 224, 224, 3), dtype=np.uint8)
    for i, stream in enumerate(tqdm(rng.spawn(n), desc=task, unit="image")):
        pictures[i] = draw_animal(i % len(CLASS_NAMES), rng=stream).image
    return pictures


def _fit(
    model: Any,
    pictures: NDArray[np.uint8],
    rng: np.random.Generator,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    import keras

    steps = len(pictures) // batch_size
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(rate), loss=loss, metrics=["accuracy"])
    with tqdm(total=epochs * steps, desc="training", unit="step") as bar:
        for _ in range(epochs):
            for chosen in _batches(len(pictures), batch_size, rng):
                scaled = pictures[chosen].astype(np.float32) / 127.5 - 1
                report = model.train_on_batch(scaled, chosen % len(CLASS_NAMES), return_dict=True)
                bar.set_postfix({key: f"{float(value):.3f}" for key, value in report.items()})
                bar.update()


def _batches(n: int, batch_size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Shuffle and cut into batches; what is left over waits for another epoch."""
    order = rng.permutation(n)
    for start in range(0, n - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def _save_weights(model: Any, output: Path) -> None:
    """Write the weights beside `output` and move them there: a kill leaves no half of a file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = demo_network()
    # The optimizer's state, twice the size of the weights, stays out of the file.
    fresh.set_weights(model.get_weights())
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".training-") as folder:
        # Keras writes to no other name than one that ends so.
        temporary = Path(folder) / WEIGHTS
        fresh.save_weights(temporary)
        os.replace(temporary, output)


def _accuracy(weights: Path, n: int, rng: np.random.Generator) -> Rate:
    pictures = _draw(n, rng, "testing")
    probabilities = load_classifier("demo", weights=weights).predict(pictures.astype(np.float32))
    return Rate.of(probabilities.argmax(axis=1) == np.arange(n) % len(CLASS_NAMES))


def _choose(classifier: Classifier, label: int, n: int, rng: np.random.Generator) -> list[_Shipped]:
    """Find the first `n` images of a class that obey the rule of `make`."""
    chosen: list[_Shipped] = []
    partner = label ^ 1
    for _ in range(TRIES):
        shipped = _attack(classifier, draw_animal(label, rng=rng.spawn(1)[0]))
        if shipped is not None and (chosen or shipped.reached == partner):
            chosen.append(shipped)
        if len(chosen) == n:
            return chosen
    raise RuntimeError(
        f"{TRIES} drawings of a {CLASS_NAMES[label]} gave {len(chosen)} of {n} images to ship: "
        f"the network must be sure of them and an attack must turn the first one "
        f"into a {CLASS_NAMES[partner]}"
    )


def _attack(classifier: Classifier, drawing: Drawing) -> _Shipped | None:
    """Fool the network on a drawing that it is sure of; None if it is not, or cannot be fooled."""
    if classifier.predict(drawing.image)[drawing.label] < SURE:
        return None
    adversary = igsm(
        classifier,
        drawing.image,
        drawing.label,
        eps=EPS,
        step=STEP,
        iterations=ITERATIONS,
        stop_at="success",
    )
    probabilities = classifier.predict(adversary)
    reached = int(probabilities.argmax())
    if reached == drawing.label:
        return None
    return _Shipped(drawing, adversary, reached, float(probabilities[reached]))


def _write(root: Path, name: str, shipped: _Shipped, classifier: Classifier) -> dict[str, Any]:
    """Write the four pictures of an image and give its entry in the manifest."""
    data = root / "data"
    paths = {
        "image": data / "images" / name,
        "adversary": data / "adversaries" / name,
        "mask": data / "masks" / name,
        "map": root / "maps" / name,
    }
    mask = np.repeat(shipped.drawing.mask[:, :, None], 3, axis=2).astype(np.float32) * 255
    save_image(paths["image"], shipped.drawing.image)
    save_image(paths["adversary"], shipped.adversary)
    save_image(paths["mask"], mask)
    save_map(paths["map"], robust_cam(classifier, shipped.adversary))
    return {
        "name": name,
        "label": CLASS_NAMES[shipped.drawing.label],
        "adversary": CLASS_NAMES[shipped.reached],
        "attack": _strength(shipped),
        "sha256": {kind: _sha256(path) for kind, path in paths.items()},
    }


def _strength(shipped: _Shipped) -> dict[str, Any]:
    image, adversary = shipped.drawing.image, shipped.adversary
    return {
        "method": "igsm",
        "eps": EPS,
        "step": STEP,
        "iterations": ITERATIONS,
        "stop_at": "success",
        "linf": float(linf(image, adversary)),
        "relative_l2": round(float(relative_l2(image, adversary)), 5),
        "probability": round(shipped.probability, 4),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Carry out `python -m tools.make_demo train` or `... make`."""
    parser = argparse.ArgumentParser(prog="python -m tools.make_demo", description=__doc__)
    parser.add_argument("part", choices=("train", "make"), help="the network, or the pictures")
    parser.add_argument("--root", metavar="DIR", type=Path, help="where (this checkout)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="(0)")
    options = parser.parse_args(arguments)
    root = options.root or demo_root()
    if options.part == "make":
        make(root, seed=options.seed)
        print(f"written: {root / 'data'}, {root / 'maps'}")
        return
    output = root / "data" / WEIGHTS
    rate = train(output, seed=options.seed)
    print(f"{output}: {rate} of {rate.n} drawings that it has not seen are right")
    print("`python -m tools.make_demo make` makes the adversaries against these weights")


if __name__ == "__main__":
    main()
