import numpy as np

from pdutils.classifiers import load_classifier
from pdutils.demo.drawing import CLASS_NAMES
from pdutils.demo.shipped import demo_network


def test_its_head_has_a_class_activation_map_of_14_by_14():
    classifier = load_classifier("demo", "random")
    features = classifier.features(np.full((224, 224, 3), 128, dtype=np.float32))
    assert features.maps.shape == (1, 14, 14, 128)
    assert classifier.head_weights.shape == (128, len(CLASS_NAMES))


def test_its_weights_fit_into_a_megabyte():
    assert 4 * demo_network().count_params() <= 1_000_000


def test_a_seed_gives_the_same_initial_weights():
    one, same, other = (demo_network(seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])
