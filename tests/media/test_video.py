"""Clips as people have them: files there and back, turned and cut ones, refusals that leave nothing behind."""

import math
import re

import av
import numpy as np
import pytest
import torch
from PIL import Image

from zoo import samples
from zoo.media.image import read_images
from zoo.media.video import ClipReader, VideoWriter, read_videos, to_frames, write_video

CLIP = samples.video()[0]
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
WANTED = torch.from_numpy(PIXELS).permute(3, 0, 1, 2).float() / 127.5 - 1


def read(source, **options):
    return read_videos(source, **{"size": None, **options})


def smooth(frames, height=32, width=48, seed=0):
    """A clip without fine detail, which H.264 keeps nearly as it is."""
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 2, 3, 3, generator=draws) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear", align_corners=True)


def plain_write(path, clip, *, options=None, rate=25):
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream("libx264", rate=rate)
        video.width, video.height, video.pix_fmt = clip.shape[2], clip.shape[1], "yuv420p"
        for pixels in clip:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))


# -- what is read ------------------------------------------------------------------------------------------------------------------


def test_every_kind_of_clip_gives_the_same_values():
    frames = [Image.fromarray(frame) for frame in PIXELS]
    tensor = torch.from_numpy(PIXELS).permute(3, 0, 1, 2)
    for source in (PIXELS, tensor, WANTED, frames, list(PIXELS), list(tensor.unbind(1)), PIXELS[None], WANTED[None], [PIXELS]):
        assert torch.equal(read(source), WANTED[None])
    for batch in ([PIXELS, PIXELS], np.stack([PIXELS, PIXELS]), [frames, frames], torch.stack([WANTED, WANTED])):
        assert torch.equal(read(batch), torch.stack([WANTED, WANTED]))


def test_a_file_is_what_its_decoder_gives():
    with av.open(str(CLIP)) as container:
        wanted = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    x = read(CLIP)
    assert x.shape == (1, 3, 33, 256, 256)
    assert np.array_equal(to_frames(x)[0], wanted)
    with ClipReader(CLIP, frames=5) as reader:
        assert (reader.frame_rate, reader.length) == (25.0, 33)
        chunks = list(reader)
    assert [chunk.shape[2] for chunk in chunks] == [5] * 6 + [3]
    assert torch.equal(torch.cat(chunks, 2), x)


def test_every_frame_is_resized_by_the_rule_for_pictures():
    x = read(PIXELS, size=(4, 4))
    for i, frame in enumerate(PIXELS):
        assert torch.equal(x[:, :, i], read_images(frame, size=(4, 4)))
    assert read(CLIP, size=(24, 40)).shape == (1, 3, 33, 24, 40)
    assert read(PIXELS, size=3, crop=False).shape == (1, 3, 5, 3, 4)


def test_a_still_picture_is_a_clip_of_one_frame():
    path = samples.images()[0]
    x = read(path)
    assert x.shape == (1, 3, 1, 256, 256)
    assert float((x[:, :, 0] - read_images(path, size=None)).abs().mean()) < 0.02, "two decoders of JPEG differ a little"
    with ClipReader(path) as reader:
        assert (reader.frame_rate, reader.length) == (None, 1)


def test_frames_are_turned_as_the_file_says(tmp_path):
    """A phone stores upright clips lying, with a matrix that turns them."""
    clip = to_frames(smooth(3))[0]
    plain_write(tmp_path / "x.mp4", clip)
    data = bytearray((tmp_path / "x.mp4").read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    one = (1 << 16).to_bytes(4, "big")
    minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
    zero, unit = bytes(4), (1 << 30).to_bytes(4, "big")
    data[place : place + 36] = zero + one + zero + minus + zero + zero + zero + zero + unit  # shown turned to the right
    (tmp_path / "turned.mp4").write_bytes(data)
    lying, upright = read(tmp_path / "x.mp4"), read(tmp_path / "turned.mp4")
    assert upright.shape == (1, 3, 3, 48, 32)
    assert torch.equal(upright, torch.rot90(lying, -1, (3, 4)))


# -- what is refused ---------------------------------------------------------------------------------------------------------------

REFUSED = {
    "no frame": (lambda: PIXELS[:0], r"clip without frames"),
    "no rows": (lambda: PIXELS[:, :0], r"at least 1"),
    "empty list": (lambda: [], r"list of clips or frames is empty"),
    "four channels": (lambda: np.zeros((2, 4, 4, 4), np.uint8), r"\(2, 4, 4, 4\).*\(t, h, w, 3\)"),
    "float array": (lambda: PIXELS / 255.0, r"float64.*uint8"),
    "frames first": (lambda: WANTED.transpose(0, 1), r"\(5, 3, 6, 8\).*\(3, t, h, w\)"),
    "NaN": (lambda: WANTED * math.nan, r"no NaN"),
    "range": (lambda: WANTED * 255, r"\[-1, 1\]"),
    "unequal frames": (lambda: [PIXELS[0], PIXELS[1, :5]], r"frame 1 is 8 x 5, the first is 8 x 6"),
    "unequal clips": (lambda: [PIXELS, PIXELS[:3]], r"3 x 6 x 8, 5 x 6 x 8.*Give encode\(\) a list"),
    "no file": (lambda: "nowhere.mp4", r"no file nowhere\.mp4"),
    "a sound": (lambda: samples.speech()[0], r"holds no pictures"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    make, words = REFUSED[case]
    with pytest.raises(ValueError, match=rf"preprocess: .*{words}"):
        read(make())
    with pytest.raises(TypeError, match="preprocess: int is no clip"):
        read(3)


@pytest.mark.parametrize("options", [{"movflags": "faststart"}, {}])
@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".avi"])
def test_files_that_are_cut_short(tmp_path, ending, options):
    if options and ending != ".mp4":
        options = {}
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    plain_write(tmp_path / f"whole{ending}", noise, options=options)
    data = (tmp_path / f"whole{ending}").read_bytes()
    assert read(tmp_path / f"whole{ending}").shape[2] == 20
    for share in (0.0, 0.02, 0.5, 0.95):
        cut = tmp_path / f"cut{ending}"
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match=rf"preprocess: .*cut{re.escape(ending)}.*(cut short|damaged|not a readable)"):
            read(cut)


def test_files_that_are_damaged(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    plain_write(tmp_path / "x.mp4", noise)
    data = bytearray((tmp_path / "x.mp4").read_bytes())
    for i in range(len(data) // 2, len(data) // 2 + 2000):
        data[i] ^= 255
    (tmp_path / "bits.mp4").write_bytes(data)
    (tmp_path / "text.mp4").write_text("hello" * 100)
    for name, words in (("bits", "damaged"), ("text", "not a readable video")):
        with pytest.raises(ValueError, match=rf"preprocess: .*{name}\.mp4 is {words}"):
            read(tmp_path / f"{name}.mp4")


def test_a_file_whose_frames_change_their_size(tmp_path):
    small, large = tmp_path / "small.h264", tmp_path / "large.h264"
    for path, side in ((small, 32), (large, 64)):
        plain_write(path, to_frames(smooth(3, side, side))[0], options={})
    (tmp_path / "x.h264").write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(ValueError, match=r"x\.h264 is 64 x 64, the first is 32 x 32"):
        read(tmp_path / "x.h264", size=16)


# -- writing -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47)])
@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_chunks_that_are_written_come_back(tmp_path, ending, height, width):
    x = smooth(19, height, width)
    with VideoWriter(tmp_path / f"x{ending}", frame_rate=12.5, crf=4) as writer:
        for chunk in x.split(7, 2):
            writer.write(chunk)
    y = read(tmp_path / f"x{ending}")
    assert y.shape == x.shape
    assert float((y - x).abs().mean()) < 0.02
    with ClipReader(tmp_path / f"x{ending}") as reader:
        assert reader.frame_rate == 12.5
    assert [p.name for p in tmp_path.iterdir()] == [f"x{ending}"]


def test_nothing_half_written_stays(tmp_path):
    x = smooth(3)
    with (  # noqa: PT012
        pytest.raises(ValueError, match="postprocess: the tensor holds NaN"),
        VideoWriter(tmp_path / "x.mp4", frame_rate=25) as writer,
    ):
        writer.write(x)
        writer.write(x * math.nan)
    with (  # noqa: PT012
        pytest.raises(ValueError, match=r"frames of \(32, 40\) after \(32, 48\)"),
        VideoWriter(tmp_path / "x.mp4", frame_rate=25) as writer,
    ):
        writer.write(x)
        writer.write(x[..., :40])
    with pytest.raises(ValueError, match="nothing was written"), VideoWriter(tmp_path / "x.mp4", frame_rate=25):
        pass
    for options, words in (
        ({"path": "x.gif"}, r"ends in \.gif. Allowed: \.mp4"),
        ({"frame_rate": 0}, r"frame_rate=0"),
        ({"frame_rate": math.nan}, r"frame_rate=nan"),
        ({"crf": 99}, r"crf=99"),
    ):
        arguments = {"path": "x.mp4", "frame_rate": 25, **options}
        with pytest.raises(ValueError, match=f"VideoWriter: .*{words}"):
            write_video(x, tmp_path / arguments.pop("path"), **arguments)
    with pytest.raises(ValueError, match="2 clips for one file"):
        write_video(x.expand(2, -1, -1, -1, -1), tmp_path / "x.mp4", frame_rate=25)
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 4, 5\).*\(b, 3, t, h, w\)"):
        to_frames(torch.zeros(1, 2, 3, 4, 5))
    assert not list(tmp_path.iterdir())
