"""Rebuild the packs images128 (pictures), speech16k (speech) and video128 (clips) from public packages.

`packages` gets and unpacks Debian packages, `shardfile` writes shards and `state` notes which are whole. Pictures: `images128`
builds, `manifest` says what is in the pack, `gcompris` takes pictures out of GCompris' resource files, `stamps` makes the
composites, `extract` wrote the manifest. Speech: `speech16k` builds, `speech_manifest` says what is in the pack, `speech` decodes
and encodes. Clips: `video128` builds, `video_manifest` says what is in the pack, `video` decodes, cuts and encodes, `wheels` gets
the one package that is not Debian's.
"""

from recipes.data.build.manifest import sources
from recipes.data.build.speech_manifest import speech_sources

__all__ = ["sources", "speech_sources"]
