"""`zoo eval generate`: train a generator on a tokenizer's tokens at a fixed budget (or take trained ones), sample, score."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["class_names", "main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zoo eval generate",
        description="Measure what a generator makes with a tokenizer's tokens: Fréchet and kernel distance, precision and recall,\n"
        "class accuracy, bits and seconds of a picture.",
        epilog="example: zoo eval generate flextok_nano --generator flextok_ar_nano --budget 2000 --data data/images128",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("tokenizer", metavar="TOKENIZER", help="catalog name, folder or Hub repository, as for zoo.load")
    words = "a generator or family to train (with --budget), or trained ones: folders that `zoo train` wrote, names with weights"
    add("--generator", required=True, nargs="+", metavar="NAME_OR_FOLDER", help=words)
    add("--budget", help="computing of each training: optimizer steps such as 2000, or operations such as 5e14flops")
    add("--seeds", default="0,1,2", help="of trainings and samples; a ranking needs three (default: %(default)s)")
    add("--data", required=True, help="pictures with classes: folder of shards or of class folders, hf:ORG/NAME")
    add("--split", default="val", help="real pictures to compare with (default: %(default)s)")
    add("--train-split", default="train", help="pictures to train on and to fit the classifier to (default: %(default)s)")
    add("--limit", type=int, help="only the first so many real pictures")
    add("--rates", help="such as 1,2,4: tokens, or levels of a residual tokenizer; default: powers of two up to all")
    add("--guidance", type=float, default=1.0, help="scale of classifier-free guidance (default: 1, none)")
    add("--sample", nargs="*", default=[], metavar="KEY=VALUE", help="options of the generator, such as temperature=0.9 steps=25")
    add("--decode", nargs="*", default=[], metavar="KEY=VALUE", help="options of the tokenizer's decoder, such as steps=20")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="sizes of the generator to train, such as width=192")
    add("--train-batch", type=int, help="items of a training step; default: the recipe's, or 32")
    add("--views", type=int, help="views of each training picture; default: the recipe's, or 10")
    add("--batch-size", type=int, default=32, help="items at once when sampling (default: %(default)s)")
    add("--official", action="store_true", help="also FID and inception score; needs their published weights")
    add("--device", default=None, help="such as cuda; default: cuda where there is one, else cpu")
    add("--keep", type=Path, metavar="FOLDER", help="write the trained generators to FOLDER/seed0, ...")
    add("--out", type=Path, help="default: eval/results/<generator>/<data>.generate-<side>-v1.json")
    add("--overwrite", action="store_true", help="replace a result at --out")
    add("--sheet", type=Path, help="write a PNG of samples, one row for each class")
    add("--sheet-columns", type=int, default=8, help="samples in a row (default: %(default)s)")
    return parser


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise ValueError(f"zoo eval generate: --seeds {text!r}. Write different whole numbers with commas, such as 0,1,2.")
    return [int(part) for part in parts]


def main(argv: Sequence[str]) -> int:
    """Run `zoo eval generate`.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `zoo.load`, `open_images`, the training and `evaluate_generation`; nothing is
            written then.
    """
    args = _parser().parse_args(argv)
    if args.out is not None and args.out.suffix != ".json":
        raise ValueError(f"zoo eval generate: --out {args.out}. The name must end in .json.")
    if args.batch_size < 1 or args.sheet_columns < 1:
        raise ValueError("zoo eval generate: --batch-size and --sheet-columns must be at least 1.")
    seeds = _seeds(args.seeds)
    import torch

    import zoo
    from eval.generation import evaluate_generation
    from eval.rates import check_rates, parse_rates
    from eval.reconstruction import data_name, key_value
    from recipes.data.corpora import open_images

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = zoo.load(args.tokenizer, device=device)
    corpus, train_corpus = (open_images(args.data, split=split) for split in (args.split, args.train_split))
    name, side = data_name(args.data), "x".join(map(str, dict.fromkeys(tokenizer.info.native_size or ())))
    # What can be wrong is looked at before the training.
    rates = None if args.rates is None else check_rates(parse_rates(args.rates), tokenizer.info, tokenizer.spec)
    sampling, decode = (dict(key_value(text) for text in given) for given in (args.sample, args.decode))
    if args.official:
        from eval.scorers.generation import official_network

        official_network()
    given = [] if args.budget else _loaded(args, tokenizer)
    generator = given[0].info.name if given else args.generator[0]
    out = args.out or Path("eval") / "results" / generator / f"{name}.generate-{side}-v1.json"
    if out.exists() and not args.overwrite:
        raise ValueError(f"zoo eval generate: {out} is there. Give --out, or --overwrite.")
    contenders = _contenders(args, given, seeds) if given else _trained(args, tokenizer, seeds)
    result = evaluate_generation(
        tokenizer,
        contenders,
        corpus,
        train_corpus,
        rates=rates,
        guidance=args.guidance,
        sampling=sampling,
        decode=decode,
        limit=args.limit,
        official=args.official,
        batch_size=args.batch_size,
        dataset_name=name,
        split=args.split,
        train_split=args.train_split,
    )
    result.save(out)
    if args.sheet:
        from eval.generation_sheet import class_sheet
        from eval.sheet import save_sheet

        names = class_names(train_corpus)
        options = dict(guidance=args.guidance, sampling=sampling, decode=decode, columns=args.sheet_columns)
        save_sheet(class_sheet(tokenizer, contenders[0], names, **options), args.sheet)
    show(result, out)
    return 0


def _loaded(args: argparse.Namespace, tokenizer: Any) -> list[Any]:
    """The trained generators that were named."""
    from zoo import generators

    if args.set or args.train_batch or args.views or args.keep:
        raise ValueError("zoo eval generate: --set, --train-batch, --views and --keep are for a training. Give --budget too.")
    return [generators.load(source, device=tokenizer.device) for source in args.generator]


def _contenders(args: argparse.Namespace, loaded: list[Any], seeds: list[int]) -> list[Any]:
    """One generator with every seed, or several with one each."""
    from eval.generation import Contender

    if len(loaded) > len(seeds):
        raise ValueError(f"zoo eval generate: {len(loaded)} generators for --seeds {args.seeds}. Give a seed for each.")
    sources = args.generator
    if len(loaded) == 1:
        loaded, sources = loaded * len(seeds), sources * len(seeds)
    rows = zip(loaded, seeds, sources, strict=False)
    return [Contender(gen, seed, {"trained_for_this": False, "source": str(source)}) for gen, seed, source in rows]


def _trained(args: argparse.Namespace, tokenizer: Any, seeds: list[int]) -> list[Any]:
    """A generator trained for each seed, kept where that was asked for."""
    from eval.generation_training import parse_budget, train_contender
    from eval.reconstruction import key_value
    from zoo import generators

    name = args.generator[0]
    if len(args.generator) != 1 or Path(name).is_dir():
        named = " ".join(args.generator)
        raise ValueError(f"zoo eval generate: --generator {named} with --budget. Give one name or family to train.")
    budget, overrides = parse_budget(args.budget), dict(key_value(text) for text in args.set)
    contenders = []
    for seed in seeds:
        contender = train_contender(
            tokenizer,
            name,
            args.data,
            seed=seed,
            budget=budget,
            overrides=overrides,
            batch_size=args.train_batch,
            views=args.views,
            accelerator="gpu" if tokenizer.device.type == "cuda" else "cpu",
            progress=True,
        )
        if args.keep:
            generators.save(contender.generator, args.keep / f"seed{seed}", overwrite=True)
        contenders.append(contender)
    return contenders


def class_names(corpus: Any) -> dict[int, str]:
    """Give class number -> name of a corpus of pictures, in the order of the numbers."""
    names = {}
    for i in range(len(corpus)):
        names.setdefault(corpus.label_id(i), str(corpus.record(i).get("label") or corpus.label_id(i)))
    return {label: names[label] for label in sorted(names) if label >= 0}


def show(result: Any, out: Path) -> None:
    """Print the means over the seeds as a table, and where the result was written."""
    from rich.console import Console
    from rich.table import Table

    from eval.rates import rate_text

    seeds = ", ".join(str(run.seed) for run in result.runs)
    table = Table(title=f"{result.generator['name']} on {result.tokenizer}, {result.dataset.count} samples, seeds {seeds}")
    for heading in ("pictures", "bit/picture", "score", "mean", "deviation"):
        table.add_column(heading, justify="left" if heading in ("pictures", "score") else "right")
    for row in result.summary:
        what, bits = rate_text(row["rate"]), f"{row['bits_per_picture']:.0f}"
        for name, score in row["scores"].items():
            if name != "bits_per_pixel":
                deviation = "" if score["std"] is None else f"{score['std']:.2g}"
                table.add_row(what, bits, name, f"{score['mean']:.4g}", deviation)
                what = bits = ""
        table.add_section()
    for what, scores in result.anchors.items():
        label = what.replace("_", " ")
        for name, score in scores.items():
            table.add_row(label, "", name, "-" if score.mean is None else f"{score.mean:.4g}", "")
            label = ""
        table.add_section()
    console = Console()
    console.print(table)
    nll = [run.nll_bits_per_picture for run in result.runs if run.nll_bits_per_picture is not None]
    if nll:
        console.print(f"bits for a real picture's tokens, its class given: {sum(nll) / len(nll):.1f}")
    sample, decode = (result.runs[0].speed[f"{what}_seconds_per_picture"] for what in ("sample", "decode"))
    console.print(f"seconds for a picture: {sample:.4g} to sample, {decode:.4g} to decode")
    if not result.ranked:
        console.print("no ranking can be claimed from this: it needs three generators, each trained with a seed of its own")
    console.print(f"wrote {out}", soft_wrap=True)
