"""Score reconstructions by a named protocol and write the result as JSON."""

__all__ = ["pass_on"]


def pass_on(argv: list[str]) -> int:
    """Hand over to `eval.reconstruction.main`."""
    from eval.reconstruction import main

    return main(argv)
