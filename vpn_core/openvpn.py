"""What both ends of an OpenVPN tunnel must agree on (spec node.md 7.2, api-v3.md 7.8)."""

import hmac
import re

TLS_VERSION_MIN = "1.3"
DATA_CIPHERS = "AES-256-GCM:CHACHA20-POLY1305"
TUN_MTU = 1500
#: The server renegotiates; clients are told never to (reneg-sec 0).
RENEGOTIATE_SECONDS = 36000
KEEPALIVE = (10, 60)

#: A common name is a connection's id: 32 lower-case hex digits.
COMMON_NAME = re.compile(r"[0-9a-f]{32}")


def is_common_name(value: object) -> bool:
    return isinstance(value, str) and COMMON_NAME.fullmatch(value) is not None


def tls_crypt_key(master_secret: str, profile_id: str) -> str:
    """Return a profile's tls-crypt key, an OpenVPN static key V1, derived from the environment's secret.

    Derived (HKDF-Expand, RFC 5869, SHA-512), so that adding a profile needs no new secret. ``master_secret``
    is at least 64 hex digits. Raises ValueError when it is shorter or not hex.
    """
    secret = bytes.fromhex(master_secret)
    if len(secret) < 32:
        raise ValueError("the tls-crypt master secret must be at least 64 hex digits")
    okm, block = b"", b""
    for counter in range(1, 5):
        block = hmac.digest(
            secret, block + b"causeway tls-crypt " + profile_id.encode() + bytes([counter]), "sha512"
        )
        okm += block
    lines = [okm[i : i + 16].hex() for i in range(0, 256, 16)]
    return "\n".join(
        ["-----BEGIN OpenVPN Static key V1-----", *lines, "-----END OpenVPN Static key V1-----", ""]
    )
