"""The manifest can be written anew from a pack and its packages."""

import dataclasses
import gzip

import pytest

from recipes.data.build import extract, manifest
from recipes.data.build.images128 import build
from recipes.data.build.packages import PackageError


def test_a_rebuilt_pack_gives_its_manifest_back(tiny, tmp_path, no_apt):
    build(tmp_path / "out", cache=tiny.cache, contents=tiny.manifest, progress=False)
    again = extract.extract(tmp_path / "out", tiny.cache, tiny.manifest.packages)
    assert again.crops == tiny.manifest.crops
    assert manifest.dump(again) == manifest.dump(tiny.manifest)


def test_a_manifest_is_read_as_it_was_written(tiny, tmp_path):
    path, lock = tmp_path / "m.jsonl.gz", tmp_path / "sources.json"
    path.write_bytes(manifest.dump(tiny.manifest))
    lock.write_text('{"packages": []}')
    assert manifest.load(path, lock).crops == tiny.manifest.crops
    assert len(gzip.decompress(path.read_bytes()).splitlines()) == 6


def test_packages_must_be_in_the_lock_list(tiny, tmp_path, no_apt):
    build(tmp_path / "out", cache=tiny.cache, contents=tiny.manifest, progress=False)
    with pytest.raises(ValueError, match=r"\['tuxpaint-stamps-default'\] are not in the lock list"):
        extract.extract(tmp_path / "out", tiny.cache, tiny.manifest.packages[:-1])
    with pytest.raises(PackageError, match="4 of 4 packages are not in the cache"):
        extract.extract(tmp_path / "out", tmp_path / "empty", tiny.manifest.packages)


def test_a_file_that_left_its_package_is_an_error(tiny, tmp_path, no_apt, write_deb):
    build(tmp_path / "out", cache=tiny.cache, contents=tiny.manifest, progress=False)
    package = tiny.package("opencv-doc")
    (tiny.cache / "opencv-doc_1.0_all.deb").unlink()
    write_deb(tiny.cache / "opencv-doc_2.0_all.deb", package.name, "1:2.0", {})
    with pytest.raises(ValueError, match=r"opencv-doc 1:2.0 lacks \{.*ghost.png': 'not in the package'"):
        extract.extract(tmp_path / "out", tiny.cache, tiny.manifest.packages)


TEXT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: toy

Files: *
Copyright: 2000 Everybody
License: GPL-3+
 Body
 .
 of the licence.

Files: src/a*.jpg src/b.png
Copyright: 2001 Anna
  2002 Bert
License: CC-BY-2.0
\t
Files:
 src/ab*.jpg
License: CC0-1.0

License: CC-BY-2.0
 Body.
"""


def test_stanzas_are_read():
    first, second, third = extract.read_copyright(TEXT)
    assert first == extract.Stanza(("*",), "GPL-3+", "2000 Everybody")
    assert second == extract.Stanza(("src/a*.jpg", "src/b.png"), "CC-BY-2.0", "2001 Anna 2002 Bert")
    assert third == extract.Stanza(("src/ab*.jpg",), "CC0-1.0", "")


@pytest.mark.parametrize(
    ("path", "license"),
    [
        ("src/a1.jpg", "CC-BY-2.0"),
        ("src/deep/a1.jpg", None),
        ("src/abc.jpg", "CC0-1.0"),
        ("src/b.png", "CC-BY-2.0"),
        ("src/b.webp", "CC-BY-2.0"),
        ("src/b.gif", None),
        ("src/ab.webp", "CC0-1.0"),
        ("other.txt", None),
    ],
)
def test_the_last_stanza_that_names_a_file_wins(path, license):
    found = extract.match(extract.read_copyright(TEXT), path)
    assert (found.license if found else None) == license


def test_the_command_writes_the_file(tiny, tmp_path, no_apt, monkeypatch, capsys):
    build(tmp_path / "out", cache=tiny.cache, contents=tiny.manifest, progress=False)
    monkeypatch.setattr(manifest, "load_packages", lambda: tiny.manifest.packages)
    to = tmp_path / "new.jsonl.gz"
    assert extract.main([str(tmp_path / "out"), "--cache", str(tiny.cache), "--to", str(to)]) == 0
    assert "6 sources, 8 crops" in capsys.readouterr().out
    assert to.read_bytes() == manifest.dump(tiny.manifest)


def test_counts_of_licences_follow_the_single_pictures(tiny):
    records = {record.package.name: record for record in manifest.sources(manifest=tiny.manifest)}
    assert records["supertuxkart-data"].licenses == {"CC-BY-4.0": 1, "GPL-3.0-or-later (package)": 1}
    assert records["gcompris-qt-data"].licenses == {"public-domain": 1}
    renamed = [dataclasses.replace(package, license="MIT") for package in tiny.manifest.packages]
    other = manifest.sources(manifest=manifest.Manifest(tuple(renamed), tiny.manifest.crops))
    assert other[1].licenses == {"MIT (package)": 1}
