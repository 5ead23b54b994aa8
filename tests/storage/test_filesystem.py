from __future__ import annotations

from pathlib import Path

import pytest

from autotune.errors import StorageError
from autotune.storage import filesystem
from autotune.storage.filesystem import check_not_network, file_system_of, is_network
from autotune.storage.rdb.connection import open_storage

MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
28 27 0:40 / /data rw - autofs systemd-1 rw
29 28 0:41 / /data rw,relatime shared:2 - nfs4 server:/data rw,vers=4.2
30 27 0:42 / /home rw,relatime - nfs server:/home rw
31 30 259:3 / /home/me/fast rw - xfs /dev/nvme1n1 rw
32 27 0:43 / /mnt/our\040team rw - cifs //server/team rw
33 27 0:44 / /mnt/ssh rw - fuse.sshfs me@server: rw
34 27 0:45 / /mnt/here rw master:3 propagate_from:2 - fuse.mergerfs a:b rw
a line of another kind
"""


@pytest.mark.parametrize(
    ("path", "kind", "point"),
    [
        ("/srv/a.db", "ext4", "/"),
        ("/data/a.db", "nfs4", "/data"),
        ("/data/deep/down/a.db", "nfs4", "/data"),
        ("/database/a.db", "ext4", "/"),
        ("/home/me/a.db", "nfs", "/home"),
        ("/home/me/fast/a.db", "xfs", "/home/me/fast"),
        ("/mnt/our team/a.db", "cifs", "/mnt/our team"),
        ("/mnt/ssh", "fuse.sshfs", "/mnt/ssh"),
        ("/mnt/here/a.db", "fuse.mergerfs", "/mnt/here"),
    ],
)
def test_the_deepest_mount_decides(path: str, kind: str, point: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == (kind, Path(point))


NETWORK = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "gpfs", "beegfs", "ceph")
LOCAL = ("ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "9p", "virtiofs", "fuse.mergerfs")


@pytest.mark.parametrize("kind", [*NETWORK, *LOCAL])
def test_file_systems_that_machines_share_are_refused(kind: str) -> None:
    assert is_network(kind) is (kind in NETWORK)
    mountinfo = f"1 0 0:1 / /team rw - {kind} source rw"
    if kind in LOCAL:
        check_not_network(Path("/team/a.db"), mountinfo)
        return
    with pytest.raises(StorageError) as caught:
        check_not_network(Path("/team/a.db"), mountinfo)
    said = str(caught.value)
    assert f"the SQLite database /team/a.db would lie on a network file system ({kind} at" in said
    assert "use Postgres: --storage postgresql://user:password@host/database" in said


def test_a_system_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "MOUNTINFO", tmp_path / "no such file")
    assert file_system_of(tmp_path) is None
    check_not_network(tmp_path / "a.db")
    assert file_system_of(tmp_path, "") is None


@pytest.mark.parametrize("create", [False, True])
def test_no_storage_is_opened_there(
    create: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = tmp_path / "team"
    team.mkdir()
    (tmp_path / "mounts").write_text(f"1 0 0:1 / {team} rw - nfs4 server:/team rw\n")
    monkeypatch.setattr(filesystem, "MOUNTINFO", tmp_path / "mounts")
    (tmp_path / "link").symlink_to(team)
    for folder in ("team", "team/new", "link"):
        with pytest.raises(StorageError, match=r"a network file system \(nfs4 at "):
            open_storage(f"sqlite:///{tmp_path}/{folder}/a.db", create=create)
    assert list(team.iterdir()) == []
