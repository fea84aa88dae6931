"""The content of a folder, to compare it with its content later."""

from pathlib import Path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return every path below the folder with its content, None for a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def without_tokens(folder: Path) -> dict[str, bytes | None]:
    """Return the snapshot without the tokens, which are a cache that grows."""
    return {path: content for path, content in snapshot(folder).items() if not path.startswith("dataset")}
