"""What is known of each scorer of sound, as plain data: no torch.

Every scorer takes mono waveforms in [-1, 1] of any rate at least `sample_rate`; higher rates are brought down by the rule of
`eval.resampling.resample`, lower ones are refused, unless the record says that they are brought up.
"""

from typing import Any

from eval.scorers.records import ScorerRecord

__all__ = ["AUDIO_RECORDS", "DEFAULT_AUDIO"]

_AUDIO: dict[str, Any] = {"modality": "audio", "kind": "item"}
_RESAMPLE = "to the rate of the scorer by windowed sinc (Hann) of torchaudio, width 64, rolloff 0.95"
_P808_HASH = "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91"
_P835_HASH = "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd"
_MEL = "frames centred, zeros beyond the ends, hop a quarter of the window, Hann"

_SIGNAL = [
    ScorerRecord(
        name="si_sdr_db",
        unit="dB",
        better="higher",
        range=(-100.0, 100.0),
        source="Le Roux et al., arXiv 1811.02508; says nothing of a decoder that does not keep the phase",
        protocol={"mean": "removed from both", "alignment": "none", "limits": "-100 and 100 dB"},
        **_AUDIO,
    ),
    ScorerRecord(
        name="snr_db",
        unit="dB",
        better="higher",
        range=(-100.0, 100.0),
        source="10 log10(energy of the original / energy of the difference)",
        protocol={"alignment": "none", "limits": "-100 and 100 dB"},
        **_AUDIO,
    ),
    ScorerRecord(
        name="mel_distance",
        unit="log10",
        better="lower",
        range=(0.0, None),
        source="the form of the mel loss of the Descript audio codec, arXiv 2306.06546",
        protocol={
            "windows": "32, 64, 128, 256, 512, 1024, 2048 samples",
            "bands": "5, 10, 20, 40, 80, 160, 320, Slaney, to half the rate",
            "value": "sum over windows of the mean absolute difference of log10 of the magnitude, at least 1e-5",
            "frames": _MEL,
        },
        **_AUDIO,
    ),
    ScorerRecord(
        name="stft_distance",
        unit="1",
        better="lower",
        range=(0.0, None),
        source="the form of the multi-scale STFT loss of the Descript audio codec, arXiv 2306.06546",
        protocol={
            "windows": "2048, 512 samples",
            "value": "sum over windows of the mean absolute difference of the magnitude, and of its log10, at least 1e-5",
            "frames": _MEL,
        },
        **_AUDIO,
    ),
    ScorerRecord(
        name="log_spectral_distance_db",
        unit="dB",
        better="lower",
        range=(0.0, None),
        source="root of the mean over bins of the squared difference of 20 log10 magnitude, mean over frames",
        protocol={"window": "2048 samples, magnitude at least 1e-5", "frames": _MEL},
        **_AUDIO,
    ),
]

_PERCEPTUAL = [
    ScorerRecord(
        name="pesq_wb",
        unit="MOS-LQO",
        better="higher",
        range=(1.0, 4.65),
        source="ITU-T P.862.2 (its C code, package pesq)",
        protocol={"package": "pesq", "mode": "wb", "sample_rate": 16000, "resample": _RESAMPLE},
        sample_rate=16000,
        **_AUDIO,
    ),
    ScorerRecord(
        name="pesq_nb",
        unit="MOS-LQO",
        better="higher",
        range=(1.0, 4.65),
        source="ITU-T P.862 with the mapping of P.862.1 (its C code, package pesq)",
        protocol={"package": "pesq", "mode": "nb", "sample_rate": 8000, "resample": _RESAMPLE},
        sample_rate=8000,
        **_AUDIO,
    ),
    ScorerRecord(
        name="stoi",
        unit="1",
        better="higher",
        range=(-1.0, 1.0),
        source="Taal et al. 2011 (package pystoi)",
        protocol={"package": "pystoi", "extended": False, "sample_rate": 10000, "resample": _RESAMPLE},
        sample_rate=10000,
        **_AUDIO,
    ),
    ScorerRecord(
        name="estoi",
        unit="1",
        better="higher",
        range=(-1.0, 1.0),
        source="Jensen and Taal 2016 (package pystoi)",
        protocol={"package": "pystoi", "extended": True, "sample_rate": 10000, "resample": _RESAMPLE},
        sample_rate=10000,
        **_AUDIO,
    ),
    ScorerRecord(
        name="visqol_speech",
        unit="MOS-LQO",
        better="higher",
        range=(1.0, 5.0),
        source="ViSQOL 3, speech mode, the lattice network (package visqol-python)",
        protocol={"package": "visqol-python", "mapping": "lattice", "sample_rate": 16000, "resample": _RESAMPLE},
        sample_rate=16000,
        **_AUDIO,
    ),
    ScorerRecord(
        name="visqol_audio",
        unit="MOS-LQO",
        better="higher",
        range=(1.0, 5.0),
        source="ViSQOL 3, audio mode, support vector regression (package visqol-python)",
        protocol={
            "package": "visqol-python",
            "mapping": "libsvm",
            "sample_rate": 48000,
            "resample": f"{_RESAMPLE}; lower rates are brought up, the band above is empty in both",
        },
        sample_rate=48000,
        raises_rate=True,
        **_AUDIO,
    ),
]

_DNSMOS = "Reddy et al., arXiv 2110.01763 and 2010.15258 (networks of package speechmos)"
_DNSMOS_INPUT = "16 kHz, doubled until 9.01 s long, windows of 9.01 s every second, mean over windows"
_SPEECH = [
    *(
        ScorerRecord(
            name=f"dnsmos_{kind}",
            unit="MOS",
            better="higher",
            range=(None, None),
            source=f"{_DNSMOS}; {what}",
            protocol={"sample_rate": 16000, "resample": _RESAMPLE, "input": _DNSMOS_INPUT, "sha256": digest},
            sample_rate=16000,
            needs_reference=False,
            **_AUDIO,
        )
        for kind, what, digest in (
            ("sig", "speech signal, P.835", _P835_HASH),
            ("bak", "background, P.835", _P835_HASH),
            ("ovrl", "overall, P.835; hardly hears a missing upper band", _P835_HASH),
            ("p808", "overall, P.808", _P808_HASH),
        )
    ),
    ScorerRecord(
        name="distillmos",
        unit="MOS",
        better="higher",
        range=(1.0, 5.0),
        source="Stahl and Gamper, arXiv 2502.05356 (package distillmos); the original has a score too: compare with it",
        protocol={
            "sample_rate": 16000,
            "resample": _RESAMPLE,
            "input": "each item alone",
            "sha256": "b18b3ac60227267cfb91e5d00ce22cc7b73716fd92f269484da1446e27031a40",
        },
        sample_rate=16000,
        needs_reference=False,
        **_AUDIO,
    ),
    ScorerRecord(
        name="speaker_similarity",
        unit="1",
        better="higher",
        range=(-1.0, 1.0),
        source="cosine of the embeddings of Resemblyzer (GE2E, arXiv 1710.10467); hears noise and bandwidth too",
        protocol={
            "sample_rate": 16000,
            "resample": _RESAMPLE,
            "input": "raised to -30 dBFS, silence kept, windows of 1.6 s, 1.3 a second",
            "sha256": "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
        },
        sample_rate=16000,
        **_AUDIO,
    ),
    ScorerRecord(
        name="f0_error_cents",
        unit="cents",
        better="lower",
        range=(0.0, None),
        source="root of the mean squared difference of the pitch over the frames voiced in both; tracker: YIN, de Cheveigne 2002",
        protocol={
            "sample_rate": 16000,
            "resample": _RESAMPLE,
            "pitch": "60 to 500 Hz, window 40 ms, hop 10 ms, threshold 0.15",
            "voiced": "aperiodicity below 0.25 and at most 40 dB below the loudest frame",
            "fewest_frames": 5,
        },
        sample_rate=16000,
        **_AUDIO,
    ),
    ScorerRecord(
        name="voicing_error",
        unit="1",
        better="lower",
        range=(0.0, 1.0),
        source="share of the frames that are voiced in one and not in the other; tracker as for f0_error_cents",
        protocol={
            "sample_rate": 16000,
            "resample": _RESAMPLE,
            "pitch": "60 to 500 Hz, window 40 ms, hop 10 ms, threshold 0.15",
            "voiced": "aperiodicity below 0.25 and at most 40 dB below the loudest frame",
        },
        sample_rate=16000,
        **_AUDIO,
    ),
    *(
        ScorerRecord(
            name=name,
            unit="1",
            better="lower",
            range=(low, None),
            source=f"{what}; recogniser: package pocketsphinx, US English, weak: read it beside the originals'",
            protocol={
                "sample_rate": 16000,
                "resample": _RESAMPLE,
                "recogniser": "pocketsphinx 5.1.1, en-us, 3-gram, at most 3000 states a frame",
                "words": "lower case, letters, digits and apostrophes; each item's edits over its words, then the mean",
                "items": "without an English text fail",
                "language_model_sha256": "db21d0642286677699e6dbc859d2e5395570222361999387ce60f6e1d01995d6",
            },
            sample_rate=16000,
            needs_reference=name == "wer_gap_sphinx",
            **_AUDIO,
        )
        for name, what, low in (
            ("wer_sphinx", "word errors against the transcript (package jiwer)", 0.0),
            ("wer_gap_sphinx", "word error rate of the reconstruction less that of the original (package jiwer)", None),
        )
    ),
]

_FRECHET = "Frechet audio distance (Kilgour et al., arXiv 1812.08466)"
_AISFX: dict[str, Any] = {
    "network": "aisfx (Ma and Lerch, ISMIR 2022)",
    "sha256": "499ea75909c932a2f94c35fa722fa4fabc5bcb7e84917209cc5f7402627b7eb5",
    "sample_rate": 44100,
    "resample": f"{_RESAMPLE}; lower rates are brought up",
    "input": "96 mel bands, windows of 100 frames of 2048 samples every 1024, hop 50 frames, short items filled up with zeros",
}
_SETS = [
    ScorerRecord(
        name="fad_aisfx",
        unit="1",
        better="lower",
        kind="distribution",
        modality="audio",
        range=(0.0, None),
        source=f"{_FRECHET} on other features; with few items it mostly depends on n: read kad_aisfx first",
        protocol={**_AISFX, "covariance": "divided by n - 1"},
        sample_rate=44100,
        raises_rate=True,
        min_items=2,
    ),
    ScorerRecord(
        name="kad_aisfx",
        unit="1/1000",
        better="lower",
        kind="distribution",
        modality="audio",
        range=(None, None),
        source="kernel distance as KID (arXiv 1801.01401) on features of sound; copies of the same items can give less than 0",
        protocol={**_AISFX, "kernel": "(x.y / d + 1)^3", "estimate": "unbiased, all pairs, no subsets", "times": 1000},
        sample_rate=44100,
        raises_rate=True,
        min_items=2,
    ),
]

_TOKENS = [
    ScorerRecord(
        name="bits_per_second",
        unit="bit/s",
        better="lower",
        kind="tokens",
        modality="audio",
        needs_reference=False,
        range=(0.0, None),
        source="fixed-length bits of the kept codes; latents count the bits of their floating-point type",
        protocol={"seconds": "of the original"},
    ),
    ScorerRecord(
        name="entropy_bits_per_second",
        unit="bit/s",
        better=None,
        kind="tokens",
        modality="audio",
        needs_reference=False,
        range=(0.0, None),
        source="bits of the codes at the entropy of their frequencies in this set, each depth on its own; too low for few codes",
        protocol={"seconds": "of the originals, all together"},
    ),
]

AUDIO_RECORDS: tuple[ScorerRecord, ...] = (*_SIGNAL, *_PERCEPTUAL, *_SPEECH, *_SETS, *_TOKENS)

DEFAULT_AUDIO: tuple[str, ...] = (
    "si_sdr_db",
    "mel_distance",
    "stft_distance",
    "visqol_speech",
    "pesq_wb",
    "stoi",
    "estoi",
    "dnsmos_ovrl",
    "dnsmos_p808",
    "distillmos",
    "speaker_similarity",
    "f0_error_cents",
    "voicing_error",
    "fad_aisfx",
    "kad_aisfx",
    "bits_per_second",
    "entropy_bits_per_second",
    "codebook_use",
    "code_perplexity",
)
