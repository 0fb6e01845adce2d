"""Texts of pictures: captions as they are, else the label and the words of the name."""

import hashlib

import pytest

from recipes.data.captions import caption, word_numbers


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"caption": "A  red\nHen", "label": "animal"}, "a red hen"),
        ({"text": "two boats"}, "two boats"),
        ({"label": "animal", "file": "usr/share/tuxpaint/stamps/animals/birds/hen.png"}, "animal animals birds hen"),
        ({"label": "plant", "file": "usr/share/wallpapers/OneStandsOut/contents/images/1680x1050.jpg"}, "plant"),
        ({"label": "building", "file": "explore_monuments.rcc@2312825"}, "building explore monuments"),
        ({"label": "vehicle", "file": "stamps/vehicles/ship/BigSHIPTwo3.png"}, "vehicle vehicles ship big two"),
        ({"key": "00"}, "picture"),
        ({"caption": " ", "label": None}, "picture"),
    ],
)
def test_text_of_a_record(record, text):
    assert caption(record) == text


def test_numbers_of_words_are_their_hashes():
    number = int.from_bytes(hashlib.sha256(b"hen").digest()[:6], "big") % 100
    assert word_numbers("hen red hen", 100) == [number, word_numbers("red", 100)[0], number]
