"""The `zoo` command as a whole: quick, lazy, helpful in its errors, and honest about faults of its own."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import cli
from zoo.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
RUN = "import sys; from zoo.cli import main; sys.exit(main(sys.argv[1:]))"


def fresh(*words: str, code: str = RUN) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run in a process of its own; gives the result and the best of three processor times in seconds.

    Processor time, because a busy machine makes the clock meaningless; on an idle one the two are the same here.
    """
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return done, min(times)


def test_listing_in_python_is_instant_and_loads_no_torch():
    done, seconds = fresh(code="import sys, zoo; print(len(zoo.list_models()), 'torch' in sys.modules)")
    count, torch_loaded = done.stdout.split()
    assert int(count) >= 9
    assert torch_loaded == "False"
    assert seconds < 2 * 0.2


def test_zoo_list_is_quick_and_loads_no_torch():
    code = "import sys; from zoo.cli import main; main(['list']); sys.stderr.write(str('torch' in sys.modules))"
    done, seconds = fresh(code=code)
    assert "flextok_nano" in done.stdout
    assert done.stderr == "False"
    assert seconds < 2 * 0.4


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    try:
        code = main([command, "--help"])
    except SystemExit as stop:
        code = stop.code
    out = capsys.readouterr().out
    assert code == 0
    assert out.startswith(f"usage: zoo {command}")
    assert len(out.splitlines()) > 4


def test_help_names_every_command(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for command, text in COMMANDS.items():
        assert f"  {command} " in out
        assert text in out


def test_every_command_has_a_module():
    for command in COMMANDS:
        place = Path(cli.__file__).parent / "commands" / command
        assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def test_version(capsys):
    import zoo

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"zoo {zoo.__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lst"], "zoo: no command 'lst'. Did you mean `zoo list`?"),
        (["show", "flextok_nan"], "zoo has no tokenizer 'flextok_nan'. Closest: flextok_nano"),
        (["encode", "flextok_nano", ".", "out"], "holds no image files"),
        (["encode", "kl_vae_nano", "missing.jpg", "out"], "zoo encode: no file or folder missing.jpg."),
        (["decode", "kl_vae_nano", "missing.safetensors", "out"], "no file or folder missing.safetensors"),
        (["list", "--where", "speed=3"], "zoo.find: no field 'speed'"),
        (["data", "build", "images12"], "Did you mean images128?"),
        (["train", "flextok_nao"], "no recipe flextok_nao"),
        (["push", "kl_vae_nano"], "zoo push: --repo is missing"),
        (["bench", "flextok_nan"], "zoo has no tokenizer 'flextok_nan'"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    streams = capsys.readouterr()
    assert said in streams.err
    assert streams.err.count("\n") == 1
    assert streams.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_argument_is_code_2():
    with pytest.raises(SystemExit, match="2"):
        main(["list", "--modality", "smell"])


def _failing(monkeypatch, failure):
    monkeypatch.setattr("zoo.cli.commands.samples.run", failure)


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def run(arguments):
        return int("three")

    _failing(monkeypatch, run)
    with pytest.raises(ValueError, match="invalid literal"):
        main(["samples"])


def test_traceback_on_demand():
    with pytest.raises(ValueError, match="no command"):
        main(["--traceback", "lst"])


def test_stopping(monkeypatch, capsys):
    def run(arguments):
        raise KeyboardInterrupt

    _failing(monkeypatch, run)
    assert main(["samples"]) == 130
    assert capsys.readouterr().err.endswith("zoo: stopped.\n")


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -c '{RUN}' list --json | head -n 1", shell=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == "[\n"
    assert done.stderr == ""


def test_the_terms_of_weights_are_shown():
    code = (
        "import logging; from zoo.cli import main; import zoo.cli.commands.samples as samples\n"
        "samples.run = lambda arguments: logging.getLogger('zoo.loading').warning('a_name: research use only') or 0\n"
        "main(['samples'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "a_name: research use only\n"
