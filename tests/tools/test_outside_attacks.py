from types import SimpleNamespace

import numpy as np
import pytest
from conftest import photo, photos

from pdutils import classifiers, evaluation
from pdutils._utils import generator, on_grid
from pdutils.defenses.pipeline import Defense, OwnDefense
from pdutils.demo.examples import Collection
from pdutils.evaluation.registry import parse_defense
from pdutils.evaluation.study import Study
from pdutils.images import save_image
from pdutils.stats import Rate
from tools import outside_attacks
from tools.outside_attacks import ATTACKS, named

#: As little as makes a difference.
QUICK = {
    "autopgd": {"iterations": 4, "draws": 2},
    "foolbox_pgd": {"iterations": 3, "draws": 2},
    "square": {"queries": 60, "draws": 2},
}
PD_WD = "pd+wd:deflections=20"


@pytest.fixture(scope="module")
def seen(toy):
    """Pictures, and the classes that the network sees in them with the defence and without."""
    images = photos(12)
    defended = Defense.parse(PD_WD).transform(toy, images, rng=0)
    labels = toy.predict(images).argmax(axis=1)
    same = labels == toy.predict(defended).argmax(axis=1)
    assert same.sum() >= 3
    return images[same][:3], labels[same][:3]


def attacked(toy, name, images, labels, *, defense=None, seed=0, **knobs):
    rng, asked = np.random.default_rng(seed), QUICK[name] | knobs
    return ATTACKS[name](toy, images[:1], labels[:1], rng, defense=defense, **asked)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("text", [None, PD_WD, "pd+rcam+wd:deflections=30"])
def test_no_value_moves_further_than_eps_after_rounding_either(toy, seen, name, text):
    defense, moved = text and parse_defense(text), []
    for eps in (1, 3):
        made = attacked(toy, name, *seen, defense=defense, eps=eps)
        assert (made.shape, made.dtype) == (seen[0][:1].shape, np.float32)
        moved.append(np.abs(on_grid(made) - seen[0][:1]).max())
    assert moved[0] in (0, 1)
    assert moved[1] in (0, 3) if name == "square" else 1 < moved[1] <= 3
    with pytest.raises(ValueError, match=r"eps: expected a whole number of at least 1, got 2\.5"):
        attacked(toy, name, *seen, defense=defense, eps=2.5)


def next_number() -> float:
    """What NumPy's global generator, seeded anew, will give if nobody meddles with it."""
    np.random.seed(5)  # noqa: NPY002
    first = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    return first


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_seed_gives_the_same_images_and_leaves_numpys_generator_alone(toy, seen, name):
    first = next_number()
    defense = parse_defense(PD_WD)
    made = [attacked(toy, name, *seen, defense=defense, seed=seed, eps=8) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
    assert np.random.random() == first  # noqa: NPY002


def test_numpys_generator_is_put_back_after_an_error_too():
    first = next_number()
    with pytest.raises(RuntimeError, match="lost"), outside_attacks.seeded(generator(0)):
        raise RuntimeError(f"lost after {np.random.random()}")  # noqa: NPY002
    assert np.random.random() == first  # noqa: NPY002


def test_each_answer_of_the_bridge_is_a_mean_over_draws(toy):
    images, labels, draws = photos(2), np.array([1, 4]), 3
    pipeline = Defense.parse("pd:deflections=300")

    def bridge():
        rng = np.random.default_rng(7)
        return outside_attacks._bridge(toy, pipeline, rng, draws, "identity")

    preprocessor = bridge().preprocessing_defences[0]
    defended = preprocessor(np.repeat(images, draws, axis=0))[0]
    by_draw = toy.predict(defended).reshape(2, draws, -1)
    assert np.ptp(by_draw, axis=1).max() > 1e-4
    np.testing.assert_allclose(np.exp(bridge().predict(images)), by_draw.mean(axis=1), rtol=1e-5)
    losses = -np.log(by_draw.mean(axis=1)[[0, 1], labels])
    np.testing.assert_allclose(bridge().compute_loss(images, labels), losses, rtol=1e-5)
    slopes, _ = toy.loss_gradient(defended, np.repeat(labels, draws))
    mean = slopes.reshape(2, draws, 32, 32, 3).mean(axis=1)
    np.testing.assert_allclose(bridge().loss_gradient(images, labels), mean, atol=1e-7)


@pytest.mark.parametrize(
    "text",
    ["wd:sigma=0.1", "pd+wd:deflections=400,reading=paper,sigma=0.1", "pd+rcam:deflections=100"],
)
def test_what_they_attack_is_the_defence(toy, text):
    defense, image, n = parse_defense(text), photo(seed=3), 200
    runs = np.stack([defense.transform(toy, image, rng=seed) for seed in range(n)])
    wanted = toy.predict(runs)
    many = np.repeat(image[np.newaxis], n, axis=0)
    bridge = outside_attacks._bridge(toy, defense, np.random.default_rng(0), 1, "identity")
    model = outside_attacks._defended(toy, text)
    logits = np.asarray(model(many))
    rows = np.exp(logits - logits.max(axis=1, keepdims=True))
    for found in (np.exp(bridge.predict(many)), rows / rows.sum(axis=1, keepdims=True)):
        apart = np.abs(found.mean(axis=0) - wanted.mean(axis=0))
        assert (apart < 4 * np.sqrt((wanted.var(axis=0) + found.var(axis=0)) / n) + 1e-4).all()
        if defense.random:
            # Half as many deflections would have 0.7 of the spread.
            np.testing.assert_allclose(found.std(axis=0) / wanted.std(axis=0), 1, atol=0.28)
        else:
            assert np.abs(found - toy.predict(image)).max() > 1e-3
    # Each call draws afresh, where anything is drawn.
    for ask in (bridge.predict, lambda x: np.asarray(model(x))):
        assert np.array_equal(ask(many), ask(many)) != defense.random


def test_square_asks_no_more_often_than_it_may(toy, seen, monkeypatch):
    asked, predict = [], toy.predict_batch
    monkeypatch.setattr(
        toy, "predict_batch", lambda x, **options: asked.append(len(x)) or predict(x, **options)
    )
    for queries, draws in ((60, 1), (61, 3)):
        asked.clear()
        attacked(toy, "square", *seen, defense=parse_defense(PD_WD), queries=queries, draws=draws)
        assert queries - 3 * draws < sum(asked) <= queries
    with pytest.raises(ValueError, match="queries: expected a whole number of at least 12, got 11"):
        attacked(toy, "square", *seen, queries=11, draws=2)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_defence_of_other_steps_is_refused(toy, seen, name):
    def mine(images):
        return images

    for defense in (parse_defense("jpeg"), OwnDefense("mine", mine)):
        with pytest.raises(
            ValueError, match=r"expected a defence such as pd, pd\+wd, pd\+rcam\+wd, got"
        ):
            attacked(toy, name, *seen, defense=defense)
    with pytest.raises(ValueError, match="denoiser: expected 'wavelet'"):
        attacked(toy, name, *seen, defense=parse_defense("pd+dct"))


def test_its_records_are_by_defence_by_eps_and_the_same_again(toy, seen):
    examples = Collection(*seen, masks=None, origin="drawn")
    attacks = dict(named("autopgd", eps, {"iterations": 3}) for eps in (1, 8))
    defenses = ["pd:deflections=20", PD_WD]

    def records():
        return evaluation.run(toy, examples, attacks, defenses, runs=2, progress=False)

    study, again = records(), records()
    assert study.attacks["autopgd:eps=8,iterations=3"].startswith("own:autopgd:eps=8,iterations=3@")
    found, columns = study.records, [name for name in study.records if name != "seconds"]
    assert found[columns].equals(again.records[columns])
    for (attack, defense), own in found.query("attack != 'none'").groupby(["attack", "defense"]):
        assert own["linf"].max() == (8 if "eps=8" in attack else 1), defense
    strengths = list(study.strength())
    assert f"autopgd:eps=8,iterations=3 against {PD_WD}" in strengths
    assert len(strengths) == 6


def test_the_name_of_a_foolbox_attack_tells_the_version(monkeypatch):
    monkeypatch.setattr(outside_attacks, "installed", lambda name: f"{name} 1")
    assert named("foolbox_pgd", 2, {})[0] == "foolbox_pgd:eps=2,version=foolbox 1"
    assert named("square", 2, {"queries": 9})[0] == "square:eps=2,queries=9"


def test_the_command_leaves_a_packed_file(toy, seen, tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(classifiers, "deterministic", lambda: called.append("deterministic"))
    source = SimpleNamespace(load=lambda: called.append("load") or toy)
    monkeypatch.setattr(
        outside_attacks, "ClassifierSource", lambda *given: called.append(given) or source
    )
    monkeypatch.setattr(
        outside_attacks, "run", lambda network, *a, **o: evaluation.run(toy, *a, **o)
    )
    for i, (image, label) in enumerate(zip(*seen, strict=True)):
        save_image(tmp_path / f"{toy.class_names[label]}_{i}.png", image)
    output = tmp_path / "records.sqlite.xz"
    names = tmp_path / "names.txt"
    names.write_text("\n".join(toy.class_names))
    line = f"{tmp_path} --classifier m.keras --preprocess 0..255 --attack square --queries 30"
    line += f" --eps 2 4 --defenses {PD_WD} --limit 2 --runs 2 --output {output}"
    line += f" --class-names {names}"
    outside_attacks.main(line.split())
    assert called[:3] == [("m.keras", None, "0..255", toy.class_names), "deterministic", "load"]
    study = Study.open(output)
    assert study.progress() == (2, 2)
    assert [text.partition("@")[0] for text in study.attacks] == [
        "none", "own:square:eps=2,queries=30", "own:square:eps=4,queries=30",
    ]  # fmt: skip
    assert list(study.defenses) == ["none", PD_WD]
    assert study.accuracy()["none"]["none"] == Rate(2, 2)
    assert "own:square:eps=4" in capsys.readouterr().out
