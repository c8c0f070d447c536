import pathlib
import sys

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]
import tether  # noqa: E402, F401
import harness  # noqa: E402


@pytest.fixture(scope="session")
def pb():
    return harness.stubs()


@pytest.fixture(scope="module")
def server():
    with harness.Server() as running:
        yield running


@pytest.fixture(autouse=True)
def no_force_is_left(request):
    """A test that leaves a force behind would change the next one."""
    yield
    if "server" in request.fixturenames:
        running = request.getfixturevalue("server")
        if running.process.poll() is None:
            running.operator.ReleaseForce(harness.stubs().ReleaseForceRequest(all=True), timeout=30)
