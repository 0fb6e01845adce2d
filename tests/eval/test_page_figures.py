"""Figures that the pages of the rooms print are those of the result files."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "eval" / "results"


def table(page: Path, head: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of the table whose head line begins with `head`."""
    lines = page.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return rows
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        rows[name] = cells
    return rows


def points(name: str, data: str) -> list[dict]:
    return json.loads((RESULTS / name / f"{data}.json").read_text())["points"]


def test_the_codec_that_ships_beside_opus():
    rows = table(ROOT / "zoo/audio/README.md", "| | kbit/s | PESQ")
    ours = {f"depth {point['rate']['depth']}": point for point in points("audio_rvq_nano", "speech16k.audio-16k-v1")}
    measured = ours | {"Opus": points("opus", "speech16k.audio-16k-v1")[0]}
    assert list(rows) == list(measured)
    scores = ("bits_per_second", "pesq_wb", "visqol_speech", "stoi", "dnsmos_ovrl", "si_sdr_db", "mel_distance")
    for name, cells in rows.items():
        for score, cell in zip(scores, cells, strict=True):
            value = measured[name]["scores"][score]["mean"] / (1000 if score == "bits_per_second" else 1)
            assert float(cell) == pytest.approx(value, abs=0.5001 * 10 ** -len(cell.partition(".")[2])), (name, score)


def test_what_the_generator_that_ships_makes():
    rows = table(ROOT / "zoo/generators/README.md", "| tokens | bits | Fréchet")
    result = json.loads((RESULTS / "flextok_ar_nano" / "images128_release.generate-64-v1.json").read_text())
    scores = ("fd_mbv2", "precision_mbv2", "recall_mbv2", "class_accuracy")
    for row in result["summary"]:
        bits, distance, *cells = rows.pop(str(row["rate"]["tokens"]))
        assert float(bits) == pytest.approx(row["bits_per_picture"], abs=0.51)
        mean, deviation = (float(text) for text in distance.split("±"))
        assert mean == pytest.approx(row["scores"]["fd_mbv2"]["mean"], abs=0.51)
        assert deviation == pytest.approx(row["scores"]["fd_mbv2"]["std"], abs=0.51)
        assert [float(cell) for cell in cells] == pytest.approx([row["scores"][name]["mean"] for name in scores[1:]], abs=0.0051)
    anchors = {name: found.get("scores", found) for name, found in result["anchors"].items()}
    other, real = anchors["other_real_pictures"], anchors["the_real_pictures"]
    for (_, *cells), found in zip(rows.values(), (anchors["reconstructions"], other | real), strict=True):
        numbers = [float(cell) for cell in cells]
        assert numbers[0] == pytest.approx(found["fd_mbv2"]["mean"], abs=0.51)
        assert numbers[1:] == pytest.approx([found[name]["mean"] for name in scores[1:]], abs=0.0051)
