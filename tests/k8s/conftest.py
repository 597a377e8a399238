import shutil
from pathlib import Path

import pytest

from tests.k8s.harness import TENANT_OBJECTS, Place


@pytest.fixture(scope="session")
def engines(tmp_path_factory):
    """A folder of engines with one small real program in it, laid out like a virtual environment."""
    folder = tmp_path_factory.mktemp("engines")
    binaries = folder / "fake-1" / "bin"
    binaries.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "fake_engine.py", binaries / "serve")
    (binaries / "serve").chmod(0o755)
    return folder


@pytest.fixture
def place(tmp_path, engines):
    """A local cluster with the tenant's namespace; the test starts the agent."""
    place = Place(tmp_path / "cluster", engines)
    assert all(result.error is None for result in place.cluster.apply(TENANT_OBJECTS))
    yield place
    place.close()
