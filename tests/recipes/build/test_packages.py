"""Debian packages: read without dpkg, taken from the cache, fetched by apt-get only where that is Debian 12's."""

import hashlib
import logging
import os

import pytest

from recipes.data.build.packages import Package, PackageError, default_cache, fetch, read_control, unpack


def lock(name="toy", version="2:1.5-1", sha256="0" * 64):
    return Package(
        name=name, version=version, origin="debian 12", pool=f"pool/main/t/toy/{name}_1.5-1_all.deb", bytes=2_000_000,
        sha256=sha256, license="MIT", note="",
    )  # fmt: skip


def locked(deb, **more):
    return lock(sha256=hashlib.sha256(deb.read_bytes()).hexdigest(), **more)


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "debs"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", ["xz", "gz", "bz2"])
def test_fields_and_files_are_read(write_deb, cache, kind):
    deb = write_deb(
        cache / "toy_1.5-1_all.deb", "toy", "2:1.5-1", {"usr/a.txt": b"odd", "usr/b/c.bin": bytes(70_000)}, kind=kind
    )
    assert read_control(deb) == {"Package": "toy", "Version": "2:1.5-1", "Description": "a test"}
    unpacked = unpack(locked(deb), deb, "2:1.5-1", {"usr/a.txt", "usr/b/c.bin"}, cache)
    assert (unpacked.folder / "usr/a.txt").read_bytes() == b"odd"
    assert (unpacked.folder / "usr/b/c.bin").read_bytes() == bytes(70_000)
    assert unpacked.missing == {}
    assert unpacked.locked


def test_only_what_is_wanted_is_written_and_what_is_absent_is_named(write_deb, cache):
    deb = write_deb(cache / "toy_1_all.deb", "toy", "2:1.5-1", {"usr/a": b"a", "usr/b": b"b"})
    unpacked = unpack(locked(deb), deb, "2:1.5-1", {"usr/a", "usr/gone"}, cache)
    assert not (unpacked.folder / "usr/b").exists()
    assert unpacked.missing == {"usr/gone": "not in the package"}


def test_links_are_followed(write_deb, cache):
    links = {"usr/near": "real", "usr/deep/up": "../real", "usr/rooted": "/usr/real", "usr/dead": "nowhere"}
    deb = write_deb(cache / "toy_1_all.deb", "toy", "2:1.5-1", {"usr/real": b"content"}, links=links)
    unpacked = unpack(locked(deb), deb, "2:1.5-1", set(links), cache)
    for name in ("usr/near", "usr/deep/up", "usr/rooted"):
        assert (unpacked.folder / name).read_bytes() == b"content"
    assert unpacked.missing == {"usr/dead": "a link to usr/nowhere, which is not a file of the package"}


def test_unpacking_happens_once_and_never_half(write_deb, cache, monkeypatch):
    deb = write_deb(cache / "toy_1_all.deb", "toy", "2:1.5-1", {"usr/a": b"a"})
    package = locked(deb)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", full)
        with pytest.raises(OSError, match="No space left"):
            unpack(package, deb, "2:1.5-1", {"usr/a"}, cache)
    assert list((cache / "unpacked").iterdir()) == []
    first = unpack(package, deb, "2:1.5-1", {"usr/a"}, cache)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", full)
        assert unpack(package, deb, "2:1.5-1", {"usr/a"}, cache) == first


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd"])
def test_paths_that_lead_out_are_refused(write_deb, cache, name):
    deb = write_deb(cache / "toy_1_all.deb", "toy", "2:1.5-1", {"usr/a": b"a"})
    with pytest.raises(ValueError, match="leads out of the folder"):
        unpack(locked(deb), deb, "2:1.5-1", {name}, cache)


def test_damaged_files_are_named(write_deb, ar_bytes, cache):
    deb = write_deb(cache / "toy_1_all.deb", "toy", "2:1.5-1", {"usr/a": os.urandom(5000)})
    whole = deb.read_bytes()
    deb.write_bytes(whole[:-2000])
    with pytest.raises(PackageError, match=r"toy_1_all.deb: cut short: data.tar.xz needs"):
        unpack(locked(deb), deb, "2:1.5-1", {"usr/a"}, cache)
    deb.write_bytes(whole[:-2000] + bytes(2000))
    with pytest.raises(PackageError, match=r"data.tar.xz cannot be read \(.*\). Download the package again"):
        unpack(locked(deb), deb, "2:1.5-1", {"usr/a"}, cache)
    deb.write_bytes(b"<html>not found</html>")
    with pytest.raises(PackageError, match=r"not a \.deb file"):
        read_control(deb)
    deb.write_bytes(ar_bytes({"debian-binary": b"2.0\n"}))
    with pytest.raises(PackageError, match=r"no control.tar.\* inside"):
        read_control(deb)


def test_a_compression_that_python_cannot_read_is_named(ar_bytes, cache):
    deb = cache / "toy_1_all.deb"
    deb.write_bytes(ar_bytes({"debian-binary": b"2.0\n", "control.tar.lz9": b"?"}))
    with pytest.raises(
        PackageError, match=r"control.tar.lz9 is packed with lz9, which this Python cannot read \(it reads bz2, gz, xz"
    ):
        read_control(deb)


def test_the_locked_version_with_other_content_is_refused(write_deb, cache):
    deb = write_deb(cache / "toy_1_all.deb", "toy", "2:1.5-1", {"usr/a": b"a"})
    with pytest.raises(PackageError, match="damaged or altered: remove it"):
        unpack(lock(), deb, "2:1.5-1", {"usr/a"}, cache)


def test_another_version_is_used_with_a_warning(write_deb, cache, no_apt, caplog):
    write_deb(cache / "toy_1.6-1_all.deb", "toy", "2:1.6-1", {"usr/a": b"a"})
    deb, version = fetch([lock()], cache)["toy"]
    assert version == "2:1.6-1"
    with caplog.at_level(logging.WARNING):
        unpacked = unpack(lock(), deb, version, {"usr/a"}, cache)
    assert not unpacked.locked
    assert "toy is version 2:1.6-1; the lock list has 2:1.5-1" in caplog.text


def test_the_cache_is_enough_and_the_locked_version_is_preferred(write_deb, cache, no_apt):
    for version in ("1.4-1", "1.5-1", "1.6-1"):
        write_deb(cache / f"toy_{version}_all.deb", "toy", f"2:{version}", {})
    write_deb(cache / "toy-extra_9_all.deb", "toy-extra", "9", {})
    assert fetch([lock()], cache) == {"toy": (cache / "toy_1.5-1_all.deb", "2:1.5-1")}


def test_a_wrong_package_under_the_right_name_is_refused(write_deb, cache):
    write_deb(cache / "toy_1_all.deb", "boy", "1", {})
    with pytest.raises(PackageError, match="holds the package 'boy', not 'toy'"):
        fetch([lock()], cache)


def test_without_apt_the_error_says_what_to_put_where(write_deb, cache, no_apt):
    write_deb(cache / "toy_1_all.deb", "toy", "2:1.5-1", {})
    with pytest.raises(PackageError) as error:
        fetch([lock(), lock("owl"), lock("elk")], cache)
    text = str(error.value)
    assert "2 of 3 packages are not in the cache, and there is no apt-get on this machine" in text
    assert f"Put these .deb files into {cache} and run the command again" in text
    assert "pool/main/t/toy/owl_1.5-1_all.deb  (version 2:1.5-1, 2 MB)" in text
    assert "elk_1.5-1_all.deb" in text
    assert "toy_1.5-1" not in text


def test_apt_of_another_distribution_is_not_asked(cache, fake_apt, monkeypatch):
    fake_apt("touch called; exit 1")
    other = {"ID": "ubuntu", "VERSION_ID": "24.04", "PRETTY_NAME": "Ubuntu 24.04 LTS"}
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: other)
    with pytest.raises(PackageError, match=r"this machine is Ubuntu 24\.04 LTS, whose packages are others"):
        fetch([lock()], cache)


def test_apt_downloads_the_locked_version(write_deb, cache, fake_apt, tmp_path):
    deb = write_deb(tmp_path / "toy.deb", "toy", "2:1.5-1", {})
    fake_apt(f'[ "$1" = download ] && [ "$2" = toy=2:1.5-1 ] && cp {deb} toy_2%3a1.5-1_all.deb')
    said = []
    assert fetch([lock()], cache, say=said.append) == {"toy": (cache / "toy_2%3a1.5-1_all.deb", "2:1.5-1")}
    assert said == ["download toy (2 MB)"]
    assert sorted(path.name for path in cache.iterdir()) == ["toy_2%3a1.5-1_all.deb"]


def test_apt_falls_back_to_the_version_on_offer(write_deb, cache, fake_apt, tmp_path):
    deb = write_deb(tmp_path / "toy.deb", "toy", "2:1.5-2", {})
    fake_apt(f'[ "$2" = toy ] && cp {deb} toy_1.5-2_all.deb')
    assert fetch([lock()], cache)["toy"][1] == "2:1.5-2"


def test_a_failed_download_says_why_and_what_to_do(cache, fake_apt):
    fake_apt("echo 'E: Unable to locate package toy' >&2; exit 100")
    with pytest.raises(PackageError) as error:
        fetch([lock()], cache)
    text = str(error.value)
    assert "toy: E: Unable to locate package toy" in text
    assert "apt-get update" in text
    assert f"Put these .deb files into {cache}" in text


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "zoo" / "packages"
