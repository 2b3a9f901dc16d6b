"""Fixtures that every test may use. Engines see one CPU thread, which has to be said before they load."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# An example may take as long as the machine makes it take.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("RSFT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set RSFT_DATA)")
    return folder
