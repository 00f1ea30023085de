"""Attackers of other makers against the defence, in records like those of all other attacks.

`python -m tools.outside_attacks photos --classifier efficientnet_lite0 --attack autopgd --output
results/autopgd.sqlite.xz`. All are untargeted, move each value by at most eps grey levels, and are
made against each defence anew:

autopgd
    AutoProjectedGradientDescent of the Adversarial Robustness Toolbox (Croce, Hein 2020, arXiv
    2003.01690), on the cross-entropy. The gradient passes pixel deflection, and by default the
    wavelet denoiser too, as if they were not there (BPDA).
foolbox_pgd
    LinfPGD of Foolbox (Rauber et al. 2020, DOI 10.21105/joss.02607) on the defended network as one
    Keras model, whose gradient is the exact one of the writes drawn and of the denoiser.
square
    SquareAttack of the Adversarial Robustness Toolbox (Andriushchenko et al. 2020, arXiv
    1912.00049): it sees the scores of the defended network and nothing else.

The defence draws afresh whenever an attacker asks, and `draws` of it make one answer: a mean over
draws (EOT, Athalye et al. 2018, arXiv 1707.07397). Foolbox has this itself, for logits. ART 1.20
offers it for none of its attacks on TensorFlow, so there `draws` above 1 stand on a class of ours,
which shows ART the mean gradient and the mean probabilities.

AutoAttack, where `autopgd` and `square` come from, has for random defences a version of its own,
`rand`: APGD on the cross-entropy and on the DLR loss, each with 100 iterations, one start and the
gradient's mean over 20 draws, an image counting as broken if either breaks it. Followed here are
the cross-entropy, the 100 iterations and the one start; the 20 draws if `--draws 20` says so. Not
followed: the DLR loss, which ART computes in a classifier that it builds itself, where no mean over
draws can be had, and so the count; and that the mean is the gradient's alone, for here it is that
of the loss and the prediction, too. `rand` has no Square: here it is a black box beside the others.

Images and seed being equal, so are the records, on equal processors with equal versions: NumPy's
global generator, from which ART draws, and TensorFlow's, from which Foolbox does, are seeded for
each image, and the former is put back afterwards. TensorFlow's cannot be read, and is not.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdutils import classifiers
from pdutils._notation import spell
from pdutils._utils import Array, check_whole, installed
from pdutils.attacks._art import LEAST, BridgedClassifier
from pdutils.classifiers import Classifier, ClassifierSource, read_class_names
from pdutils.defenses.art import (
    Gradient,
    PixelDeflectionPreprocessor,
    WaveletDenoisingPreprocessor,
    importing_art,
)
from pdutils.defenses.layers import PixelDeflection, defended_model, wavelet_layer
from pdutils.defenses.pipeline import Defense
from pdutils.evaluation.datasets import chosen, folder_source
from pdutils.evaluation.study import Study, run

with importing_art():
    import tensorflow as tf
    from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack

with warnings.catch_warnings():
    # It imports from a module of SciPy that is to go.
    warnings.simplefilter("ignore", DeprecationWarning)
    import foolbox

Labels = NDArray[np.int64]

DEFENSES = ("pd", "pd+wd", "pd+rcam+wd")


def autopgd(
    classifier: Classifier,
    images: Array,
    labels: Labels,
    rng: np.random.Generator,
    *,
    defense: Any,
    eps: int = 4,
    iterations: int = 100,
    draws: int = 1,
    restarts: int = 1,
    gradient: Gradient = "identity",
) -> Array:
    """Climb the cross-entropy by ART's AutoProjectedGradientDescent, behind the defence.

    Parameters
    ----------
    classifier, images, labels, rng, defense
        As `pdutils.evaluation.run` gives them to a function of one's own.
    eps : int
        The greatest change of a value in grey levels, at least 1; a whole number, so that rounding
        to 8 bits leaves it.
    iterations : int
        Steps of a restart; the first are 2 eps long.
    draws : int
        Over how many draws of the defence each gradient, loss and prediction is averaged. ART
        leaves an image as it is that its one prediction at the start gets wrong, and gives the
        noise that it started from where its one prediction at the end is right: with a single draw
        both are decided by luck.
    restarts : int
        From how many random places of the box it starts, as long as it has not succeeded.
    gradient : {"identity", "exact"}
        How the gradient passes the wavelet denoiser.
    """
    check_whole("eps", eps, 1)
    bridge = _bridge(classifier, defense, rng, draws, gradient)
    attack = AutoProjectedGradientDescent(
        bridge,
        eps=float(eps),
        eps_step=2.0 * eps,
        max_iter=iterations,
        nb_random_init=restarts,
        verbose=False,
    )
    with seeded(rng):
        return np.asarray(attack.generate(images, labels), dtype=np.float32)


def foolbox_pgd(
    classifier: Classifier,
    images: Array,
    labels: Labels,
    rng: np.random.Generator,
    *,
    defense: Any,
    eps: int = 4,
    iterations: int = 40,
    draws: int = 20,
) -> Array:
    """Climb the cross-entropy by Foolbox's LinfPGD, through the defended network as one model.

    Its steps are eps / 30 long and begin at a random place of the box; the last place is what comes
    back. The other parameters are those of `autopgd`; `draws` is how many draws make the mean
    logits.
    """
    check_whole("eps", eps, 1)
    model = _defended(classifier, _pipeline(defense).text)
    model.reseed(int(rng.integers(2**31)))
    shown: Any = foolbox.TensorFlowModel(model, bounds=(0, 255))
    if draws > 1:
        shown = foolbox.models.ExpectationOverTransformationWrapper(shown, n_steps=draws)
    attack = foolbox.attacks.LinfPGD(steps=iterations)
    with seeded(rng):
        _, found, _ = attack(shown, tf.constant(images), tf.constant(labels), epsilons=float(eps))
    return np.asarray(found)


def square(
    classifier: Classifier,
    images: Array,
    labels: Labels,
    rng: np.random.Generator,
    *,
    defense: Any,
    eps: int = 4,
    queries: int = 5000,
    draws: int = 1,
) -> Array:
    """Change random squares by ART's SquareAttack, as long as the defended network's scores fall.

    An iteration of ART's takes three answers (is it fooled, the loss before and after) where the
    paper's takes one, so that `queries` make a third as many iterations, and `draws` make of an
    answer as many queries. Against a defence that draws no answer ends it, for a lucky draw would:
    ART lets its criterion and its loss be given, and the loss is then the margin of the right
    class, negative where it is lost. The other parameters are those of `autopgd`.
    """
    check_whole("eps", eps, 1)
    check_whole("queries", queries, 6 * draws)
    bridge = _bridge(classifier, defense, rng, draws, "identity")
    iterations = queries // (3 * draws) - 1
    goal = _endless(bridge) if _pipeline(defense).random else {}
    attack = SquareAttack(bridge, eps=float(eps), max_iter=iterations, verbose=False, **goal)
    with seeded(rng):
        return np.asarray(attack.generate(images, labels), dtype=np.float32)


ATTACKS: dict[str, Callable[..., Array]] = {
    "autopgd": autopgd,
    "foolbox_pgd": foolbox_pgd,
    "square": square,
}


KNOBS = ("iterations", "draws", "restarts", "queries")


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Seed the global generators from which the libraries draw; put NumPy's back afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    seed = int(rng.integers(2**31))
    np.random.seed(seed)  # noqa: NPY002
    tf.random.set_seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


class ExpectedClassifier(BridgedClassifier):
    """A network behind a defence as ART takes it, each answer a mean over draws of the defence."""

    def __init__(self, classifier: Classifier, draws: int, defences: Sequence[Any]) -> None:
        check_whole("draws", draws, 1)
        self._draws = draws
        super().__init__(classifier, preprocessing_defences=defences)

    def predict(self, x: Array, *_: Any, **__: Any) -> Array:
        """Give the logarithms (N, K) of the mean probabilities; `compute_loss` asks for them."""
        rows = np.exp(super().predict(np.repeat(x, self._draws, axis=0)))
        mean = rows.reshape(len(x), self._draws, -1).mean(axis=1)
        return np.asarray(np.log(np.maximum(mean, LEAST)))

    def loss_gradient(self, x: Array, y: Any, *_: Any, **__: Any) -> Array:
        """Give the mean gradient of the cross-entropy by the pixels."""
        images, classes = (np.repeat(given, self._draws, axis=0) for given in (x, y))
        rows = super().loss_gradient(images, classes)
        return np.asarray(rows.reshape(len(x), self._draws, *x.shape[1:]).mean(axis=1))


def _bridge(
    classifier: Classifier, defense: Any, rng: np.random.Generator, draws: int, gradient: Gradient
) -> ExpectedClassifier:
    """Put a defence before a network, as preprocessors of ART."""
    pipeline = _pipeline(defense)
    made: list[Any] = []
    if pipeline.deflections:
        knobs = pipeline.deflections, pipeline.window, pipeline.reading
        maker = None if pipeline.map_key is None else _map_maker(classifier, pipeline)
        made.append(PixelDeflectionPreprocessor(*knobs, map_maker=maker, rng=rng.spawn(1)[0]))
    if layer := wavelet_layer(pipeline.denoiser, pipeline.denoiser_options):
        knobs_of_layer = layer.sigma, layer.mode, layer.sigma_scale
        made.append(WaveletDenoisingPreprocessor(*knobs_of_layer, gradient=gradient))
    return ExpectedClassifier(classifier, draws if pipeline.random else 1, made)


def _endless(bridge: BridgedClassifier) -> dict[str, Callable[[Array, Array], Any]]:
    """Give SquareAttack a criterion that no answer meets, and a loss that goes on beyond success.

    Its own loss takes the second of all classes for the best wrong one.
    """

    def fooled(scores: Array, classes: Array) -> Any:
        return np.zeros(len(scores), dtype=np.bool_)

    def margin(images: Array, classes: Array) -> Any:
        scores, right = bridge.predict(images), classes.argmax(axis=1)[:, np.newaxis]
        own = np.take_along_axis(scores, right, axis=1)[:, 0]
        np.put_along_axis(scores, right, -np.inf, axis=1)
        return own - scores.max(axis=1)

    return {"adv_criterion": fooled, "loss": margin}


def _map_maker(classifier: Classifier, pipeline: Defense) -> Callable[[Array], Array]:
    def make(images: Array) -> Array:
        made = pipeline.activation_map(classifier, images)
        assert made is not None
        return made

    return make


def _pipeline(defense: Any) -> Defense:
    """Give the steps of a defence, none of None; they must be deflection and wavelets."""
    pipeline = Defense.parse("none") if defense is None else getattr(defense, "defense", defense)
    if not isinstance(pipeline, Defense):
        raise ValueError(f"expected a defence such as {', '.join(DEFENSES)}, got {defense!r}")
    return pipeline


class _Defended:
    """A defended network that takes images and gives logits, compiled, and can be seeded anew."""

    def __init__(self, classifier: Classifier, pipeline: Defense) -> None:
        self._model = defended_model(classifier, pipeline, seed=0, logits=True)
        self._call = tf.function(self._model, autograph=False)

    def __call__(self, images: Any) -> Any:
        return self._call(images)

    def reseed(self, seed: int) -> None:
        """Begin the draws of the defence anew."""
        for layer in self._model.layers:
            if isinstance(layer, PixelDeflection):
                layer.seed_generator.state.assign([seed, 0])


@lru_cache(maxsize=1)
def _defended(classifier: Classifier, text: str) -> _Defended:
    """Make it once for all images: compiling takes seconds."""
    return _Defended(classifier, Defense.parse(text))


def named(name: str, eps: int, knobs: dict[str, int]) -> tuple[str, Callable[..., Array]]:
    """Give an attack with its knobs as a function of one's own, and what records call it."""
    attack, knobs = ATTACKS[name], {"eps": eps, **knobs}
    # A store notes the version of ART, but not that of Foolbox.
    version: dict[str, Any] = {"version": installed("foolbox")} if name == "foolbox_pgd" else {}

    def own(
        classifier: Classifier,
        images: Array,
        labels: Labels,
        rng: np.random.Generator,
        *,
        defense: Any,
    ) -> Array:
        return attack(classifier, images, labels, rng, defense=defense, **knobs)

    return spell(name, {**knobs, **version}), own


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.outside_attacks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("photos", metavar="PHOTOS", help="a folder of labelled pictures")
    add("--classifier", metavar="NAME", required=True, help="a name, or model.keras")
    add("--weights", metavar="FILE", help="a file of weights for it")
    add("--preprocess", metavar="RANGE", help="how model.keras takes its images (-1..1)")
    add("--class-names", metavar="FILE", help="of model.keras, one a line or JSON; or imagenet")
    add("--attack", choices=tuple(ATTACKS), required=True)
    add("--eps", metavar="N", type=int, nargs="+", default=[4], help="in grey levels (4)")
    for knob in KNOBS:
        add(f"--{knob}", metavar="N", type=int, help="of the attacks that have it")
    add("--defenses", metavar="TEXT", nargs="+", default=DEFENSES, help=" ".join(DEFENSES))
    add("--limit", metavar="N", type=int, help="only so many photos, chosen by the seed")
    add("--runs", metavar="N", type=int, default=10, help="of each defence on each image (10)")
    add("--seed", metavar="N", type=int, default=0, help="of all random numbers (0)")
    add("--batch-size", metavar="N", type=int, default=4, help="photos in a unit of work (4)")
    add("--output", metavar="FILE", required=True, help="where records are kept: NAME.sqlite.xz")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Carry out a command line."""
    options = _parser().parse_args(arguments)
    listed = options.class_names
    names: Any = read_class_names(listed) if listed and listed != "imagenet" else listed
    network = ClassifierSource(options.classifier, options.weights, options.preprocess, names)
    # Before the network's first operation: whoever goes on later must get the same numbers.
    classifiers.deterministic()
    source: Any = folder_source(options.photos, network.load())
    if options.limit is not None:
        source = chosen(source, options.limit, options.seed)
    asked = {
        name: getattr(options, name) for name in ("iterations", "draws", "restarts", "queries")
    }
    knobs = {name: value for name, value in asked.items() if value is not None}
    run(
        network,
        source,
        dict(named(options.attack, eps, knobs) for eps in options.eps),
        options.defenses,
        runs=options.runs,
        seed=options.seed,
        batch_size=options.batch_size,
        store=options.output,
    )
    print(Study.open(options.output).report("majority"))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
