"""A tiny T5 encoder with a tokenizer of a few words, as a folder or a repository would hold it."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import T5Config, T5EncoderModel

WIDTH = 6
LONGEST = 8
WORDS = ("a", "red", "green", "apple", "tree", "on", "under", "the", "two", "boats", "house")


def write_tower(folder: Path, *, shards: bool = False, width: int = WIDTH) -> Path:
    """Write a random encoder of `width` channels; with `shards` in several files and an index."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS] + [(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    words = Tokenizer(Unigram(pieces, unk_id=2))
    words.pre_tokenizer = Metaspace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    sizes = dict(vocab_size=len(pieces), d_model=width, d_kv=3, d_ff=8, num_layers=1, num_heads=2)
    model = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.5))
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.5)
    model.save_pretrained(folder, max_shard_size="1KB" if shards else "1GB")
    words.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 0}
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": LONGEST, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
