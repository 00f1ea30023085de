import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pdutils._utils import Array, load_tensorflow
from pdutils.classifiers import Classifier

#: The files whose numbers go through a network, a BLAS or long sums, where processors differ; of
#: those that are built on one another the lower ones, so that a second pass takes minutes.
NUMBERS = (
    "activation", "gradient", "examples", "pipeline", "deflection", "denoising", "evaluate",
    "engine", "network", "transformations", "quilting", "registry", "study",
)  # fmt: skip

#: The files that take longest, the longest first: begun last, one of them would be waited for.
LONG = (
    "notebooks", "browser_explorer", "main", "keras_model", "layers", "evaluate", "classifiers",
    "adaptive", "executors", "start_page", "minimum_norm", "runner", "benchmarks", "wheel",
    "extras", "make_demo", "docs",
)  # fmt: skip

REAL = Path(os.environ.get("PDUTILS_REAL", Path(__file__).parents[2] / "shared" / "real"))


def pytest_configure() -> None:
    # A shell starts what it puts in the background deaf to Ctrl-C, and its children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def keras_cache(tmp_path_factory) -> Iterator[Path]:
    """Keras's own folder, empty: what whoever runs the tests has downloaded plays no part."""
    folder = tmp_path_factory.mktemp("keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def operations_as_they_were() -> Iterator[None]:
    """A test that leaves operations deterministic fails itself, not a later one that needs chance.

    Such as what fits a model: TensorFlow then asks for a seed. Commands make them so.
    """
    yield
    config = sys.modules.get("tensorflow.python.framework.config")
    if config is not None and config.is_op_determinism_enabled():
        config.disable_op_determinism()
        pytest.fail("it left TensorFlow's operations deterministic for all tests after it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        topic = item.path.stem.removeprefix("test_")
        return LONG.index(topic) if topic in LONG else len(LONG)

    items.sort(key=turn)
    for item in items:
        if item.path.stem.removeprefix("test_") in NUMBERS:
            item.add_marker("numbers")


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real photos and weights, or a skip with a word."""
    if not REAL.is_dir():
        pytest.skip(f"no real photos and weights at {REAL} (PDUTILS_REAL names the folder)")
    return REAL


def photo(height: int = 32, width: int = 32, seed: int = 0) -> Array:
    """A smooth random picture on the 8-bit grid: a stand-in for a photo."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(20, 235, (height // 8 + 2, width // 8 + 2, 3))
    rows = np.linspace(0, coarse.shape[0] - 1.001, height)
    columns = np.linspace(0, coarse.shape[1] - 1.001, width)
    r, c = np.meshgrid(rows.astype(int), columns.astype(int), indexing="ij")
    fr, fc = np.meshgrid(rows % 1, columns % 1, indexing="ij")
    fr, fc = fr[..., None], fc[..., None]
    top = coarse[r, c] * (1 - fc) + coarse[r, c + 1] * fc
    bottom = coarse[r + 1, c] * (1 - fc) + coarse[r + 1, c + 1] * fc
    smooth = top * (1 - fr) + bottom * fr
    return np.rint(np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255)).astype(np.float32)


def photos(n: int, height: int = 32, width: int = 32) -> Array:
    """A batch of different pictures."""
    return np.stack([photo(height, width, seed) for seed in range(n)])


def assert_maps_alike(maps: Array, expected: Array, combine: str, atol: float) -> None:
    """Compare robust maps that two ways of computing give."""
    # The k-th root of a geometric mean makes much of what rounding leaves where one map is 0.
    apart = np.mean(np.abs(maps - expected) > atol)
    assert apart <= (0.02 if combine == "geometric" else 0)


def functional(*layers, shape, name=None):
    """A model of Keras: layers, or functions of a tensor, one after the other."""
    load_tensorflow()
    import keras

    x = inputs = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name=name)


def _toy(head: str) -> Classifier:
    load_tensorflow()
    import keras

    def layer(kind, *args, seed, **options):
        start = keras.initializers.GlorotUniform(seed=seed)
        return kind(*args, kernel_initializer=start, **options)

    pool = keras.layers.GlobalAveragePooling2D if head == "gap" else keras.layers.Flatten
    model = functional(
        layer(keras.layers.Conv2D, 8, 3, strides=2, activation="tanh", seed=1),
        layer(keras.layers.Conv2D, 12, 3, strides=2, activation="tanh", seed=2),
        pool(),
        layer(keras.layers.Dense, 6, activation="softmax", seed=3),
        shape=(32, 32, 3),
        name=f"toy_{head}",
    )
    names = ("ant", "bee", "cat", "dog", "eel", "fox")
    return Classifier(model, preprocess=lambda x: x / 127.5 - 1, class_names=names)


@pytest.fixture(scope="session")
def toy() -> Classifier:
    """An untrained network of 32 x 32 pixels and 6 classes: average pooling and one dense layer."""
    return _toy("gap")


@pytest.fixture(scope="session")
def toy_flat() -> Classifier:
    """The same with a flattened feature map, so that CAM is undefined."""
    return _toy("flat")


@pytest.fixture(scope="session")
def toy_file(toy, tmp_path_factory) -> str:
    """The toy as a file that Keras saved."""
    path = tmp_path_factory.mktemp("model") / "toy.keras"
    toy.model.save(path)
    return str(path)
