import numpy as np
import pytest
from scipy import ndimage

from pdutils._utils import check_images
from pdutils.demo.drawing import CLASS_NAMES, draw_animal, draw_animals


@pytest.mark.parametrize("label", range(len(CLASS_NAMES)))
def test_a_drawing_is_an_image_on_the_8_bit_grid_and_its_mask_mostly_one_piece(label):
    for seed in range(3):
        drawing = draw_animal(label, rng=seed)
        check_images(drawing.image)
        assert drawing.image.shape == (224, 224, 3)
        assert drawing.label == label
        np.testing.assert_array_equal(drawing.image, np.rint(np.clip(drawing.image, 0, 255)))
        pieces, n = ndimage.label(drawing.mask)
        largest = np.bincount(pieces.ravel())[1 : n + 1].max()
        assert drawing.mask.dtype == np.bool_
        assert 0.05 < drawing.mask.mean() < 0.75
        # Grass in front of the animal may cut parts off it.
        assert largest > 0.6 * drawing.mask.sum()


def test_the_mask_follows_the_animal_and_not_the_background():
    # A badger's head is white and black; few backgrounds are either.
    inside, outside = [], []
    for seed in range(10):
        drawing = draw_animal(0, size=64, rng=seed)
        contrast = np.abs(drawing.image.mean(axis=-1) - 110)
        inside.append(contrast[drawing.mask].mean())
        outside.append(contrast[~drawing.mask].mean())
    assert np.mean(inside) > 1.3 * np.mean(outside)


def test_a_drawing_does_not_depend_on_how_many_are_drawn_and_classes_come_in_turn():
    few, many = draw_animals(3, size=33, rng=1), draw_animals(11, size=33, rng=1)
    for one, other in zip(few, many, strict=False):
        np.testing.assert_array_equal(one.image, other.image)
    assert [drawing.label for drawing in many] == [*range(10), 0]
    assert many[0].image.shape == (33, 33, 3)
    assert many[0].mask.shape == (33, 33)
    assert not np.array_equal(many[0].image, many[10].image)


@pytest.mark.parametrize(("label", "size"), [(-1, 224), (10, 224), (0, 8)])
def test_what_cannot_be_drawn_is_refused(label, size):
    with pytest.raises(ValueError, match=r"label|size"):
        draw_animal(label, size=size)
