import inspect
import pickle
import subprocess
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
from pdutils.defenses.pipeline import Defense
from pdutils.defenses.transformations import PEERS
from pdutils.denoising import denoise
from pdutils.evaluation.registry import (
    Adversaries,
    NamedAttack,
    NamedDefense,
    attack_names,
    attacks_help,
    defense_names,
    defenses_help,
    parse_attack,
    parse_defense,
)

PEER_NAMES = [
    "bit_depth",
    "median",
    "nl_means",
    "squeeze",
    "bilateral",
    "tv",
    "wiener",
    "jpeg",
    "dct",
    "random_resize",
    "random_pad",
    "random_resize_pad",
    "crop_rescale",
]
PIPELINE_NAMES = [
    "none",
    "wd",
    "pd",
    "pd+wd",
    "pd+dct",
    "pd+cam",
    "pd+cam+wd",
    "pd+cam+dct",
    "pd+rcam",
    "pd+rcam+wd",
    "pd+rcam+dct",
]

MINIMAL = {
    "fgsm_smallest": "max_eps=2",
    "deepfool": "iterations=2",
    "carlini_wagner": "iterations=1,search_steps=1",
    "jsma": "max_share=0.002",
    "lbfgs": "iterations=2,search_steps=1",
}

#: Each knob of each kind away from its default.
UNUSUAL = {
    "deflections": 60,
    "window": 3,
    "reading": "paper",
    "k": 3,
    "combine": "geometric",
    "upscale": "tf1",
}
WAVELETS = {
    "sigma": 0.1,
    "wavelet": "db2",
    "mode": "hard",
    "shrinkage": "VisuShrink",
    "color": "rgb",
    "sigma_scale": "rgb",
}


def spelled(name, knobs):
    return f"{name}:" + ",".join(f"{knob}={value}" for knob, value in knobs.items())


# --- texts ---


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("none", "none"),
        ("igsm", "igsm"),
        (" igsm ", "igsm"),
        ("igsm:iterations=10,eps=4", "igsm:eps=4,iterations=10"),
        ("igsm: eps = 4.0 , iterations = 10", "igsm:eps=4,iterations=10"),
        ("igsm:eps=4e0", "igsm:eps=4"),
        ("igsm:step=.5", "igsm:step=0.5"),
        ("igsm:step=0.50", "igsm:step=0.5"),
        ("igsm:eps=+4", "igsm:eps=4"),
        ("igsm:stop_at=success", "igsm:stop_at=success"),
        ("igsm:stop_at=None", "igsm:stop_at=none"),
        ("igsm:targeted=True", "igsm:targeted=true"),
        ("igsm:targeted=FALSE", "igsm:targeted=false"),
        ("igsm:eps=8", "igsm:eps=8"),
    ],
)
def test_an_attacks_text_is_canonical(text, canonical):
    attack = parse_attack(text)
    assert attack.text == canonical
    again = parse_attack(attack.text)
    assert again == attack
    assert again.text == canonical
    assert again.knobs == attack.knobs
    assert hash(again) == hash(attack)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("none", "none"),
        ("pd+wd:sigma=4e-2,deflections=200.0", "pd+wd:deflections=200,sigma=0.04"),
        ("pd+wd:wavelet=bior2.2,sigma=1e-05", "pd+wd:sigma=1e-05,wavelet=bior2.2"),
        ("pd+cam:bias=-.1", "pd+cam:bias=-0.1"),
        ("pd+cam:bias=-0.0", "pd+cam:bias=0"),
        ("nl_means:strength=2,patch=3,search=13", "nl_means:patch=3,search=13,strength=2"),
    ],
)
def test_a_defenses_text_is_canonical(text, canonical):
    defense = parse_defense(text)
    assert defense.text == canonical
    again = parse_defense(canonical)
    assert again == defense
    assert again.text == canonical
    assert again.knobs == defense.knobs
    assert hash(again) == hash(defense)


@given(eps=st.floats(0, 1e9), iterations=st.integers(0, 10**9), flag=st.booleans())
def test_every_number_survives_its_text(eps, iterations, flag):
    knobs = {"eps": eps, "iterations": iterations, "targeted": flag}
    attack = parse_attack(spelled("igsm", knobs))
    assert attack.knobs == knobs
    assert parse_attack(attack.text).knobs == knobs
    assert NamedAttack("igsm", knobs) == attack


def test_knobs_are_what_python_would_read():
    knobs = parse_attack("pgd:eps=4.0,step=0.25,stop_at=0.9,targeted=true,random_start=none").knobs
    expected = {"eps": 4, "step": 0.25, "stop_at": 0.9, "targeted": True, "random_start": None}
    assert knobs == expected
    # A whole number is an int however it was written: `iterations=5.0` is five iterations.
    assert isinstance(knobs["eps"], int)


def test_other_knobs_make_another_attack():
    texts = ["igsm", "igsm:eps=8", "igsm:eps=4", "igsm:step=4", "pgd:eps=4"]
    assert len({parse_attack(text) for text in texts}) == len(texts)


# --- texts that name nothing ---


@pytest.mark.parametrize("parse", [parse_attack, parse_defense])
@pytest.mark.parametrize("text", ["pgd:", "pd:eps", "pd:eps=4,", "pgd:=4", "pd:,", None, 4, ["pd"]])
def test_texts_of_another_form_say_the_form(parse, text):
    with pytest.raises(ValueError, match=r"expected NAME or NAME:KNOB=VALUE,KNOB=VALUE, got"):
        parse(text)


@pytest.mark.parametrize("text", ["", "igsm2", "IGSM", "pd+wd", ":eps=4", "igsm,eps=4"])
def test_an_unknown_attack_lists_the_known(text):
    with pytest.raises(ValueError, match=r"attack: expected one of none, fgsm, .*bpda; got '"):
        parse_attack(text)


@pytest.mark.parametrize("text", ["", "pd+", "pd+jpeg", "wd+pd", "igsm", "pd wd"])
def test_an_unknown_defense_lists_the_known(text):
    with pytest.raises(ValueError, match=r"defense: expected one of none, wd, pd, .*scale; got '"):
        parse_defense(text)


def test_an_unknown_knob_lists_the_known():
    with pytest.raises(ValueError, match=r"^fgsm: no knob step, stop; known: eps, targeted$"):
        parse_attack("fgsm:stop=1,step=2")
    with pytest.raises(ValueError, match=r"^none: no knob eps; it has none$"):
        parse_attack("none:eps=4")
    with pytest.raises(ValueError, match=r"^pd: no knob sigma; known: deflections, window, read"):
        parse_defense("pd:sigma=0.04")
    with pytest.raises(ValueError, match=r"^pd\+cam: no knob k; known: .*, bias$"):
        parse_defense("pd+cam:k=3")
    with pytest.raises(ValueError, match=r"^random_pad: no knob rng; known: smallest, fill$"):
        parse_defense("random_pad:rng=3")


@pytest.mark.parametrize("knob", ["rng", "batch_size", "defense", "labels"])
def test_what_the_caller_gives_is_no_knob(knob):
    with pytest.raises(ValueError, match=rf"bpda: no knob {knob}; known: eps, "):
        parse_attack(f"bpda:{knob}=1")


@pytest.mark.parametrize(
    "value", ["", "[1", "[1]", "1e999", "(1)(2)", "1j", "b'x'", "a b", "'word'"]
)
def test_a_value_that_is_none(value):
    with pytest.raises(ValueError, match=r"^igsm: eps: expected a number, true, false, none or a"):
        parse_attack(f"igsm:eps={value}")


def test_a_knob_given_twice():
    with pytest.raises(ValueError, match=r"igsm: eps is given twice, in 'igsm:eps=4,eps=5'"):
        parse_attack("igsm:eps=4,eps=5")


@pytest.mark.parametrize("value", ["1", "yes", "none"])
def test_targeted_is_true_or_false(value):
    with pytest.raises(ValueError, match=r"igsm: targeted: expected true or false, got"):
        parse_attack(f"igsm:targeted={value}")


@pytest.mark.parametrize(
    "text",
    [
        "pd:deflections=-1",
        "pd:deflections=2.5",
        "pd:window=0",
        "pd:reading=bible",
        "pd+rcam:combine=sum",
        "pd+cam:bias=2",
        "pd+cam:bias=true",
        "pd+cam:bias=much",
        "pd+wd:sigma=-1",
        "wd:wavelet=db999",
        "pd+dct:step=3",
        "median:size=0",
        "jpeg:quality=100",
        "crop_rescale:side=90",
    ],
)
def test_a_defenses_wrong_value_is_found_at_once(text):
    name, knob = text.split("=")[0].split(":")
    with pytest.raises(ValueError, match=rf"^{name.replace('+', '.')}: {knob}: expected .* got"):
        parse_defense(text)


def test_an_attacks_wrong_value_is_found_by_its_function(toy):
    with pytest.raises(ValueError, match=r"eps: expected 1 to 255"):
        parse_attack("igsm:eps=0.5").make(toy, photo(), 0, 0)


# --- names ---


def test_the_names():
    assert attack_names() == [
        "none",
        "fgsm",
        "igsm",
        "pgd",
        "fgsm_smallest",
        "deepfool",
        "carlini_wagner",
        "jsma",
        "lbfgs",
        "bpda",
    ]
    assert set(defense_names()) == {*PIPELINE_NAMES, *PEER_NAMES}
    assert defense_names()[0] == "none"
    assert list(PEERS) == PEER_NAMES


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
    text = described()
    paragraphs = {}
    for line in text.splitlines():
        assert len(line) <= 110
        if not line.startswith(" "):
            name, _, sentence = line.partition(" ")
            paragraphs[name] = ""
            assert sentence.strip().endswith(".")
            assert "`" not in line
        else:
            paragraphs[name] += line.strip() + " "
    if described is attacks_help:
        assert list(paragraphs) == attack_names()
        assert paragraphs["fgsm"].strip() == "eps=8, targeted=false"
        assert "stop_at=none" in paragraphs["igsm"]
        assert "gradient=identity" in paragraphs["bpda"]
    else:
        assert list(paragraphs) == defense_names()
        assert paragraphs["none"] == ""
        assert paragraphs["nl_means"].strip() == "search=11, patch=3, strength=4"
        assert "deflections=200, window=10, reading=blog" in paragraphs["pd"]
        assert "deflections=1500" in paragraphs["pd+cam+wd"]
        assert "sigma=0.04" in paragraphs["pd+cam+wd"]
    parse = parse_attack if described is attacks_help else parse_defense
    for name, knobs in paragraphs.items():
        # What the help prints can be typed.
        assert parse(f"{name}:{knobs.strip()}" if knobs else name).name == name


def test_importing_the_names_loads_no_framework():
    program = (
        "import sys, pdutils.evaluation.registry as s; s.parse_attack('igsm:eps=4');"
        "s.parse_defense('pd+wd');"
        "print([m for m in ('tensorflow', 'keras', 'art', 'distributed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# --- attacks are their functions ---


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
def test_none_gives_the_images_back(toy, images):
    made = parse_attack("none").make(toy, images, 0, 0)
    np.testing.assert_array_equal(made.images, images)
    assert not np.shares_memory(made.images, images)
    assert made.targets is None


def test_none_is_on_the_8_bit_grid_as_every_adversary(toy):
    made = parse_attack("none").make(toy, photo() + np.float32(0.3), 0, 0)
    np.testing.assert_array_equal(made.images, photo())


def test_a_targeted_attack_reaches_for_the_class_that_it_drew(toy):
    batch, labels = photos(4), [0, 3, 5, 0]
    attack = parse_attack("igsm:targeted=true,iterations=3")
    made = attack.make(toy, batch, labels, 11)
    assert made.targets.dtype == np.int64
    assert made.targets.shape == (4,)
    assert not (made.targets == labels).any()
    expected = gradient.igsm(toy, batch, made.targets, targeted=True, iterations=3)
    np.testing.assert_array_equal(made.images, expected)


def test_targets_are_each_other_class_with_the_same_chance(stand_in):
    def deepfool(classifier, images, labels, *, targeted=False):
        return images

    stand_in("pdutils.attacks.minimum_norm", "deepfool", deepfool)
    network = SimpleNamespace(
        class_ids=list("abcd"), check_labels=lambda labels, n: np.full(n, labels)
    )
    tiny = np.zeros((900, 1, 1, 3), np.float32)
    for label, others in ((0, [1, 2, 3]), (2, [0, 1, 3]), (3, [0, 1, 2])):
        targets = parse_attack("deepfool:targeted=true").make(network, tiny, label, 5).targets
        classes, counts = np.unique(targets, return_counts=True)
        np.testing.assert_array_equal(classes, others)
        np.testing.assert_allclose(counts, 300, atol=52)


def test_a_target_depends_on_the_images_stream_alone(toy):
    batch = np.stack([photo()] * 6)
    attack = parse_attack("fgsm:targeted=true")
    together = attack.make(toy, batch, 1, 3)
    assert len(set(together.targets.tolist())) > 1
    np.testing.assert_array_equal(together.targets[:2], attack.make(toy, batch[:2], 1, 3).targets)
    alone = attack.make(toy, batch[4], 1, [streams(3, 6)[4]])
    np.testing.assert_array_equal(alone.targets, together.targets[4:5])
    # Where a gradient is all but 0 its sign is chance: another batch size may round it otherwise.
    assert np.mean(alone.images != together.images[4]) < 2e-3


def test_a_network_of_one_class_has_no_target():
    network = SimpleNamespace(class_ids=["a"], check_labels=lambda labels, n: np.zeros(n, int))
    with pytest.raises(ValueError, match=r"at least 2 classes to target, got 1"):
        parse_attack("igsm:targeted=true").make(network, photo(), 0, 0)


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
    attack = parse_attack("bpda:eps=3,gradient=wavelet")
    assert attack.adaptive
    defense = parse_defense("pd+wd")
    draws = [stream.random() for stream in streams(9, 2)]
    for against in (defense, None, parse_defense("none")):
        attack.make(toy, photos(2), 0, 9, defense=against, batch_size=4)
    assert calls[0] == (defense, 3, "wavelet", draws, 4)
    # Where nothing defends there is nothing to take a gradient back through.
    assert calls[1:] == [(None, 3, "identity", draws, 4)] * 2


def test_the_adaptive_attack_takes_a_named_defense_as_its_pipeline(toy):
    attack = parse_attack("bpda:iterations=2")
    named = parse_defense("pd+rcam+wd:deflections=50,bias=-0.2")
    assert isinstance(named.defense, Defense)
    by_name = attack.make(toy, photos(2), 0, 4, defense=named)
    by_object = attack.make(toy, photos(2), 0, 4, defense=named.defense)
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
    assert made.images.shape == batch.shape
    assert made.images.dtype == np.float32
    np.testing.assert_array_equal(made.images, np.rint(np.clip(made.images, 0, 255)))
    assert (made.targets is not None) == targeted


def test_an_attacks_result_does_not_depend_on_the_batch(toy):
    attack = parse_attack("pgd:eps=4,iterations=2,targeted=true")
    batch = photos(3)
    together = attack.make(toy, batch, 0, 6)
    for i, stream in enumerate(streams(6, 3)):
        alone = attack.make(toy, batch[i], 0, [stream])
        assert np.mean(alone.images != together.images[i]) < 1e-3


# --- defences are their functions ---


@pytest.mark.parametrize("images", [photo(), photos(2)])
def test_no_defense_gives_the_images_back(toy, images):
    defense = parse_defense("none")
    result = defense.transform(toy, images, rng=0)
    np.testing.assert_array_equal(result, images)
    assert not np.shares_memory(result, images)
    assert defense.activation_map(toy, images) is None


@pytest.mark.parametrize("denoiser", [None, "wavelet", "dct"])
@pytest.mark.parametrize("activation", ["none", "cam", "rcam"])
def test_the_pd_family_is_the_pipeline(toy, activation, denoiser):
    ends = {None: "", "wavelet": "+wd", "dct": "+dct"}
    name = "pd" + ("" if activation == "none" else f"+{activation}") + ends[denoiser]
    own = {key: UNUSUAL[key] for key in ("deflections", "window", "reading")}
    if activation == "cam":
        own |= {"upscale": "tf1"}
    if activation == "rcam":
        own = UNUSUAL
    options = {None: {}, "wavelet": WAVELETS, "dct": {"sigma": 0.1, "step": 4}}[denoiser]
    pipeline = Defense(**own, activation=activation, denoiser=denoiser, denoiser_options=options)
    result = parse_defense(spelled(name, own | options)).transform(toy, photos(3), rng=5)
    np.testing.assert_array_equal(result, pipeline.transform(toy, photos(3), rng=5))
    # With no knobs: the blog's numbers.
    blogs = Defense(
        deflections=200 if activation == "none" else 1500, activation=activation, denoiser=denoiser
    )
    result = parse_defense(name).transform(toy, photos(3), rng=5)
    np.testing.assert_array_equal(result, blogs.transform(toy, photos(3), rng=5))


def test_wd_alone_is_the_denoiser(toy):
    expected = denoise(photos(2), "wavelet", **WAVELETS)
    result = parse_defense(spelled("wd", WAVELETS)).transform(toy, photos(2))
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(parse_defense("wd").transform(toy, photo()), denoise(photo()))


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("bit_depth", {"bits": 3}),
        ("median", {"size": 2}),
        ("nl_means", {"search": 5, "strength": 9}),
        ("jpeg", {"quality": 30}),
        ("random_resize_pad", {"smallest": 0.5, "fill": 0}),
        ("crop_rescale", {"side": 0.8}),
        ("dct", {"sigma": 0.02}),
    ],
)
def test_a_peer_is_the_function_of_that_name(toy, name, knobs):
    defense = parse_defense(spelled(name, knobs))
    drawn = {"rng": 3} if defense.random else {}
    result = defense.transform(toy, photos(2), rng=3)
    np.testing.assert_array_equal(result, PEERS[name](photos(2), **knobs, **drawn))
    assert not np.array_equal(result, PEERS[name](photos(2), **drawn))
    assert defense.activation_map(toy, photos(2)) is None
    assert defense.defense is None


@pytest.mark.parametrize("name", PIPELINE_NAMES + PEER_NAMES)
def test_what_is_called_random_is_random_and_nothing_else(toy, name):
    defense = parse_defense(name)
    batch = photos(4)
    results = [defense.transform(toy, batch, rng=seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(results[0], results[1])
    assert defense.random == (not np.array_equal(results[0], results[2]))
    assert results[0].shape == batch.shape
    assert results[0].dtype == np.float32
    alone = defense.transform(
        toy,
        batch[1],
        rng=[streams(1, 4)[1]],
        activation_map=None if defense.map_key is None else defense.activation_map(toy, batch)[1],
    )
    np.testing.assert_array_equal(alone, results[0][1])


def test_without_deflections_nothing_is_random_and_no_map_is_made(toy):
    for name in ("pd", "pd+cam", "pd+rcam+wd"):
        defense = parse_defense(f"{name}:deflections=0")
        assert not defense.random
        assert defense.map_key is None
        assert defense.activation_map(toy, photo()) is None


# --- maps ---


def test_equal_keys_are_equal_maps_and_other_keys_are_others(toy):
    keys = {
        text: parse_defense(text).map_key
        for text in (
            "pd+rcam",
            "pd+rcam+wd:sigma=0.1",
            "pd+rcam+dct:deflections=7",
            "pd+rcam:k=5,combine=paper,bias=0",
            "pd+rcam:k=4",
            "pd+rcam:combine=repo",
            "pd+rcam:upscale=tf1",
            "pd+rcam:upscale=half_pixel",
            "pd+rcam:bias=0.1",
            "pd+cam:upscale=tf1",
            "pd+cam",
            "pd+cam+wd",
            "pd",
            "none",
            "wd",
            "jpeg",
        )
    }
    made = {text: parse_defense(text).activation_map(toy, photos(2)) for text in keys}
    for first, key in keys.items():
        assert (key is None) == (made[first] is None)
        for second, other in keys.items():
            if key is not None and other is not None:
                assert (key == other) == np.array_equal(made[first], made[second])
                assert hash(key) == hash(other) or key != other


def test_the_maps_are_those_of_the_activation_module(toy):
    batch = photos(2)
    by_rcam = parse_defense("pd+rcam:k=3,combine=repo").activation_map(toy, batch)
    np.testing.assert_array_equal(by_rcam, robust_cam(toy, batch, k=3, combine="repo"))
    by_cam = parse_defense("pd+cam").activation_map(toy, batch)
    np.testing.assert_array_equal(by_cam, cam(toy, batch, toy.predict(batch).argmax(axis=1)))


@pytest.mark.parametrize("bias", [0.3, -0.3, 1, -1])
def test_a_bias_is_added_to_the_map_and_clipped(toy, bias):
    batch = photos(2)
    biased = parse_defense(f"pd+rcam:bias={bias}").activation_map(toy, batch)
    expected = np.minimum(np.maximum(robust_cam(toy, batch) + bias, 0), 1)
    np.testing.assert_allclose(biased, expected, atol=1e-6)
    assert biased.dtype == np.float32


def test_a_bias_reaches_the_deflection(toy):
    image = photo()
    spared = parse_defense("pd+rcam:bias=1").transform(toy, image, rng=0)
    np.testing.assert_array_equal(spared, image)
    # Without a map: the bias of -1 leaves none of it.
    open_ = parse_defense("pd+rcam:bias=-1").transform(toy, image, rng=0)
    unguided = Defense(deflections=1500, denoiser=None).transform(
        toy, image, rng=0, activation_map=np.zeros((32, 32), np.float32)
    )
    np.testing.assert_array_equal(open_, unguided)


def test_a_map_that_is_given_is_used_as_it_is(toy):
    defense = parse_defense("pd+rcam+wd:bias=0.2")
    batch = photos(2)
    chances = defense.activation_map(toy, batch)
    given_ = defense.transform(None, batch, rng=1, activation_map=chances)
    np.testing.assert_array_equal(given_, defense.transform(toy, batch, rng=1))


def test_a_map_of_more_classes_than_there_are_is_refused_when_it_is_made(toy):
    defense = parse_defense("pd+rcam:k=7")
    with pytest.raises(ValueError, match=r"k: expected 1 to 6 classes, got 7"):
        defense.transform(toy, photo(), rng=0)


# --- what holds for both ---


@pytest.mark.parametrize("name", PIPELINE_NAMES + PEER_NAMES)
def test_defenses_can_be_pickled(toy, name):
    defense = parse_defense(name)
    again = pickle.loads(pickle.dumps(defense))
    assert isinstance(again, NamedDefense)
    assert again == defense
    assert again.text == defense.text
    np.testing.assert_array_equal(
        again.transform(toy, photo(), rng=1), defense.transform(toy, photo(), rng=1)
    )


@pytest.mark.parametrize("text", ["none", "igsm:eps=4,targeted=true", "pgd:stop_at=0.9", "bpda"])
def test_attacks_can_be_pickled(toy, text):
    attack = parse_attack(text)
    again = pickle.loads(pickle.dumps(attack))
    assert again == attack
    assert again.text == attack.text
    assert again.knobs == attack.knobs
    made = again.make(toy, photo(), 0, 1)
    assert isinstance(pickle.loads(pickle.dumps(made)), Adversaries)


def test_what_is_named_by_hand_is_checked_as_a_text_is():
    assert NamedDefense("pd", {"window": 5}).text == "pd:window=5"
    with pytest.raises(ValueError, match=r"pd: no knob size"):
        NamedDefense("pd", {"size": 3})
    with pytest.raises(ValueError, match=r"attack: expected one of"):
        NamedAttack("pd")
