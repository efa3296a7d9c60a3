"""``vpn-portal user``: local accounts. A password comes from a file or stdin, never from the command line."""

import argparse
import json
import sys
from pathlib import Path

from portal_app.agents import Agents
from portal_app.application import create_app
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.services import audit, listing, users
from portal_app.settings import Settings
from vpn_core.messages import OPENVPN, WIREGUARD

_LONGEST_FILE = 8192

_Subparsers = argparse._SubParsersAction  # argparse has no public name for it


def register(subparsers: "_Subparsers[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("user", help="make, change and delete users")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    add = commands.add_parser(
        "add",
        help="make a user with a local account",
        description="Without a password this prints a one-time link, good for 60 minutes, to set one.",
    )
    add.add_argument("name", type=_text)
    add.add_argument(
        "--permission", action="append", default=[], type=_text, metavar="P", help="may come several times"
    )
    add.add_argument("--exists-ok", action="store_true", help="change nothing and succeed if the user exists")
    _add_password_options(add)
    add.set_defaults(run=_add)

    listing = commands.add_parser("list", help="list the users")
    listing.add_argument("--json", action="store_true", help="print a JSON list")
    listing.set_defaults(run=_list)

    passwd = commands.add_parser(
        "passwd",
        help="set a new password",
        description="Signs out of every browser. Without a password file this prints a one-time link.",
    )
    passwd.add_argument("name", type=_text)
    _add_password_options(passwd)
    passwd.set_defaults(run=_passwd)

    permissions = commands.add_parser(
        "permissions",
        help="replace the permissions of a user",
        description="Connections that the new permissions do not allow are cut at once.",
    )
    permissions.add_argument("name", type=_text)
    permissions.add_argument(
        "--set",
        dest="permissions",
        nargs="*",
        required=True,
        type=_text,
        metavar="P",
        help="none for no permission",
    )
    permissions.set_defaults(run=_permissions)

    configuration = commands.add_parser(
        "configuration",
        help="make a configuration for a user and print it",
        description=(
            "As the user's own page does, but a limit of how many does not count. What is printed holds a"
            " private key that is kept nowhere: hand it over safely. It ends like every other connection."
        ),
    )
    configuration.add_argument("name", type=_text)
    configuration.add_argument("profile", type=_text)
    configuration.add_argument("protocol", choices=(WIREGUARD, OPENVPN))
    configuration.add_argument(
        "--node", type=_text, help="only this node will do (default: the portal chooses)"
    )
    configuration.add_argument("--prefer-tcp", action="store_true", help="OpenVPN: try TCP first")
    configuration.add_argument("--device", type=_text, default="made by the operator", help="name in lists")
    configuration.set_defaults(run=_configuration)

    for command, function, text in (
        ("disable", _disable, "block sign-in and API; end all authorizations and connections"),
        ("enable", _enable, "let a disabled user sign in again"),
        ("delete", _delete, "delete a user and everything of theirs but the log"),
    ):
        one = commands.add_parser(command, help=text, description=f"{text[0].upper()}{text[1:]}.")
        one.add_argument("name", type=_text)
        one.set_defaults(run=function)


def _add_password_options(parser: argparse.ArgumentParser) -> None:
    options = parser.add_mutually_exclusive_group()
    options.add_argument(
        "--password-file",
        dest="password",
        type=_read_password,
        metavar="PATH",
        help="first line of it; - is stdin",
    )
    options.add_argument("--link", action="store_true", help="print a one-time link (the default)")


def _text(value: str) -> str:
    """Refuse what the terminal sent in another encoding: argparse hands it over as lone surrogates."""
    if not value.isprintable():
        raise argparse.ArgumentTypeError("has characters that cannot be printed")
    return users.normalized(value)


def _read_password(path: str) -> str:
    """Return the first line. Read while the arguments are parsed, when root still is root."""
    try:
        if path == "-":
            text = sys.stdin.readline(_LONGEST_FILE)
        else:
            with Path(path).open(encoding="utf-8") as file:
                text = file.readline(_LONGEST_FILE)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{path}: not UTF-8") from None
    return text.rstrip("\r\n")


def _add(arguments: argparse.Namespace, settings: Settings) -> int:
    added = users.add(
        arguments.name,
        permissions=arguments.permission,
        password=arguments.password,
        exists_ok=arguments.exists_ok,
        actor=audit.CLI,
        now=utc_now(),
    )
    if not added:
        print(f"{arguments.name} exists already: nothing changed")
    elif arguments.password is None:
        _print_link(arguments.name, settings)
    else:
        print(f"added {arguments.name}")
    return 0


def _list(arguments: argparse.Namespace, _settings: Settings) -> int:
    with transaction(read_only=True) as db:
        found = listing.every_user(db)
    if arguments.json:
        rows = [
            {
                "name": row.user.name,
                "permissions": row.user.permissions,
                "disabled": row.user.is_disabled,
                "has_password": row.has_password,
                "connections": row.connections,
                "created_at": row.user.created_at.isoformat(timespec="seconds"),
                "last_seen_at": row.user.last_seen_at.isoformat(timespec="seconds")
                if row.user.last_seen_at
                else None,
            }
            for row in found
        ]
        print(json.dumps(rows, indent=2))
        return 0
    for row in found:
        user = row.user
        state = "disabled" if user.is_disabled else "active" if row.has_password else "no password"
        seen = f"seen {user.last_seen_at:%Y-%m-%d %H:%M} UTC" if user.last_seen_at else "never seen"
        rights = ", ".join(user.permissions) or "no permissions"
        print(f"{user.name}: {state}, {rights}, {row.connections} connections, {seen}")
    return 0


def _passwd(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.password is None:
        _print_link(arguments.name, settings)
    else:
        users.set_password(arguments.name, arguments.password, actor=audit.CLI, now=utc_now())
        print(f"password of {arguments.name} set; signed out of every browser")
    return 0


def _permissions(arguments: argparse.Namespace, settings: Settings) -> int:
    cut = users.set_permissions(
        arguments.name,
        arguments.permissions,
        access_permissions=settings.access_permissions,
        agents=Agents(settings),
        actor=audit.CLI,
        now=utc_now(),
    )
    print(f"permissions of {arguments.name} set; {cut} connections cut")
    return 0


def _configuration(arguments: argparse.Namespace, settings: Settings) -> int:
    with create_app(settings).app_context():
        issued = users.make_configuration(
            arguments.name,
            arguments.profile,
            arguments.protocol,
            arguments.device[:64],
            prefer_tcp=arguments.prefer_tcp,
            node=arguments.node,
            actor=audit.CLI,
            now=utc_now(),
        )
    print(issued.config, end="")
    return 0


def _disable(arguments: argparse.Namespace, settings: Settings) -> int:
    cut = users.disable(arguments.name, agents=Agents(settings), actor=audit.CLI, now=utc_now())
    print(f"disabled {arguments.name}; {cut} connections cut")
    return 0


def _enable(arguments: argparse.Namespace, _settings: Settings) -> int:
    users.enable(arguments.name, actor=audit.CLI, now=utc_now())
    print(f"enabled {arguments.name}")
    return 0


def _delete(arguments: argparse.Namespace, settings: Settings) -> int:
    cut = users.delete(arguments.name, agents=Agents(settings), actor=audit.CLI, now=utc_now())
    print(f"deleted {arguments.name}; {cut} connections cut")
    return 0


def _print_link(name: str, settings: Settings) -> None:
    token = users.one_time_link(name, actor=audit.CLI, now=utc_now())
    minutes = int(users.LINK_LIFE.total_seconds() // 60)
    print(f"{settings.portal_url}/set-password/{token}")
    print(f"{name} sets a password there, once, within {minutes} minutes.", file=sys.stderr)
