"""Picture batches: what is in them, and that they depend on (seed, epoch, index) only."""

import io
import logging

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from PIL import Image

from recipes.data.images import ImageBatch, ImageDataModule, random_view
from recipes.data.sampler import seeded

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def batches(pack, split: str = "train", epoch: int = 0, **options) -> list[ImageBatch]:
    data = ImageDataModule(**{"train": str(pack), "val": str(pack), "size": 16, "batch_size": 4, **options})
    data.setup()
    loader = data.train_dataloader() if split == "train" else data.val_dataloader()
    if split == "train":
        loader.sampler.set_epoch(epoch)
    return list(loader)


def test_training_batches_hold_pictures_labels_and_numbers(pack):
    found = batches(pack)
    assert len(found) == 5
    for batch in found:
        assert batch.images.shape == (4, 3, 16, 16)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous()
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        assert torch.equal(batch.labels, batch.index % 3)  # as the pack was written
    values = torch.cat([batch.images.flatten() for batch in found])
    assert -1 <= values.min() < -0.5
    assert 0.5 < values.max() <= 1


def test_validation_is_the_resized_centre_in_order(pack, encoded):
    found = batches(pack, "val")
    assert [batch.index.tolist() for batch in found] == [[0, 1, 2, 3], [4]]
    image = Image.open(io.BytesIO(encoded(34))).convert("RGB")  # 48 x 40
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC, box=(4, 0, 44, 40)))
    assert np.array_equal(((found[1].images[0] + 1) * 127.5).round().numpy().transpose(1, 2, 0), expected)
    assert found[1].labels.tolist() == [34 % 3]


def test_a_sample_depends_on_seed_epoch_and_index_only(pack):
    def by_index(**options) -> dict[int, torch.Tensor]:
        found = batches(pack, **options)
        return {int(i): image for batch in found for i, image in zip(batch.index, batch.images, strict=True)}

    torch.manual_seed(0)
    first = by_index()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state is what must not matter
    for again in (by_index(), by_index(batch_size=2), by_index(num_workers=2)):
        assert all(torch.equal(again[i], first[i]) for i in first.keys() & again.keys())
    for other in (by_index(epoch=1), by_index(seed=1)):
        assert not any(torch.equal(other[i], first[i]) for i in first.keys() & other.keys())


def test_worker_processes_do_not_change_the_batches(pack):
    alone, helped = batches(pack, epoch=2), batches(pack, epoch=2, num_workers=2)
    assert all(torch.equal(a, b) for one, two in zip(alone, helped, strict=True) for a, b in zip(one, two, strict=True))


def ramp(width: int, height: int) -> Image.Image:
    """A picture whose red is the column and whose green is the row."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def test_random_views_are_squares_of_the_wanted_size_inside_the_picture():
    corners, mirrored = [], 0
    for number in range(300):
        view = np.asarray(random_view(ramp(200, 100), 25, seeded(number), scale=(0.5, 0.75), hflip=0.3)).astype(int)
        left, right = view[12, [0, -1], 0]
        if left > right:
            mirrored += 1
            left, right = right, left
        top, bottom = view[[0, -1], 12, 1]
        # of a square of side s the centres of the outer of 25 pixels lie s - s / 25 apart; 8-bit values round
        assert 0.5 * 96 - 2.5 <= right - left <= 0.75 * 96 + 2.5
        assert abs((right - left) - (bottom - top)) <= 3
        corners.append((left, top, right - left))
    assert 60 <= mirrored <= 120  # 90 expected, standard deviation 8
    left, top, side = np.array(corners).T
    assert left.min() < 15  # the whole width is used
    assert left.max() > 110
    assert top.min() < 8
    assert top.max() > 38
    assert side.max() - side.min() > 20


def test_the_largest_view_is_the_resized_picture():
    picture = ramp(40, 40)
    plain = random_view(picture, 16, seeded(0), scale=(1.0, 1.0), hflip=0.0)
    assert np.array_equal(np.asarray(plain), np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC)))
    turned = random_view(picture, 16, seeded(0), scale=(1.0, 1.0), hflip=1.0)
    assert np.array_equal(np.asarray(turned), np.asarray(plain)[:, ::-1])


@pytest.fixture
def damaged(tmp_path, tar, encoded):
    """Eight pictures of which numbers 2 and 5 are cut short."""
    members = {f"p{n}.jpg": encoded(n)[: 200 if n in (2, 5) else None] for n in range(8)}
    return tar(tmp_path / "damaged.tar", members)


def test_unreadable_pictures_stop_the_run_and_are_named(damaged):
    with pytest.raises(ValueError, match=r"picture 'p[25]' \(number [25]\) of .*damaged\.tar is unreadable"):
        batches(damaged, val=None)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_pictures_are_logged_and_counted_once(damaged, num_workers, caplog):
    data = ImageDataModule(
        str(damaged), str(damaged), size=8, batch_size=4, num_workers=num_workers, on_error="skip", hflip=0.0
    )
    data.setup()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = list(data.train_dataloader())
            assert sorted(i for batch in found for i in batch.index.tolist()) == [0, 1, 3, 4, 6, 7]
    assert data.unreadable == 2
    if num_workers == 0:  # what a worker logs does not come to this process
        assert len([record for record in caplog.records if "Left out" in record.getMessage()]) == 2
    list(data.val_dataloader())
    assert data.unreadable == 4  # the same file, once for training and once for validation


def test_a_batch_of_unreadable_pictures_is_an_error(tmp_path, tar):
    path = tar(tmp_path / "bad.tar", {"a.jpg": b"x", "b.jpg": b"y"})
    with pytest.raises(ValueError, match="all 2 pictures of a batch are unreadable"):
        batches(path, val=None, batch_size=2, on_error="skip")


def test_packages_and_limits_hold_for_both_splits(pack, tmp_path, tar, encoded):
    data = ImageDataModule(str(pack), str(pack), exclude_packages=("odd",), limit=8, limit_val=2)
    data.setup()
    assert [len(data.train_set), len(data.val_set)] == [8, 2]
    assert {data.val_set.corpus.record(i)["package"] for i in range(2)} == {"even"}
    plain = tar(tmp_path / "v.tar", {"a.jpg": encoded(0)})  # no package there at all: nothing to leave out
    data = ImageDataModule(str(pack), str(plain), exclude_packages=("odd",))
    data.setup()
    assert len(data.val_set) == 1
    with pytest.raises(ValueError, match="package"):
        ImageDataModule(str(pack), exclude_packages=("misspelt",)).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"hflip": 1.5}, "hflip=1.5"),
        ({"random_crop": (0.0, 1.0)}, "random_crop"),
        ({"random_crop": (0.9, 0.6)}, "random_crop"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=f"ImageDataModule: {message}"):
        ImageDataModule("samples", **options)


def test_training_needs_setup(pack):
    with pytest.raises(RuntimeError, match="Call setup"):
        ImageDataModule(str(pack)).train_dataloader()


class Collect(pl.LightningModule):
    """Keep what prediction and validation see; train on nothing much."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch: ImageBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.index.tolist())
        return self.layer(batch.images.mean().reshape(1, 1)).sum()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self.log("mean", batch.images.mean())  # without batch_size: Lightning must find it in the batch

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> list[int]:
        return batch.index.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(accelerator="cpu", **quiet, **options)


def test_lightning_validates_predicts_and_overfits(pack):
    data = ImageDataModule(str(pack), str(pack), size=8, batch_size=2)
    assert trainer().predict(Collect(), data) == [[0, 1], [2, 3], [4]]
    expected = torch.cat([batch.images.mean((1, 2, 3)) for batch in data.val_dataloader()]).mean()
    assert trainer().validate(Collect(), data, verbose=False)[0]["mean"] == pytest.approx(float(expected), abs=1e-6)
    module = Collect()
    trainer(overfit_batches=2, max_epochs=2, limit_val_batches=0).fit(module, data)
    assert module.seen == [[0, 1], [2, 3]] * 2  # Lightning turns the shuffling off


def test_loaders_asked_for_again_go_on(pack):
    plain, reloaded = Collect(), Collect()
    for module, often in ((plain, 0), (reloaded, 1)):
        data = ImageDataModule(str(pack), size=8, batch_size=4)
        trainer(max_epochs=3, reload_dataloaders_every_n_epochs=often).fit(module, data)
    assert plain.seen == reloaded.seen
    assert len(plain.seen) == 15


def test_yaml_builds_it(pack, tmp_path):
    config = tmp_path / "data.yaml"
    config.write_text(
        f"""
data:
  class_path: recipes.data.images.ImageDataModule
  init_args:
    train: ["{pack}/train-00000.tar", "{pack}/train-00001.tar"]
    val: {pack}
    size: 12
    batch_size: 4
    exclude_packages: [odd]
    random_crop: [0.8, 1.0]
    limit: 9
"""
    )
    cli = LightningCLI(
        Collect, subclass_mode_data=True, run=False, args=["--config", str(config)], save_config_callback=None
    )
    cli.datamodule.setup()
    assert cli.datamodule.random_crop == (0.8, 1.0)
    assert next(iter(cli.datamodule.train_dataloader())).images.shape == (4, 3, 12, 12)
    assert len(cli.datamodule.train_set) == 9
