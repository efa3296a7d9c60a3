"""What the configuration of one service must leave to that of another."""

import re
from pathlib import Path

from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER

GOLDEN = Path(__file__).parent / "golden" / "one"


def seconds(pattern: str, name: str) -> float:
    """Return the number that ``pattern`` finds in a rendered file."""
    found = re.search(pattern, (GOLDEN / name).read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{name} says nothing like {pattern}"
    return float(found[1])


def test_nginx_ends_an_idle_connection_before_the_portal_does() -> None:
    """What is sent while the portal closes is lost, and nobody repeats a POST (RFC 9110, 9.2.2)."""
    of_nginx = seconds(r"^    upstream portal \{.*?keepalive_timeout ([0-9]+)s;", "web_frontend-nginx.conf")
    of_portal = seconds(r" --keep-alive ([0-9]+) ", "portal-vpn-portal.service")

    assert of_nginx * 2 <= min(of_portal, STOP_KEEPALIVE_LINGER)
