"""Measure speed and memory, of one tokenizer or of the quantizers."""

__all__ = ["pass_on"]


def pass_on(argv: list[str]) -> int:
    """Hand over to `eval.bench.main`, or to `eval.bench_quantizers.main` for `zoo bench quantizers`."""
    if argv and argv[0] == "quantizers":
        from eval.bench_quantizers import main

        return main(argv[1:])
    from eval.bench import main

    return main(argv)
