import os
from pathlib import Path

import pytest

from adalora_qat.errors import UserError
from adalora_qat.files import atomic_write, sha256_file, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_plain_message(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    full = pytest.raises(UserError, match=r"cannot write .*result.txt: No space left")
    with full, atomic_write(path):
        raise OSError(28, os.strerror(28))
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder_names_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="choose a folder that can be written"):
        write_json(tmp_path / "file" / "result.json", {})


def test_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_file(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")
