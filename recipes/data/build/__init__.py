"""Rebuild the picture pack images128 from public packages.

`images128` builds it, `manifest` says what is in it, `packages` gets and unpacks Debian packages, `gcompris` takes
pictures out of GCompris' resource files, `stamps` makes the composites, `extract` wrote the manifest.
"""

from recipes.data.build.manifest import sources

__all__ = ["sources"]
