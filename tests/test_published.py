import re
from dataclasses import replace

import numpy as np
import pytest

from pdutils import published
from pdutils.published import BLOG, CLAIMS, DESTRUCTION, Claim
from pdutils.stats import Mean, PairedDifference, Rate

HELPS = Claim("The blog says that it helps", "more")
STAYS = Claim("The blog's badger stays at 1.00", "as many")

MORE = PairedDifference(40, 20, 2, 38)
FEWER = PairedDifference(40, 2, 20, 38)
OPEN = PairedDifference(40, 5, 4, 51)
SAME = PairedDifference(7, 0, 0, 3)

NAMES = ("badger", "skunk", "fox")

TABLES = (*published.ACCURACY.values(), published.LARGER)


def test_the_paper_s_figures_are_shares_and_its_defence_wins_back_what_the_network_loses():
    for attack, row in ((attack, row) for table in TABLES for attack, row in table.items()):
        assert all(0 <= share <= 1 for share in row)
        assert attack == "clean" or row.attacked < 0.3 < row.single
    for row in DESTRUCTION.values():
        assert all(share is None or 0 <= share <= 1 for share in row.values())
    rates = {name: row["IGSM"] for name, row in DESTRUCTION.items() if row["IGSM"] is not None}
    assert max(rates, key=rates.get) == "PD + R-CAM + WD"
    # The rows that a reader knows by heart.
    assert published.ACCURACY["resnet50"]["C&W"] == (0.04, 0.048, 0.927, 0.980)
    assert published.ACCURACY["vgg19"]["IGSM"] == (0.04, 0.0979, 0.792, 0.816)
    assert published.ACCURACY["inception_v3"]["C&W"] == (0.04, 0.071, 0.939, 0.985)
    assert published.LARGER["FGSM"] == (0.12, 0.111, 0.615, 0.704)
    assert DESTRUCTION["PD + R-CAM + WD"]["IGSM"] == 0.927
    assert DESTRUCTION["random padding"]["IGSM"] is None
    assert DESTRUCTION["squeezing, the best three"]["C&W"] == 0.915
    assert DESTRUCTION["crop, total variation and quilting"]["IGSM"] == 0.882
    assert BLOG["PD 200"] == (0.52, 0.25)
    assert BLOG["PD 1500 + R-CAM + WD"] == (0.97, 0.02)


def test_the_blog_s_answers_and_moves_are_read_from_its_numbers():
    assert published.blog_answer("PD 200").direction == "more"
    assert published.blog_answer("adversary").direction == "fewer"
    assert "skunk, 0.59, and not the badger, 0.15" in published.blog_answer("adversary").text
    rise = published.blog_move("adversary", "PD 200")
    assert rise == ("The blog's badger rises from 0.15 to 0.52", "more")
    assert published.blog_move("PD 200", "adversary").direction == "fewer"
    assert published.blog_move("clean", "clean, PD 600") == STAYS
    assert published.blog_answer("WD") is published.blog_move("clean", "WD") is None


def test_every_claim_is_borne_out_by_its_own_figures():
    for name in ("pd", "wd", "map"):
        before, after = re.findall(r"0\.\d\d", CLAIMS[name].text)
        # The map's are the other way round: with it against without.
        rising = after > before if name != "map" else before > after
        assert (rising, CLAIMS[name].direction) == (True, "more")
    shown = [BLOG[step][0] for step in ("adversary", "PD 200", "PD 200 + WD")]
    shown += [DESTRUCTION[name]["IGSM"] for name in ("PD + R-CAM", "PD")]
    texts = " ".join(claim.text for claim in CLAIMS.values())
    assert all(f"{figure:.2f}" in texts for figure in shown)
    assert all(published.stance("more", claim.direction) for claim in CLAIMS.values())


def test_the_direction_is_what_the_interval_leaves_open():
    for low, high, margin, expected in (
        (1.2, 1.4, 0, "more"),
        (1.2, 1.4, 0.1, "more"),
        (1.2, 1.4, 0.3, "not told apart"),
        (0.6, 0.8, 0.1, "fewer"),
        (0.95, 1.05, 0.1, "as many"),
        (1.02, 1.05, 0.1, "as many"),
        (0.95, 1.05, 0, "not told apart"),
        # Equality is never shown without a margin, not even by an interval without a width.
        (1.0, 1.0, 0, "not told apart"),
        (1.0 + 1e-15, 1.0 + 1e-15, 0, "not told apart"),
        (0.2, 1.4, 0.1, "not told apart"),
        (np.nan, np.nan, 0.1, "not told apart"),
    ):
        assert published.direction(Mean(1, low, high, 10), 1, margin=margin) == expected


def test_what_only_the_interval_tells_apart_and_not_the_exact_test_is_not_told_apart():
    for difference in (MORE, FEWER, OPEN, SAME):
        assert published.direction(difference) == difference.verdict
    # Five images of six, all on one side: p is 2 / 2^5.
    found = PairedDifference(1, 5, 0, 0)
    assert found.interval[0] > 0
    assert found.p_value == pytest.approx(0.0625)
    assert published.direction(found) == found.verdict == "not told apart"
    # Of four images at 0.983 each, at least one fails with probability 1 - 0.983^4 = 0.066.
    assert Rate(3, 4).interval[1] < 0.983
    assert published.direction(Rate(3, 4), 0.983) == "not told apart"
    assert published.direction(Rate(2, 4), 0.983) == "fewer"
    for n in (1, 2, 39):
        assert published.direction(Rate(0, n), 0.0) == "not told apart"
        assert published.direction(Rate(n, n), 1.0) == "not told apart"
    assert published.direction(Rate(1, 12), 0.0) == "more"


def test_a_run_agrees_disagrees_or_does_not_tell():
    found = ("more", "fewer", "as many", "not told apart")
    yes, no, open_ = "agrees", "disagrees", "not told apart"
    for claimed, expected in {
        "more": (yes, no, no, open_), "fewer": (no, yes, no, open_),
        "as many": (no, no, yes, open_), "no more": (no, yes, yes, open_),
    }.items():  # fmt: skip
        assert tuple(published.stance(word, claimed) for word in found) == expected
    with pytest.raises(ValueError, match=r"claimed: expected one of \('more', .*, got 'better'"):
        published.stance("more", "better")


def test_a_comparison_says_what_its_interval_says_and_what_was_claimed():
    for difference, opening, judged in (
        (MORE, "more are right, 0.60 against 0.42 (difference +0.18 [", "agrees"),
        (FEWER, "fewer are right, 0.42 against 0.60 (difference -0.18 [", "disagrees"),
        (OPEN, "not told apart, 0.45 against 0.44 (difference +0.01 [", "not told apart"),
        (SAME, "the same on each of 10 images, 0.70 right.", "not told apart"),
    ):
        plain = published.compared("A against B", difference)
        assert plain.startswith(f"**A against B**: {opening}")
        claimed = published.compared("A against B", difference, HELPS)
        assert claimed == f"{plain} The blog says that it helps: {judged}."
        assert difference is SAME or f"{difference}, n = 100)." in plain
        noted = replace(difference, note="They differ in more.")
        assert published.compared("A against B", noted) == f"{plain} They differ in more."


FOUR = np.array([0.2, 0.3, 0.4, 0.5])
#: Draws are paired: their spread is that of the differences, 0.0082, and t is 3.182.
TENTH = np.array([0.11, 0.1, 0.09, 0.1])
WIDE = np.array([-0.5, 0.4, -0.3, 0.2])
THREE = np.array([0.951, 0.952, 0.953])
ABOVE = np.array([0.001, 0.002, 0.001])


@pytest.mark.parametrize(
    ("before", "after", "claim", "expected"),
    [
        (0.23, 0.24, HELPS, f"rises from 0.23 to 0.24. {HELPS.text}: agrees in direction."),
        (0.24, 0.23, HELPS, f"falls from 0.24 to 0.23. {HELPS.text}: disagrees."),
        # What two decimals do not show is no rise.
        (0.231, 0.234, HELPS, f"stays at 0.23. {HELPS.text}: not told apart."),
        (0.231, 0.234, STAYS, f"stays at 0.23. {STAYS.text}: agrees."),
        (0.231, 0.24, STAYS, f"rises from 0.23 to 0.24. {STAYS.text}: disagrees."),
        (FOUR, FOUR + TENTH, HELPS, "rises from 0.35 to 0.45 (by +0.10 [+0.09, +0.11], 4 draws). "
            f"{HELPS.text}: agrees in direction."),
        (FOUR + TENTH, FOUR, None, "falls from 0.45 to 0.35 (by -0.10 [-0.11, -0.09], 4 draws)."),
        (FOUR, FOUR - WIDE, HELPS, "not told apart, from 0.35 to 0.40 (by +0.05 "
            f"[-0.62, +0.72], 4 draws). {HELPS.text}: not told apart."),
        (THREE, THREE + ABOVE, STAYS, "stays at 0.95 (to within 0.005, 3 draws). "
            f"{STAYS.text}: agrees."),
        # It stays, whatever the two decimals turn to.
        (THREE + 0.002, THREE + 0.003 + ABOVE, None, "stays, from 0.95 to 0.96 (to within 0.005, "
            "3 draws)."),
        (THREE, THREE - 0.01, STAYS, "falls from 0.95 to 0.94 (by -0.010 [-0.010, -0.010], "
            f"3 draws). {STAYS.text}: disagrees."),
    ],
)  # fmt: skip
def test_a_number_moves_by_its_decimals_or_by_what_the_mean_difference_of_draws_leaves_open(
    before, after, claim, expected
):
    assert published.moved("badger", before, after, claim) == f"**badger**: {expected}"
    # One number stands beside every draw.
    assert published.moved("x", 0.2, THREE) == published.moved("x", np.full(3, 0.2), THREE)
    with pytest.raises(ValueError, match="broadcast"):
        published.moved("x", THREE[:2], THREE)


def test_means_over_the_same_images_are_compared_by_their_paired_difference():
    first = np.array([0.9, 0.5, 0.7, 0.3])
    # The images differ widely, the two numbers of each do not.
    said = published.compared_means("A against B", first, first - TENTH, HELPS, what="correlation")
    assert said == (
        "**A against B**: more, correlation 0.60 against 0.50 "
        f"(difference +0.10 [+0.09, +0.11], n = 4). {HELPS.text}: agrees."
    )
    assert "disagrees" in published.compared_means("x", first - TENTH, first, HELPS)
    wide = published.compared_means("x", first, first + WIDE, HELPS)
    assert wide.startswith("**x**: not told apart, on average 0.60 against 0.55")


def test_what_is_seen_is_the_most_frequent_top_answer_and_agrees_where_most_draws_are_right():
    names = ("fox", "badger", "skunk")
    draws = np.array([[0.1, 0.5, 0.4], [0.1, 0.3, 0.6], [0.0, 0.4, 0.6]])
    assert published.seen_as("PD", draws, 1, names) == (
        "**PD**: seen as skunk in 2 of 3 draws, 0.53; badger has 0.40."
    )
    assert published.seen_as("clean", draws[0], 1, names) == "**clean**: seen as badger, 0.50."
    for right, *judged in (
        (20, "agrees", "disagrees"),
        (0, "disagrees", "agrees"),
        (10, "not told apart", "not told apart"),
    ):
        draws = np.tile([0.4, 0.6], (20, 1))
        draws[:right] = [0.7, 0.3]
        for direction, expected in zip(("more", "fewer"), judged, strict=True):
            claim = Claim("The blog sees it", direction)
            # One answer is right or not.
            for found in (draws, draws[0]) if right in (0, 20) else (draws,):
                said = published.seen_as("PD", found, 0, ("badger", "skunk"), claim)
                assert said.endswith(f". The blog sees it: {expected}.")


def test_changes_are_counted_by_pixel_and_channel():
    before = np.full((4, 5, 3), 100, dtype=np.float32)
    after = before.copy()
    after[0, 0, 1] += 10
    after[1, 2] -= 30
    after[3, 4, 0] += 110
    assert published.changed("PD 2", before, after) == (
        "**PD 2**: 3 of 20 pixels changed (15.0%), 67% of them in one channel alone. Half of the "
        "changed values moved by 30 grey levels or less, the greatest by 110."
    )
    assert published.changed("none", before, before) == "**none**: not one of 20 pixels changed."


def test_what_may_set_a_run_apart_from_the_blog_is_said_with_its_numbers():
    draws = {"PD 200": (0.02, 0.04), "PD 600": (0.70, 0.80), "PD 77": (0.1, 0.2)}
    steps = {step: np.stack([np.linspace(*p, 5), np.full(5, 0.3)], 1) for step, p in draws.items()}
    steps["clean"] = np.full((5, 2), 0.9)
    adversary = {"adversary": np.array([[0.02, 0.57]])}
    options = {"names": ("cup", "soup"), "l2": 0.0062, "linf": 1.0}
    said = published.unlike_the_blog("mine", steps=adversary | steps, **options).data
    for part in (
        "0.15 and 0.02 (adversary), 0.52 and 0.03 (PD 200), 0.75 and 0.75 (PD 600), 1.00 and ",
        "*The network*: ResNet-50 there, mine here. ",
        "at cup 0.02 against soup 0.57 here",
        "ours 0.0062 and 1. ",
        "one there, 5 here; the blog's number lies within what they reach at PD 600, and outside, "
        "where luck alone does not explain it, at PD 200.",
    ):
        assert part in said
    assert "77" not in said
    own = adversary | {"PD 77": steps["PD 77"]}
    said = published.unlike_the_blog("resnet50", steps=own, **options).data
    assert "*The network*: the same, ResNet-50." in said
    assert said.endswith("*Draws*: one there, and at the blog's steps no more than one here.")


def test_sizes_are_told_by_their_ratio_and_extremes_name_all_that_tie():
    small, large = Mean(0.04, 0.03, 0.05, 9), Mean(0.07, 0.06, 0.08, 9)
    assert published.sized("sure against doubting", large, small) == (
        "**sure against doubting**: 1.8 times as large, relative L2 0.07 against 0.04."
    )
    assert "times" not in published.sized("x", large, Mean(0.0, 0.0, 0.0, 9))
    low, high = Rate(1, 10), Rate(9, 10)
    assert published.extremes("right", {"FGSM": low, "IGSM": low, 16: high}) == (
        f"**right**: least for FGSM, IGSM ({low}), most for 16 ({high})."
    )
    alike = published.extremes("right", {"FGSM": low, "IGSM": low})
    assert alike == f"**right**: the same for all, {low}."


def test_published_figures_stand_beside_measured_rates():
    rates = {"clean": Rate(10, 10), "FGSM": Rate(1, 10), "JSMA": Rate(6, 10), "PGD": Rate(5, 10)}
    table = published.beside(rates, {"clean": 0.1, "FGSM": 0.8, "JSMA": 0.7, "PGD": None}, "paper")
    assert list(table.columns) == ["here", "paper", "verdict"]
    assert table["verdict"].to_dict() == {
        "clean": "disagrees, more here",
        "FGSM": "disagrees, fewer here",
        "JSMA": "not told apart",
        "PGD": "-",
    }
    assert table.loc["FGSM"].tolist()[:2] == [f"{Rate(1, 10)}, n = 10", "0.80"]


def test_names_are_gathered_by_their_word_and_sentences_as_a_list():
    words = {"a": "more", "b": "fewer", "c": "more"}
    assert published.listed("added", words, ("fewer", "not told apart")) == (
        "**added**: *fewer*: b; *not told apart*: none; *more*: a, c."
    )
    assert published.bullets("One.", "Two.").data == "- One.\n- Two."


def steps():
    return {
        "adversary": np.array([0.2, 0.7, 0.1]),
        "PD 600": np.array([[0.6, 0.3, 0.1], [0.4, 0.5, 0.1], [0.8, 0.1, 0.1]]),
    }


def test_step_table_gives_means_extremes_and_the_class_seen_most():
    table = published.step_table(steps(), label=0, attacked_label=1, names=NAMES)
    row = table.loc["PD 600"]
    assert (row["badger"], row["skunk"]) == ("0.60", "0.30")
    assert (row["range"], row["draws"]) == ("0.40 to 0.80", "3")
    assert table.loc["adversary", "range"] == ""
    assert list(table["seen as"]) == ["skunk", "badger"]


def test_step_table_sets_the_blog_beside_its_own_steps_only():
    others = {"clean, PD 600": np.array([1.0, 0, 0]), "mine": np.array([1.0, 0, 0])}
    table = published.step_table(steps() | others, label=0, attacked_label=1, names=NAMES)
    # Of the clean image after deflection the blog states the true class alone.
    assert list(table["blog: badger, skunk"]) == ["0.15, 0.59", "0.75, 0.16", "1.00", ""]


@pytest.mark.parametrize(("attacked", "columns"), [(1, ["badger", "skunk"]), (0, ["badger"])])
def test_step_table_leaves_out_the_blog_and_the_attack_s_class_where_there_are_none(
    attacked, columns
):
    mine = {"mine": np.array([1.0, 0, 0])}
    table = published.step_table(mine, label=0, attacked_label=attacked, names=NAMES)
    assert list(table.columns) == [*columns, "seen as"]
