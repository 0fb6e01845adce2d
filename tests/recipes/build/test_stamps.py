"""Composites follow the rule of the pack, and depend on nothing but seed and key."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from recipes.data.build.stamps import Draws, backdrop, compose, gradient, resample, trim


def red(width: int, height: int) -> Image.Image:
    return Image.new("RGBA", (width, height), (255, 0, 0, 255))


def test_draws_are_the_documented_hash():
    draws = Draws(7, "abc")
    expected = [int(hashlib.sha256(f"7/abc/{i}".encode()).hexdigest()[:12], 16) / 16**12 for i in range(3)]
    assert [draws.uniform() for _ in range(3)] == expected
    assert Draws(7, "abc").uniform() == expected[0]
    assert Draws(8, "abc").uniform() != expected[0]
    assert Draws(7, "abd").uniform() != expected[0]


def test_draws_fill_their_range():
    draws = Draws(0, "range")
    dice = [draws.integer(1, 6) for _ in range(600)]
    assert {dice.count(face) > 60 for face in range(1, 7)} == {True}
    values = [draws.uniform(-2.0, 3.0) for _ in range(500)]
    assert -2.0 <= min(values) < -1.9
    assert 2.9 < max(values) < 3.0
    assert {draws.choice("xyz") for _ in range(50)} == set("xyz")


def test_trim_cuts_what_is_fully_transparent():
    canvas = Image.new("RGBA", (50, 40))
    canvas.paste(Image.new("RGBA", (10, 20), (0, 0, 255, 1)), (7, 11))
    assert trim(canvas).size == (10, 20)
    with pytest.raises(ValueError, match="stamp of 50x40 pixels is fully transparent"):
        trim(Image.new("RGBA", (50, 40)))


def test_shrinking_is_lanczos_and_enlarging_bicubic():
    assert resample(128, 128) is Image.Resampling.LANCZOS
    assert resample(129, 128) is Image.Resampling.LANCZOS
    assert resample(127, 128) is Image.Resampling.BICUBIC


def test_a_gradient_runs_down_and_is_even_across():
    for number in range(20):
        pixels = np.asarray(gradient(Draws(0, str(number)), 64)).astype(int)
        assert (pixels == pixels[:, :1]).all()
        steps = np.diff(pixels[:, 0].sum(axis=1))
        assert (steps >= 0).all() or (steps <= 0).all()
        assert abs(int(pixels[0, 0, 0]) - int(pixels[-1, 0, 0])) >= 10


def test_a_backdrop_is_blurred_and_keeps_its_brightness():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 200
    pixels = np.asarray(backdrop(Draws(0, "blur"), Image.fromarray(stripes))).astype(float)
    assert pixels.std() < 0.5 * stripes.std()
    assert abs(pixels.mean() - stripes.mean()) < 2


@pytest.mark.parametrize(("width", "height"), [(900, 400), (100, 30), (120, 130), (70, 64)])
def test_a_stamp_is_80_to_124_pixels_or_1_2_times_its_size(width, height):
    longest = max(width, height)
    sizes = []
    for number in range(60):
        ground = Image.new("RGB", (128, 128), (0, 0, 255))
        picture, (paste,) = compose(Draws(0, str(number)), red(width, height), ground)
        x0, y0, x1, y1 = paste.box
        assert 0 <= x0 < x1 <= 128
        assert 0 <= y0 < y1 <= 128
        sizes.append(max(x1 - x0, y1 - y0))
        pixels = np.asarray(picture)
        inside = np.zeros((128, 128), bool)
        inside[y0:y1, x0:x1] = True
        assert (pixels[inside] == (255, 0, 0)).all()
        assert (pixels[~inside] == (0, 0, 255)).all()
    limit = round(1.2 * longest)
    assert min(sizes) >= min(80, limit)
    assert max(sizes) <= min(124, limit)
    assert len(set(sizes)) > 0.3 * (min(124, limit) - 80)


def test_small_stamps_come_one_to_three_times():
    counts = []
    for number in range(60):
        _, pastes = compose(Draws(0, str(number)), red(45, 30), Image.new("RGB", (128, 128)), small=True)
        counts.append(len(pastes))
        assert all(paste.box[2] - paste.box[0] <= 54 for paste in pastes)
    assert {count: counts.count(count) >= 8 for count in set(counts)} == {1: True, 2: True, 3: True}


def test_a_flip_mirrors_the_stamp():
    stamp = red(40, 80)
    stamp.paste((0, 255, 0, 255), (20, 0, 40, 80))
    seen = set()
    for number in range(20):
        picture, (paste,) = compose(Draws(0, str(number)), stamp, Image.new("RGB", (128, 128)))
        x0, y0, _, y1 = paste.box
        left = picture.getpixel((x0 + 2, (y0 + y1) // 2))
        assert (left[1] > left[0]) == paste.flip
        seen.add(paste.flip)
    assert seen == {True, False}


def test_the_background_is_not_changed():
    ground = Image.new("RGB", (128, 128), (1, 2, 3))
    compose(Draws(0, "x"), red(100, 100), ground)
    assert ground.getcolors() == [(128 * 128, (1, 2, 3))]


def test_other_sizes_scale_the_rule():
    for number in range(20):
        _, (paste,) = compose(Draws(0, str(number)), red(500, 500), Image.new("RGB", (64, 64)))
        assert 40 <= paste.box[2] - paste.box[0] <= 62
