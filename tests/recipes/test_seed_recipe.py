"""SEED's two stages: matching pictures and texts, then the codebook; and the losses against their formulas."""

from types import SimpleNamespace

import lightning.pytorch as lightning
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import zoo
from recipes.data.images import ImageBatch
from recipes.modules.seed import SeedRecipe, WordBag, matching_loss, recall

TOY = dict(
    image_size=32, patch=8, vision_width=16, vision_depth=1, vision_heads=2, queries=4, width=24, depth=2, heads=2, mlp_width=32,
    channels=4, codebook_size=16, block_depth=1, block_heads=2, features=1280,
)  # fmt: skip
TEXTS = ("red", "green", "blue")


class Records:
    def record(self, i):
        return {"caption": TEXTS[i % 3]}


class Colours(lightning.LightningDataModule):
    """Pictures of one of three colours, whose text is its name."""

    def __init__(self, count):
        super().__init__()
        self.count = count
        self.train_set = self.val_set = SimpleNamespace(corpus=Records())

    def batches(self):
        draws = torch.Generator().manual_seed(0)
        for _ in range(self.count):
            index = torch.randint(0, 3, (8,), generator=draws)
            x = torch.full((8, 3, 32, 32), -0.8) + 0.2 * torch.rand(8, 3, 32, 32, generator=draws)
            x[torch.arange(8), index] += 1.2
            yield ImageBatch(x, torch.zeros(8), index)

    def train_dataloader(self):
        return DataLoader(dataset=list(self.batches()), batch_size=None, num_workers=0)


def recipe(**options):
    torch.manual_seed(0)
    return SeedRecipe("seed_nano", **{"overrides": TOY, "warmup_steps": 1, "final_rate": 0.0, "text_width": 16, **options})


def fit(module, steps, *callbacks):
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, datamodule=Colours(steps + 2))
    return trainer


def test_matching_loss_is_the_written_one():
    draws = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(3, 4, generator=draws), dim=-1) for _ in range(2))
    own = torch.tensor([7, 9, 7])
    scores = (images @ texts.t() / 0.07).softmax(-1).log()
    third = 0.1 / 3
    target = torch.tensor([[0.45, 0, 0.45], [0, 0.9, 0], [0.45, 0, 0.45]]) + third
    assert float(matching_loss(images, texts, own, own, torch.tensor(0.07))) == pytest.approx(float(-(target * scores).sum() / 3))


def test_recall_counts_equal_texts():
    eye = torch.eye(3)
    assert float(recall(eye, eye[[1, 0, 2]], torch.tensor([5, 5, 6]))) == 1
    assert float(recall(eye, eye[[1, 0, 2]], torch.tensor([4, 5, 6]))) == pytest.approx(1 / 3)


def test_text_vectors_do_not_depend_on_neighbours():
    torch.manual_seed(0)
    bag = WordBag(8, 64)
    together = bag(["red hen", "boat", "red"])
    for i, text in enumerate(("red hen", "boat", "red")):
        torch.testing.assert_close(together[i : i + 1], bag([text]))
    torch.testing.assert_close(bag(["hen red"]), bag(["red hen"]))


class Watch(lightning.Callback):
    """Which parts moved in each batch, and the rate."""

    OWN = ("vision", "qformer", "queries", "quantizer.codebook", "blocks")
    PARTS = ("text", *(f"tokenizer.{part}" for part in OWN))

    def __init__(self):
        self.moved, self.rates = [], []

    def snapshot(self, module):
        state = module.state_dict()
        return {part: torch.cat([v.flatten().clone() for k, v in state.items() if k.startswith(part)]) for part in self.PARTS}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before = self.snapshot(module)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        now = self.snapshot(module)
        self.moved.append({part.rpartition(".")[2] for part, value in now.items() if not torch.equal(value, self.before[part])})


def test_what_moves_in_which_stage():
    watch = Watch()
    fit(recipe(codebook_start=2, teacher_weight=1.0, weight_decay=0.01), 4, watch)
    assert watch.moved == [{"vision", "qformer", "queries", "text"}] * 2 + [{"codebook", "blocks"}] * 2
    assert watch.rates[:2] == pytest.approx(watch.rates[2:]), "each stage has a schedule of its own"


def test_pictures_learn_to_find_their_texts():
    """Three colours and their names: the matching loss falls, and unseen pictures find their text."""
    module = recipe(codebook_start=1000, learning_rate=3e-3)
    losses = []
    module.log_scores = lambda stage, values, batch_size: losses.append(float(values["contrast"].detach()))
    fit(module, 40)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    *_, batch = Colours(45).batches()
    tok = module.tokenizer.eval()
    images = module.picture_vectors(tok.causal_embeddings(tok.vision_features(batch.images)))
    found = (images @ module.text(list(TEXTS)).t()).argmax(1)
    assert float((found == batch.index).float().mean()) >= 0.75


def test_the_target_is_the_frozen_network_at_unit_mean_square():
    module = recipe()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    target = module.target_of(x)
    assert target.shape == (2, 1280)
    torch.testing.assert_close(target.square().mean(1), torch.ones(2))
    assert not target.requires_grad


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match=r"target='clip'.*efficientnet_lite0.*timm:NAME"):
        recipe(target="clip")


def test_without_a_first_stage_there_is_no_text_side():
    module = recipe(codebook_start=0)
    assert module.text is None
    assert not module.matching(0)
    assert {name.partition(".")[0] for name, _ in module.named_parameters()} == {"tokenizer"}
    assert zoo.info("seed_nano").parameters == 2_906_274
