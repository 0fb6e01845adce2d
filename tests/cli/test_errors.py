"""One line for the user's mistakes, a traceback for ours."""

import errno

import pytest

import zoo
from zoo.cli.errors import users_error
from zoo.hub import HubError


def caught(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_an_error_somebody_wrote_is_the_users():
    error = caught(lambda: zoo.info("flextok_nan"))
    assert users_error(error) == str(error)
    error = caught(lambda: zoo.register("not an entry"))
    assert isinstance(error, TypeError)
    assert users_error(error) == str(error)


@pytest.mark.parametrize("fault", [lambda: zoo.find(1), lambda: zoo.info(["list"]), lambda: zoo.list_models(pattern=3)])
def test_the_same_types_from_a_fault_are_not(fault):
    error = caught(fault)
    assert isinstance(error, TypeError)
    assert users_error(error) is None


def test_an_error_raised_elsewhere_is_not_ours():
    def foreign():
        raise ValueError("by a test")

    assert users_error(caught(foreign)) is None


def test_the_hub():
    def failing():
        from zoo.hub import check_repo_id

        check_repo_id("a b")

    assert "a b" in users_error(caught(failing))
    from zoo.hub_client import HubRequest  # noqa: F401 - the room where HubError is raised

    def raised_in_zoo():
        exec(compile("raise HubError('the server said no')", "x", "exec"), {"HubError": HubError, "__name__": "zoo.hub"})

    assert users_error(caught(raised_in_zoo)) == "the server said no"


def test_files(tmp_path):
    assert users_error(caught((tmp_path / "nothing").read_text)) == f"No such file or directory: {tmp_path / 'nothing'}"
    assert users_error(caught(tmp_path.read_text)) == f"Is a directory: {tmp_path}"
    assert "disk is full" in users_error(OSError(errno.ENOSPC, "No space left on device"))
    assert users_error(OSError(errno.EIO, "I/O error")) is None


def test_a_missing_package_names_its_extra():
    assert users_error(ModuleNotFoundError("No module named 'soundfile'", name="soundfile")) == (
        "the package soundfile is not installed. Install it: pip install 'tokenizer-zoo[audio]'"
    )
    assert "tokenizer-zoo[eval]" in users_error(ModuleNotFoundError("x", name="torch_fidelity.metric"))
    assert "pip install 'tokenizer-zoo'" in users_error(ModuleNotFoundError("x", name="torchmetrics.image"))
    assert users_error(ModuleNotFoundError("x", name="zoo.nothing")) is None
    assert users_error(ModuleNotFoundError("x", name="a_package_nobody_declared")) is None
