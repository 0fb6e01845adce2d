"""Picture tokenizers, one file per family."""
