"""What is in a folder, to compare it with what is there later."""

from pathlib import Path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below the folder, and what is in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def kept(folder: Path) -> dict[str, bytes | None]:
    """Everything in the folder but tokens, which are a cache that grows."""
    return {path: content for path, content in snapshot(folder).items() if not path.startswith("dataset")}
