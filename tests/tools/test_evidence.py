import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import photo, photos
from scipy.stats import binomtest

from pdutils import published
from pdutils.demo.examples import Collection
from pdutils.evaluation import load_records, run
from pdutils.evaluation.registry import parse_attack, parse_defense
from pdutils.images import save_image
from pdutils.stats import Rate
from tools import evidence
from tools.evidence import Evidence, pages

ROOT = Path(__file__).parents[2]

#: A share with its interval, or a difference, as the pages write them.
NUMBER = re.compile(r"[-+]?\d\.\d\d \[[-+]?\d\.\d\d, [-+]?\d\.\d\d\]")


@cache
def written() -> dict[Path, str]:
    return pages(Evidence())


def cells(page: str, row: str) -> list[list[str]]:
    """The rows of this name in the tables of a page, without the name."""
    found = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return [rest for name, *rest in found if name == row]


def same(found: str, expected: str) -> bool:
    """Whether two texts are equal; in a drawing a place may move by half a point."""
    if not expected.startswith("<?xml"):
        return found == expected
    number = r"-?\d+\.?\d*"
    places = [np.array(re.findall(number, text), np.float64) for text in (found, expected)]
    shapes = [re.sub(number, "", text) for text in (found, expected)]
    return shapes[0] == shapes[1] and np.allclose(*places, atol=0.5)


def test_every_page_is_what_the_records_give():
    stale = [
        str(path)
        for path, text in written().items()
        if not same((ROOT / path).read_text("utf-8"), text)
    ]
    assert stale == [], "`python -m tools.evidence` writes them"
    # No page of a topic lies there that is not written any more.
    assert {*ROOT.glob("docs/results/*.md")} <= {ROOT / path for path in written()}


def test_a_number_with_an_interval_comes_from_a_record_wherever_it_stands():
    texts = [*written().values()]
    known = {number for text in texts for number in NUMBER.findall(text)}
    told = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.[im]*")]
    texts = {path: path.read_text("utf-8") for path in told if path.is_file()}
    strays = {
        path.name: found
        for path, text in texts.items()
        if (found := [number for number in NUMBER.findall(text) if number not in known])
    }
    assert strays == {}
    # Nor does a template hold one.
    for template in (ROOT / "tools" / "pages").rglob("*.md"):
        assert NUMBER.findall(template.read_text("utf-8")) == []


def test_a_row_of_a_page_is_what_a_plain_count_of_the_records_gives():
    table = load_records("parts_efficientnet_lite0").records
    page = written()[Path("docs/results/parts.md")]
    section = page.partition("## EfficientNet-Lite0")[2].partition("\n## ")[0]
    right = {row.image for row in table.itertuples() if row.attack == "none" and row.right_clean}
    expected = []
    for attack in ("none", "igsm:step=0.5,stop_at=success", "igsm:stop_at=success"):
        rows = table[(table["attack"] == attack) & (table["defense"] == "pd+wd")]
        first = rows[rows["run"] == 0]
        hits = sum(r.predicted == r.label for r in first.itertuples() if r.image in right)
        low, high = binomtest(hits, len(right)).proportion_ci(method="wilson")
        expected += [f"{hits / len(right):.2f} [{low:.2f}, {high:.2f}]"]
    assert f"n = {len(right)} of 200 photos" in section
    assert cells(section, "PD 200 + WD")[0][:3] == expected
    # The fold has all photos, and a majority of ten runs its own section.
    everything = [r.predicted == r.label for r in first.itertuples()]
    assert cells(section, "PD 200 + WD")[1][2] == str(Rate.of(np.array(everything)))
    votes = rows.groupby("image")["predicted"].agg(lambda seen: Counter(seen).most_common(1)[0][1])
    assert votes.max() == 10


def test_what_is_asked_for_can_be_asked_for_and_has_a_place_on_a_page():
    found = Evidence()
    for topic in found.topics.values():
        assert [parse_attack(text).name for text in topic.attacks.values()]
        assert [parse_defense(text).name for text in topic.defenses.values()]
        assert "none" not in [*topic.attacks.values(), *topic.defenses.values()]
    named = [name for topic in ("recovery", "slow") for name in found.topics[topic].attacks]
    assert set(found.rows) == set(named)
    assert len([*found._paper_rows()]) == len(named)
    # Each of the paper's peers has its row.
    assert set(published.DESTRUCTION) <= set(found.topics["peers"].defenses)


@pytest.mark.parametrize(
    ("successes", "figure", "said"),
    [
        (40, 0.45, "0.40 [0.31, 0.50] within 0.45"),
        (40, 0.84, "0.40 [0.31, 0.50] below 0.84"),
        (90, 0.20, "0.90 [0.83, 0.94] above 0.20"),
        # The interval leaves it out, the exact test does not refuse it.
        (40, 0.309, "0.40 [0.31, 0.50] not told apart 0.31"),
        (40, None, "0.40 [0.31, 0.50]"),
    ],
)
def test_a_rate_is_held_against_a_figure(successes, figure, said):
    assert evidence._beside(Rate(successes, 100), figure) == said


def test_a_peer_is_a_plain_count_of_the_records_beside_the_papers_figure():
    table = load_records("peers_efficientnet_lite0").records
    attack = "deepfool:l2=0.04"
    bare, peer = (
        table[(table["attack"] == attack) & (table["defense"] == defense)].set_index("image")
        for defense in ("none", "jpeg:quality=75")
    )
    fooled = bare.index[bare["right_clean"] & (bare["predicted"] != bare["label"])]
    back = peer["predicted"] == peer["label"]
    median = table[(table["attack"] == attack) & (table["defense"] == "median:size=2")]
    turned = median.set_index("image").eval("predicted == label")[fooled]
    page = written()[Path("docs/results/peers.md")]
    section = page.partition("## EfficientNet-Lite0")[2].partition("\n## ")[0]
    # The paper has figures of the one and none of the other.
    assert cells(section, "JPEG 75")[1][3] == str(Rate.of(np.array(back[fooled])))
    assert Rate.of(np.array(turned)).interval[1] < 0.714
    assert cells(section, "median 2 x 2")[1][3] == f"{Rate.of(np.array(turned))} below 0.71"


def darkening(classifier, images, labels, rng, *, defense):
    return images // (9 if defense else 1)


def test_attackers_of_other_makers_have_a_row_each_without_their_digest(toy, tmp_path):
    labels = toy.predict(photos(4)).argmax(axis=1)
    source = Collection(photos(4), labels, masks=None, origin="drawn")
    store, found = tmp_path / "outside_autopgd_mine.sqlite.xz", Evidence(tmp_path)
    assert found.others("mine") == ""
    attacks = {"autopgd:eps=4": darkening, "autopgd:eps=1": darkening}
    study = run(toy, source, attacks, ["pd"], runs=1, store=store, progress=False)
    right = study.accuracy()
    (row,) = cells(found.others("mine"), "autopgd:eps=4")
    n = right["no defence"]["clean"].successes
    one = [str(right[name]["autopgd:eps=4"]) for name in ("no defence", "pd")]
    assert row == [str(n), *one, "-", "-"]
    names = [line.split(" | ")[0] for line in found.others("mine").splitlines()[2:]]
    assert names == ["| autopgd:eps=1", "| autopgd:eps=4"]
    assert right["pd"]["autopgd:eps=4"] != right["no defence"]["autopgd:eps=4"]
    assert found.other("outside_autopgd", "mine") == {
        (eps, "PD 200"): right["pd"][f"autopgd:eps={eps}"] for eps in (4, 1)
    }
    some = "PD 200 + WD and PD 1500 + R-CAM + WD"
    lacking = f"eps 1 of {some}, eps 2, eps 4 of {some}"
    assert found.gaps("outside_autopgd", "mine", [1, 2, 4]) == lacking
    assert found.other("outside_square", "mine") == {}


@pytest.mark.slow
def test_a_network_of_ones_own_is_a_column_more_by_one_command(toy_file, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        save_image(folder / f"class {i % 6}_{i}.png", photo(seed=i))
    (tmp_path / "records").mkdir()
    small = Evidence(tmp_path / "records")
    small.topics = {
        "parts": evidence.Topic(2, {"stops": "igsm:iterations=2"}, {"PD": "pd:deflections=20"})
    }
    monkeypatch.setattr(evidence, "Evidence", lambda: small)
    monkeypatch.setattr(evidence, "pages", lambda found: {})
    given = [str(folder), "--classifier", str(toy_file), "--preprocess", "0..255"]
    assert evidence.main([*given, "--name", "mine", "--limit", "5"]) == 0
    assert small.networks("parts") == ["mine"]
    assert small.n("parts", "mine").endswith("of 5 photos")
    assert [row.count("[") for row in cells(small.shares("mine", "parts"), "PD")[0]] == [1, 1]
    shares, turned = small.shares("mine", "parts"), small.shares("mine", "parts", turned=True)
    column = [line.strip("| ").split(" | ")[2] for line in turned.splitlines()[2:]]
    assert column == cells(shares, "no defence")[0]
    assert "evaluate" in small.made("parts")
    # Told that it cannot be done, it stops.
    assert evidence.main([str(tmp_path / "nowhere"), "--classifier", str(toy_file)]) != 0
