"""H.264 and AV1 on a real clip: every frame comes back, more bits are nearer, and the bits are those of the stream."""

import av
import numpy as np
import pytest

from eval.baselines.video import VIDEO_CODECS
from zoo import samples


@pytest.fixture(scope="module")
def clip():
    with av.open(str(samples.video()[0])) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame, _ in zip(file.decode(video=0), range(9), strict=False)]
    return np.stack(frames)[:, 64:192, 64:192]


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


@pytest.mark.parametrize("name", list(VIDEO_CODECS))
def test_more_bits_are_nearer_to_the_original(name, clip):
    found = [VIDEO_CODECS[name].code(clip, 25.0, crf) for crf in (20, 35, 50)]
    assert all(frames.shape == clip.shape and frames.dtype == np.uint8 for frames, _ in found)
    assert [bits for _, bits in found] == sorted((bits for _, bits in found), reverse=True)
    quality = [psnr(clip, frames) for frames, _ in found]
    assert quality == sorted(quality, reverse=True)
    assert quality[0] > 32
    assert found[0][1] < 0.5 * clip.size * 8
    again = VIDEO_CODECS[name].code(clip, 25.0, 35)
    np.testing.assert_array_equal(again[0], found[1][0])
    assert again[1] == found[1][1]


@pytest.mark.parametrize("name", list(VIDEO_CODECS))
def test_frames_come_back_in_order(name):
    """Each frame has a grey of its own."""
    greys = np.array([30, 90, 150, 210, 60], np.uint8)
    frames = np.broadcast_to(greys[:, None, None, None], (5, 64, 64, 3))
    decoded, _ = VIDEO_CODECS[name].code(np.ascontiguousarray(frames), 25.0, 20)
    np.testing.assert_allclose(decoded.mean((1, 2, 3)), greys, atol=4)


def test_the_encoder_is_named():
    facts = {name: codec.facts() for name, codec in VIDEO_CODECS.items()}
    assert facts["h264"]["encoder"].startswith("libx264 of FFmpeg ")
    assert facts["av1"]["encoder"].startswith("libsvtav1 of FFmpeg ")


def test_odd_sides_and_other_types_are_refused(clip):
    with pytest.raises(ValueError, match=r"baseline h264: frames of 127 x 128 px. Needed: even sides"):
        VIDEO_CODECS["h264"].code(clip[:, :127], 25.0, 30)
    with pytest.raises(ValueError, match=r"Needed: uint8 \(t, h, w, 3\)"):
        VIDEO_CODECS["h264"].code(clip.astype(np.float32), 25.0, 30)
