import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from eval.measure import PointMeter
from eval.reconstruction import evaluate, main
from eval.results import comparable, item_scores, load_result
from eval.runner import Runner, batches, tensors_sha256
from eval.scorers import DEFAULT_IMAGE
from eval.sheet import SheetRow, draw_sheet, item_sheet
from recipes.data.corpora import open_images
from recipes.data.corpus import content_hash
from zoo.checkpoint import write_folder
from zoo.publishing import folder_config


@pytest.fixture
def folder(toys, tmp_path):
    """Six small pictures of unequal size as PNG files."""
    place = tmp_path / "six"
    place.mkdir()
    for i in range(6):
        Image.fromarray(toys.waves(i, 90)[: 70 + 4 * i]).save(place / f"p{i}.png")
    return place


def scored(result, name):
    return [point.scores[name].mean for point in result.points]


# -- end to end -----------------------------------------------------------------------------------------------------


def test_a_fresh_autoencoder_from_the_command_line(folder, tmp_path, capsys, monkeypatch):
    """Everything is in the file, and the PSNR is that of the pictures decoded by hand."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer = zoo.create("kl_vae_nano")
    tensors = {key: value.detach() for key, value in tokenizer.state_dict().items()}
    write_folder(tmp_path / "kl_vae_nano", config=folder_config(tokenizer), tensors=tensors)
    assert main(["./kl_vae_nano", "--data", str(folder), "--batch-size", "4", "--device", "cpu", "--sheet", "sheet.png"]) == 0
    path = tmp_path / "eval" / "results" / "kl_vae_nano" / "six.image-64-v1.json"
    result = load_result(path)
    corpus = open_images(folder)
    assert (result.dataset.name, result.dataset.count, result.dataset.limit) == ("six", 6, None)
    assert result.dataset.sha256 == content_hash(corpus)
    assert result.weights_sha256 == tensors_sha256(tokenizer)
    assert sorted(file.name for file in path.parent.iterdir()) == ["six.image-64-v1.items.csv", "six.image-64-v1.json"]
    (point,) = result.points
    assert point.rate == {}
    assert point.bits_per_pixel == 8 * 8 * 16 * 32 / 64**2
    assert point.tokens_per_item == 64
    wanted = [name for name in DEFAULT_IMAGE if not name.startswith("code") and name != "pfd64_mbv2"]
    assert list(point.scores) == wanted
    tokenizer.eval()
    with torch.no_grad():
        x = torch.cat([tokenizer.preprocess(folder / f"p{i}.png") for i in range(6)])
        y = np.stack([np.asarray(image) for image in tokenizer.postprocess(tokenizer(x))]).astype(float)
    original = np.stack([np.asarray(image) for image in tokenizer.postprocess(x)]).astype(float)
    expected = 10 * np.log10(255**2 / ((y - original) ** 2).mean((1, 2, 3)))
    assert point.scores["psnr_db"].mean == pytest.approx(expected.mean(), abs=1e-3)
    by_key = item_scores(result.items, "psnr_db")
    np.testing.assert_allclose([by_key[f"p{i}.png"] for i in range(6)], expected, atol=1e-3)
    assert result.speed.encode_items_per_s > 0
    printed = capsys.readouterr().out
    assert "psnr_db" in printed
    assert "wrote eval/results/kl_vae_nano/six.image-64-v1.json" in printed
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width > 2 * 64
    assert sheet.height > (6 + 5) * 64


def test_the_ladder_of_an_ordered_tokenizer(toys):
    """Encoded once; each rate decodes its prefix; codes are counted for each rate; more tokens are better here."""
    tokenizer, corpus = toys.BlockColours(), toys.pictures(10, 16)
    calls = []
    encode = tokenizer._encode
    tokenizer._encode = lambda x, **rate: calls.append(len(x)) or encode(x, **rate)
    result = evaluate(tokenizer, corpus, scorers=["psnr_db", "ssim", "codebook_use", "bits_per_pixel"], batch_size=4)
    assert calls == [4, 4, 2]
    assert [point.rate for point in result.points] == [{"tokens": k} for k in (1, 2, 4, 8, 16)]
    psnr = scored(result, "psnr_db")
    assert psnr == sorted(psnr)
    assert psnr[-1] > psnr[0] + 1
    bits = [k * math.log2(27) / 256 for k in (1, 2, 4, 8, 16)]
    assert [point.bits_per_pixel for point in result.points] == pytest.approx(bits)
    assert scored(result, "bits_per_pixel") == pytest.approx(bits)
    assert [point.codes["depths"][0]["codes_seen"] for point in result.points] == [10 * k for k in (1, 2, 4, 8, 16)]
    alone = evaluate(tokenizer, corpus, rates=[4], scorers=["psnr_db"])
    assert scored(alone, "psnr_db") == [pytest.approx(psnr[2])]
    groups = result.points[-1].codes["position_groups"]
    assert [group["positions"] for group in groups] == [[0, 0], [1, 1], [2, 3], [4, 7], [8, 15]]


def test_worse_pictures_score_worse_by_every_scorer(toys):
    """The decoder blurs more and more; every score of a small set follows, and exact copies give the perfect values."""
    corpus = toys.pictures(6, 64)
    names = ["psnr_db", "ssim", "ssim_valid", "mse", "mae", "pdist_mbv2", "fd_mbv2", "kid_mbv2"]
    levels = [evaluate(toys.Pixels(64), corpus, scorers=names, decode={"radius": r} if r else None) for r in (0, 1, 3)]
    for name in names:
        values = [scored(level, name)[0] for level in levels]
        assert values == sorted(values, reverse=name in ("psnr_db", "ssim", "ssim_valid")), (name, values)
    perfect = levels[0].points[0].scores
    assert perfect["psnr_db"].mean == 100
    assert perfect["ssim"].mean == pytest.approx(1, abs=1e-6)
    assert perfect["pdist_mbv2"].mean == pytest.approx(0, abs=1e-9)
    assert perfect["fd_mbv2"].mean == pytest.approx(0, abs=1e-4)
    assert levels[1].protocol.decode == {"radius": 1}
    assert comparable(levels[0], levels[1]) is None


# -- failures, chance, rounding -----------------------------------------------------------------------------------


def test_items_that_fail_are_counted_and_not_averaged(toys):
    corpus = toys.pictures(8, 16)
    means = [array.mean() / 127.5 - 1 for array in corpus.arrays]
    broken = sorted(means)[-3] - 1e-4
    whole = evaluate(toys.Pixels(noise=0.1), corpus, scorers=["psnr_db", "kid_mbv2"])
    some = evaluate(toys.Pixels(noise=0.1, broken=broken), corpus, scorers=["psnr_db", "kid_mbv2", "bits_per_pixel"], batch_size=3)
    for score in some.points[0].scores.values():
        assert (score.n, score.failed) == (5, 3)
    values = item_scores(some.items, "psnr_db")
    failed = {f"picture_{i}" for i, mean in enumerate(means) if mean >= broken}
    assert {key for key, value in values.items() if math.isnan(value)} == failed
    good = [value for key, value in item_scores(whole.items, "psnr_db").items() if key not in failed]
    assert some.points[0].scores["psnr_db"].mean == pytest.approx(np.mean(good), rel=1e-9)
    assert np.isfinite(some.points[0].scores["kid_mbv2"].mean)


def test_latents_that_are_not_finite_fail_their_item_only(toys):
    tokenizer, corpus = toys.Pixels(), toys.pictures(4, 16)
    encode = tokenizer._encode
    tokenizer._encode = lambda x, **rate: torch.cat([encode(x, **rate)[:-1], torch.full_like(encode(x, **rate)[-1:], torch.nan)])
    result = evaluate(tokenizer, corpus, scorers=["psnr_db"])
    assert (result.points[0].scores["psnr_db"].n, result.points[0].scores["psnr_db"].failed) == (3, 1)
    assert math.isnan(result.items[3].scores["psnr_db"])


def test_unreadable_pictures_fail_and_are_named(toys, caplog):
    class Torn(toys.Pictures):
        torn = (1,)

        def read_bytes(self, i):
            return super().read_bytes(i)[: 60 if i in self.torn else None]

    corpus = Torn(toys.pictures(4, 16).arrays)
    with caplog.at_level(logging.WARNING):
        result = evaluate(toys.BlockColours(), corpus, rates=[16], scorers=["psnr_db", "codebook_use"], workers=2, batch_size=2)
    assert "picture 'picture_1' (number 1) of toys is unreadable" in caplog.text
    assert "It counts as failed." in caplog.text
    for score in result.points[0].scores.values():
        assert (score.n, score.failed) == (3, 1)
    assert result.points[0].codes["depths"][0]["codes_seen"] == 3 * 16
    corpus.torn = (0, 1, 2, 3)
    with pytest.raises(ValueError, match=r"none of the 4 pictures of toys can be read"):
        evaluate(toys.BlockColours(), corpus, scorers=["psnr_db"])


def test_noise_depends_on_the_item_and_the_seed_not_on_the_batch(toys):
    corpus = toys.pictures(5, 16)
    tokenizer = toys.Pixels(noise=0.3)
    runs = [evaluate(tokenizer, corpus, scorers=["psnr_db"], batch_size=size, workers=size % 2) for size in (1, 2, 5)]
    items = [[row.scores["psnr_db"] for row in run.items] for run in runs]
    assert items[0] == items[1] == items[2]
    assert len(set(items[0])) == 5
    other = evaluate(tokenizer, corpus, scorers=["psnr_db"], seed=1)
    assert other.protocol.id == "image-16-v1+seed=1"
    assert [row.scores["psnr_db"] for row in other.items] != items[0]
    assert "other protocol: id" in comparable(runs[0], other)
    same = toys.Pictures([corpus.arrays[0]] * 3)
    alike = evaluate(tokenizer, same, scorers=["psnr_db"])
    assert len({row.scores["psnr_db"] for row in alike.items}) == 3, "equal pictures get noise of their own"


def test_reconstructions_are_rounded_or_cut(toys):
    """A reconstruction 0.6 levels too high is one level off rounded and exact cut; PSNR of one level is 48.13 dB."""
    tokenizer, corpus = toys.Pixels(), toys.Pictures([np.full((16, 16, 3), 90, np.uint8)] * 2)
    decode = tokenizer._decode
    tokenizer._decode = lambda tokens, size, **options: decode(tokens, size, **options) + 0.6 / 127.5
    rounded = evaluate(tokenizer, corpus, scorers=["psnr_db"])
    cut = evaluate(tokenizer, corpus, scorers=["psnr_db"], protocol=rounded.protocol.varied(to_uint8="truncate", scorers={}))
    assert scored(rounded, "psnr_db") == [pytest.approx(20 * math.log10(255))]
    assert scored(cut, "psnr_db") == [100.0]
    assert cut.protocol.id == "image-16-v1+to_uint8=truncate"
    assert comparable(rounded, cut) is not None


def test_the_tokenizer_is_left_as_it_was(toys):
    tokenizer = toys.BlockColours().train()
    frozen = torch.nn.Dropout(0.5).eval()
    tokenizer.part = frozen
    seen = []
    decode = tokenizer._decode
    tokenizer._decode = lambda tokens, size: seen.append(tokenizer.training) or decode(tokens, size)
    evaluate(tokenizer, toys.pictures(2, 16), rates=[1], scorers=["psnr_db"])
    assert seen == [False]
    assert tokenizer.training
    assert not frozen.training


# -- what the result says ---------------------------------------------------------------------------------------------


def test_limit_takes_the_first_and_says_so(toys):
    corpus = toys.pictures(7, 16)
    result = evaluate(toys.BlockColours(), corpus, rates=[1], scorers=["psnr_db"], limit=3, split="val", dataset_name="waves")
    assert (result.dataset.count, result.dataset.total, result.dataset.limit, result.dataset.split) == (3, 7, 3, "val")
    assert result.dataset.sha256 == content_hash(toys.pictures(3, 16))
    whole = evaluate(toys.BlockColours(), corpus, rates=[1], scorers=["psnr_db"], limit=9)
    assert (whole.dataset.count, whole.dataset.limit) == (7, None)
    assert comparable(result, whole).startswith("other data: waves (3 items")


def test_weights_hash_sees_every_tensor(toys):
    a, b = toys.Pixels(), toys.Pixels()
    assert tensors_sha256(a) == tensors_sha256(b)
    with torch.no_grad():
        b.weight.add_(1e-7)
    assert tensors_sha256(a) != tensors_sha256(b)
    assert tensors_sha256(a) != tensors_sha256(toys.Pixels().to(torch.bfloat16))


def test_protocol_of_the_run_is_complete(toys):
    tokenizer = toys.Pixels(64)
    result = evaluate(tokenizer, toys.pictures(3, 80), protocol="image-64-adm-v1", scorers=["psnr_db", "kid_mbv2"])
    assert result.protocol.resize == "adm-box-bicubic"
    assert len(result.protocol.scorers["kid_mbv2"]["sha256"]) == 64
    low = evaluate(tokenizer.to(torch.bfloat16), toys.pictures(3, 80), scorers=["psnr_db"])
    assert (low.protocol.dtype, low.protocol.id) == ("bfloat16", "image-64-v1+dtype=bfloat16")
    assert low.points[0].bits_per_pixel == 3 * 16


# -- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_measured_is_refused_before_the_work(toys):
    blocks, pixels, corpus = toys.BlockColours(), toys.Pixels(), toys.pictures(4, 16)
    with pytest.raises(ValueError, match=r"no scorer 'psnr'. Did you mean psnr_db"):
        evaluate(blocks, corpus, scorers=["psnr"])
    with pytest.raises(ValueError, match=r"scorer pfd64_mbv2 cannot be used: it needs at least 65 items and there are 4"):
        evaluate(blocks, corpus, scorers=["pfd64_mbv2"])
    with pytest.raises(ValueError, match=r"scorer codebook_use cannot be used: toy_pixels makes latents"):
        evaluate(pixels, corpus, scorers=["codebook_use"])
    with pytest.raises(ValueError, match=r"scorer ssim cannot be used: it needs sides of at least 11 px"):
        evaluate(pixels, corpus, protocol="image-8-v1", scorers=["ssim"])
    with pytest.raises(ValueError, match=r"rates of toy_pixels: \[4\], but this tokenizer has one rate only"):
        evaluate(pixels, corpus, rates=[4], scorers=["psnr_db"])
    with pytest.raises(ValueError, match=r"corpus holds no item"):
        evaluate(blocks, toys.Pictures([]), scorers=["psnr_db"])
    with pytest.raises(ValueError, match=r"limit=0. Allowed: at least 1"):
        evaluate(blocks, corpus, limit=0)
    with pytest.raises(ValueError, match=r"Chance is set by seed="):
        evaluate(blocks, corpus, decode={"seed": 3})
    with pytest.raises(ValueError, match=r"there is no protocol 'image'"):
        evaluate(blocks, corpus, protocol="image")
    sound = toys.Pixels()
    sound.info = replace(sound.info, modality="video")
    with pytest.raises(ValueError, match=r"toys holds pictures, protocol video-16-v1 is for clips"):
        evaluate(sound, corpus)


def test_default_scorers_that_do_not_fit_are_left_out_aloud(toys, caplog):
    with caplog.at_level(logging.WARNING):
        result = evaluate(toys.BlockColours(), toys.pictures(4, 16), rates=[16])
    assert "pfd64_mbv2 is left out: it needs at least 65 items and there are 4" in caplog.text
    assert set(DEFAULT_IMAGE) - set(result.points[0].scores) == {"pfd64_mbv2"}


@pytest.fixture
def by_name(toys, monkeypatch):
    """`zoo.load` gives the toy of ordered codes."""
    monkeypatch.setattr(zoo, "load", lambda name, **options: toys.BlockColours())


def test_a_result_is_not_replaced_by_less(by_name, folder, tmp_path):
    out = tmp_path / "r.json"
    command = ["toy", "--data", str(folder), "--scorers", "psnr_db,mae", "--device", "cpu", "--out", str(out)]
    assert main([*command, "--rates", "1,4"]) == 0
    assert main([*command, "--rates", "1,2,4"]) == 0
    before = out.read_text()
    for more, reason in (
        (["--rates", "2"], "this run does not measure tokens=1, tokens=4"),
        (["--rates", "1,2,4", "--scorers", "mae"], "this run does not measure psnr_db"),
        (["--rates", "1,2,4", "--limit", "3"], r"data set: \('six', None, 6\) there, \('six', None, 3\) now"),
        (["--rates", "1,2,4", "--seed", "5"], r"protocol: image-16-v1 there, image-16-v1\+seed=5 now"),
        (["--rates", "1,2,4", "--decode", "steps=3"], r"decode options: \{\} there, \{'steps': 3\} now"),
    ):
        with pytest.raises(ValueError, match=rf"holds another measurement .*{reason}.*--overwrite"):
            main([*command, *more])
    assert out.read_text() == before
    assert main([*command, "--rates", "2", "--overwrite"]) == 0
    assert [point.rate for point in load_result(out).points] == [{"tokens": 2}]
    out.write_text("{}")
    with pytest.raises(ValueError, match=r"is there and is no result"):
        main([*command, "--rates", "2"])


def test_names_of_limited_runs(by_name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["toy", "--data", str(folder), "--scorers", "psnr_db", "--rates", "16", "--limit", "2", "--truncate", "--device", "cpu"])
    path = tmp_path / "eval" / "results" / "toy_blocks" / "six-first2.image-16-v1+to_uint8=truncate.json"
    assert load_result(path).dataset.limit == 2


def test_mistakes_on_the_command_line(by_name, folder, tmp_path, capsys):
    command = ["toy", "--data", str(folder), "--device", "cpu"]
    (tmp_path / "none").mkdir()
    for words, message in (
        ([*command, "--scorers", "pnsr_db"], r"no scorer 'pnsr_db'. Did you mean psnr_db"),
        ([*command, "--rates", "one"], r"rates: 'one'. Give whole numbers"),
        ([*command, "--protocol", "image-256-amd-v1"], r"Closest: image-256-adm-v1"),
        ([*command, "--decode", "steps"], r"option 'steps'. Write options as key=value"),
        ([*command, "--batch-size", "0"], r"--batch-size 0"),
        ([*command, "--out", str(tmp_path / "out.csv")], r"must end in .json"),
        (["toy", "--data", str(tmp_path / "none")], r"no picture in"),
    ):
        with pytest.raises(ValueError, match=message):
            main(words)
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "pfd64_mbv2" in shown
    assert "--rates" in shown


def test_nothing_is_written_where_the_run_fails(by_name, folder, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "speed", stop)
    with pytest.raises(KeyboardInterrupt):
        main(["toy", "--data", str(folder), "--scorers", "psnr_db", "--device", "cpu", "--out", str(tmp_path / "o" / "r.json")])
    assert not (tmp_path / "o").exists()


# -- the sheet and the parts --------------------------------------------------------------------------------------


def test_sheet_shows_what_was_scored(toys):
    """The cells of the sheet are the pictures; the worst items come last, the worst first."""
    corpus = toys.pictures(7, 16)
    tokenizer = toys.Pixels(noise=0.2, broken=0.9)
    corpus.arrays[2] = np.full((16, 16, 3), 255, np.uint8)
    result = evaluate(tokenizer, corpus, scorers=["mse"])
    sheet = item_sheet(tokenizer, corpus, result, first=3, batch_size=2)
    side, factor = 96, 6
    top = [14 + 6 + j * (side + 14 + 6) + 14 for j in range(8)]
    assert sheet.size == (2 * (side + 6) + 6, 14 + 6 + 8 * (side + 14 + 6))

    def cell(row: int, column: int) -> np.ndarray:
        left = 6 + column * (side + 6)
        return np.asarray(sheet.crop((left, top[row], left + side, top[row] + side)))[factor // 2 :: factor, factor // 2 :: factor]

    np.testing.assert_array_equal(cell(1, 0), corpus.arrays[1])
    shown = ((cell(1, 1).astype(float) - corpus.arrays[1]) ** 2).mean()
    assert shown == pytest.approx(item_scores(result.items, "mse")["picture_1"])
    order = sorted((value, int(key[-1])) for key, value in item_scores(result.items, "mse").items() if not math.isnan(value))
    for row, (_, number) in enumerate(order[::-1][:5], start=3):
        np.testing.assert_array_equal(cell(row, 0), corpus.arrays[number])
    assert (cell(2, 1)[4:, 4:] == 255).all(), "a failed item shows an empty frame"


def test_sheet_refuses_rows_that_do_not_fit():
    image = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match=r"row 'a' has 1 pictures for 2 columns"):
        draw_sheet(["original", "full"], [SheetRow(label="a", pictures=[image])])
    with pytest.raises(ValueError, match=r"no rows"):
        draw_sheet(["original"], [])


def test_reading_ahead_keeps_the_order(toys):
    from eval.protocols import get_protocol

    corpus = toys.pictures(7, 16)
    for workers in (0, 3):
        parts = list(batches(corpus, get_protocol("image-16-v1"), [5, 0, 3, 6], 3, workers))
        assert [part.index.tolist() for part in parts] == [[5, 0, 3], [6]]
        np.testing.assert_array_equal(parts[0].pictures[2].permute(1, 2, 0), corpus.arrays[3])


def test_a_codec_without_tokens_is_scored_by_the_same_meter(pair):
    a, b = pair
    meter = PointMeter({"quality": 50}, ["psnr_db", "bits_per_pixel"])
    meter.update(a, b, index=torch.arange(6), failed=torch.zeros(6, dtype=torch.bool), rates=torch.arange(6) / 2)
    point = meter.point()
    assert point.rate == {"quality": 50}
    assert point.bits_per_pixel == point.scores["bits_per_pixel"].mean == 1.25
    assert point.tokens_per_item is None
    assert meter.per_item()[0] == list(range(6))
