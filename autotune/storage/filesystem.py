"""The file system of a folder, and whether SQLite can be trusted with it.

The workers of a study share an SQLite database in WAL mode, which keeps its index in memory that
all of them map; on a network file system every machine has its own memory, and locks often
do not lock (https://sqlite.org/wal.html, https://sqlite.org/howtocorrupt.html).
"""

from __future__ import annotations

import re
from pathlib import Path

from autotune.errors import StorageError

#: The mounts of this process, as Linux lists them; other systems have no such file.
MOUNTINFO = Path("/proc/self/mountinfo")
#: Types of file systems that machines share, as mountinfo has them without ``fuse.`` before them.
#: 9p and virtiofs are left out: containers and virtual machines have their own disks as such.
# fmt: off
NETWORK_TYPES = frozenset((
    "afs", "beegfs", "beegfs_nodev", "blobfuse", "blobfuse2", "ceph", "ceph-fuse", "cifs",
    "coda", "davfs", "davfs2", "fhgfs", "gcsfuse", "gfs2", "glusterfs", "goofys", "gpfs",
    "juicefs", "lizardfs", "lustre", "mfs", "moosefs", "ncpfs", "nfs", "nfs4", "ocfs2",
    "orangefs", "panfs", "pvfs2", "quobyte", "rclone", "s3fs", "smb", "smb2", "smb3", "smbfs",
    "sshfs", "vboxsf", "vmhgfs-fuse", "wekafs",
))
# fmt: on


def file_system_of(path: Path, mountinfo: str | None = None) -> tuple[str, Path] | None:
    """Return type and mount point of the file system of a path, which need not exist.

    ``None`` where the system does not tell. ``mountinfo`` is by default that of this process.
    """
    resolved = path.absolute().resolve()  # before the mounts are read: it may mount one (autofs)
    if mountinfo is None:
        try:
            mountinfo = MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
    deepest: tuple[str, Path] | None = None
    for line in mountinfo.splitlines():
        mount, _, description = line.partition(" - ")
        fields, kind = mount.split(" "), description.split(" ")[0]
        if len(fields) < 5 or not kind:
            continue
        # Blanks and backslashes are written as octal numbers.
        name = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        point = Path(name)
        # Of two mounts on one point, the later one hides the earlier one.
        is_deeper = deepest is None or len(point.parts) >= len(deepest[1].parts)
        if is_deeper and resolved.is_relative_to(point):
            deepest = kind, point
    return deepest


def is_network(kind: str) -> bool:
    """Tell whether a file system of this type is one that machines share."""
    return kind.removeprefix("fuse.") in NETWORK_TYPES


def check_not_network(path: Path, mountinfo: str | None = None) -> None:
    """Refuse an SQLite database, which need not exist, on a network file system."""
    system = file_system_of(path, mountinfo)
    if system is None or not is_network(system[0]):
        return
    kind, point = system
    raise StorageError(
        f"storage: the SQLite database {path} would lie on a network file system ({kind} at "
        f"{point}), where workers corrupt or lose what others write; keep it on a disk of this "
        "machine, or use Postgres: --storage postgresql://user:password@host/database ('autotune "
        "storage copy' takes studies there that exist)"
    )
