"""The sample pack: every file is recorded, unchanged and readable, and its terms can be shown."""

import hashlib
import json
import subprocess
import sys

import pytest
from PIL import Image

from zoo import samples

NOT_DATA = {"__init__.py", "index.json", "LICENSES.md"}
FILES = sorted(p for p in samples.folder().rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.name not in NOT_DATA)


def test_counts():
    assert [len(kind()) for kind in (samples.images, samples.speech, samples.music, samples.video)] == [12, 6, 3, 3]
    assert len(FILES) == 24


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_file_has_a_licence_record_and_its_hash(path):
    record = samples.info(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256
    assert record.license in samples.LICENSE_NAMES
    assert record.title in record.credit
    assert record.package in record.credit
    if record.attribution_required:
        assert record.author
        assert record.author in record.credit


def test_no_record_without_a_file():
    rows = json.loads((samples.folder() / "index.json").read_text())
    assert sorted(row["file"] for row in rows) == sorted(p.relative_to(samples.folder()).as_posix() for p in FILES)


def test_nothing_copyleft_ships():
    licences = {samples.info(path).license for path in FILES}
    assert not [licence for licence in licences if "-SA" in licence or "GPL" in licence or "-NC" in licence]


def test_attribution_page_names_all_that_need_it():
    page = (samples.folder() / "LICENSES.md").read_text()
    head = page.split("## Public domain")[0]
    need = [samples.info(path) for path in FILES if samples.info(path).attribution_required]
    assert len(need) == 7
    for record in need:
        assert record.file in head, record.file
    for path in FILES:
        assert samples.info(path).file in page


def test_pictures_are_256_px():
    for path in samples.images():
        with Image.open(path) as image:
            assert image.size == (256, 256), path


def test_credit_reads_well():
    assert samples.credit("images/temple.jpg") == (
        'Temple: "china.jpg" by danielbuechele (Flickr), CC BY 2.0, https://creativecommons.org/licenses/by/2.0/, '
        "from scikit-learn; cut to a square and resized to 256 px."
    )


def test_a_foreign_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dog\.jpg is not a file of the sample pack.*images/cat\.jpg"):
        samples.info(tmp_path / "dog.jpg")


def test_loads_no_torch():
    code = "import sys, zoo.samples as s; s.images(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]
