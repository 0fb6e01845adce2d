"""The generation scorer on toys: what is scored, what the seeds are, and what a result says."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from eval.generation import Contender, evaluate_generation, load_generation
from eval.generation_training import Budget, parse_budget, train_contender
from recipes.data.corpora import open_images
from zoo.cli import main as zoo_command
from zoo.generators.base import Generator, GeneratorConfig, binding

CLASSES = 3
TINY = dict(width=16, depth_blocks=1, heads=2, hidden_multiple=8, classes=CLASSES)


def write_pictures(folder, count, seed):
    """Pictures of three classes in class folders: upright bars, level bars, one colour; shades differ from picture to picture."""
    draws = np.random.default_rng(seed)
    bars = np.array([1, 0, 1, 0])
    patterns = (np.tile(bars, (4, 1)), np.tile(bars[:, None], (1, 4)), np.full((4, 4), 0.5))
    for i in range(count):
        place = folder / f"class{i % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        blocks = 40 + 170 * patterns[i % CLASSES][..., None] + draws.integers(-20, 20, (1, 1, 3))
        Image.fromarray(blocks.astype(np.uint8)).resize((64, 64), Image.Resampling.NEAREST).save(place / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("real"), 9, seed=0)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("train"), 15, seed=1)


class Echo(Generator):
    """Gives back tokens of training pictures: of the class that was asked for, or of another."""

    Config = GeneratorConfig

    def __init__(self, config, tokens, labels, *, wrong=0):
        super().__init__(config)
        self.tokens, self.own, self.wrong = tokens, labels, wrong
        self.parameter = torch.nn.Parameter(torch.tensor(float(wrong)))

    def _sample(self, labels, seeds, guidance, *, broken=0):
        rows = []
        for label, seed in zip(labels.tolist(), seeds, strict=True):
            mine = (self.own == (label + self.wrong) % CLASSES).nonzero()[:, 0]
            rows.append(self.tokens[mine[seed % len(mine)]])
        return torch.stack(rows)


Echo.family = "autoregressive"  # set here, so that the name goes on meaning the family of the zoo


@pytest.fixture(scope="module")
def echo(toys, train):
    """A tokenizer of 16 ordered codes, and generators that know its training pictures by heart."""
    tok = toys.BlockColours().eval()
    corpus = open_images(train)
    x = torch.stack([torch.from_numpy(np.array(corpus.read(i).resize((16, 16)))) for i in range(len(corpus))])
    tokens = tok.encode(x.permute(0, 3, 1, 2).float() / 127.5 - 1)
    labels = torch.tensor([corpus.label_id(i) for i in range(len(corpus))])
    config = GeneratorConfig(**binding(tokens), classes=CLASSES)
    return tok, lambda wrong=0: Echo(config, tokens.data, labels, wrong=wrong).eval()


def test_samples_of_the_right_class_score_better(echo, real, train):
    tok, make = echo
    corpus, train_corpus = open_images(real), open_images(train)
    good, bad = (
        evaluate_generation(tok, [Contender(make(wrong), 0)], corpus, train_corpus, rates=[2, 16], batch_size=4) for wrong in (0, 1)
    )
    assert [dict(point.rate) for point in good.runs[0].points] == [{"tokens": 2}, {"tokens": 16}]
    assert good.bits_per_picture == pytest.approx((2 * math.log2(27), 16 * math.log2(27)))
    accuracy = [result.runs[0].points[-1].scores["class_accuracy"].mean for result in (good, bad)]
    assert accuracy[0] >= 0.8
    assert accuracy[1] <= 0.2
    assert good.anchors["the_real_pictures"]["class_accuracy"].mean == 1.0
    assert good.anchors["reconstructions"]["class_accuracy"].n == 9
    assert "class_accuracy" not in good.anchors["other_real_pictures"], "the classifier was fitted to them"
    distance = {k: point.scores["fd_mbv2"].mean for k, point in zip((2, 16), good.runs[0].points, strict=True)}
    assert distance[16] < distance[2], "a longer prefix of known pictures is nearer to real ones"
    assert set(good.runs[0].class_accuracy_by_class) == {"0", "1", "2"}
    assert good.runs[0].nll_bits_per_picture is None
    assert good.runs[0].speed["sample_seconds_per_picture"] > 0
    assert good.protocol.fingerprint == bad.protocol.fingerprint
    assert good.runs[0].weights_sha256 != bad.runs[0].weights_sha256
    assert good.protocol.classifier["accuracy_on_real"] == 1.0
    assert "pfd64_mbv2" not in good.protocol.scorers, "9 pictures are too few for 64 axes"


def test_samples_do_not_depend_on_the_batch(echo, real, train):
    tok, make = echo
    corpus, train_corpus = open_images(real), open_images(train)
    few, many = (
        evaluate_generation(tok, [Contender(make(), 3)], corpus, train_corpus, rates=[16], batch_size=b).runs[0].points[0].scores
        for b in (2, 9)
    )
    for name in few:
        assert few[name].mean == pytest.approx(many[name].mean, rel=1e-4, abs=1e-4)


def test_seeds_and_files(echo, real, train, tmp_path):
    tok, make = echo
    corpus, train_corpus = open_images(real), open_images(train)
    same = make()
    result = evaluate_generation(
        tok, [Contender(same, seed) for seed in (0, 1, 2)], corpus, train_corpus, rates=[16], limit=6, dataset_name="toys"
    )
    assert not result.ranked, "three samplings of one training are no three seeds"
    row = result.summary[0]["scores"]["kid_mbv2"]
    values = [run.points[0].scores["kid_mbv2"].mean for run in result.runs]
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["std"] == pytest.approx(np.std(values, ddof=1))
    assert (row["min"], row["max"], row["seeds"]) == (min(values), max(values), 3)
    values = load_generation(result.save(tmp_path / "toys.generate-16-v1.json"))
    assert values["seeds_enough_for_a_ranking"] is False
    assert values["dataset"]["count"] == 6
    assert values["protocol"]["fingerprint"] == result.protocol.fingerprint
    assert values["summary"][0]["scores"]["kid_mbv2"]["mean"] == row["mean"]
    (tmp_path / "other.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(ValueError, match="no generation result"):
        load_generation(tmp_path / "other.json")


def test_refusals(echo, real, train, toys):
    tok, make = echo
    corpus, train_corpus = open_images(real), open_images(train)
    with pytest.raises(ValueError, match="no contenders"):
        evaluate_generation(tok, [], corpus, train_corpus)
    with pytest.raises(ValueError, match=r"holds classes -1\.\.-1"):
        evaluate_generation(tok, [Contender(make(), 0)], toys.pictures(4, 16), train_corpus)
    with pytest.raises(ValueError, match="tokens with tokenizer"):
        evaluate_generation(toys.Pixels(), [Contender(make(), 0)], corpus, train_corpus)


@pytest.mark.parametrize(
    ("text", "budget"),
    [("2000", Budget(steps=2000)), ("12 steps", Budget(steps=12)), ("5e14flops", Budget(flops=5e14)), ("1E3", Budget(steps=1000))],
)
def test_budgets(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "0", "-3", "2.5", "20min", "steps", "1.2.3", "e5"])
def test_budgets_that_are_none(text):
    with pytest.raises(ValueError, match="--budget"):
        parse_budget(text)


def test_training_repeats_and_seeds_differ(toys, train, tmp_path):
    tok = toys.BlockColours().eval()
    options = dict(overrides=TINY, batch_size=5, views=2, cache=str(tmp_path / "cache"))
    before = torch.get_rng_state()
    first = train_contender(tok, "autoregressive", str(train), seed=0, budget=Budget(steps=4), **options)
    assert torch.equal(torch.get_rng_state(), before)
    other = train_contender(tok, "autoregressive", str(train), seed=1, budget=Budget(steps=4), **options)
    facts = first.training
    assert facts["steps"] == 4
    assert facts["budget"] == {"steps": 4}
    assert facts["flops"] == 4 * facts["flops_per_step"] > 0
    flops = facts["flops_per_step"] * 4.5
    again = train_contender(tok, "autoregressive", str(train), seed=0, budget=Budget(flops=flops), **options)
    assert again.training["steps"] == 4
    assert again.training["weights_sha256"] == facts["weights_sha256"] != other.training["weights_sha256"]
    assert len(list((tmp_path / "cache").glob("train-*.safetensors"))) == 1, "all seeds see the same views"
    assert not first.generator.training


def test_counted_operations_are_those_of_the_matrices(toys, train, tmp_path):
    """Twice the multiply-adds of the linear layers forward and twice that backward, to which attention adds a little."""
    tok = toys.BlockColours().eval()
    options = dict(overrides={**TINY, "width": 64, "heads": 4}, batch_size=5, views=1, cache=str(tmp_path))
    found = train_contender(tok, "autoregressive", str(train), seed=0, budget=Budget(steps=1), **options)
    linear = sum(p.numel() for name, p in found.generator.named_parameters() if p.ndim == 2 and "embedding" not in name)
    by_hand = 3 * 2 * linear * 5 * 16
    assert by_hand < found.training["flops_per_step"] < 1.25 * by_hand


def test_the_command(real, tmp_path, monkeypatch, capsys):
    """From pictures to a result, a sheet and kept generators; what was kept scores the same when it is loaded."""
    monkeypatch.chdir(tmp_path)
    small = ["--set", "width=16", "depth_blocks=1", "heads=2", "--train-batch", "3", "--views", "2"]
    shared = ["--data", str(real), "--rates", "1,4", "--limit", "4", "--decode", "steps=1"]
    command = ["eval", "generate", "flextok_nano", "--generator", "flextok_ar_nano", *shared]
    extra = ["--budget", "2", "--seeds", "0,1", "--keep", "kept", "--sheet", "sheet.png", "--sheet-columns", "2"]
    assert zoo_command([*command, *small, *extra, "--out", "out.json"]) == 0
    values = load_generation("out.json")
    assert [run["training"]["steps"] for run in values["runs"]] == [2, 2]
    assert values["generator"]["config"]["positions"] == [zoo.info("flextok_nano").tokens]
    assert values["generator"]["config"]["classes"] == CLASSES
    assert all(run["nll_bits_per_picture"] > 0 for run in values["runs"])
    assert Image.open("sheet.png").size[0] > 2 * 96
    assert "no ranking can be claimed" in capsys.readouterr().out
    again = [*command[:4], "kept/seed0", "kept/seed1", *shared, "--seeds", "0,1", "--out", "again.json"]
    before = torch.get_rng_state()
    assert zoo_command(again) == 0
    assert torch.equal(torch.get_rng_state(), before)
    loaded = load_generation("again.json")
    assert loaded["summary"] == values["summary"]
    assert [run["weights_sha256"] for run in loaded["runs"]] == [run["weights_sha256"] for run in values["runs"]]
    assert zoo_command(again) == 2
    assert "is there" in capsys.readouterr().err
    for wrong, text in (
        (["--seeds", "0,0"], "--seeds"),
        (["--budget", "20min"], "--budget"),
        (["--train-batch", "3"], "Give --budget too"),
    ):
        assert zoo_command([*command, "--out", "x.json", *wrong]) == 2
        assert text in capsys.readouterr().err
