"""What both ends of a WireGuard tunnel must agree on, and the syntax of keys."""

import re

INTERFACE = "wg0"
#: Leaves room for IPv6, UDP and the WireGuard header on a path of 1472 bytes (spec api-v3.md 7.6).
MTU = 1392
KEEPALIVE_SECONDS = 25

#: Standard base64 of 32 bytes (spec api-v3.md 7.1).
PUBLIC_KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw480]=")


def is_public_key(value: object) -> bool:
    """Tell whether ``value`` is the base64 of 32 bytes in its one canonical spelling."""
    return isinstance(value, str) and PUBLIC_KEY.fullmatch(value) is not None
