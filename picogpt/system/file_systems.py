"""The file system that a path is on, from psutil."""

import os
from pathlib import Path

import psutil

_REMOTE = {
    *("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afpfs", "webdav", "davfs", "ncpfs"),
    *("9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "orangefs", "ocfs2"),
    *("vboxsf", "vmhgfs", "prl_fs", "drvfs", "virtiofs"),
}
_REMOVABLE = {"vfat", "msdos", "fat", "fat32", "exfat", "iso9660", "cd9660", "udf", "cdfs"}


def may_vanish(path: Path) -> str:
    """Return the type of the file system that a path is on, where it is on a network or can be taken out; else "".

    What FUSE provides may be either.
    """
    place = os.path.realpath(path)
    for mounted in sorted(psutil.disk_partitions(all=True), key=lambda one: len(one.mountpoint), reverse=True):
        if _is_below(place, mounted.mountpoint):
            kind, options = mounted.fstype.lower(), mounted.opts.split(",")  # on Windows, some tell what drive it is
            vanishes = kind in _REMOTE | _REMOVABLE or kind.startswith("fuse") or {"remote", "removable"} & {*options}
            return (kind or "removable drive") if vanishes else ""
    return ""


def _is_below(place: str, mountpoint: str) -> bool:
    try:
        return os.path.commonpath([place, mountpoint]) == os.path.normpath(mountpoint)
    except ValueError:  # on Windows, of another drive
        return False
