"""Rebuild the picture pack images128 and the speech pack speech16k from public packages.

`packages` gets and unpacks Debian packages, `shardfile` writes shards and `state` notes which are whole. Pictures: `images128`
builds, `manifest` says what is in the pack, `gcompris` takes pictures out of GCompris' resource files, `stamps` makes the
composites, `extract` wrote the manifest. Speech: `speech16k` builds, `speech_manifest` says what is in the pack, `speech` decodes
and encodes.
"""

from recipes.data.build.manifest import sources
from recipes.data.build.speech_manifest import speech_sources

__all__ = ["sources", "speech_sources"]
