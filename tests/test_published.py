import re

from pdutils import published


def test_the_paper_s_figures_are_shares():
    for table in (*published.ACCURACY.values(), published.LARGER):
        for row in table.values():
            assert all(0 <= share <= 1 for share in row)
    for row in published.DESTRUCTION.values():
        assert all(share is None or 0 <= share <= 1 for share in row.values())


def test_under_every_attack_the_paper_s_defence_wins_back_what_the_network_loses():
    for table in (*published.ACCURACY.values(), published.LARGER):
        for attack, row in table.items():
            if attack != "clean":
                assert row.attacked < 0.3 < row.single


def test_the_rows_that_a_reader_knows_by_heart():
    assert published.ACCURACY["resnet50"]["C&W"] == (0.04, 0.048, 0.927, 0.980)
    assert published.LARGER["FGSM"] == (0.12, 0.111, 0.615, 0.704)
    assert published.DESTRUCTION["PD + R-CAM + WD"]["IGSM"] == 0.927
    assert published.DESTRUCTION["random padding"]["IGSM"] is None
    assert published.BLOG["PD 200"] == (0.52, 0.25)
    assert published.BLOG["PD 1500 + R-CAM + WD"] == (0.97, 0.02)


def test_the_blog_s_answers_and_moves_are_read_from_its_numbers():
    assert published.blog_answer("PD 200").direction == "more"
    assert published.blog_answer("adversary").direction == "fewer"
    assert "skunk, 0.59, and not the badger, 0.15" in published.blog_answer("adversary").text
    assert published.blog_answer("WD") is None
    rise = published.blog_move("adversary", "PD 200")
    assert rise == ("The blog's badger rises from 0.15 to 0.52", "more")
    assert published.blog_move("PD 200", "adversary").direction == "fewer"
    assert published.blog_move("clean", "clean, PD 600") == (
        "The blog's badger stays at 1.00",
        "as many",
    )
    assert published.blog_move("clean", "WD") is None


def test_every_claim_is_borne_out_by_its_own_figures():
    for name in ("pd", "wd", "map"):
        before, after = re.findall(r"0\.\d\d", published.CLAIMS[name].text)
        # The map's are the other way round: with it against without.
        rising = after > before if name != "map" else before > after
        assert (rising, published.CLAIMS[name].direction) == (True, "more")
    blog, table = published.BLOG, published.DESTRUCTION
    shown = [blog["adversary"][0], blog["PD 200"][0], blog["PD 200 + WD"][0]]
    shown += [table["PD + R-CAM"]["IGSM"], table["PD"]["IGSM"]]
    texts = " ".join(claim.text for claim in published.CLAIMS.values())
    assert all(f"{figure:.2f}" in texts for figure in shown)


def test_the_paper_has_its_whole_defence_above_every_peer_against_igsm():
    rates = {name: row["IGSM"] for name, row in published.DESTRUCTION.items()}
    whole = rates.pop("PD + R-CAM + WD")
    assert all(rate < whole for rate in rates.values() if rate is not None)
