"""What the tests of several packs ask alike."""

import pytest

from recipes.data.build import shardfile


def check_goes_on(build, contents, cache, tmp_path, monkeypatch):
    """A build that was stopped at its validation shard keeps the shards before it; a whole one needs no package again."""
    out, write = tmp_path / "out", shardfile.write_shard

    def again(cache=cache):
        return build(out, cache=cache, contents=contents, progress=False)

    def dies(path, samples, **settings):
        if path.name.startswith("val"):
            raise KeyboardInterrupt
        write(path, samples, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(shardfile, "write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            again()
    before = (out / "train-00000.tar").read_bytes()
    report = again()
    assert report.reused == ("train-00000.tar",)
    assert report.complete
    assert (out / "train-00000.tar").read_bytes() == before
    assert sorted(again(tmp_path / "empty").reused) == sorted(contents.shards())
