from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from eval.protocols import RULES, Protocol, default_protocol, get_protocol, noise_seed, prepare
from zoo.media import read_images, to_pil


def picture(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    channels = [(x * 7 + y * 3) % 256, (x * y // 9) % 256, (255 * (((x // 9) + (y // 7)) % 2))]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


CHANGED = {
    "id": "image-64-v2",
    "modality": "other",
    "size": (64, 65),
    "resize": "adm-box-bicubic",
    "crop": "none",
    "signal": "v / 255",
    "to_uint8": "truncate",
    "reference": "training statistics",
    "encode": "sample",
    "dtype": "bfloat16",
    "seed": 1,
    "noise": "one for all",
    "interval": "none",
    "decode": {"steps": 20},
    "scorers": {"psnr_db": {"unit": "dB"}},
}


def test_every_field_is_in_the_fingerprint():
    base = get_protocol("image-64-v1")
    assert set(CHANGED) == {f.name for f in fields(Protocol)}
    prints = {replace(base, **{name: value}).fingerprint for name, value in CHANGED.items()}
    assert len(prints) == len(CHANGED)
    assert base.fingerprint not in prints
    assert base.fingerprint == get_protocol("image-64-v1").fingerprint


def test_a_hash_of_a_network_is_in_the_fingerprint():
    base = get_protocol("image-64-v1")
    a, b = (replace(base, scorers={"kid_mbv2": {"sha256": digest}}).fingerprint for digest in ("aa", "ab"))
    assert a != b


def test_a_change_that_makes_another_quantity_is_in_the_id():
    base = get_protocol("image-64-v1")
    assert base.varied(seed=3, to_uint8="truncate").id == "image-64-v1+seed=3+to_uint8=truncate"
    assert base.varied(seed=0, dtype="float32", decode={"steps": 4}).id == "image-64-v1"
    with pytest.raises(ValueError, match=r"'filter' is no field that can be changed. Allowed: modality, size"):
        base.varied(filter="box")


def test_round_trip_and_tampering():
    protocol = get_protocol("image-64x48-v1").varied(decode={"steps": 2, "guidance": 1.5})
    values = protocol.to_dict()
    assert Protocol.from_dict(values) == protocol
    with pytest.raises(ValueError, match=r"does not fit the fields .* They were edited by hand"):
        Protocol.from_dict({**values, "to_uint8": "truncate"})
    with pytest.raises(ValueError, match=r"unknown keys \['filter'\], missing keys \['seed'\]"):
        Protocol.from_dict({**{key: value for key, value in values.items() if key != "seed"}, "filter": 1})


def test_names():
    assert get_protocol("image-256x192-v1").size == (256, 192)
    assert get_protocol("image-256-adm-v1").resize == "adm-box-bicubic"
    assert default_protocol("toy", (64, 64)).id == "image-64-v1"
    assert default_protocol("toy", (64, 32)).id == "image-64x32-v1"
    with pytest.raises(ValueError, match=r"there is no protocol 'image-256-amd-v1'. Closest: image-256-adm-v1"):
        get_protocol("image-256-amd-v1")
    with pytest.raises(ValueError, match=r"there is no protocol 'image-256-v2'"):
        get_protocol("image-256-v2")
    with pytest.raises(ValueError, match=r"toy has no native size. Choose a protocol"):
        default_protocol("toy", None)


def test_values_that_are_not_allowed():
    with pytest.raises(ValueError, match=r"adm-box-bicubic is defined for squares"):
        get_protocol("image-64x32-adm-v1")
    with pytest.raises(ValueError, match=r"seed=-1. Allowed: 0"):
        get_protocol("image-64-v1").varied(seed=-1)
    with pytest.raises(ValueError, match=r"decode option guidance="):
        get_protocol("image-64-v1").varied(decode={"guidance": len})
    with pytest.raises(ValueError, match=r"to_uint8='floor'. Allowed: round, truncate"):
        get_protocol("image-64-v1").varied(to_uint8="floor")


def test_the_zoos_rule_is_what_preprocess_does():
    image = picture(90, 70)
    expected = to_pil(read_images(image, size=(48, 32)))[0]
    np.testing.assert_array_equal(prepare(get_protocol("image-48x32-v1"), image), expected)


@pytest.mark.parametrize("size", [(90, 70), (70, 91), (64, 200), (33, 33)])
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_torchvision_rules_equal_its_transforms(size, name):
    kind = transforms.InterpolationMode(name)
    expected = transforms.Compose([transforms.Resize(40, kind), transforms.CenterCrop(40)])(picture(*size))
    np.testing.assert_array_equal(prepare(get_protocol(f"image-40-torchvision-{name}-v1"), picture(*size)), expected)


def test_adm_rule_halves_by_box_while_it_can():
    """150x130 at 32: two halvings give 37x32, each a mean of 2x2 pixels, and the centre is cut."""
    image = picture(150, 130)
    values = np.asarray(image).astype(float)
    halved = image.resize((75, 65), Image.Resampling.BOX).resize((37, 32), Image.Resampling.BOX)
    np.testing.assert_array_equal(prepare(get_protocol("image-32-adm-v1"), image), np.asarray(halved)[:, 2:34])
    first = values[:130, :150].reshape(65, 2, 75, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(image.resize((75, 65), Image.Resampling.BOX)) - first).max() <= 1


def test_adm_rule_then_bicubic():
    image = picture(100, 90)
    expected = image.resize((50, 45), Image.Resampling.BOX).resize((round(50 * 32 / 45), 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(prepare(get_protocol("image-32-adm-v1"), image), np.asarray(expected)[:, 2:34])


def test_the_rules_differ():
    image = picture(130, 120)
    made = [np.asarray(rule.apply(image, (32, 32))).astype(int) for rule in RULES.values()]
    for i, a in enumerate(made):
        assert a.shape == (32, 32, 3)
        for b in made[:i]:
            assert np.abs(a - b).max() > 2


def test_every_item_and_seed_has_noise_of_its_own():
    """Also in the lower 32 bits, the only ones that torch's CPU generator looks at."""
    seeds = [noise_seed(seed, number) for seed in range(20) for number in range(50)]
    assert all(0 <= value < 2**63 for value in seeds)
    assert len({value % 2**32 for value in seeds}) == 1000
