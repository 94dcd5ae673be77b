"""DATA_DIR belongs to one user and lies on one machine; otherwise nothing starts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import postgres_server
from config import ConfigurationError, load_settings
from postgres_server import PostgresStartError

SECRETS = {
    "SECRET_KEY": "Vx3q-9LmT_c7RzKp2WdY8sBfHn4JgEa6uQtX",
    "FINGERPRINT_KEY": "m5Ws_Zt8Rb-Kj2Xc9Qv4Ld7Np3Gy6Hf1TaEu",
}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o777])
def test_secrets_that_are_open_to_others_are_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "secrets.json"
    file.write_text(json.dumps(SECRETS))
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match=r"^DATA_DIR has a secrets\.json that") as refusal:
        load_settings(_env_file=None, environment="development", data_dir=tmp_path)
    assert not [value for value in SECRETS.values() if value in str(refusal.value)]
    assert json.loads(file.read_text()) == SECRETS


@pytest.mark.parametrize("mode", [0o600, 0o700])
def test_secrets_of_their_owner_are_used(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "secrets.json"
    file.write_text(json.dumps(SECRETS))
    file.chmod(mode)
    settings = load_settings(_env_file=None, environment="development", data_dir=tmp_path)
    assert settings.signing_key == SECRETS["SECRET_KEY"]


def test_secrets_of_another_user_are_refused_but_for_the_owner_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secrets.json"
    file.write_text(json.dumps(SECRETS))
    file.chmod(0o600)
    found = file.stat()
    owner = found.st_uid
    with monkeypatch.context() as as_root:  # in a folder of somebody's
        as_root.setattr(os, "geteuid", lambda: owner + 1)
        load_settings(_env_file=None, environment="development", data_dir=tmp_path)
    elsewhere = os.stat_result((*found[:4], owner + 1, *found[5:10]))
    monkeypatch.setattr(os, "fstat", lambda _: elsewhere)
    with pytest.raises(ConfigurationError, match="open to other users"):
        load_settings(_env_file=None, environment="development", data_dir=tmp_path)


@pytest.mark.parametrize("content", [b'{"SECRET_KEY": "Vx3q', b"[]", b"null", b'{"a": 5}', b"\xff"])
def test_damaged_secrets_are_refused_and_left_as_they_are(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "secrets.json"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigurationError, match=r"^DATA_DIR has a secrets\.json that is damaged"):
        load_settings(_env_file=None, environment="development", data_dir=tmp_path)
    assert file.read_bytes() == content


def test_secrets_that_cannot_be_opened_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").mkdir()
    with pytest.raises(ConfigurationError, match=r"^DATA_DIR has no secrets\.json"):
        load_settings(_env_file=None, environment="development", data_dir=tmp_path)


def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: tuple[str, str]) -> None:
    """Make the kernel say that these are mounted, in this order: where, and which kind."""
    file = tmp_path / "mountinfo"
    file.write_text(
        "".join(
            f"{number} 1 0:{number} / {point} rw,relatime shared:1 - {kind} host:/export rw\n"
            for number, (point, kind) in enumerate(lines, 20)
        )
    )
    monkeypatch.setattr(postgres_server, "MOUNTS", file)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.sshfs"])
@pytest.mark.parametrize("point", ["share", "", "a\\040folder"])
def test_a_database_on_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, point: str
) -> None:
    mounts(tmp_path, monkeypatch, ("/", "ext4"), (f"{tmp_path}/{point}".rstrip("/"), kind))
    data_dir = tmp_path / point.replace("\\040", " ") / "not-made-yet" / "data"
    with pytest.raises(PostgresStartError) as refusal:
        postgres_server.ensure_running(data_dir)
    assert f"network file system ({kind})" in str(refusal.value)
    assert "set DATA_DIR to a folder on a local disk" in str(refusal.value)
    assert not data_dir.exists()


@pytest.mark.parametrize(
    "lines",
    [
        [("/", "ext4"), ("{}/sha", "nfs4")],  # beside it
        [("/", "nfs4"), ("{}", "xfs")],  # a local disk in a machine that boots from the network
        [("{}", "nfs4"), ("{}", "ext4")],  # covered by a local disk
        [("/", "overlay")],
        [("/", "virtiofs")],  # the disk of a virtual machine's host
        [],
    ],
)
def test_a_database_on_a_local_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[tuple[str, str]]
) -> None:
    mounts(tmp_path, monkeypatch, *((point.format(tmp_path), kind) for point, kind in lines))
    place = postgres_server._Place(tmp_path / "share")
    place.prepare()
    assert place.folder.is_dir()


def test_where_the_kernel_does_not_say_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_server, "MOUNTS", tmp_path / "none")
    postgres_server._Place(tmp_path / "share").prepare()
