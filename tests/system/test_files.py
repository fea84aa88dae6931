"""Files that are replaced as a whole, also where an error interrupts."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from picogpt.system import files


def test_the_content_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"old", b"new and longer", b""):
        files.write_durably(path, content)
        assert path.read_bytes() == content and [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_an_error_leaves_the_old_content(tmp_path: Path, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_durably(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, operation, full)
    with pytest.raises(OSError, match="No space left"):
        files.write_durably(path, b"new")
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_content_is_durable_before_its_name_and_the_name_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noted(name: str, original: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: object) -> None:
            is_folder = isinstance(arguments[0], int) and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            order.append(f"{name} folder" if is_folder else name)
            original(*arguments)

        return wrapped

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    files.write_durably(tmp_path / "file", b"x")
    assert order in (["fsync", "replace", "fsync folder"], ["fsync", "replace"])  # Windows syncs no folders


@pytest.mark.parametrize(("number", "raised"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False)])
@pytest.mark.skipif(os.name != "posix", reason="this system syncs no folders")
def test_a_folder_that_cannot_be_synced(
    tmp_path: Path, number: int, raised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    if not raised:
        files.sync_folder(tmp_path)
        return
    with pytest.raises(OSError, match=os.strerror(number)):
        files.sync_folder(tmp_path)


def test_folders_are_made_with_their_parents(tmp_path: Path) -> None:
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        files.make_folder(tmp_path / "file" / "b")
