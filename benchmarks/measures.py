"""What the benchmark measures: one function a key, from sizes to a measurement.

Importing this module loads TensorFlow.
"""

import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import authors, page
from benchmarks.bare import bare_gradient, noting, repeated, wait
from benchmarks.timing import Measurement, Side, ratio
from pdutils._utils import Array, generator, load_tensorflow
from pdutils.attacks.adaptive import bpda
from pdutils.attacks.gradient import igsm
from pdutils.attacks.minimum_norm import carlini_wagner, deepfool
from pdutils.classifiers import Classifier, load_classifier
from pdutils.cli.main import main
from pdutils.defenses.pipeline import Defense
from pdutils.deflection import pixel_deflection
from pdutils.demo.drawing import draw_animals
from pdutils.evaluation.datasets import FolderSource, classify
from pdutils.evaluation.evaluate import Job, evaluated
from pdutils.evaluation.registry import parse_attack, parse_defense
from pdutils.images import load_image, save_image

load_tensorflow()

# The next three load TensorFlow too, with the chatter that was just kept away.
import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from pdutils.defenses.layers import (  # noqa: E402
    PixelDeflection,
    WaveletDenoising,
    defended_model,
)

ROOT = Path(__file__).resolve().parents[1]

#: The network whose weights come with a package, for what depends on them.
TRAINED = "efficientnet_lite0"

#: The defences of a timed evaluation.
EVALUATED = ["pd", "pd:deflections=1500", "wd", "pd+wd", "pd+rcam+wd", "pd+rcam+dct"]


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes
    ----------
    repeats : int
        Pairs of times a ratio.
    seconds : float
        What one time lasts at least, for work that takes less.
    batch : int
        Images at once.
    folder : int
        Images of the timed folder.
    steps : int
        Steps of the attack.
    memory : (int, int)
        Images of the large and of the small folder whose peak memory is compared.
    memory_repeats : int
        How often each of the two is measured.
    visitors : int
        Of the page, at once.
    page_moves : int
        Moves of each visitor whose memory is measured.
    crowd_seconds : float
        How long the visitors drag sliders.
    photos : int
        Images of a timed evaluation; of a timed attack a quarter of them.
    """

    repeats: int
    seconds: float
    batch: int
    folder: int
    steps: int
    memory: tuple[int, int]
    memory_repeats: int
    visitors: int
    page_moves: int
    crowd_seconds: float
    photos: int

    def ratio(self, above: Side, below: Side, **settings: Any) -> Measurement:
        """Compare two sides; `settings` stand beside what the comparison itself says."""
        found = ratio(above, below, repeats=self.repeats, seconds=self.seconds)
        return Measurement(found.values, {**found.settings, **settings})

    def aside(self, above: Side, below: Side) -> float:
        """Compare two sides less often, for a figure that stands among the settings."""
        repeats = min(3, self.repeats)
        return ratio(above, below, repeats=repeats, seconds=self.seconds).summary()["value"]


def pd_200(sizes: Sizes) -> Measurement:
    """Compare the loop with the NumPy path: one image, 200 deflections."""
    return _pd(sizes, 200)


def pd_1500(sizes: Sizes) -> Measurement:
    """Do the same with 1500 deflections."""
    return _pd(sizes, 1500)


def _pd(sizes: Sizes, deflections: int) -> Measurement:
    (image,) = _drawings(1)
    return sizes.ratio(
        Side("the loop", lambda: authors.deflect(image, deflections)),
        Side("pixel_deflection", lambda: pixel_deflection(image, deflections, rng=0)),
        images="1 drawing",
        deflections=deflections,
        window=10,
        reading="blog",
    )


def pd_batch_1500_map(sizes: Sizes) -> Measurement:
    """Compare the loop over images with the layer, both with a map."""
    images, maps = _drawings(sizes.batch), np.stack([_map(i) for i in range(sizes.batch)])

    def loop() -> None:
        for image, chances in zip(images, maps, strict=True):
            authors.deflect(image, 1500, 10, chances)

    layer = PixelDeflection(1500, 10, "blog", seed=0)
    return sizes.ratio(
        Side("the loop, image by image", loop),
        Side("PixelDeflection in the graph", _in_graph(layer, [images, maps])),
        images=f"{sizes.batch} drawings",
        deflections=1500,
        window=10,
        reading="blog",
        map=f"one blob an image, mean {maps.mean():.2f}",
        xla=_predicts_with_xla(),
    )


def wd_batch(sizes: Sizes) -> Measurement:
    """Compare scikit-image with the layer, in today's meaning of sigma, which is scikit-image's."""
    images = _drawings(sizes.batch)

    def loop() -> None:
        for image in images:
            authors.denoise(image)

    slow = Side("denoise_wavelet of scikit-image, image by image", loop)
    fast = {
        scale: Side(
            f"WaveletDenoising({scale}) in the graph",
            _in_graph(WaveletDenoising(0.04, "soft", scale), images),
        )
        for scale in ("rgb", "channel")
    }
    return sizes.ratio(
        slow,
        fast["rgb"],
        images=f"{sizes.batch} drawings",
        sigma=0.04,
        sigma_scale="rgb",
        value_with_sigma_scale_channel=sizes.aside(slow, fast["channel"]),
        xla=_predicts_with_xla(),
    )


def defended_resnet50(sizes: Sizes) -> Measurement:
    """Compare a defended prediction with a plain one: no map, ResNet-50."""
    return _defended(sizes, "resnet50", Defense())


def defended_rcam_resnet50(sizes: Sizes) -> Measurement:
    """Do the same with the robust CAM."""
    return _defended(sizes, "resnet50", Defense(deflections=1500, activation="rcam"))


def defended_mobilenet_v2(sizes: Sizes) -> Measurement:
    """Compare a defended prediction with a plain one: no map, MobileNetV2."""
    return _defended(sizes, "mobilenet_v2", Defense())


def _defended(sizes: Sizes, name: str, defense: Defense) -> Measurement:
    # Tensors lie where the model runs: copying images there would flatter the defence.
    images = tf.constant(_drawings(sizes.batch))
    classifier = _classifier(name)
    plain, defended = plain_model(classifier), defended_model(classifier, defense, seed=0)
    return sizes.ratio(
        Side("defended_model(...).predict_on_batch", lambda: defended.predict_on_batch(images)),
        Side("the model's predict_on_batch", lambda: plain.predict_on_batch(images)),
        images=f"{sizes.batch} drawings",
        classifier=f"{name}, random weights",
        deflections=defense.deflections,
        map=defense.activation,
        denoiser=defense.denoiser,
        xla=bool(defended.jit_compile),
    )


def authors_folder(sizes: Sizes) -> Measurement:
    """Compare the authors' way through a folder with that of the folder command."""
    classifier, defense = _classifier("mobilenet_v2"), Defense()
    defended = defended_model(classifier, defense, seed=0)
    with labelled_folder(sizes.folder, classifier) as files, _processes() as pool:
        paths = [path for path, _ in files]
        labels = np.array([classifier.index(label) for _, label in files])

        def slow() -> None:
            batch = classifier.preprocess(authors.defend_files(paths, pool))
            guesses = classifier.model.predict(batch, batch_size=32, verbose=0).argmax(axis=1)
            np.mean(guesses == labels)

        def fast() -> None:
            rng = generator(0)
            source = FolderSource(files, classifier)
            classify(classifier, source, lambda b: defense.predict(classifier, b, rng=rng))

        def in_graph() -> None:
            source = FolderSource(files, classifier)
            classify(classifier, source, lambda b: defended.predict_on_batch(b))

        theirs = Side(f"loop and scikit-image in {cores()} processes, then predict", slow)
        other = Side("classify a folder, defended_model", in_graph)
        return sizes.ratio(
            theirs,
            Side("classify a folder, Defense.predict", fast),
            images=f"{sizes.folder} PNG files of drawings",
            classifier="mobilenet_v2, random weights",
            deflections=200,
            denoiser="wavelet",
            value_with_defended_model=sizes.aside(theirs, other),
        )


def comparison(sizes: Sizes) -> Measurement:
    """Compare both ways of defending what notebook 7 defends: its six versions, the demo."""
    classifier, images = load_classifier("demo"), _drawings(sizes.batch)
    whole = Defense(deflections=1500, activation="rcam", denoiser_options={"sigma_scale": "rgb"})
    versions = [replace(whole, deflections=0), replace(whole, denoiser=None), whole]
    for deflections, denoiser in ((200, None), (600, None), (200, "wavelet")):
        plain = replace(whole, deflections=deflections, activation="none", denoiser=denoiser)
        versions.append(plain)

    def slow() -> None:
        for defense in versions:
            maps = defense.activation_map(classifier, images)
            defended = [
                authors.deflect(image, defense.deflections, 10, None if maps is None else maps[i])
                for i, image in enumerate(images)
            ]
            if defense.denoiser:
                defended = [authors.denoise(image) for image in defended]
            classifier.predict(np.stack(defended))

    def fast() -> None:
        for defense in versions:
            defense.predict(classifier, images, rng=0)

    return sizes.ratio(
        Side("the loop and scikit-image, image by image", slow),
        Side("Defense.predict", fast),
        images=f"{sizes.batch} drawings",
        classifier="demo",
        defenses=len(versions),
    )


def attack_igsm(sizes: Sizes) -> Measurement:
    """Compare a step of the attack with one bare forward and backward pass."""
    classifier, batch = _classifier("mobilenet_v2"), _drawings(sizes.batch)
    labels = np.zeros(len(batch), dtype=np.int64)
    bare, tensors = bare_gradient(classifier), (tf.constant(batch), tf.constant(labels))

    def attack() -> None:
        igsm(classifier, batch, labels, eps=8, iterations=sizes.steps, batch_size=len(batch))

    return sizes.ratio(
        Side("a step of igsm", attack, units=sizes.steps),
        Side("a forward and backward pass in the graph", lambda: wait(bare(*tensors))),
        images=f"{sizes.batch} drawings",
        classifier="mobilenet_v2, random weights",
        steps=sizes.steps,
    )


def attack_deepfool(sizes: Sizes) -> Measurement:
    """Compare DeepFool with the bare passes that it makes."""
    return _attack(sizes, deepfool, iterations=5)


def attack_carlini_wagner(sizes: Sizes) -> Measurement:
    """Compare the attack of Carlini and Wagner with the bare passes that it makes."""
    return _attack(sizes, carlini_wagner, iterations=5, search_steps=2)


def attack_bpda(sizes: Sizes) -> Measurement:
    """Compare BPDA, against deflection with a map and wavelets, with its bare passes."""
    defense = Defense.parse("pd+rcam+wd")
    return _attack(sizes, bpda, defense=defense, iterations=10, rng=0)


def _attack(sizes: Sizes, attack: Callable[..., Array], **knobs: Any) -> Measurement:
    # With random weights almost anything fools the network.
    classifier, images = _classifier(TRAINED), _drawings(max(1, sizes.photos // 4))
    labels = classifier.predict(images).argmax(axis=1)
    return _overhead(
        sizes,
        attack.__name__,
        classifier,
        lambda noted: attack(noted, images, labels, **knobs),
        images=f"{len(images)} drawings",
        classifier=classifier.name,
        knobs={name: getattr(knob, "text", knob) for name, knob in knobs.items()},
    )


def evaluate_overhead(sizes: Sizes) -> Measurement:
    """Compare an evaluation of pixel deflection and wavelets with the bare passes that it makes."""
    classifier = _classifier("mobilenet_v2")
    attack = parse_attack("igsm:iterations=10")
    defenses = {text: parse_defense(text) for text in EVALUATED}
    with labelled_folder(sizes.photos, classifier) as files:
        source = FolderSource(files, classifier)
        job = Job(source, {attack.text: attack}, defenses, batch_size=sizes.photos)

        def evaluate(noted: Classifier) -> None:
            with evaluated(noted, job, progress=False):
                pass

        return _overhead(
            sizes,
            "evaluated",
            classifier,
            evaluate,
            images=f"{sizes.photos} PNG files of drawings",
            classifier="mobilenet_v2, random weights",
            attack=attack.text,
            defenses=EVALUATED,
            runs=job.runs,
        )


def folder_overhead(sizes: Sizes) -> Measurement:
    """Compare the folder command with decoding its pictures once, then predicting twice, bare."""
    classifier = _classifier("mobilenet_v2")
    with photo_folder(sizes.folder, classifier) as files, weights_file(classifier) as weights:
        folder = str(files[0].parent)
        command = ["defend", folder, "--classifier", classifier.name, "--weights", str(weights)]
        passes = Counter((False, len(files[i : i + 32])) for i in range(0, len(files), 32))
        predictions = repeated(classifier, passes + passes)

        def defend() -> None:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                if main(command):
                    raise RuntimeError(f"{' '.join(command)} failed")

        def bare() -> None:
            for path in files:
                load_image(path, classifier.input_size)
            predictions()

        return _few(sizes).ratio(
            Side("defend FOLDER, the classifier loaded", defend),
            Side("load the images, then the bare predictions before and after", bare),
            images=f"{sizes.folder} JPEG files of 500 x 375",
            classifier="mobilenet_v2, random weights",
        )


def _overhead(
    sizes: Sizes, what: str, network: Classifier, work: Callable[[Classifier], Any], **more: Any
) -> Measurement:
    """Compare work with the bare passes that it makes."""
    noted, passes = noting(network)
    work(noted)
    counted = passes.copy()
    images = {
        name: sum(n * times for (backward, n), times in counted.items() if backward == is_backward)
        for name, is_backward in (("forward", False), ("forward and backward", True))
    }
    return _few(sizes).ratio(
        Side(what, lambda: work(noted)),
        Side("its passes in the graph", repeated(network, counted)),
        passes_of_an_image=images,
        **more,
    )


def _few(sizes: Sizes) -> Sizes:
    """Repeat less often what takes long."""
    return replace(sizes, repeats=min(3, sizes.repeats))


def import_pdutils(sizes: Sizes) -> Measurement:
    """Time `import pdutils` in processes of their own, and the modules that need no TensorFlow."""
    names = {"numpy_path": "pdutils.deflection, pdutils.denoising", "package": "pdutils"}
    found = {
        key: [_import_seconds(modules) for _ in range(sizes.repeats)]
        for key, modules in names.items()
    }
    settings = {
        "unit": "seconds",
        "repeats": sizes.repeats,
        "seconds_of_deflection_and_denoising": float(np.median(found["numpy_path"])),
    }
    return Measurement(found["package"], settings)


def peak_memory_folder(sizes: Sizes) -> Measurement:
    """Compare the peak memory of `python -m pdutils defend` on a large and a small folder."""
    classifier = load_classifier("demo")
    pairs = [
        [_defend_peak(classifier, n) for n in sizes.memory] for _ in range(sizes.memory_repeats)
    ]
    kilobytes = np.median(pairs, axis=0)
    settings = {
        "above": f"a folder of {sizes.memory[0]} images",
        "below": f"a folder of {sizes.memory[1]} images",
        "above_peak_kb": float(kilobytes[0]),
        "below_peak_kb": float(kilobytes[1]),
        "classifier": "demo",
        "repeats": sizes.memory_repeats,
    }
    return Measurement([large / small for large, small in pairs], settings)


#: In the order of the table; their names are the keys.
MEASURES: dict[str, Callable[[Sizes], Measurement]] = {
    measure.__name__: measure
    for measure in (
        pd_200,
        pd_1500,
        pd_batch_1500_map,
        wd_batch,
        defended_resnet50,
        defended_rcam_resnet50,
        defended_mobilenet_v2,
        authors_folder,
        comparison,
        attack_igsm,
        attack_deepfool,
        attack_carlini_wagner,
        attack_bpda,
        evaluate_overhead,
        folder_overhead,
        import_pdutils,
        peak_memory_folder,
        page.page_memory,
        page.page_first_look,
        page.page_crowd,
        page.page_alone,
    )
}


def cores() -> int:
    """Count the processors that this process may use.

    Returns
    -------
    int
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def plain_model(classifier: Classifier) -> keras.Model:
    """Make the model without a defence, from raw images like the defended one.

    Parameters
    ----------
    classifier : Classifier
        Its own model takes preprocessed images.

    Returns
    -------
    keras.Model
        From images (N, H, W, 3), RGB in [0, 255], to what the classifier's model gives.
    """
    images = keras.Input((*classifier.input_size, 3))
    return keras.Model(images, classifier.model(classifier.preprocess(images)))


@contextmanager
def labelled_folder(n: int, classifier: Classifier) -> Iterator[list[tuple[Path, str]]]:
    """Give a temporary folder of labelled files: 50 drawings, again and again.

    Parameters
    ----------
    n : int
        How many files.
    classifier : Classifier
        Its first ten classes are the labels.

    Yields
    ------
    list of (Path, str)
        The files and their labels, which also stand in their names.
    """
    labels = [classifier.class_ids[i % min(10, len(classifier.class_ids))] for i in range(n)]
    with tempfile.TemporaryDirectory() as name:
        files = [(Path(name) / f"{label}_{i:05}.png", label) for i, label in enumerate(labels)]
        drawings = _drawings(min(n, 50))
        for i, (path, _) in enumerate(files):
            if i < len(drawings):
                save_image(path, drawings[i])
            else:
                os.link(files[i % len(drawings)][0], path)
        yield files


@contextmanager
def photo_folder(n: int, classifier: Classifier) -> Iterator[list[Path]]:
    """Give a temporary folder of JPEG files as large as most of ImageNet's, in their order.

    Parameters
    ----------
    n : int
        How many files.
    classifier : Classifier
        Its first ten classes are the labels.

    Yields
    ------
    list of Path
        As in `labelled_folder`; the pictures are its drawings, 500 x 375 pixels.
    """
    with labelled_folder(n, classifier) as files:
        photos = [path.with_suffix(".jpg") for path, _ in files]
        for (path, _), photo in zip(files, photos, strict=True):
            with Image.open(path) as drawing:
                drawing.resize((500, 375)).save(photo)
            path.unlink()
        yield photos


@contextmanager
def weights_file(classifier: Classifier) -> Iterator[Path]:
    """Give a temporary file of a classifier's weights, for a command that loads them.

    Parameters
    ----------
    classifier : Classifier
        Whose weights it holds.

    Yields
    ------
    Path
    """
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "random.weights.h5"
        classifier.model.save_weights(path)
        yield path


@cache
def _classifier(name: str) -> Classifier:
    # Without a class index at hand it says that classes are shown as numbers; none is shown here.
    with redirect_stderr(io.StringIO()):
        return load_classifier(name, weights=None if name == TRAINED else "random")


@cache
def _drawings(n: int) -> Array:
    return np.stack([drawing.image for drawing in draw_animals(n, rng=0)])


def _map(seed: int, size: int = 224) -> Array:
    """Make a map like those of the robust CAM: a blob on a ground that is mostly low."""
    middle = np.random.default_rng(seed).uniform(0.3, 0.7, 2) * size
    down, right = np.arange(size)[:, None] - middle[0], np.arange(size)[None, :] - middle[1]
    blob: Array = np.exp(-(down**2 + right**2) / (2 * (size / 5) ** 2)).astype(np.float32)
    return blob


@cache
def _predicts_with_xla() -> bool:
    """Tell whether Keras compiles a prediction with XLA here: on a GPU it does."""
    return bool(plain_model(_classifier("mobilenet_v2")).jit_compile)


def _in_graph(layer: Any, inputs: Any) -> Callable[[], None]:
    """Make the run of a compiled layer on tensors that lie where it runs."""
    tensors = [tf.constant(x) for x in inputs] if isinstance(inputs, list) else tf.constant(inputs)
    compiled = tf.function(layer, jit_compile=_predicts_with_xla(), autograph=False)
    return lambda: wait(compiled(tensors))


@contextmanager
def _processes() -> Iterator[Executor]:
    """Give as many processes as cores; a fork of one that runs TensorFlow could hang."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores(), mp_context=context) as pool:
        yield pool


def _import_seconds(modules: str) -> float:
    clock = "from time import perf_counter as now; start = now()"
    program = f"{clock}; import {modules}; print(now() - start)"
    return float(_output([sys.executable, "-c", program]))


def _defend_peak(classifier: Classifier, n: int) -> int:
    with labelled_folder(n, classifier) as files:
        folder = str(files[0][0].parent)
        defend = [sys.executable, "-m", "pdutils", "defend", folder, "--classifier", "demo"]
        return int(_output([sys.executable, "-m", "benchmarks.peak_memory", *defend]))


def _output(command: list[str]) -> str:
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"{' '.join(command)}: {found.stderr.strip()}")
    return found.stdout
