"""What the tests of the papers' tables share."""

from pathlib import Path

import pytest

from support.tiny_table import TINY


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The file of a small table's recipe."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path
