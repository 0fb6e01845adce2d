"""Put a trained nano tokenizer or generator into the package: half-precision weights, and the facts its entry must state."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

import zoo
from zoo import generators
from zoo.checkpoint import read_folder, sha256_of
from zoo.generators.loading import FORMAT
from zoo.loading import embedded_folder

__all__ = ["main", "release"]


def release(folder: Path) -> dict[str, object]:
    """Write `zoo/weights/NAME.safetensors` of a folder made by training.

    Codebook counters and flags keep their types.

    Args:
        folder: `tokenizer` or `generator` of a training run.

    Returns:
        What the catalog entry must say: `config`, `parameters` (of a tokenizer with its stored tables), and `file`, `sha256`,
        `size` of its weights.

    Raises:
        ValueError: a weight beyond the range of half precision.
    """
    of_tokens = read_folder(folder).config.get("format") == FORMAT
    model = generators.load(folder) if of_tokens else zoo.load(folder)
    name = model.info.name
    path = embedded_folder() / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    tensors = {
        key: (value.half() if value.is_floating_point() else value).contiguous() for key, value in model.state_dict().items()
    }
    beyond = [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if beyond:
        raise ValueError(f"release: {', '.join(beyond[:10])} of {folder} hold numbers that float16 cannot. Needed: below 65504.")
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)
    return {
        "config": model.config.to_dict(),
        "file": path.name,
        "sha256": sha256_of(path),
        "size": path.stat().st_size,
        "parameters": sum(value.numel() for value in (model.parameters() if of_tokens else tensors.values())),
    }


def main(args: Sequence[str] | None = None) -> int:
    """Release one folder and print the facts as JSON."""
    parser = argparse.ArgumentParser(prog="python -m recipes.release", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder `tokenizer` or `generator` of a training run")
    sys.stdout.write(json.dumps(release(parser.parse_args(args).folder), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
