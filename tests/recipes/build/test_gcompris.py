"""Pictures are found in resource files that the tests write byte by byte."""

import io

import pytest
from PIL import Image

from recipes.data.build import gcompris


@pytest.fixture
def file(picture, resource):
    """A resource file with one picture of each format among things that only look like one."""
    jpeg = io.BytesIO()
    Image.new("RGB", (32, 24), (9, 99, 199)).save(jpeg, "JPEG")
    items = {
        "sound.wav": b"RIFF\x04\0\0\0WAVE",
        "a.webp": picture(20, 10, (255, 0, 0), (0, 255, 0), "WEBP"),
        "text.txt": b"a PNG begins with \x89PNG but not with this",
        "b.png": picture(30, 10, (0, 0, 255), (0, 255, 0)),
        "c.jpg": jpeg.getvalue(),
    }
    return items, *resource(items)


def test_every_picture_is_found_and_nothing_else(file):
    items, data, positions = file
    found = list(gcompris.find_pictures(data))
    assert [(one.format, one.offset) for one in found] == [
        ("webp", positions["a.webp"]),
        ("png", positions["b.png"]),
        ("jpeg", positions["c.jpg"]),
    ]
    assert [data[one.offset : one.offset + one.length] for one in found] == [
        items["a.webp"],
        items["b.png"],
        items["c.jpg"],
    ]


def test_a_picture_is_taken_out_whole(file):
    items, data, positions = file
    for name in ("a.webp", "b.png", "c.jpg"):
        assert gcompris.picture_at(data, positions[name]) == items[name]
    opened = Image.open(io.BytesIO(gcompris.picture_at(data, positions["a.webp"])))
    assert opened.size == (20, 10)
    assert opened.convert("RGB").getpixel((2, 5)) == (255, 0, 0)


@pytest.mark.parametrize("offset", [0, 21, 10**6])
def test_no_picture_at_a_place_is_an_error_that_says_so(file, offset):
    with pytest.raises(ValueError, match=f"picture_at: offset={offset}: no WebP, JPEG or PNG begins there"):
        gcompris.picture_at(file[1], offset)


def test_a_picture_that_is_cut_short_is_not_a_picture(file):
    _, data, positions = file
    with pytest.raises(ValueError, match="no WebP, JPEG or PNG"):
        gcompris.picture_at(data[: positions["a.webp"] + 30], positions["a.webp"])


@pytest.mark.parametrize("version", [1, 2, 3])
def test_names_lead_to_the_pictures(file, resource, version):
    items, _, _ = file
    data, positions = resource(items, version)
    assert gcompris.resource_names(data) == {positions[name]: f"src/{name}" for name in items}


def test_other_files_are_refused(resource):
    with pytest.raises(ValueError, match="not a Qt resource file"):
        gcompris.resource_names(b"RIFF" + bytes(40))
    with pytest.raises(ValueError, match=r"resource format 9\. Known: 1, 2, 3"):
        gcompris.resource_names(resource({"a": b"b"}, 9)[0])
