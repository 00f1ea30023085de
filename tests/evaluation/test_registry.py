import inspect
import pickle
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import photo, photos
from hypothesis import given
from hypothesis import strategies as st

from pdutils._utils import streams
from pdutils.activation import cam, robust_cam
from pdutils.attacks import gradient
from pdutils.defenses.pipeline import NAMES, Defense
from pdutils.defenses.transformations import PEERS
from pdutils.denoising import denoise
from pdutils.evaluation.registry import (
    NamedAttack,
    NamedDefense,
    attack_names,
    attacks_help,
    defense_names,
    defenses_help,
    parse_attack,
    parse_defense,
    unlike_settings,
)

MINIMAL = {
    "fgsm_smallest": "max_eps=2",
    "deepfool": "iterations=2",
    "carlini_wagner": "iterations=1,search_steps=1",
    "jsma": "max_share=0.002",
    "lbfgs": "iterations=2,search_steps=1",
}


def spelled(name, knobs):
    return f"{name}:" + ",".join(f"{knob}={value}" for knob, value in knobs.items())


# Texts


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" igsm ", "igsm"),
        ("igsm: iterations = 10 , eps = 4.0", "igsm:eps=4,iterations=10"),
        ("igsm:eps=+4e0,step=.50", "igsm:eps=4,step=0.5"),
        ("igsm:stop_at=success", "igsm:stop_at=success"),
        ("igsm:stop_at=None,targeted=FALSE", "igsm:stop_at=none,targeted=false"),
        # A knob that repeats its default stays: the text is what streams are made of.
        ("igsm:eps=8", "igsm:eps=8"),
        ("pd+wd:sigma=4e-2,deflections=200.0", "pd+wd:deflections=200,sigma=0.04"),
        ("pd+wd:wavelet=bior2.2,sigma=1e-05", "pd+wd:sigma=1e-05,wavelet=bior2.2"),
        ("pd+cam:bias=-0.0", "pd+cam:bias=0"),
        ("nl_means:strength=2,patch=3,search=13", "nl_means:patch=3,search=13,strength=2"),
    ],
)
def test_a_text_is_canonical_and_equal_texts_are_equal(text, canonical):
    parse = parse_attack if "igsm" in text else parse_defense
    found, again = parse(text), parse(canonical)
    assert found.text == again.text == canonical
    assert found == again
    assert found.knobs == again.knobs
    assert hash(found) == hash(again)
    assert pickle.loads(pickle.dumps(found)) == found


@given(eps=st.floats(0, 1e9), iterations=st.integers(0, 10**9), flag=st.booleans())
def test_every_number_survives_its_text(eps, iterations, flag):
    knobs = {"eps": eps, "iterations": iterations, "targeted": flag}
    attack = parse_attack(spelled("igsm", knobs))
    assert attack.knobs == parse_attack(attack.text).knobs == knobs
    assert NamedAttack("igsm", knobs) == attack


def test_other_knobs_make_another_attack():
    texts = ["igsm", "igsm:eps=8", "igsm:eps=4", "igsm:step=4", "pgd:eps=4"]
    assert len({parse_attack(text) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pgd:", r"expected NAME or NAME:KNOB=VALUE,KNOB=VALUE, got 'pgd:'"),
        (4, r"expected NAME or NAME:KNOB=VALUE,KNOB=VALUE, got 4"),
        ("", r"attack: expected one of none, fgsm, .*bpda; got ''"),
        ("pd+wd", r"attack: expected one of none, fgsm, .*bpda; got 'pd"),
        ("fgsm:stop=1,step=2", r"^fgsm: no knob step, stop; known: eps, targeted$"),
        ("none:eps=4", r"^none: no knob eps; it has none$"),
        ("bpda:rng=1", r"bpda: no knob rng; known: eps, "),
        ("bpda:batch_size=1", r"bpda: no knob batch_size; known: eps, "),
        ("bpda:defense=1", r"bpda: no knob defense; known: eps, "),
        ("igsm:eps=[1]", r"^igsm: eps: expected a number, true, false, none or a"),
        ("igsm:eps=1e999", r"^igsm: eps: expected a number, true, false, none or a"),
        ("igsm:eps=4,eps=5", r"igsm: eps is given twice, in 'igsm:eps=4,eps=5'"),
        ("igsm:targeted=1", r"igsm: targeted: expected true or false, got 1"),
    ],
)
def test_what_is_no_attack_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_attack(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pd:eps=4,", r"expected NAME or NAME:KNOB=VALUE,KNOB=VALUE, got"),
        ("igsm", r"defense: expected one of none, wd, pd, .*scale; got '"),
        ("pd:sigma=0.04", r"^pd: no knob sigma; known: deflections, window, read"),
        ("pd+cam:k=3", r"^pd\+cam: no knob k; known: .*, bias$"),
        ("random_pad:rng=3", r"^random_pad: no knob rng; known: smallest, fill$"),
        ("pd:deflections=-1", r"^pd: deflections: expected .* got"),
        ("pd+cam:bias=2", r"^pd\+cam: bias: expected .* got"),
        ("wd:wavelet=db999", r"^wd: wavelet: expected .* got"),
        ("median:size=0", r"^median: size: expected .* got"),
        ("jpeg:quality=100", r"^jpeg: quality: expected .* got"),
        ("crop_rescale:side=90", r"^crop_rescale: side: expected .* got"),
    ],
)
def test_what_is_no_defence_is_refused_at_once(text, message):
    with pytest.raises(ValueError, match=message):
        parse_defense(text)


def test_what_is_named_by_hand_is_checked_as_a_text_is(toy):
    assert NamedDefense("pd", {"window": 5}).text == "pd:window=5"
    with pytest.raises(ValueError, match="pd: no knob size"):
        NamedDefense("pd", {"size": 3})
    with pytest.raises(ValueError, match="eps: expected 1 to 255"):
        NamedAttack("igsm", {"eps": 0.5}).make(toy, photo(), 0, 0)


def test_settings_that_differ_besides_are_told():
    texts = {"A": "pd+wd", "B": "pd+rcam+wd:deflections=600", "C": "pd:window=3,deflections=600"}
    (said,) = unlike_settings(texts)
    assert said == (
        "More than one thing differs: deflections is 200 in A and 600 in B, C; "
        "window is 10 in A, B and 3 in C."
    )
    # One knob, or the name alone, is what such a comparison is of.
    assert unlike_settings({"A": "pd+wd", "B": "pd+wd:sigma=0.1", "C": "own:C@1"}) == []
    assert unlike_settings({"A": "pd+wd", "B": "wd", "C": "jpeg"}) == []


# Names


def test_the_names():
    assert attack_names() == ["none", "fgsm", "igsm", "pgd", *MINIMAL, "bpda"]
    assert defense_names() == [*NAMES, *PEERS]
    assert defense_names()[0] == "none"


@pytest.mark.parametrize("name", ["fgsm", "igsm", "pgd", *MINIMAL, "bpda"])
def test_an_attacks_knobs_are_its_functions_keywords(name):
    modules = dict.fromkeys(MINIMAL, "minimum_norm") | {"bpda": "adaptive"}
    function = getattr(import_module(f"pdutils.attacks.{modules.get(name, 'gradient')}"), name)
    given_by_the_caller = {"classifier", "images", "labels", "rng", "batch_size", "defense"}
    keywords = inspect.signature(function).parameters
    knobs = {key: keywords[key].default for key in keywords if key not in given_by_the_caller}
    assert NamedAttack(name, knobs).knobs == knobs
    assert len(knobs) >= 2


@pytest.mark.parametrize("described", [attacks_help, defenses_help])
def test_the_help_names_each_with_its_knobs(described):
    paragraphs: dict[str, str] = {}
    for line in described().splitlines():
        assert len(line) <= 110
        if not line.startswith(" "):
            name, _, sentence = line.partition(" ")
            paragraphs[name] = ""
            assert sentence.strip().endswith(".")
            assert "`" not in line
        else:
            paragraphs[name] += line.strip() + " "
    if described is attacks_help:
        parse, names = parse_attack, attack_names()
        assert paragraphs["fgsm"].strip() == "eps=8, targeted=false"
        assert "gradient=identity" in paragraphs["bpda"]
    else:
        parse, names = parse_defense, defense_names()
        assert paragraphs["none"] == ""
        assert "deflections=200, window=10, reading=blog" in paragraphs["pd"]
        assert "deflections=1500" in paragraphs["pd+cam+wd"]
    assert list(paragraphs) == names
    for name, knobs in paragraphs.items():
        # What the help prints can be typed.
        assert parse(f"{name}:{knobs.strip()}" if knobs else name).name == name


# Attacks are their functions


@pytest.fixture
def stand_in(monkeypatch):
    """Replace a module of attacks by one whose functions note what they are given."""

    def put(module, name, function):
        made = ModuleType(module)
        setattr(made, name, function)
        monkeypatch.setitem(sys.modules, module, made)

    return put


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("fgsm", {"eps": 5}),
        ("igsm", {"eps": 6, "step": 2.5, "iterations": 3, "stop_at": 0.9}),
        ("pgd", {"eps": 4, "iterations": 2}),
    ],
)
def test_make_is_the_function_of_that_name(toy, name, knobs, single):
    images, labels = (photo(), 2) if single else (photos(3), [2, 0, 5])
    made = parse_attack(spelled(name, knobs)).make(toy, images, labels, 7)
    drawn = {"rng": streams(7, 1 if single else 3)} if name == "pgd" else {}
    expected = getattr(gradient, name)(toy, images, labels, **knobs, **drawn)
    np.testing.assert_array_equal(made.images, expected)
    assert made.images.shape == images.shape
    assert made.targets is None
    assert not np.array_equal(made.images, images)


@pytest.mark.parametrize("images", [photo(), photos(2)])
def test_none_gives_the_images_back_on_the_8_bit_grid(toy, images):
    made = parse_attack("none").make(toy, images + np.float32(0.3), 0, 0)
    np.testing.assert_array_equal(made.images, images)
    assert made.targets is None


def test_a_targeted_attack_reaches_for_the_class_that_it_drew(toy):
    batch, labels = photos(4), [0, 3, 5, 0]
    made = parse_attack("igsm:targeted=true,iterations=3").make(toy, batch, labels, 11)
    assert (made.targets.dtype, made.targets.shape) == (np.int64, (4,))
    assert not (made.targets == labels).any()
    expected = gradient.igsm(toy, batch, made.targets, targeted=True, iterations=3)
    np.testing.assert_array_equal(made.images, expected)


def test_targets_are_each_other_class_with_the_same_chance(stand_in):
    stand_in("pdutils.attacks.minimum_norm", "deepfool", lambda c, x, y, *, targeted=False: x)
    network = SimpleNamespace(
        class_ids=list("abcd"), check_labels=lambda labels, n: np.full(n, labels)
    )
    tiny = np.zeros((900, 1, 1, 3), np.float32)
    for label, others in ((0, [1, 2, 3]), (2, [0, 1, 3]), (3, [0, 1, 2])):
        targets = parse_attack("deepfool:targeted=true").make(network, tiny, label, 5).targets
        classes, counts = np.unique(targets, return_counts=True)
        np.testing.assert_array_equal(classes, others)
        np.testing.assert_allclose(counts, 300, atol=52)
    network.class_ids = ["a"]
    with pytest.raises(ValueError, match="at least 2 classes to target, got 1"):
        parse_attack("igsm:targeted=true").make(network, photo(), 0, 0)


def test_an_attacks_result_depends_on_the_images_stream_alone(toy):
    attack, batch = parse_attack("pgd:eps=4,iterations=2,targeted=true"), photos(4)
    together = attack.make(toy, batch, 1, 3)
    for i, stream in enumerate(streams(3, 4)):
        alone = attack.make(toy, batch[i], 1, [stream])
        np.testing.assert_array_equal(alone.targets, together.targets[i : i + 1])
        # Where a gradient is all but 0 its sign is chance: another batch may round it otherwise.
        assert np.mean(alone.images != together.images[i]) < 2e-3


def test_an_attack_of_a_module_that_loads_late_gets_what_it_takes(toy, stand_in):
    calls = []

    def deepfool(classifier, images, labels, *, overshoot=0.02, targeted=False, batch_size=32):
        calls.append((classifier, images.shape, labels.tolist(), overshoot, batch_size))
        return images + 1

    stand_in("pdutils.attacks.minimum_norm", "deepfool", deepfool)
    attack = parse_attack("deepfool:overshoot=0.5")
    assert not attack.adaptive
    made = attack.make(toy, photo(), 4, 0, batch_size=5, defense=parse_defense("pd"))
    assert calls == [(toy, (1, 32, 32, 3), [4], 0.5, 5)]
    np.testing.assert_array_equal(made.images, photo() + 1)


def test_an_adaptive_attack_gets_the_defense_and_the_streams(toy, stand_in):
    calls = []

    def bpda(
        classifier, images, labels, *, defense, eps=4, gradient="identity", rng=None, batch_size=32
    ):
        calls.append((defense, eps, gradient, [stream.random() for stream in rng], batch_size))
        return images

    stand_in("pdutils.attacks.adaptive", "bpda", bpda)
    attack, defense = parse_attack("bpda:eps=3,gradient=wavelet"), parse_defense("pd+wd")
    assert attack.adaptive
    draws = [stream.random() for stream in streams(9, 2)]
    for against in (defense, None, parse_defense("none")):
        attack.make(toy, photos(2), 0, 9, defense=against, batch_size=4)
    # Where nothing defends there is nothing to take a gradient back through.
    assert calls == [(defense, 3, "wavelet", draws, 4)] + [(None, 3, "identity", draws, 4)] * 2


def test_the_adaptive_attack_takes_a_named_defense_as_its_pipeline(toy):
    attack = parse_attack("bpda:iterations=2")
    named = parse_defense("pd+rcam+wd:deflections=50,bias=-0.2")
    by_name, by_object = (
        attack.make(toy, photos(2), 0, 4, defense=defense) for defense in (named, named.defense)
    )
    np.testing.assert_array_equal(by_name.images, by_object.images)
    assert np.abs(by_name.images - photos(2)).max() == 1


@pytest.mark.slow
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", MINIMAL)
def test_the_minimal_attacks_are_made_by_name(toy, name, targeted):
    batch = photos(2)
    labels = toy.predict(batch).argmax(axis=1)
    attack = parse_attack(f"{name}:{MINIMAL[name]},targeted={targeted}")
    if targeted and name == "deepfool":
        with pytest.raises(ValueError, match="targeted"):
            attack.make(toy, batch, labels, 0)
        return
    made = attack.make(toy, batch, labels, 0)
    assert (made.images.shape, made.images.dtype) == (batch.shape, np.float32)
    np.testing.assert_array_equal(made.images, np.rint(np.clip(made.images, 0, 255)))
    assert (made.targets is not None) == targeted


# Defences are their functions


@pytest.mark.parametrize(
    ("text", "knobs"),
    [
        ("none", {"deflections": 0, "denoiser": None}),
        ("pd", {"denoiser": None}),
        ("pd+wd:window=3,sigma=0.1", {"window": 3, "denoiser_options": {"sigma": 0.1}}),
        ("pd+cam+dct:bias=0.2", {"activation": "cam", "denoiser": "dct", "bias": 0.2}),
        ("pd+rcam:deflections=60,k=3", {"activation": "rcam", "k": 3, "deflections": 60,
                                        "denoiser": None}),
    ],
)  # fmt: skip
def test_the_pd_family_is_the_pipeline(toy, text, knobs):
    many = {"deflections": 1500} if "activation" in knobs else {}
    pipeline, named = Defense(**many | knobs), parse_defense(text)
    result = named.transform(toy, photos(2), rng=5)
    np.testing.assert_array_equal(result, pipeline.transform(toy, photos(2), rng=5))
    assert (named.random, named.map_key) == (pipeline.random, pipeline.map_key)
    made = named.activation_map(toy, photos(2))
    if "activation" in knobs:
        np.testing.assert_array_equal(made, pipeline.activation_map(toy, photos(2)))
        given_ = named.transform(None, photos(2), rng=5, activation_map=made)
        np.testing.assert_array_equal(given_, result)
    else:
        assert made is None


def test_wd_alone_is_the_denoiser(toy):
    found = parse_defense("wd:sigma=0.1,mode=hard").transform(toy, photos(2))
    np.testing.assert_array_equal(found, denoise(photos(2), "wavelet", sigma=0.1, mode="hard"))


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("bit_depth", {"bits": 3}),
        ("nl_means", {"search": 5, "strength": 9}),
        ("random_resize_pad", {"smallest": 0.5, "fill": 0}),
        ("dct", {"sigma": 0.02}),
    ],
)
def test_a_peer_is_the_function_of_that_name(toy, name, knobs):
    defense = parse_defense(spelled(name, knobs))
    drawn = {"rng": 3} if defense.random else {}
    result = defense.transform(toy, photos(2), rng=3)
    np.testing.assert_array_equal(result, PEERS[name](photos(2), **knobs, **drawn))
    assert not np.array_equal(result, PEERS[name](photos(2), **drawn))
    assert (defense.activation_map(toy, photos(2)), defense.defense) == (None, None)


@pytest.mark.parametrize("name", [*NAMES, *PEERS])
def test_what_is_called_random_is_random_and_each_image_has_its_stream(toy, name):
    defense, batch = parse_defense(name), photos(3)
    again = pickle.loads(pickle.dumps(defense))
    results = [d.transform(toy, batch, rng=seed) for d, seed in ((defense, 1), (again, 1))]
    np.testing.assert_array_equal(*results)
    other = defense.transform(toy, batch, rng=2)
    assert defense.random == (not np.array_equal(results[0], other))
    own = defense.activation_map(toy, batch)
    alone = defense.transform(
        toy,
        batch[1],
        rng=[streams(1, 3)[1]],
        activation_map=None if own is None else own[1],
    )
    np.testing.assert_array_equal(alone, results[0][1])


def test_equal_keys_are_equal_maps_and_other_keys_are_others(toy):
    texts = (
        "pd+rcam", "pd+rcam+wd:sigma=0.1", "pd+rcam+dct:deflections=7",
        "pd+rcam:k=5,combine=paper,bias=0", "pd+rcam:k=4", "pd+rcam:combine=repo",
        "pd+rcam:upscale=tf1", "pd+rcam:bias=0.1", "pd+cam:upscale=tf1", "pd+cam", "pd+cam+wd",
        "pd", "none", "wd", "jpeg",
    )  # fmt: skip
    keys = {text: parse_defense(text).map_key for text in texts}
    made = {text: parse_defense(text).activation_map(toy, photos(2)) for text in keys}
    for first, key in keys.items():
        assert (key is None) == (made[first] is None)
        for second, other in keys.items():
            if key is not None and other is not None:
                assert (key == other) == np.array_equal(made[first], made[second])
    np.testing.assert_array_equal(made["pd+rcam:k=4"], robust_cam(toy, photos(2), k=4))
    best = toy.predict(photos(2)).argmax(axis=1)
    np.testing.assert_array_equal(made["pd+cam"], cam(toy, photos(2), best))
