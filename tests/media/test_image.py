"""Pictures as people have them: every kind gives the values that were computed by hand, or one clear refusal."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from zoo.media import from_pil, read_images, resize_crop, to_pil, to_uint8

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
WANTED = torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 127.5 - 1


def read(source, **options):
    return read_images(source, **{"size": None, **options})


# -- kinds that are read -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_picture_gives_the_same_values(tmp_path):
    path = tmp_path / "x.png"
    PICTURE.save(path)
    kinds = {
        "path": path,
        "text": str(path),
        "pil": PICTURE,
        "array": PIXELS,
        "bytes": torch.from_numpy(PIXELS).permute(2, 0, 1),
        "float": WANTED,
        "half": WANTED.double(),
    }
    for name, source in kinds.items():
        for form in (source, [source], (source,)):
            x = read(form)
            assert x.dtype == torch.float32, name
            assert torch.equal(x[0], WANTED), name
    for batch in (np.stack([PIXELS, PIXELS]), torch.stack([WANTED, WANTED])):
        assert torch.equal(read(batch), torch.stack([WANTED, WANTED]))


def test_grey_becomes_three_equal_channels():
    grey = PIXELS[..., 0]
    wanted = (torch.from_numpy(grey).float() / 127.5 - 1).expand(3, -1, -1)
    for source in (grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)[None], wanted[:1]):
        assert torch.equal(read(source)[0], wanted)


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    picture = Image.fromarray(values)
    picture.save(tmp_path / "x.png")
    for source in (picture, tmp_path / "x.png"):
        assert ((read(source)[0, 0, 0] + 1) * 127.5).round().tolist() == [0, 1, 128, 255]


def test_transparency_lies_on_white(tmp_path):
    rgba = np.concatenate([PIXELS, np.full((5, 7, 1), 128, np.uint8)], 2)
    wanted = PIXELS * (128 / 255) + 255 * (127 / 255)
    found = (read(rgba)[0].permute(1, 2, 0) + 1) * 127.5
    assert float((found - torch.from_numpy(wanted)).abs().max()) <= 1
    assert read(Image.new("LA", (2, 2), (0, 0))).unique().tolist() == [1.0]
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0])
    palette.info["transparency"] = 0
    assert read(palette).unique().tolist() == [1.0]


def test_other_colour_models():
    assert read(Image.new("CMYK", (2, 2), (0, 0, 0, 255))).unique().tolist() == [-1.0]
    assert read(Image.new("1", (2, 2), 1)).unique().tolist() == [1.0]


def test_the_orientation_in_the_file_is_applied(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by 90 degrees to the right
    PICTURE.save(tmp_path / "x.png", exif=turned)
    wanted = torch.rot90(WANTED, -1, (1, 2))
    assert torch.equal(read(tmp_path / "x.png")[0], wanted)
    with Image.open(tmp_path / "x.png") as opened:
        assert torch.equal(read(opened)[0], wanted)


# -- sizes -------------------------------------------------------------------------------------------------------------------------


def gradient(width, height):
    return Image.fromarray(np.tile(np.linspace(0, 255, width).round().astype(np.uint8)[None, :, None], (height, 1, 3)))


@pytest.mark.parametrize(("size", "shape"), [(8, (8, 8)), ((4, 12), (4, 12)), ((12, 4), (12, 4)), (None, (30, 50))])
def test_sizes_with_crop(size, shape):
    assert read(gradient(50, 30), size=size).shape == (1, 3, *shape)


@pytest.mark.parametrize(("width", "height", "shape"), [(50, 30, (8, 13)), (30, 50, (13, 8)), (100, 1, (8, 800)), (8, 8, (8, 8))])
def test_sizes_without_crop_keep_the_aspect(width, height, shape):
    assert read(gradient(width, height), size=8, crop=False).shape == (1, 3, *shape)


def test_the_crop_is_the_centre():
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, 10:20] = 255
    assert read(stripes, size=10).unique().tolist() == [1.0]
    assert resize_crop(Image.fromarray(stripes), None).size == (30, 10)


def test_shrinking_takes_the_mean_of_what_it_leaves_out():
    checks = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    assert float((read(checks, size=8)).abs().max()) < 0.05, "without antialiasing it would be black or white"


@pytest.mark.parametrize("size", [0, -1, (0, 4), 4.5, (4, 4, 4), "8", True, (4, None)])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match=r"preprocess: size=.*\(h, w\)"):
        read(PICTURE, size=size)


# -- what is refused ---------------------------------------------------------------------------------------------------------------

REFUSED = {
    "empty list": ([], r"list of pictures is empty"),
    "two sizes": ([PICTURE, gradient(4, 4)], r"2 sizes.*crop=True"),
    "float array": (PIXELS / 255.0, r"float64.*uint8"),
    "bool array": (PIXELS > 3, r"bool.*uint8"),
    "two channels": (PIXELS[..., :2], r"\(5, 7, 2\).*\(h, w, 3\)"),
    "no rows": (PIXELS[:0], r"\(0, 7, 3\).*at least 1"),
    "flat tensor": (WANTED[0], r"\(5, 7\).*\(3, h, w\)"),
    "channels last": (WANTED.permute(1, 2, 0), r"\(5, 7, 3\).*\(3, h, w\)"),
    "no columns": (WANTED[..., :0], r"\(3, 5, 0\).*at least 1"),
    "long tensor": (WANTED.long(), r"int64.*floating point in \[-1, 1\] or uint8"),
    "255": (WANTED * 127.5 + 127.5, r"reaches from 0 to 24\d.*\[-1, 1\]"),
    "NaN": (WANTED * math.nan, r"from nan to nan.*no NaN"),
    "depth map": (Image.fromarray(np.zeros((4, 4), np.float32)), r"mode F.*8 or 16 bits"),
    "32 bits": (Image.fromarray(np.zeros((4, 4), np.int32)), r"mode I.*8 or 16 bits"),
    "no file": ("nowhere.png", r"no file nowhere\.png"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    source, words = REFUSED[case]
    with pytest.raises(ValueError, match=rf"preprocess: .*{words}"):
        read(source)


@pytest.mark.parametrize("source", [None, 3, b"png", {"a": 1}])
def test_what_is_no_picture(source):
    with pytest.raises(TypeError, match=rf"preprocess: {type(source).__name__} is no picture"):
        read(source)


def test_files_that_are_damaged(tmp_path):
    buffer = io.BytesIO()
    gradient(200, 200).save(buffer, "JPEG")
    whole = buffer.getvalue()
    buffer = io.BytesIO()
    gradient(200, 200).save(buffer, "PNG")
    png = bytearray(buffer.getvalue())
    png[60] ^= 255
    for name, data in {"cut.jpg": whole[:-300], "text.png": b"hello", "empty.png": b"", "bits.png": bytes(png)}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"preprocess: .*{name} is not a readable picture"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="preprocess: no file"):
        read(tmp_path)


def test_a_picture_that_is_a_bomb(tmp_path, monkeypatch):
    PICTURE.save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"preprocess: .*x\.png is not a readable picture"):
        read(tmp_path / "x.png")


def test_text_in_the_file_does_not_matter(tmp_path):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", "hello")
    PICTURE.save(tmp_path / "x.png", pnginfo=notes)
    assert torch.equal(read(tmp_path / "x.png")[0], WANTED)


# -- back --------------------------------------------------------------------------------------------------------------------------


def test_values_are_clamped_and_rounded():
    x = torch.tensor([-7.0, -1.0, -0.999, 0.0, 0.5, 1.0, 9.0]).view(1, 1, 1, 7).expand(-1, 3, -1, -1)
    assert to_uint8(x)[0, 0, 0].tolist() == [0, 0, 0, 128, 191, 255, 255]
    assert to_uint8(x.bfloat16()).dtype == torch.uint8


def test_pictures_go_there_and_back():
    (picture,) = to_pil(WANTED[None])
    assert np.array_equal(np.asarray(picture), PIXELS)
    assert torch.equal(from_pil([picture]), WANTED[None])
    assert to_pil(WANTED[None].requires_grad_())[0].size == (7, 5)


def test_a_broken_reconstruction_is_no_picture():
    with pytest.raises(ValueError, match=r"postprocess: .*NaN"):
        to_pil(WANTED[None] * math.nan)
    with pytest.raises(ValueError, match=r"postprocess: .*\(3, 5, 7\).*\(b, 3, h, w\)"):
        to_pil(WANTED)
