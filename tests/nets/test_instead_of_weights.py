"""Files that a failed download leaves where weights were expected."""

import pytest

from flowstill.errors import NetworkError
from flowstill.nets import read_weights


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "is a pointer of Git LFS"),
        (b"\n<!DOCTYPE html>\n<html></html>", "is a web page, not weights"),
    ],
)
def test_files_that_came_instead_of_weights(content, said, tmp_path):
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(NetworkError, match=said):
            read_weights(tmp_path / name)
