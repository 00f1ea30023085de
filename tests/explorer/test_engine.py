import dataclasses
import json

import numpy as np
import pytest

from pdutils import _efficientnet, downloads
from pdutils.activation import robust_cam
from pdutils.classifiers import is_at_hand, load_classifier
from pdutils.defenses.pipeline import Defense
from pdutils.demo.examples import demo_image, load_case
from pdutils.denoising import DENOISERS
from pdutils.explorer import workshop
from pdutils.explorer.engine import (
    Choice,
    Explorer,
    Settings,
    Step,
    adversary_key,
    as_code,
    choices,
)
from pdutils.images import load_image, save_image

KEY = ("demo", "")


@pytest.fixture(scope="module")
def demo():
    return load_classifier("demo")


@pytest.fixture
def explorer(demo) -> Explorer:
    return Explorer({KEY: demo})


def settings(**changes) -> Settings:
    return Settings(**{"image": "badger_000", **changes})


EVERYTHING = {
    **{"deflections": 300, "window": 6, "reading": "paper"},
    **{"activation": "rcam", "k": 3, "combine": "repo", "runs": 3, "seed": 5},
    **{"denoiser": "wavelet", "sigma": 0.03, "mode": "hard", "sigma_scale": "rgb"},
}


def test_a_result_is_what_the_package_gives_by_hand(explorer, demo):
    result, case = explorer.result(settings(**EVERYTHING)), load_case(demo, "badger_000")
    options = {"sigma": 0.03, "mode": "hard", "sigma_scale": "rgb"}
    knobs = {"deflections": 300, "window": 6, "reading": "paper", "k": 3, "combine": "repo"}
    defense = Defense(**knobs, activation="rcam", denoiser_options=options, runs=3)
    for found, wanted in (
        (result.clean, case.clean),
        (result.adversary, case.adversary),
        (result.activation_map, robust_cam(demo, case.adversary, k=3, combine="repo")),
        (result.defended, defense.transform(demo, case.adversary, rng=5)),
        (result.runs, defense.predict_runs(demo, case.adversary, rng=5)),
        (result.probabilities, result.runs.mean(axis=0)),
        (result.steps[1].probabilities, demo.predict(case.adversary)),
    ):
        np.testing.assert_array_equal(found, wanted)
    assert (result.label, result.attacked_label) == (case.label, case.attacked_label)


def test_the_result_says_what_changed_and_what_is_left(explorer):
    result = explorer.result(settings(deflections=50, reading="paper", denoiser="median"))
    differs = np.abs(result.deflected - result.adversary).sum(axis=-1) > 0
    np.testing.assert_array_equal(result.changed, differs)
    assert 0 < result.changed.sum() <= 50
    # In float32 the norms themselves may be wrong in the fifth digit.
    clean, defended = (image.astype(np.float64) for image in (result.clean, result.defended))
    left = np.linalg.norm(defended - clean) / np.linalg.norm(clean)
    assert result.strength["remaining_l2"] == pytest.approx(left, rel=1e-5)
    assert result.strength["attack_linf"] == np.abs(result.adversary - result.clean).max()
    before, after = result.steps[1].probabilities, result.probabilities
    names = result.network.class_names
    assert result.sentence == (
        f"{names[before.argmax()]} {before.max():.2f} -> {names[after.argmax()]} "
        f"{after.max():.2f}, in {1000 * result.seconds:.0f} ms"
    )


def code_gives(code: str) -> dict:
    names: dict = {}
    exec(code, names)
    return names


@pytest.mark.parametrize(
    ("changes", "spelled"),
    [
        ({}, "Defense.parse('pd')"),
        (EVERYTHING,
         "replace(Defense.parse('pd+rcam+wd:combine=repo,deflections=300,k=3,mode=hard,"
         "reading=paper,sigma=0.03,sigma_scale=rgb,window=6'), runs=3)"),
        ({"attack": "igsm", "steps": 3, "stop": False, "denoiser": "nl_means", "sigma": 0.1},
         "replace(Defense.parse('pd'), denoiser='nl_means', denoiser_options={'sigma': 0.1})"),
        ({"attack": "igsm", "eps": 16, "activation": "cam"}, "Defense.parse('pd+cam:deflections="),
        ({"attack": "fgsm", "eps": 12, "deflections": 0, "image": "otter_001"}, ""),
        ({"attack": "none", "denoiser": "wavelet"}, "Defense.parse('pd+wd')"),
    ],
    ids=["default", "everything", "strong", "weak", "fgsm", "none"],
)  # fmt: skip
def test_the_code_gives_the_very_same(explorer, demo, capsys, monkeypatch, changes, spelled):
    # The network that the code loads would be compiled anew.
    if changes:
        monkeypatch.setattr("pdutils.classifiers.load_classifier", lambda name: demo)
    code, result = as_code(settings(**changes)), explorer.result(settings(**changes))
    assert f"\ndefense = {spelled}" in code
    found = code_gives(code)
    np.testing.assert_array_equal(found["adversary"], result.adversary)
    np.testing.assert_array_equal(found["defended"], result.defended)
    np.testing.assert_array_equal(found["found"], result.probabilities)
    best = result.network.top(result.probabilities)[0]
    assert capsys.readouterr().out.startswith(f"{best.class_name} {best.probability:.2f}\n")


def test_the_code_of_an_own_picture_gives_the_very_same(explorer, demo, monkeypatch, tmp_path):
    monkeypatch.setattr("pdutils.classifiers.load_classifier", lambda name: demo)
    path = tmp_path / "n-o-class.png"
    save_image(path, load_image(demo_image("fox_000").image)[10:200, 5:215])
    with pytest.raises(FileNotFoundError, match=r"nothing\.png: no such file"):
        explorer.result(settings(image=str(tmp_path / "nothing.png")))
    result = explorer.result(settings(image=str(path)))
    found = code_gives(as_code(settings(image=str(path))))
    np.testing.assert_array_equal(found["found"], result.probabilities)
    assert found["case"].label == result.label == result.steps[0].probabilities.argmax()


def test_the_clean_image_and_its_class_are_those_of_a_case(explorer, demo, tmp_path):
    """A file is labelled by its name or by word."""
    picture = load_image(demo_image("fox_000").image)
    for name in ("fox_1.png", "mink_1.png", "a.png"):
        save_image(tmp_path / name, picture)
    files = [(tmp_path / "fox_1.png", ""), (tmp_path / "mink_1.png", "")]
    files += [(tmp_path / "a.png", ""), (tmp_path / "a.png", "hamster")]
    for image, label in (("", ""), ("badger_001", ""), ("skunk_000", ""), *files):
        for attack in ("none",) if label or "/" in str(image) else ("shipped", "none"):
            result = explorer.result(settings(image=str(image), label=label, attack=attack))
            case = load_case(demo, image, label=label)
            np.testing.assert_array_equal(result.clean, case.clean)
            assert (result.label, result.name) == (case.label, case.name)


STAGES = ("clean", "adversary", "map", "deflected", "halfway", "denoised", "probabilities")
DRAWN_ANEW = {"seed": 9, "deflections": 77, "window": 3, "reading": "repo", "runs": 2}
DENOISED_ANEW = {"sigma": 0.1, "mode": "hard", "sigma_scale": "rgb", "denoiser": "jpeg"}
MAPPED_ANEW = {"k": 2, "combine": "repo", "activation": "cam"}


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        *(({name: value}, STAGES[3:]) for name, value in DRAWN_ANEW.items()),
        *(({name: value}, STAGES[5:]) for name, value in DENOISED_ANEW.items()),
        ({"denoiser": "none"}, ()),
        *(({name: value}, STAGES[2:]) for name, value in MAPPED_ANEW.items()),
        ({"attack": "none"}, STAGES[1:]),
        ({"image": "fox_000"}, STAGES),
        # What the others leave out of account does not count.
        ({"eps": 3, "steps": 3, "stop": False}, ()),
    ],
    ids=lambda value: "".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_only_what_a_change_touches_is_computed_again(explorer, change, anew):
    base = {"activation": "rcam", "denoiser": "wavelet", "deflections": 30}
    first = explorer.result(settings(**base))
    assert (first.computed, first.seconds > 0) == (STAGES, True)
    changed = explorer.result(settings(**base | change))
    assert changed.computed == anew
    fresh = Explorer({KEY: changed.network}).result(settings(**base | change))
    np.testing.assert_array_equal(changed.probabilities, fresh.probabilities)
    np.testing.assert_array_equal(changed.defended, fresh.defended)
    again = explorer.result(settings(**base))
    assert (again.computed, again.seconds) == ((), first.seconds)


def test_a_run_more_costs_one_run(explorer, monkeypatch):
    explorer.result(settings(runs=4))
    calls, transform = [], Defense.transform
    monkeypatch.setattr(Defense, "transform", lambda *a, **k: calls.append(1) or transform(*a, **k))
    explorer.result(settings(runs=5))
    assert len(calls) == 1


def test_many_moves_do_not_fill_the_memory(explorer, monkeypatch):
    monkeypatch.setattr(workshop, "BUDGET", 60 * 64 * 64 * 3 * 4)
    for seed in range(70):
        explorer.result(settings(seed=seed, deflections=1))
    assert explorer.result(settings(seed=69, deflections=1)).computed == ()
    assert "deflected" in explorer.result(settings(seed=0, deflections=1)).computed


def test_an_attack_says_how_far_it_is_and_who_ends_it_keeps_what_was_done(explorer):
    class Enough(Exception):  # noqa: N818
        pass

    def stop_at_three(what, done, total):
        if done == 3:
            raise Enough

    wanted, told = settings(attack="igsm", steps=6, stop=False), []
    with pytest.raises(Enough):
        explorer.result(wanted, progress=stop_at_three)
    after = explorer.result(wanted, progress=lambda *news: told.append(news))
    assert told == [("Making the adversary", done, 6) for done in range(6)]
    assert after.computed[0] == "adversary"
    fresh = Explorer({KEY: after.network}).result(wanted)
    np.testing.assert_array_equal(after.adversary, fresh.adversary)


def test_adversaries_are_one_where_only_the_defence_differs():
    assert adversary_key(settings()) == adversary_key(settings(**EVERYTHING))
    igsm = {"attack": "igsm"}
    different = [{}, igsm, igsm | {"stop": False}, igsm | {"steps": 3}, igsm | {"eps": 3}]
    different += [{"attack": "none"}, {"attack": "fgsm"}, {"image": "fox_000"}, {"label": "fox"}]
    different += [{"classifier": "vgg19"}, {"weights": "file"}]
    assert len({adversary_key(settings(**one)) for one in different}) == len(different)


BOTH = {"denoiser": "jpeg", "deflections": 1}


@pytest.mark.parametrize(
    ("seen", "changes", "words"),
    [
        ((0, 1, 0, 0), {"deflections": 1}, "badger is back: deflection alone did it."),
        ((0, 1, 1, 0), BOTH | {"deflections": 0}, "badger is back: denoising alone did it."),
        ((0, 1, 0, 0), BOTH, "deflection alone had done it before the denoiser came."),
        ((0, 1, 1, 0), BOTH, "deflection alone still gave skunk; it took the denoiser too."),
        ((0, 1, 1, 1), BOTH, "The network still sees skunk."),
        ((0, 1, 1, 3), BOTH, "Neither one nor the other: the network now sees raccoon."),
        ((0, 0, 0, 0), BOTH, "The attack did not fool the network."),
        ((0, 0, 0, 4), BOTH, "The defence itself turns it into mink."),
        ((2, 1, 1, 0), BOTH, "Wrong from the start: the network takes badger for "),
        ((0, 0, 0, 0), {"attack": "none"}, "No attack: the defence leaves badger alone."),
        ((0, 0, 0, 5), {"attack": "none"}, "the defence does harm: badger becomes otter."),
    ],
)
def test_the_verdict_names_what_did_it(explorer, seen, changes, words):
    """`seen` is what the network answers to the clean image, the adversary, and so on."""
    result, rows = explorer.result(settings(**changes)), np.eye(10, dtype=np.float32)[list(seen)]
    steps = tuple(Step("", row) for row in rows)
    assert words in dataclasses.replace(result, label=0, steps=steps).verdict


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"deflections": -1}, "deflections: expected a whole number from 0 to 20000, got -1"),
        ({"deflections": 1e9}, "deflections: expected a whole number"), ({"window": 0}, "window: "),
        ({"runs": 1000}, "runs: expected a whole number from 1 to 50"), ({"runs": True}, "runs: "),
        ({"steps": 0}, "steps: expected"), ({"eps": 2.5}, "eps: expected"),
        ({"seed": -1}, "seed: expected"), ({"stop": "yes"}, "stop: expected true or false"),
        ({"sigma": 0}, "sigma: expected a number above 0"), ({"sigma": "0.04"}, "sigma: "),
        ({"sigma": float("nan")}, "sigma: "), ({"reading": "book"}, "reading: expected one of"),
        ({"denoiser": None}, "denoiser: expected one of"), ({"image": 3}, "image: expected a text"),
        ({"attack": "magic"}, "attack: expected one of"),
        ({"colour": 3}, "no setting 'colour'; known: classifier, weights"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)  # fmt: skip
def test_a_wrong_setting_is_named_and_right_ones_survive_json(change, words):
    wanted = settings(**EVERYTHING)
    assert Settings.from_dict(json.loads(json.dumps(dataclasses.asdict(wanted)))) == wanted
    with pytest.raises(ValueError, match=f"^{words}"):
        Settings.from_dict(change)


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_every_denoiser_can_be_chosen(explorer, demo, denoiser):
    wanted = settings(denoiser=denoiser, deflections=10)
    result = explorer.result(wanted)
    defended = wanted.defense().transform(demo, result.adversary, rng=0)
    np.testing.assert_array_equal(result.defended, defended)
    assert [step.name for step in result.steps] == ["clean", "adversary", "deflected", "denoised"]


def test_the_demo_offers_its_drawings_and_other_networks_photos(monkeypatch, tmp_path):
    offered = choices("demo")
    assert len(offered) == 20
    assert offered[0] == Choice("badger_000", "badger", demo_image("badger_000").image)
    assert all(choice.path.is_file() for choice in offered)
    monkeypatch.setenv("PDUTILS_CACHE", str(tmp_path))
    assert [choice.name for choice in choices("vgg19")] == ["coffee", "chelsea", "rocket"]


@pytest.mark.real
def test_the_authors_pictures_come_last(real, monkeypatch):
    monkeypatch.setenv("PDUTILS_CACHE", str(real / "cache"))
    offered = choices("resnet50")
    assert [choice.path.name for choice in offered[3:]] == list(downloads.AUTHORS_IMAGES)


def test_weights_at_hand_are_told_from_those_to_be_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("PDUTILS_CACHE", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet50_weights_tf_dim_ordering_tf_kernels.h5").touch()
    (tmp_path / "models" / "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5").touch()
    for there in (False, True):
        monkeypatch.setattr(_efficientnet, "is_installed", lambda there=there: there)
        assert is_at_hand("efficientnet_lite0") == there
    found = {name: is_at_hand(name) for name in ("demo", "resnet50", "vgg19", "xception")}
    assert found == {"demo": True, "resnet50": True, "vgg19": False, "xception": False}


def test_a_network_is_loaded_once_and_a_warm_explorer_has_the_clean_image(monkeypatch, demo):
    loaded = []
    monkeypatch.setattr(
        "pdutils.explorer.engine.load_classifier", lambda *names: loaded.append(names) or demo
    )
    explorer, told = Explorer(), []
    explorer.warm(settings())
    for seed in range(3):
        result = explorer.result(settings(seed=seed), progress=lambda *news: told.append(news))
        assert "clean" not in result.computed
    assert (loaded, told) == ([("demo", None)], [])
    Explorer().result(settings(), progress=lambda *news: told.append(news))
    assert told == [("Loading demo", 0, 0)]


@pytest.mark.slow
def test_what_the_notebook_and_the_tour_give_to_try_can_be_done_at_their_beginning():
    explorer, begun = Explorer(), Settings(classifier="efficientnet_lite0", image="coffee")

    def back(n: int, **changes) -> int:
        """In how many of the first n draws the espresso is back."""
        drawn = [dataclasses.replace(begun, seed=seed, **changes) for seed in range(n)]
        found = [explorer.result(each) for each in drawn]
        return sum(int(each.probabilities.argmax()) == each.label for each in found)

    wavelets, strong = {"denoiser": "wavelet"}, {"attack": "igsm", "stop": False}
    assert explorer.result(begun).sentence.startswith("consomme 0.57 -> consomme")
    assert back(4) == 0
    assert back(4, **wavelets) == back(4, **wavelets, deflections=0) == 4
    assert back(4, deflections=3000) == 4
    assert 0 < back(12, deflections=1500) < 9
    assert back(4, deflections=1500, runs=20) in (0, 4)
    assert back(4, deflections=3000, activation="rcam") < 4
    assert back(4, **strong, deflections=3000) == 0
    assert back(4, **strong, **wavelets, sigma=0.08) == 4
    assert back(4, **strong, **wavelets, sigma=0.2) == 0


@pytest.mark.slow
@pytest.mark.real
def test_it_explores_an_imagenet_network(real, monkeypatch):
    monkeypatch.setenv("PDUTILS_CACHE", str(real / "cache"))
    weights = str(real / "weights" / "mobilenet_v2.weights.h5")
    network = {"classifier": "mobilenet_v2", "weights": weights}
    wanted = Settings(**network, image="badger", activation="rcam", denoiser="wavelet")
    result = Explorer().result(wanted)
    assert result.network.class_names[result.label] == "badger"
    assert result.attacked_label is not None
    # The network that the code loads would be compiled anew.
    monkeypatch.setattr("pdutils.classifiers.load_classifier", lambda *names: result.network)
    found = code_gives(as_code(result.settings))
    np.testing.assert_array_equal(found["found"], result.probabilities)
