"""Keras on JAX: the same network, passes, attacks and records as on TensorFlow."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from pdutils.evaluation.store import StoredRecords

#: What both compute, in a process of its own each: Keras works on one of them for good.
PROGRAM = """
import sys
import numpy as np
from pdutils._utils import load_backend
load_backend()
import keras
from pdutils.classifiers import Classifier, fingerprint, load_classifier
from pdutils.cli.main import main
from pdutils.demo.drawing import draw_animals

images = np.stack([drawing.image for drawing in draw_animals(3, rng=5)])
demo = load_classifier("demo")
gradient, probabilities = demo.loss_gradient(images, [0, 1, 2])
maps, slope = demo.feature_gradient(images, [0, 1, 2])
one, _ = demo.loss_gradient(images[1], 1)
np.savez(
    sys.argv[1], probabilities=probabilities, predicted=demo.predict(images, batch_size=2),
    gradient=gradient, maps=maps, slope=slope, head=demo.head_weights, one=one,
    fingerprint=np.frombuffer(fingerprint(demo).encode(), dtype=np.uint8),
)
x = keras.Input((8, 8, 3))
y = keras.layers.Flatten()(keras.ops.round(keras.layers.Conv2D(3, 3)(x)))
blocked = Classifier(keras.Model(x, keras.layers.Dense(3, "softmax")(y)))
try:
    blocked.loss_gradient(images[:2, :8, :8], 0)
except ValueError as error:
    print(str(error).partition(": ")[2])
inside = keras.Sequential([
    keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 3), keras.layers.GlobalAveragePooling2D()
])
nested = keras.Sequential([keras.Input((8, 8, 3)), inside, keras.layers.Dense(3, "softmax")])
try:
    maps, slope = Classifier(nested).feature_gradient(images[:2, :8, :8], 0)
    print("by the inner map:", maps.shape, slope.shape)
except ValueError as error:
    print("by the inner map:", error)
sys.exit(main([
    "evaluate", "drawings:3", "--classifier", "demo", "--runs", "2", "--output", sys.argv[2],
    "--attacks", "fgsm_smallest", "igsm:eps=2,iterations=3", "deepfool:iterations=3",
    "carlini_wagner:iterations=2,search_steps=2", "bpda:eps=2,iterations=2,step=1",
    "--defenses", "pd", "pd+rcam+wd",
]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The arrays, the records and what was printed, by backend."""
    folder, running, found = tmp_path_factory.mktemp("jax"), {}, {}
    for backend in ("tensorflow", "jax"):
        files = [str(folder / f"{backend}.npz"), str(folder / f"{backend}.sqlite")]
        environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, *files]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running[backend] = files, subprocess.Popen(command, env=environment, **pipes)
    for backend, (files, process) in running.items():
        printed, said = process.communicate(timeout=900)
        assert process.returncode == 0, said
        found[backend] = np.load(files[0]), files[1], printed
    return found


@pytest.mark.slow
def test_passes_and_gradients_are_the_same(made):
    ours, theirs = made["jax"][0], made["tensorflow"][0]
    assert (ours["fingerprint"] == theirs["fingerprint"]).all()
    for name in set(theirs.files) - {"fingerprint"}:
        # The network is sure of its drawings: a gradient is what rounding leaves of 1 - p.
        share = 0.01 if name in ("gradient", "one") else 1e-4
        atol = share * np.abs(theirs[name]).max()
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=atol, err_msg=name)
    np.testing.assert_allclose(ours["predicted"], ours["probabilities"], atol=1e-5)
    np.testing.assert_allclose(ours["one"], ours["gradient"][1], atol=0.01 * ours["one"].max())


@pytest.mark.slow
def test_a_gradient_that_is_not_there_is_refused_by_both(made):
    for _, _, printed in made.values():
        assert "such as rounding to whole numbers, has none" in printed


@pytest.mark.slow
def test_the_gradient_by_a_map_inside_of_a_model_is_tensorflow_s_alone(made):
    assert "by the inner map: (2, 6, 6, 3) (2, 6, 6, 3)" in made["tensorflow"][2]
    assert "whose gradient is to be had on TensorFlow alone" in made["jax"][2]


@pytest.mark.slow
def test_attacks_and_defences_leave_the_same_records(made):
    key = ["image", "attack", "defense", "run"]
    found = {}
    for backend, (_, file, _) in made.items():
        with StoredRecords(file) as stored:
            found[backend] = stored.records().set_index(key), stored.versions()
    (ours, with_jax), (theirs, without) = found["jax"], found["tensorflow"]
    assert "jax" in with_jax
    assert "tensorflow" not in with_jax
    assert "jax" not in without
    pd.testing.assert_index_equal(ours.index, theirs.index)
    assert (ours["seed"] == theirs["seed"]).all()
    # An attack that follows signs may turn where a value is all but 0: nearly all records agree.
    assert (ours["predicted"] == theirs["predicted"]).mean() >= 0.95
    assert (abs(ours["l2"] - theirs["l2"]) <= 0.02 * theirs["l2"].max()).mean() >= 0.95


@pytest.mark.slow
def test_what_works_on_tensorflow_alone_and_records_of_another_backend_are_refused(made):
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    program = "import pdutils.defenses.layers"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert "Keras's backend: expected 'tensorflow', got 'jax'" in done.stderr
    command = ["-m", "pdutils", "evaluate", "drawings:3", "--classifier", "demo", "--runs", "2"]
    command += ["--output", made["tensorflow"][1], "--attacks", "igsm", "--defenses", "pd"]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert "jax" in done.stderr
