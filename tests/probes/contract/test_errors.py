import pytest

from probes.contract.errors import (
    ExitCode,
    HostError,
    ProbeUnavailableError,
    RunDirError,
    ToolkitError,
    UsageError,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ToolkitError, 5),
        (UsageError, 2),
        (HostError, 4),
        (RunDirError, 5),
        (ProbeUnavailableError, 4),
    ],
)
def test_an_error_carries_message_fix_and_exit_code(kind, code):
    error = kind("no room at /x", fix="df -h /x")
    assert (error.message, error.fix, int(error.exit_code)) == ("no room at /x", "df -h /x", code)
    assert str(error) == "no room at /x"
    assert isinstance(error, ToolkitError)


def test_a_fix_is_required():
    with pytest.raises(TypeError):
        UsageError("no fix")


def test_exit_codes_are_the_documented_ones():
    documented = {"REACHED": 0, "USAGE": 2, "LIMIT_MET": 3, "HOST_CANNOT": 4, "INTERRUPTED": 130}
    assert documented.items() <= {code.name: code.value for code in ExitCode}.items()
    assert len({code.value for code in ExitCode}) == len(ExitCode)
