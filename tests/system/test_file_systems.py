"""File systems that may vanish: told by their types, whatever is mounted within what."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from picogpt.system.file_systems import may_vanish


def mounts(monkeypatch: pytest.MonkeyPatch, **kinds: str) -> None:
    """Mount file systems by the names of their mount points: "root" and folders in it; a name may have options."""
    found = [
        SimpleNamespace(mountpoint="/" if name == "root" else f"/{name}", fstype=kind, opts=options)
        for name, value in kinds.items()
        for kind, _, options in [value.partition(",")]
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: found)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "CIFS", "smbfs", "9p", "vfat", "exFAT", "fuse.sshfs", "fuseblk"])
def test_the_nearest_mount_point_tells(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts(monkeypatch, root="ext4", share=kind)
    assert may_vanish(Path("/share/tokens")) == may_vanish(Path("/share")) == kind.lower()
    assert may_vanish(Path("/shared/tokens")) == may_vanish(Path("/home/tokens")) == ""
    mounts(monkeypatch, root=kind, home="ext4")
    assert may_vanish(Path("/home/tokens")) == "" and may_vanish(Path("/homes")) == kind.lower()


@pytest.mark.parametrize("kind", ["ext4", "btrfs", "xfs", "tmpfs", "overlay", "apfs", "ntfs", "zfs", ""])
def test_a_disk_of_the_machine_stays(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts(monkeypatch, root=kind)
    assert may_vanish(Path("/home")) == ""


def test_what_windows_says_of_a_drive(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts(monkeypatch, root="ntfs,rw,fixed", stick="ntfs,rw,removable", share=",rw,remote")
    assert [may_vanish(Path(place)) for place in ("/x", "/stick/x", "/share/x")] == ["", "ntfs", "removable drive"]


def test_a_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("/share")
    mounts(monkeypatch, root="ext4", share="nfs")
    assert may_vanish(tmp_path / "link" / "tokens") == "nfs"


def test_this_machine_is_asked(tmp_path: Path) -> None:
    assert isinstance(may_vanish(tmp_path), str)
