"""How the tokenizers of the zoo are trained: data, Lightning modules and configurations."""

__all__: list[str] = []
