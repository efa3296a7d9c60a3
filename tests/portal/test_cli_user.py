"""``vpn-portal user``."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select

from portal_app import cli
from portal_app.db import transaction
from portal_app.models import AuditEvent, LocalAccount, User
from portal_app.settings import Settings
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import VpnApp, add_user
from tests.portal.commands import write_settings
from tests.portal.pages import PASSWORD, is_signed_in, send, sign_in

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    app: Flask,
    settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """Run ``vpn-portal`` with these words and what it reads; gives status, output, errors."""
    file = tmp_path / "settings.toml"
    write_settings(settings, file)

    def run(*words: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            status = cli.main(["--settings", str(file), *words])
        except SystemExit as error:
            status = int(error.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_a_user_is_added_with_a_password_from_stdin(app: Flask, command: Command) -> None:
    status, out, err = command(
        "user", "add", "alice", "--permission", "staff", "--permission", "admin", "--password-file", "-",
        stdin=f"{PASSWORD}\n",
    )  # fmt: skip
    assert (status, out, err) == (0, "added alice\n", "")

    client = app.test_client()
    assert sign_in(client).status_code == 303
    assert client.get("/admin/nodes").status_code == 200
    with transaction(read_only=True) as db:
        assert db.scalar(select(User.permissions)) == ["admin", "staff"]
        added = select(AuditEvent.actor).where(AuditEvent.action == "user added")
        assert db.scalars(added).all() == ["cli"]


def test_a_user_is_added_with_a_password_from_a_file(app: Flask, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)

    assert command("user", "add", "alice", "--password-file", str(file))[0] == 0
    assert sign_in(app.test_client()).status_code == 303


def test_without_a_password_a_link_is_printed_once_and_never_logged(
    app: Flask, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    status, out, err = command("user", "add", "alice", "--permission", "admin")
    assert status == 0
    assert out.startswith("https://vpn.example.org/set-password/")
    assert "once" in err
    assert "60 minutes" in err
    token = out.strip().rsplit("/", 1)[1]
    assert token not in caplog.text + err

    client = app.test_client()
    assert sign_in(client, password="").status_code == 403
    url = f"/set-password/{token}"
    new = {"new_password": PASSWORD, "repeated_password": PASSWORD}
    assert send(client, url, page=url, **new).status_code == 303
    assert is_signed_in(client)


def test_adding_twice_is_an_error_unless_said_otherwise(app: Flask, command: Command) -> None:
    add = ("user", "add", "alice", "--password-file", "-")
    command(*add, stdin=PASSWORD)
    assert command(*add, stdin="another phrase 88") == (1, "", "vpn-portal: user 'alice' exists already\n")
    status, out, _err = command(*add, "--exists-ok", "--permission", "admin", stdin="another phrase 88")
    assert (status, "nothing changed" in out) == (0, True)
    status, out, _err = command("user", "add", "alice", "--exists-ok")
    assert (status, "set-password" in out) == (0, False)

    assert sign_in(app.test_client()).status_code == 303
    with transaction(read_only=True) as db:
        assert db.scalar(select(User.permissions)) == []


@pytest.mark.parametrize(
    "name", ["", " alice", "alice ", "al\nice", "a\x1b[31m", "x" * 256, "\u202ealice", "a\0"]
)
def test_names_that_could_forge_a_line_are_refused(command: Command, name: str) -> None:
    status, _out, err = command("user", "add", name)

    assert status in (1, 2)
    assert "\x1b" not in err
    assert len([line for line in err.splitlines() if "alice" in line]) <= 1
    with transaction(read_only=True) as db:
        assert db.scalars(select(User)).all() == []


@pytest.mark.parametrize("password", ["short", "", "password1234", "alice alice 1"])
def test_weak_passwords_are_refused_by_the_command_too(command: Command, password: str) -> None:
    """W10."""
    status, _out, err = command("user", "add", "alice", "--password-file", "-", stdin=password)

    assert status == 1
    assert len(err.splitlines()) == 1
    with transaction(read_only=True) as db:
        assert db.scalars(select(User)).all() == []


def test_a_password_is_no_argument(command: Command) -> None:
    assert command("user", "add", "alice", "--password", PASSWORD)[0] == 2
    assert command("user", "add", "alice", "--link", "--password-file", "-", stdin=PASSWORD)[0] == 2
    status, _out, err = command("user", "add", "alice", "--password-file", "/nonexistent/file")
    assert (status, "No such file" in err) == (2, True)


def test_users_are_listed_for_people_and_for_programs(app: Flask, command: Command) -> None:
    command("user", "add", "alice", "--permission", "staff", "--password-file", "-", stdin=PASSWORD)
    command("user", "add", "bob")
    command("user", "disable", "bob")
    sign_in(app.test_client())
    listed = json.loads(command("user", "list", "--json")[1])

    facts = [
        (u["name"], u["permissions"], u["disabled"], u["has_password"], u["connections"]) for u in listed
    ]
    assert facts == [("alice", ["staff"], False, True, 0), ("bob", [], True, False, 0)]
    assert listed[0]["last_seen_at"]
    assert "hash" not in json.dumps(listed)
    text = command("user", "list")[1]
    assert "alice: active, staff, 0 connections, seen " in text
    assert "bob: disabled, no permissions, 0 connections, never seen" in text


def test_a_password_set_by_the_command_signs_out_everywhere(app: Flask, command: Command) -> None:
    command("user", "add", "alice", "--password-file", "-", stdin=PASSWORD)
    client = app.test_client()
    sign_in(client)

    assert command("user", "passwd", "alice", "--password-file", "-", stdin="another phrase 88")[0] == 0
    assert not is_signed_in(client)
    assert sign_in(client, password=PASSWORD).status_code == 403
    assert sign_in(client, password="another phrase 88").status_code == 303
    status, out, _err = command("user", "passwd", "alice", "--link")
    assert (status, out.startswith("https://vpn.example.org/set-password/")) == (0, True)
    assert is_signed_in(client), "a link changes nothing before it is used"


def test_disabling_cuts_and_enabling_lets_sign_in_again(
    app: Flask, node: AgentServer, command: Command
) -> None:
    phone = VpnApp(app, add_user("alice")).authorize()
    phone.connect()
    assert len(node.peers) == 1

    assert command("user", "disable", "alice") == (0, "disabled alice; 1 connections cut\n", "")
    assert node.peers == set()
    assert phone.info().status_code == 401
    assert command("user", "enable", "alice")[0] == 0
    assert phone.info().status_code == 401, "what was ended stays ended"


def test_permissions_are_replaced_and_cut_what_they_no_longer_allow(
    app: Flask, node: AgentServer, command: Command
) -> None:
    phone = VpnApp(app, add_user("alice", ["staff"])).authorize()
    phone.connect()

    assert command("user", "permissions", "alice", "--set", "b", "a", "a")[0] == 0
    assert node.peers != set()
    with transaction(read_only=True) as db:
        assert db.scalar(select(User.permissions)) == ["a", "b"]
    assert command("user", "permissions", "alice", "--set")[0] == 0
    with transaction(read_only=True) as db:
        assert db.scalar(select(User.permissions)) == []
    assert command("user", "permissions", "alice")[0] == 2


@pytest.mark.parametrize("settings_changes", [{"access_permissions": ["staff"]}])
def test_losing_the_access_permission_ends_everything(
    app: Flask, node: AgentServer, command: Command
) -> None:
    """O19."""
    phone = VpnApp(app, add_user("alice", ["staff"])).authorize()
    phone.connect()

    assert command("user", "permissions", "alice", "--set", "guest")[1].endswith("1 connections cut\n")
    assert node.peers == set()
    assert phone.refresh().status_code == 400


def test_deleting_a_user_cuts_and_removes_the_account(
    app: Flask, node: AgentServer, command: Command
) -> None:
    command("user", "add", "alice", "--password-file", "-", stdin=PASSWORD)
    client = app.test_client()
    sign_in(client)
    assert command("user", "delete", "alice") == (0, "deleted alice; 0 connections cut\n", "")

    assert not is_signed_in(client)
    assert sign_in(client).status_code == 403
    with transaction(read_only=True) as db:
        assert db.scalars(select(LocalAccount)).all() == []


@pytest.mark.parametrize(
    "words", [("disable",), ("enable",), ("delete",), ("passwd",), ("permissions", "--set")]
)
def test_an_unknown_user_is_one_line_of_error(command: Command, words: tuple[str, ...]) -> None:
    assert command("user", words[0], "nobody", *words[1:]) == (1, "", "vpn-portal: no user 'nobody'\n")


def test_what_is_wrong_around_it_is_one_line_of_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--settings", str(tmp_path / "none.toml"), "user", "list"]) == 1
    assert capsys.readouterr().err == f"vpn-portal: {tmp_path}/none.toml: No such file or directory\n"


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_database_without_tables_says_what_to_do(command: Command, settings: Settings) -> None:
    Path(settings.database_url.removeprefix("sqlite:///")).unlink()
    status, _out, err = command("user", "list")

    assert (status, len(err.splitlines())) == (1, 1)
    assert "run vpn-portal migrate" in err


@pytest.mark.parametrize("database", ["sqlite"])
def test_root_becomes_the_owner_of_the_state(settings: Settings, tmp_path: Path) -> None:
    """No file of the portal ends up as root's; whoever is not root stays who they are."""
    file = tmp_path / "settings.toml"
    write_settings(settings, file)
    wanted = 65534 if os.geteuid() == 0 else os.geteuid()
    for path in (tmp_path, *tmp_path.iterdir()):
        os.chown(path, wanted, -1)
    program = (
        "import os, sys; from pathlib import Path; from portal_app import cli;"
        " from portal_app.settings import Settings;"
        " cli.become_portal(Settings.load(Path(sys.argv[1]))); print(os.geteuid(), os.getuid())"
    )
    done = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True, check=True)

    assert done.stdout.split() == [str(wanted)] * 2


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    def help_of(*words: str) -> Any:
        with pytest.raises(SystemExit) as stopped:
            cli.main([*words, "--help"])
        assert stopped.value.code == 0
        return capsys.readouterr().out

    assert "user" in help_of()
    for name in ("add", "list", "passwd", "permissions", "disable", "enable", "delete"):
        assert name in help_of("user")
        assert help_of("user", name).startswith("usage: vpn-portal user " + name)
