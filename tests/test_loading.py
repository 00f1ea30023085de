import pickle

import numpy as np
import pytest
from conftest import photos

from pdutils.classifiers import Classifier, ClassifierSource, classifier_from_file, fingerprint


def test_the_fingerprint_knows_the_weights_and_the_scaling(toy):
    import keras

    copy = keras.models.clone_model(toy.model)
    copy.set_weights(toy.model.get_weights())

    def scaled(x):
        return x / 127.5 - 1

    again = Classifier(copy, preprocess=scaled)
    assert fingerprint(again) == fingerprint(toy)
    assert fingerprint(Classifier(copy)) != fingerprint(toy)
    copy.set_weights([w + np.float32(1e-6) for w in copy.get_weights()])
    assert fingerprint(again) != fingerprint(toy)


def test_a_classifier_is_loaded_once_and_as_it_is_described(toy, toy_file):
    described = ClassifierSource(toy_file, preprocess="0..255", class_names=tuple("abcdef"))
    loaded = described.load()
    expected = classifier_from_file(toy_file, preprocess="0..255", class_names="abcdef")
    np.testing.assert_array_equal(loaded.predict(photos(2)), expected.predict(photos(2)))
    assert loaded.class_names == tuple("abcdef")
    assert pickle.loads(pickle.dumps(described)).load() is loaded
    plain = ClassifierSource(toy_file).load()
    np.testing.assert_allclose(plain.predict(photos(2)), toy.predict(photos(2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "my.keras", "weights": "w.h5"}, "my.keras holds its weights"),
        ({"name": "demo", "preprocess": "0..1"}, "go with a .keras file, not with 'demo'"),
        ({"name": "demo", "class_names": ("a",)}, "go with a .keras file, not with 'demo'"),
    ],
)
def test_options_that_do_not_go_with_a_classifier_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ClassifierSource(**options)
