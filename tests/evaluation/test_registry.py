import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import photo, photos
from hypothesis import given
from hypothesis import strategies as st

from pdutils import attacks
from pdutils._utils import streams
from pdutils.activation import cam, robust_cam
from pdutils.defenses.pipeline import Defense
from pdutils.defenses.transformations import PEERS
from pdutils.evaluation import registry
from pdutils.evaluation.registry import (
    ATTACKS,
    DEFENSES,
    NamedAttack,
    NamedDefense,
    OwnAttack,
    parse_attack,
    parse_defense,
    unlike_settings,
)

MINIMAL = (
    "fgsm_smallest:max_eps=2", "deepfool:iterations=2", "jsma:max_share=0.002",
    "carlini_wagner:iterations=1,search_steps=1", "lbfgs:iterations=2,search_steps=1,targeted=true",
)  # fmt: skip


def spelled(name, knobs):
    return f"{name}:" + ",".join(f"{knob}={value}" for knob, value in knobs.items())


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
    assert (found, found.knobs, hash(found)) == (again, again.knobs, hash(again))
    assert pickle.loads(pickle.dumps(found)) == found
    assert len({parse_attack(t) for t in ("igsm", "igsm:eps=8", "igsm:step=8", "pgd:eps=8")}) == 4


@given(eps=st.floats(0, 1e9), iterations=st.integers(0, 10**9), flag=st.booleans())
def test_every_number_survives_its_text(eps, iterations, flag):
    knobs = {"eps": eps, "iterations": iterations, "targeted": flag}
    attack = parse_attack(spelled("igsm", knobs))
    assert attack.knobs == parse_attack(attack.text).knobs == knobs
    assert NamedAttack("igsm", knobs) == attack


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_attack, "pgd:", r"expected NAME or NAME:KNOB=VALUE,KNOB=VALUE, got 'pgd:'"),
        (parse_attack, 4, r"expected NAME or NAME:KNOB=VALUE,KNOB=VALUE, got 4"),
        (parse_attack, "", r"attack: expected one of \('none', 'fgsm', .*'bpda'\), got ''"),
        (parse_attack, "pd+wd", r"attack: expected one of \('none', 'fgsm', .*'bpda'\), got 'pd"),
        (
            parse_attack,
            "fgsm:stop=1,step=2",
            r"^fgsm: no knob step, stop; known: eps, targeted, l2$",
        ),
        (parse_attack, "deepfool:l2=0", r"^deepfool: l2: expected a number above 0, got 0$"),
        (parse_attack, "none:eps=4", r"^none: no knob eps; it has none$"),
        (parse_attack, "bpda:rng=1", r"bpda: no knob rng; known: eps, "),
        (parse_attack, "bpda:defense=1", r"bpda: no knob defense; known: eps, "),
        (parse_attack, "igsm:eps=1e999", r"^igsm: eps: expected a number, true, false, none or a"),
        (parse_attack, "igsm:eps=4,eps=5", r"igsm: eps is given twice, in 'igsm:eps=4,eps=5'"),
        (parse_attack, "igsm:targeted=1", r"igsm: targeted: expected true or false, got 1"),
        (parse_defense, "pd:eps=4,", r"expected NAME or NAME:KNOB=VALUE,KNOB=VALUE, got"),
        (
            parse_defense,
            "igsm",
            r"defense: expected one of \('none', 'wd', 'pd', .*quilting'\), got '",
        ),
        (parse_defense, "pd+cam:k=3", r"^pd\+cam: no knob k; known: .*, bias$"),
        (parse_defense, "random_pad:rng=3", r"^random_pad: no knob rng; known: smallest, fill$"),
        (parse_defense, "pd:deflections=-1", r"^pd: deflections: expected .* got"),
        (parse_defense, "pd+cam:bias=2", r"^pd\+cam: bias: expected .* got"),
        (parse_defense, "median:size=0", r"^median: size: expected .* got"),
        (parse_defense, "jpeg:quality=100", r"^jpeg: quality: expected .* got"),
        (parse_defense, "crop_rescale:side=90", r"^crop_rescale: side: expected .* got"),
    ],
)
def test_what_is_no_attack_or_no_defence_is_refused_at_once(parse, text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)
    # So is what is named by hand.
    with pytest.raises(ValueError, match="pd: no knob size"):
        NamedDefense("pd", {"size": 3})


def test_settings_that_differ_besides_are_told():
    texts = {"A": "pd+wd", "B": "pd+rcam+wd:deflections=600", "C": "pd:window=3,deflections=600"}
    assert unlike_settings(texts) == [
        "More than one thing differs: deflections is 200 in A and 600 in B, C; "
        "window is 10 in A, B and 3 in C."
    ]
    # One knob, or the name alone, is what such a comparison is of.
    assert unlike_settings({"A": "pd+wd", "B": "pd+wd:sigma=0.1", "C": "own:C@1"}) == []
    assert unlike_settings({"A": "pd+wd", "B": "wd", "C": "jpeg"}) == []


def test_the_help_names_each_with_its_knobs():
    said = {
        "none": ("The clean image itself.", "Nothing: the image itself."),
        "fgsm": ("eps=8, targeted=false",), "bpda": ("gradient=identity",),
        "pd": ("deflections=200, window=10",),
        "pd+rcam+dct": ("Pixel deflection, spared by robust CAM, then cosine denoising.",),
    }  # fmt: skip
    for which, described, parse, names in (
        (0, registry.attacks_help(), parse_attack, ATTACKS),
        (-1, registry.defenses_help(), parse_defense, DEFENSES),
    ):
        assert max(map(len, described.splitlines())) <= 110
        assert "`" not in described
        paragraphs = [" ".join(lines.split()) for lines in re.split(r"\n(?! )", described)]
        assert tuple(text.partition(" ")[0] for text in paragraphs) == names
        for name, text in zip(names, paragraphs, strict=True):
            assert said.get(name, [""])[which] in text
            knobs = text.partition(". ")[2]
            # What the help prints can be typed.
            assert parse(f"{name}:{knobs}" if knobs else name).name == name


def test_make_is_the_function_of_that_name(toy):
    for name, knobs in (
        ("fgsm", {"eps": 5}),
        ("igsm", {"eps": 6, "step": 2.5, "iterations": 3, "stop_at": 0.9}),
        ("pgd", {"eps": 4, "iterations": 2}),
    ):
        for images, labels, n in ((photo(), 2, 1), (photos(3), [2, 0, 5], 3)):
            made = parse_attack(spelled(name, knobs)).make(toy, images, labels, 7)
            drawn = {"rng": streams(7, n)} if name == "pgd" else {}
            expected = getattr(attacks, name)(toy, images, labels, **knobs, **drawn)
            np.testing.assert_array_equal(made.images, expected)
            assert (made.images.shape, made.targets) == (images.shape, None)
            assert not np.array_equal(made.images, images)
    with pytest.raises(ValueError, match="eps: expected 1 to 255"):
        NamedAttack("igsm", {"eps": 0.5}).make(toy, photo(), 0, 0)
    rounded = parse_attack("none").make(toy, photo() + np.float32(0.3), 2, 0)
    np.testing.assert_array_equal(rounded.images, photo())


def test_a_targeted_attack_reaches_for_the_class_that_it_drew_from_its_images_stream(toy):
    batch, labels = photos(4), [0, 3, 5, 0]
    attack = parse_attack("igsm:targeted=true,iterations=3")
    made = attack.make(toy, batch, labels, 11)
    assert (made.targets.dtype, made.targets.shape) == (np.int64, (4,))
    assert not (made.targets == labels).any()
    expected = attacks.igsm(toy, batch, made.targets, targeted=True, iterations=3)
    np.testing.assert_array_equal(made.images, expected)
    for i, stream in enumerate(streams(11, 4)):
        alone = attack.make(toy, batch[i], labels[i], [stream])
        assert list(alone.targets) == [made.targets[i]]
        # Where a gradient is all but 0 its sign is chance: another batch may round it otherwise.
        assert np.mean(alone.images != made.images[i]) < 2e-3


def test_targets_are_each_other_class_with_the_same_chance(monkeypatch):
    monkeypatch.setattr(attacks, "igsm", lambda c, x, y, *, targeted=False: x)
    attack, tiny = parse_attack("igsm:targeted=true"), np.zeros((900, 1, 1, 3), np.float32)
    network = SimpleNamespace(class_ids="abcd", check_labels=lambda label, n: np.full(n, label))
    for label, others in ((0, [1, 2, 3]), (2, [0, 1, 3]), (3, [0, 1, 2])):
        targets = attack.make(network, tiny, label, 5).targets
        classes, counts = np.unique(targets, return_counts=True)
        np.testing.assert_array_equal(classes, others)
        np.testing.assert_allclose(counts, 300, atol=52)
    network.class_ids = "a"
    with pytest.raises(ValueError, match="at least 2 classes to target, got 1"):
        attack.make(network, tiny, 0, 0)


def test_an_attack_gets_what_it_takes(toy, monkeypatch):
    calls = []

    def pgd(classifier, images, labels, *, eps=8, targeted=False, batch_size=32):
        calls.append((classifier, images.shape, labels.tolist(), eps, batch_size))
        return images + 1

    def bpda(classifier, images, labels, *, defense, gradient="identity", rng=None, batch_size=32):
        calls.append((defense, gradient, [stream.random() for stream in rng], batch_size))
        return images

    for function in (pgd, bpda):
        monkeypatch.setattr(attacks, function.__name__, function)
    plain, knows = parse_attack("pgd:eps=0.5"), parse_attack("bpda:gradient=wavelet")
    assert (plain.adaptive, knows.adaptive) == (False, True)
    defense, draws = parse_defense("pd+wd"), [stream.random() for stream in streams(9, 2)]
    made = plain.make(toy, photo(), 4, 0, batch_size=5, defense=defense)
    np.testing.assert_array_equal(made.images, photo() + 1)
    # Where nothing defends there is nothing to take a gradient back through.
    for against in (defense, None, parse_defense("none")):
        knows.make(toy, photos(2), 0, 9, defense=against, batch_size=4)
    nothing = (None, "identity", draws, 4)
    known = (defense, "wavelet", draws, 4)
    assert calls == [(toy, (1, 32, 32, 3), [4], 0.5, 5), known, nothing, nothing]
    # A named defence is its pipeline.
    monkeypatch.undo()
    attack, named = parse_attack("bpda:iterations=2"), parse_defense("pd+rcam+wd:deflections=50")
    both = (named, named.defense)
    by_name, by_object = (attack.make(toy, photos(2), 0, 4, defense=one).images for one in both)
    np.testing.assert_array_equal(by_name, by_object)
    assert np.abs(by_name - photos(2)).max() == 1


def test_a_function_of_ones_own_gets_the_defence_if_it_asks_for_one(toy):
    known = []

    def plain(images, rng, eps=4):
        return images + 1

    def alone(images, defense):
        known.append(defense)
        return images + 2

    def whole(classifier, images, labels, rng, *, defense, eps=4):
        known.append((classifier, labels.tolist(), rng.random(), defense))
        return images + 3

    def optional(classifier, images, labels, defense=None, rng=None):
        known.append((rng.random(), defense))
        return images + 4

    defense, draw = parse_defense("pd+wd"), [stream.random() for stream in streams(9, 1)]
    for add, function in enumerate((plain, alone, whole, optional), start=1):
        attack = OwnAttack(function.__name__, function)
        assert attack.adaptive == (function is not plain)
        # Where nothing defends, none is given, as to `bpda`.
        for against in (defense, parse_defense("none"), None):
            made = attack.make(toy, photos(1) // 2, np.array([4]), 9, defense=against, batch_size=1)
            np.testing.assert_array_equal(made.images, photos(1) // 2 + add)
    nothing = [None, None]
    assert known[:3] == [defense, *nothing]
    assert known[3:6] == [(toy, [4], *draw, one) for one in (defense, *nothing)]
    assert known[6:] == [(*draw, one) for one in (defense, *nothing)]


@pytest.mark.slow
def test_the_minimal_attacks_are_made_by_name(toy):
    batch = photos(2)
    labels = toy.predict(batch).argmax(axis=1)
    for text in MINIMAL:
        made = parse_attack(text).make(toy, batch, labels, 0)
        assert (made.images.shape, made.images.dtype) == (batch.shape, np.float32)
        np.testing.assert_array_equal(made.images, np.rint(np.clip(made.images, 0, 255)))
        assert (made.targets is not None) == ("targeted" in text)
    with pytest.raises(ValueError, match="targeted"):
        parse_attack("deepfool:targeted=true").make(toy, batch, labels, 0)


def test_the_pd_family_is_the_pipeline(toy):
    for text in ("none", "wd:sigma=0.1", "pd", "pd+wd:window=3", "pd+cam+dct:bias=0.2",
                 "pd+rcam:k=3"):  # fmt: skip
        pipeline, named = Defense.parse(text), parse_defense(text)
        assert named.defense == pipeline
        assert (named.random, named.map_key) == (pipeline.random, pipeline.map_key)
        made, result = named.activation_map(toy, photos(2)), named.transform(toy, photos(2), rng=5)
        np.testing.assert_array_equal(made, pipeline.activation_map(toy, photos(2)))
        np.testing.assert_array_equal(result, pipeline.transform(toy, photos(2), rng=5))
        if made is not None:
            again = named.transform(None, photos(2), rng=5, activation_map=made)
            np.testing.assert_array_equal(again, result)


def test_a_peer_is_the_function_of_that_name(toy):
    for name, knobs in (
        ("bit_depth", {"bits": 3}),
        ("nl_means", {"search": 5, "strength": 9}),
        ("random_resize_pad", {"smallest": 0.5, "fill": 0}),
        ("dct", {"sigma": 0.02}),
    ):
        defense = parse_defense(spelled(name, knobs))
        drawn = {"rng": 3} if defense.random else {}
        result = defense.transform(toy, photos(2), rng=3)
        np.testing.assert_array_equal(result, PEERS[name](photos(2), **knobs, **drawn))
        assert not np.array_equal(result, PEERS[name](photos(2), **drawn))
        assert defense.activation_map(toy, photos(2)) is defense.map_key is defense.defense is None


def test_what_is_called_random_is_random(toy):
    batch = photos(3)
    for defense in map(parse_defense, DEFENSES):
        again = pickle.loads(pickle.dumps(defense))
        first, second = (one.transform(toy, batch, rng=1) for one in (defense, again))
        np.testing.assert_array_equal(first, second)
        other = defense.transform(toy, batch, rng=2)
        assert defense.random == (not np.array_equal(first, other)), defense.text


def test_equal_keys_are_equal_maps_and_other_keys_are_others(toy):
    alike = (
        ("pd+rcam", "pd+rcam+wd:sigma=0.1", "pd+rcam+dct:deflections=7",
         "pd+rcam:k=5,combine=paper,bias=0"),
        ("pd+cam", "pd+cam+wd"),
        ("pd+rcam:k=4",), ("pd+rcam:combine=repo",), ("pd+rcam:upscale=tf1",),
        ("pd+rcam:bias=0.1",), ("pd+cam:upscale=tf1",),
    )  # fmt: skip
    firsts = [parse_defense(texts[0]) for texts in alike]
    assert len({defense.map_key for defense in firsts}) == len(firsts)
    maps = [defense.activation_map(toy, photo()) for defense in firsts]
    assert len({made.tobytes() for made in maps}) == len(maps)
    for texts, first, made in zip(alike, firsts, maps, strict=True):
        for other in map(parse_defense, texts[1:]):
            assert other.map_key == first.map_key
            np.testing.assert_array_equal(other.activation_map(toy, photo()), made)
    np.testing.assert_array_equal(maps[2], robust_cam(toy, photo(), k=4))
    np.testing.assert_array_equal(maps[1], cam(toy, photo(), int(toy.predict(photo()).argmax())))
