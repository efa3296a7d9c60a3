"""Ask one DNS server for one name over UDP, from wherever this process runs: ``python -m … SERVER NAME``."""

import secrets
import socket
import struct
import sys

TRIES = 3


def query(name: str, query_id: int, record_type: int) -> bytes:
    """Return a DNS query (RFC 1035, section 4.1) that asks for recursion."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.rstrip(".").split("."))
    return (
        struct.pack(">HHHHHH", query_id, 0x0100, 1, 0, 0, 0)
        + labels
        + b"\0"
        + struct.pack(">HH", record_type, 1)
    )


def ask(server: str, name: str) -> int:
    """Return how many A and AAAA records the server has; raises OSError without an answer."""
    found = 0
    for record_type in (1, 28):
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            sock.connect((server, 53))
            for attempt in range(TRIES):
                query_id = secrets.randbelow(65536)
                sock.send(query(name, query_id, record_type))
                try:
                    answer = sock.recv(4096)
                except TimeoutError:
                    if attempt == TRIES - 1:
                        raise
                    continue
                answer_id, flags, _, count, _, _ = struct.unpack(">HHHHHH", answer[:12])
                if answer_id == query_id and flags & 0x000F == 0:
                    found += count
                break
    return found


if __name__ == "__main__":
    try:
        sys.exit(0 if ask(sys.argv[1], sys.argv[2]) else "no record")
    except OSError as error:
        sys.exit(f"no answer: {error}")
