import numpy as np
import pytest
from scipy import ndimage

from pdutils._utils import check_images
from pdutils.demo.drawing import CLASS_NAMES, draw_animal, draw_animals


@pytest.mark.parametrize("label", range(len(CLASS_NAMES)))
def test_a_drawing_obeys_the_image_contract_and_lies_on_the_8_bit_grid(label):
    drawing = draw_animal(label, rng=0)
    check_images(drawing.image)
    assert drawing.image.shape == (224, 224, 3)
    assert drawing.label == label
    np.testing.assert_array_equal(drawing.image, np.rint(drawing.image))
    assert drawing.image.min() >= 0
    assert drawing.image.max() <= 255


@pytest.mark.parametrize("label", range(len(CLASS_NAMES)))
def test_the_mask_is_mostly_one_piece_and_neither_nothing_nor_everything(label):
    for seed in range(3):
        mask = draw_animal(label, rng=seed).mask
        pieces, n = ndimage.label(mask)
        largest = np.bincount(pieces.ravel())[1 : n + 1].max()
        assert mask.dtype == np.bool_
        assert 0.05 < mask.mean() < 0.75
        # Grass in front of the animal may cut parts off it.
        assert largest > 0.6 * mask.sum()


def test_the_mask_follows_the_animal_and_not_the_background():
    # A badger's head is white and black; few backgrounds are either.
    inside, outside = [], []
    for seed in range(10):
        drawing = draw_animal(0, rng=seed)
        contrast = np.abs(drawing.image.mean(axis=-1) - 110)
        inside.append(contrast[drawing.mask].mean())
        outside.append(contrast[~drawing.mask].mean())
    assert np.mean(inside) > 1.3 * np.mean(outside)


def test_the_same_seed_draws_the_same_picture_and_another_seed_another():
    np.testing.assert_array_equal(draw_animal(3, rng=5).image, draw_animal(3, rng=5).image)
    assert not np.array_equal(draw_animal(3, rng=5).image, draw_animal(3, rng=6).image)


def test_a_drawing_does_not_depend_on_how_many_are_drawn_and_classes_come_in_turn():
    few, many = draw_animals(3, rng=1), draw_animals(11, rng=1)
    for one, other in zip(few, many, strict=False):
        np.testing.assert_array_equal(one.image, other.image)
    assert [drawing.label for drawing in many] == [*range(10), 0]


def test_other_sizes_are_drawn():
    drawing = draw_animal(0, size=33, rng=0)
    assert drawing.image.shape == (33, 33, 3)
    assert drawing.mask.shape == (33, 33)


@pytest.mark.parametrize(("label", "size"), [(-1, 224), (10, 224), (0, 8)])
def test_what_cannot_be_drawn_is_refused(label, size):
    with pytest.raises(ValueError, match=r"label|size"):
        draw_animal(label, size=size)
