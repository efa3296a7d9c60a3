"""Which protocol a connect tries (spec api-v3.md 7.4): every row of the truth table; how Accept is read."""

import pytest

from portal_app.services import transports
from portal_app.services.transports import Attempt

OU, OT, WU, WT = "openvpn+udp", "openvpn+tcp", "wireguard+udp", "wireguard+tcp"
O_TYPE, W_TYPE, WT_TYPE = transports.OPENVPN_TYPE, transports.WIREGUARD_TYPE, transports.WIREGUARD_TCP_TYPE
ALL = f"{O_TYPE},{W_TYPE},{WT_TYPE}"


@pytest.mark.parametrize(
    ("supported", "accept", "has_key", "preferred", "prefer_tcp", "expected"),
    [
        ([OU, OT, WU], ALL, True, "openvpn", False, [OU, OT, WU]),
        ([OU, OT, WU], ALL, True, "openvpn", True, [OT, OU, WU]),
        ([OU, OT, WU], ALL, True, "wireguard", False, [WU, OU, OT]),
        ([OU, OT, WU], ALL, True, "wireguard", True, [OT, WU, OU]),
        ([OU, OT, WU, WT], ALL, True, "wireguard", False, [WU, WT, OU, OT]),
        ([OU, OT, WU, WT], ALL, True, "wireguard", True, [WT, OT, WU, OU]),
        ([OU, OT, WU, WT], ALL, True, "openvpn", True, [OT, WT, OU, WU]),
        ([OU, OT, WU, WT], f"{O_TYPE},{W_TYPE}", True, "wireguard", True, [OT, WU, OU]),
        ([OU, OT, WU], ALL, False, "wireguard", False, [OU, OT]),
        ([OT, WU], ALL, True, "wireguard", False, [WU, OT]),
        ([OT, WU], ALL, True, "wireguard", True, [OT, WU]),
        ([WU], ALL, True, "openvpn", True, [WU]),
        ([WU], ALL, True, "wireguard", True, [WU]),
        ([WU, WT], ALL, True, "wireguard", False, [WU, WT]),
        ([WU, WT], ALL, True, "wireguard", True, [WT, WU]),
        ([WT], ALL, True, "wireguard", False, [WT]),
        ([WT], f"{O_TYPE},{W_TYPE}", True, "wireguard", False, []),
        ([WT], f"{O_TYPE},{W_TYPE}", True, "openvpn", True, []),
        ([WU], O_TYPE, True, "wireguard", False, []),
        ([WU], O_TYPE, True, "openvpn", True, []),
        ([WU], ALL, False, "wireguard", False, []),
        ([OU, OT], W_TYPE, True, "openvpn", False, []),
        ([OU, OT, WU], "", True, "openvpn", False, [OU, OT, WU]),
        ([OU, OT, WU], "text/html,*/*", True, "openvpn", False, [OU, OT, WU]),
    ],
)
def test_row_of_the_truth_table(supported, accept, has_key, preferred, prefer_tcp, expected):
    found = transports.in_order(
        supported,
        transports.accepted(accept),
        has_key=has_key,
        preferred=preferred,
        prefer_tcp=prefer_tcp,
    )

    assert found == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f" {O_TYPE} , {W_TYPE} ", {OU, OT, WU}),
        (f"{W_TYPE};q=0.5", {OU, OT, WU}),  # no q values: that is no known type
        (f"{W_TYPE.upper()}", {OU, OT, WU}),
        (f"{WT_TYPE}", {WT}),
        (f"{O_TYPE},{O_TYPE},text/html", {OU, OT}),
    ],
)
def test_accept_is_split_at_commas_and_compared_exactly(header, expected):
    assert transports.accepted(header) == expected


def test_openvpn_is_tried_once_and_its_first_entry_decides_the_order_of_remotes():
    first, second = transports.attempts([OT, WU, OU])
    assert (first.protocol, first.tcp_first, second) == ("openvpn", True, Attempt("wireguard", False))
    (only,) = transports.attempts([OU, OT])
    assert (only.protocol, only.tcp_first) == ("openvpn", False)
    assert transports.attempts([]) == []


@pytest.mark.parametrize(
    ("order", "prefer_tcp", "reason"),
    [
        ([OT, WU], True, "TCP was asked for"),
        ([WU, OU], True, "preferred by the profile"),
        ([OU, WU], False, "preferred by the profile"),
        ([WU], False, "the only one that app and profile have in common"),
    ],
)
def test_why_a_protocol_comes_first_is_said_of_the_first_alone(order, prefer_tcp, reason):
    first, *others = transports.attempts(order, prefer_tcp=prefer_tcp)
    assert first.reason == reason
    assert [other.reason for other in others] == [""] * len(others)
