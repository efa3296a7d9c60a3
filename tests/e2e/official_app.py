"""The official client library on the client host: one JSON command a line in, one JSON answer out.

Runs on the client host as root beside ``eduvpn_common`` (from its wheel) and our ``verification`` modules.
The browser is ours; what the app does (discovery, PKCE, tokens, refresh, the API) is theirs.
"""

import json
import os
import shutil
import sys
import threading
import traceback
import urllib.parse
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from eduvpn_common.main import EduVPN, ServerType, WrappedError
from eduvpn_common.state import State, StateType

from portal_app.verification import tunnel
from portal_app.verification.browser import Browser

#: Each process has a name, a tunnel and a home of its own.
NAME = sys.argv[1] if len(sys.argv) > 1 else "verify"
DIRECTORY = Path(f"/root/official-app-{NAME}")
PROTOCOLS = {1: "openvpn", 2: "wireguard"}


class OfficialApp:
    """One installation of the app with one user in front of it."""

    def __init__(self) -> None:
        self._app: EduVPN | None = None
        self._user = self._password = self._client_id = ""
        self._profile = ""
        self._tokens: dict[str, str] = {}
        self._sign_ins = 0
        self._sign_in_error = ""
        self._tunnel = ExitStack()
        self._opened: tunnel.Tunnel | None = None

    def start(
        self, user: str, password: str, client_id: str = "org.letsconnect-vpn.app.linux"
    ) -> dict[str, Any]:
        """Install the app anew for a user."""
        if self._app is not None:
            self._app.deregister()
            self._app = None
        shutil.rmtree(DIRECTORY, ignore_errors=True)
        DIRECTORY.mkdir()
        self._user, self._password, self._tokens, self._sign_ins = user, password, {}, 0
        self._client_id = client_id
        return self.restart()

    def restart(self) -> dict[str, Any]:
        """Quit the app and open it again: it knows its server from disk and its tokens from the keyring."""
        if self._app is not None:
            self._app.deregister()
        self._app = EduVPN(self._client_id, "4.7.2", str(DIRECTORY))
        self._app.event_handler.add_event(State.OAUTH_STARTED, StateType.ENTER, self._open_browser)
        self._app.event_handler.add_event(State.ASK_PROFILE, StateType.ENTER, self._choose_profile)
        self._app.register()
        self._app.set_token_handler(self._get_tokens, self._set_tokens)
        return {}

    def add_server(self, url: str) -> dict[str, Any]:
        self._lib.add_server(ServerType.CUSTOM, url)
        return {"sign_ins": self._sign_ins}

    def get_config(self, url: str, profile: str, prefer_tcp: bool = False) -> dict[str, Any]:
        """Ask for a configuration as the app does when its user clicks a profile."""
        self._profile = profile
        if self._lib.in_state(State.GOT_CONFIG):
            for state in (State.CONNECTING, State.CONNECTED, State.DISCONNECTING, State.DISCONNECTED):
                self._lib.set_state(state)
        with suppress(WrappedError):  # before the first profile is known the library asks instead
            self._lib.set_profile(profile)
        got = json.loads(self._lib.get_config(ServerType.CUSTOM, url, prefer_tcp))
        return {
            "config": got["config"],
            "protocol": PROTOCOLS.get(got["protocol"], str(got["protocol"])),
            "default_gateway": got.get("default_gateway"),
            "should_failover": got.get("should_failover"),
            "sign_ins": self._sign_ins,
            "expiry": json.loads(self._lib.get_expiry_times()),
        }

    def profiles(self, url: str) -> dict[str, Any]:
        for server in json.loads(self._lib.get_servers()).get("custom_servers", []):
            if server["identifier"].rstrip("/") == url.rstrip("/"):
                return {"profiles": server.get("profiles", {})}
        return {"profiles": {}}

    def spoil_access_token(self) -> dict[str, Any]:
        """Replace the access token by one that the server does not know, so that the library must refresh."""
        for server, text in self._tokens.items():
            self._tokens[server] = json.dumps(json.loads(text) | {"access_token": "spoilt"})
        return {"tokens": len(self._tokens)}

    def refresh_token(self) -> dict[str, Any]:
        return {"refresh_token": [json.loads(text)["refresh_token"] for text in self._tokens.values()]}

    def up(self, config: str, protocol: str, transport: str = "udp") -> dict[str, Any]:
        """Bring a configuration up in a network namespace of this host."""
        self.down()
        self._tunnel.enter_context(tunnel.namespace())
        opening = tunnel.wireguard(config) if protocol == "wireguard" else tunnel.openvpn(config, transport)
        self._opened = self._tunnel.enter_context(opening)
        return {
            "gateways": self._opened.gateways,
            "dns_servers": self._opened.dns_servers,
            "mtu": self._opened.mtu,
        }

    def down(self) -> dict[str, Any]:
        self._tunnel.close()
        self._tunnel = ExitStack()
        return {}

    def inside(self, words: list[str]) -> dict[str, Any]:
        """Run a program in the tunnel's namespace."""
        done = tunnel.inside(*words)
        return {"code": done.returncode, "output": done.stdout + done.stderr}

    def disconnect(self) -> dict[str, Any]:
        """What the app does when its user disconnects: tells the server, best effort."""
        self._lib.cleanup()
        return {}

    @property
    def _lib(self) -> EduVPN:
        assert self._app is not None, "start first"
        return self._app

    def _get_tokens(self, server: str, _kind: int) -> str | None:
        return self._tokens.get(server)

    def _set_tokens(self, server: str, _kind: int, tokens: str) -> None:
        self._tokens[server] = tokens

    def _open_browser(self, _old: State, url: str) -> bool:
        threading.Thread(target=self._browse, args=(url,), daemon=True).start()
        return True

    def _browse(self, url: str) -> None:
        try:
            location = Browser().authorize(url, self._user, self._password)
            self._sign_ins += 1
            loopback = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            loopback.open(location, timeout=10).read()
        except Exception as error:
            self._sign_in_error = str(error)
            self._lib.cancel()

    def _choose_profile(self, _old: State, data: str) -> bool:
        asked = json.loads(data)
        threading.Thread(
            target=self._lib.cookie_reply, args=(asked["cookie"], self._profile), daemon=True
        ).start()
        return True


def main() -> None:
    tunnel.NAMESPACE, tunnel.DEVICE = f"causeway-{NAME}", f"cw{NAME}0"
    # The library logs to standard output: answers keep it, everything else goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    app = OfficialApp()
    for line in sys.stdin:
        command = json.loads(line)
        method = getattr(app, command.pop("do"))
        try:
            answer: dict[str, Any] = {"ok": True} | method(**command)
        except Exception as error:
            answer = {
                "ok": False,
                "error": f"{type(error).__name__}: {error}",
                "trace": traceback.format_exc(),
            }
        print(json.dumps(answer), file=answers, flush=True)
    app.down()


if __name__ == "__main__":
    main()
