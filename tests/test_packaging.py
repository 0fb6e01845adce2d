"""What is installed: the versions of constraints.txt cover what is asked for, and the wheel holds the data it needs."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from eval.scorers.audio.networks import WHEELS
from zoo.layers.features import BACKBONES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split()[0].split("==") for line in lines)


def installed_extras():
    lines = re.findall(r"^(?:EXTRAS|COMPILED|SLOW) := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert len(lines) == 3
    return ",".join(lines).split(",")


def test_constraints_fit_every_requirement_that_make_installs():
    pinned = {name.lower(): version for name, version in pins("constraints.txt").items()}
    asked = PROJECT["dependencies"] + [line for extra in installed_extras() for line in PROJECT["optional-dependencies"][extra]]
    for line in asked:
        requirement = Requirement(line)
        name = requirement.name.lower().replace("_", "-")
        assert name in pinned, f"{line} has no version in constraints.txt"
        assert requirement.specifier.contains(pinned[name]), f"{line} refuses {pinned[name]}"


def test_constraints_hold_nothing_of_one_platform():
    assert not [name for name in pins("constraints.txt") if name.startswith(("nvidia", "cuda", "triton"))]
    assert not [version for version in pins("constraints.txt").values() if "+" in version or "/" in version]


def test_feature_networks_are_pinned_with_hashes():
    text = (ROOT / "requirements-weights.txt").read_text()
    of_pictures = {backbone.package for backbone in BACKBONES.values()}
    of_sound = {wheel.package for wheel in WHEELS.values()} | {"xls_r_sqa"}  # part of the code of distillmos
    assert set(pins("requirements-weights.txt")) == of_pictures | of_sound
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}$", text, flags=re.MULTILINE)) == len(of_pictures | of_sound)


def test_ci_runs_what_the_readme_says():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.slow
def test_the_wheel_holds_code_samples_page_and_weights(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    source = tmp_path / "source"
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    rooms = ("zoo/", "recipes/", "eval/")
    wanted = [name for name in listed if (name.startswith(rooms) and not name.endswith(".md")) or name == "zoo/samples/LICENSES.md"]
    missing = [name for name in wanted if name not in held]
    assert "zoo/cli/commands/demo/page.html" in held
    assert missing == []
    assert not [name for name in held if name.startswith("tests/")]
