import os
import subprocess
import sys
from dataclasses import fields

import pytest

from eval.scorers import DEFAULT_AUDIO, DEFAULT_IMAGE, RECORDS, ScorerRecord, check_names

PLAIN = ["psnr_db", "ssim", "ssim_valid", "mse", "mae", "bits_per_pixel", "codebook_use", "code_perplexity"]
OFFICIAL = ["lpips", "lpips_vgg", "rfid", "frame_lpips", "frame_lpips_vgg"]
KINDS = ["pdist", "fd", "pfd64", "kid", "precision", "recall"]
PICTURES = PLAIN + OFFICIAL + [f"{kind}_{network}" for kind in KINDS for network in ("mbv2", "lite0")]
SIGNAL = ["si_sdr_db", "snr_db", "mel_distance", "stft_distance", "log_spectral_distance_db"]
LISTENING = ["pesq_wb", "pesq_nb", "stoi", "estoi", "visqol_speech", "visqol_audio", "distillmos"]
SPEECH = ["speaker_similarity", "f0_error_cents", "voicing_error", "wer_sphinx", "wer_gap_sphinx"]
SETS = ["fad_aisfx", "kad_aisfx", "bits_per_second", "entropy_bits_per_second"]
FRAMES = [f"frame_{name}" for name in ("psnr_db", "ssim", "ssim_valid", "pdist_mbv2", "pdist_lite0")]
TIME = ["temporal_difference_rmse", "warping_error", "flicker_rmse", "video_fd_mbv2", "video_kid_mbv2", "tokens_per_second"]
DNSMOS = [f"dnsmos_{part}" for part in ("sig", "bak", "ovrl", "p808")]
WANTED = PICTURES + FRAMES + TIME + SIGNAL + LISTENING + SPEECH + SETS + DNSMOS


def test_every_scorer_has_a_whole_record():
    assert sorted(RECORDS) == sorted(WANTED)
    for name, record in RECORDS.items():
        assert record.name == name
        assert record.unit
        assert record.source
        assert record.protocol
        assert record.better in ("higher", "lower") or name == "entropy_bits_per_second"
        low, high = record.range
        assert low is None or high is None or low < high
        assert {f.name for f in fields(ScorerRecord)} >= {"needs_reference", "range", "source", "protocol"}


def test_only_the_official_network_is_called_fid():
    assert [name for name in RECORDS if "fid" in name] == ["rfid"]
    assert sorted(name for name, record in RECORDS.items() if record.download) == sorted(OFFICIAL)


def test_default_scorers_need_no_download():
    assert not any(RECORDS[name].download for name in (*DEFAULT_IMAGE, *DEFAULT_AUDIO))


def test_unknown_names_get_near_matches():
    with pytest.raises(ValueError, match=r"no scorer 'psnr'. Did you mean psnr_db"):
        check_names(["ssim", "psnr"])
    with pytest.raises(ValueError, match=r"no scorer 'fid'. Did you mean .*rfid"):
        check_names(["fid"])
    with pytest.raises(ValueError, match=r"none was named"):
        check_names([])
    assert check_names(["ssim", "psnr_db", "ssim"]) == ["ssim", "psnr_db"]


def test_reading_results_and_listing_scorers_load_no_torch():
    modules = "eval.scorers, eval.scorers.audio.records, eval.protocols, eval.rates, eval.results"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
