"""The table of clip tokenizers against picture tokenizers: what is paired, what holds, and that the page shows it."""

from dataclasses import replace

import numpy as np
import pytest

from eval.protocols import get_protocol
from eval.results import Dataset, ItemRow, Point, Result, Score
from eval.video_claims import claims, main, page, read_results

SCORERS = {name: {"unit": "1"} for name in ("frame_psnr_db", "flicker_rmse", "warping_error", "tokens_per_second")}
HARD = 4 * np.random.default_rng(0).standard_normal(40)  # how hard each clip is, shared by all
WAYS = {"small_clips": "clips", "frames": "frame by frame", "levels": "frame by frame", "h264": "codec"}


def result(name: str, points: dict[str, tuple[float, float, float | None]], seed: int = 1) -> Result:
    """`points`: rate -> PSNR, flicker and tokens a second (None for a codec); each clip varies around them."""
    draws, made, items = np.random.default_rng(seed), [], []
    for rate, (psnr, flicker, tokens) in points.items():
        own = {
            "frame_psnr_db": psnr + HARD + 0.2 * draws.standard_normal(40),
            "flicker_rmse": flicker * (1 + 0.05 * draws.standard_normal(40)),
            "warping_error": np.full(40, 0.002),
        }
        scores = {
            key: Score(mean=float(v.mean()), ci95=(float(v.mean()) - 1e-3, float(v.mean()) + 1e-3), n=40) for key, v in own.items()
        }
        if tokens is not None:
            scores["tokens_per_second"] = Score(mean=tokens, n=40)
        key, _, number = rate.partition("=")
        made.append(Point(rate={key: int(number)} if number else {}, bits_per_pixel=0.1, scores=scores))
        items += [ItemRow(item=i, key=f"clip_{i}", rate=rate, scores={k: float(v[i]) for k, v in own.items()}) for i in range(40)]
    return Result(
        tokenizer=name,
        weights_sha256=None if WAYS[name] == "codec" else "00",
        dataset=Dataset(name="video128", split="val", count=40, total=40, sha256="dd"),
        protocol=replace(get_protocol("video-128-v1"), scorers=SCORERS),
        points=tuple(made),
        environment={"date": "2026-01-01"},
        items=tuple(items),
    )


def way(found: Result) -> str:
    return WAYS[found.tokenizer]


def results() -> list[Result]:
    return [
        result("small_clips", {"full": (24.0, 0.020, 3200.0)}),
        result("frames", {"full": (23.5, 0.030, 6400.0)}, 2),
        result("levels", {"depth=1": (22.0, 0.040, 3200.0), "depth=2": (25.0, 0.019, 6400.0)}, 3),
        result("h264", {"crf=38": (24.0, 0.01, None)}, 4),
    ]


def test_a_claim_holds_where_the_numbers_say_so():
    found = {(claim.pictures, claim.rate): claim for claim in claims(results(), way=way)}
    assert set(found) == {("frames", "full"), ("levels", "depth=1"), ("levels", "depth=2")}
    better, equal_tokens, worse = (found[key] for key in (("frames", "full"), ("levels", "depth=1"), ("levels", "depth=2")))
    assert better.tokens == pytest.approx(0.5)
    assert better.psnr.mean == pytest.approx(0.5, abs=0.15)
    assert better.psnr.ci95[1] - better.psnr.ci95[0] < 0.3  # paired: clips differ by 4 dB, pairs by 0.3
    assert (better.fewer_tokens, better.less_flicker) == (True, True)
    assert equal_tokens.psnr.mean > 1.5
    assert (equal_tokens.fewer_tokens, equal_tokens.less_flicker) == (False, True)
    assert worse.psnr.mean == pytest.approx(-1.0, abs=0.15)
    assert (worse.fewer_tokens, worse.less_flicker) == (False, False)


def test_a_loss_that_may_be_larger_than_a_tenth_is_not_the_same_psnr():
    held = [result("small_clips", {"full": (24.0, 0.02, 3200.0)}), result("frames", {"full": (24.2, 0.03, 6400.0)}, 2)]
    (claim,) = claims(held, way=way)
    assert not claim.fewer_tokens
    assert claim.less_flicker


def test_the_page_shows_both_tables():
    text = page(results(), way=way)
    lines = text.splitlines()
    assert "| small_clips | full | clips | 3,200 | 0.1000 | 2" in text
    assert sum(line.startswith("| h264 | crf=38 | codec | - |") for line in lines) == 1
    assert any(line.startswith("| small_clips | frames | x 0.50 | +0.") and line.count("| yes |") == 2 for line in lines)
    assert any(line.startswith("| small_clips | levels, depth=2 | x 0.50 | -") and line.count("| no |") == 2 for line in lines)
    alone = page(results()[1:], way=way)
    assert "there is nothing to claim yet" in alone


def test_results_are_read_and_only_what_may_be_compared(tmp_path, capsys):
    with pytest.raises(ValueError, match="no results of clips of 'video128'"):
        read_results(tmp_path)
    codec = results()[3]
    codec.save(tmp_path / "h264" / "video128.video-128-v1.json")
    assert main(["--results", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("40 clips of video128, split val, under `video-128-v1`")
    assert "| h264 | crf=38 | codec |" in shown
    other = replace(codec, tokenizer="av1", dataset=replace(codec.dataset, sha256="ee"))
    other.save(tmp_path / "av1" / "video128.video-128-v1.json")
    with pytest.raises(ValueError, match="av1 and h264 cannot stand in one table: other data"):
        read_results(tmp_path)
