import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no forks"),
]

PREAMBLE = """
import os
import numpy as np
from pdutils.defenses.art import art_classifier
from pdutils.classifiers import Classifier, load_classifier
from pdutils.demo.network import demo_network
image = np.full((224, 224, 3), 99, np.float32)

def forked(work):
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        print("in the child:", work(), flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
"""

#: Loads a network and uses it, in a forked process or not.
USE = "load_classifier('demo', 'random').predict(image).shape"


def run(program: str) -> list[str]:
    done = subprocess.run(
        # Python itself warns of forks beside threads.
        [sys.executable, "-W", "ignore", "-c", PREAMBLE + program],
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_process_that_is_forked_before_tensorflow_runs_works_and_so_does_its_parent():
    assert run(f"forked(lambda: {USE})\nprint({USE})") == ["in the child: (10,)", "(10,)"]


def test_a_process_that_is_forked_later_says_that_it_would_wait_for_ever():
    refusals = run(
        # One's own operations count, and those that make a network's weights.
        "import tensorflow as tf; tf.ones(3) + 1\n"
        f"forked(lambda: {USE})\n"
        "model = demo_network()\n"
        "forked(lambda: Classifier(model))\n"
        "classifier = load_classifier('demo', 'random')\n"
        "forked(lambda: classifier.predict(image))\n"
        "forked(lambda: classifier.loss_gradient(image, 3))\n"
        "forked(lambda: classifier.features(image))\n"
        "forked(lambda: art_classifier(classifier).model(image[None]))\n"
        "forked(lambda: forked(lambda: classifier.predict(image)) or 'its parent')\n"
        "print(classifier.predict(image).shape)"
    )
    assert refusals[-2:] == ["in the child: its parent", "(10,)"]
    assert len(refusals) == 9
    for refusal in refusals[:-2]:
        assert refusal.startswith("TensorFlow ran before this process was forked")
        assert 'get_context("spawn")' in refusal
