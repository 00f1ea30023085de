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
