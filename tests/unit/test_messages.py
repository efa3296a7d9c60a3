"""What portal and agent say to each other: strict both ways, MessageError for garbage (R56, N7, N8, N11)."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpn_core.errors import MessageError
from vpn_core.messages import (
    MOST,
    Admit,
    Authority,
    Connection,
    Cut,
    Events,
    Message,
    NodeInfo,
    SessionEvent,
    Translations,
    Usage,
    WantedSet,
)

ID = "0123456789abcdef0123456789abcdef"
OTHER_ID = "f" * 32
KEY = base64.b64encode(bytes(range(32))).decode()
AUTHORITY = {"deployment_id": OTHER_ID, "epoch": 1}
WIREGUARD = {
    "connection_id": ID,
    "profile_id": "employees",
    "protocol": "wireguard",
    "expires_at": 1_800_000_000,
    "generation": 7,
    "public_key": KEY,
    "ipv4": "10.64.0.2",
    "ipv6": "fd00:64::2",
}
OPENVPN = {
    "connection_id": ID,
    "profile_id": "legacy",
    "protocol": "openvpn",
    "expires_at": 1_800_000_000,
    "generation": 7,
    "common_name": ID,
}
USAGE = {
    "connection_id": ID,
    "protocol": "wireguard",
    "active": True,
    "received_bytes": 1,
    "sent_bytes": 2,
    "ipv4": "10.64.0.2",
    "ipv6": "fd00:64::2",
    "last_handshake_at": 1_800_000_000,
    "origin": "198.51.100.9:4711",
}
EVENT = {
    "sequence": 4,
    "kind": "end",
    "session_id": OTHER_ID,
    "connection_id": ID,
    "profile_id": "employees",
    "protocol": "openvpn",
    "at": 1_800_000_000,
    "started_at": 1_799_999_000,
    "received_bytes": 1,
    "sent_bytes": 2,
}
INFO = {
    "v": "0.1.0",
    "node_number": 1,
    "instance_id": ID,
    "boot_id": OTHER_ID,
    "node_uptime": 5,
    "now": 1_800_000_000,
    "maintenance_mode": False,
    "cpu_count": 2,
    "load_average": [0.5, 0.25, 0],
    "rel_load_average": [25, 12, 0],
    "profiles": {"employees": ["wireguard", "openvpn"], "lab": []},
    "wireguard_public_key": KEY,
    "w_peer_count": 1,
    "o_client_count": 0,
    "connection_count": 1,
    "deployment_id": None,
    "epoch": 0,
    "generation": 0,
    "journal_id": ID,
    "journal_head": 0,
    "held": "",
    "problems": ["cannot save"],
    "openvpn_clients": {"employees": 0, "lab": 3},
    "software": {"system": "Debian GNU/Linux 12 (bookworm)", "wireguard": "Linux 6.1.0", "openvpn": "2.6.3"},
}
GAP = {"began_at": 6, "ended_at": 9}
EXAMPLES: list[tuple[type[Message], dict[str, Any]]] = [
    (Connection, WIREGUARD),
    (Connection, OPENVPN),
    (Authority, AUTHORITY),
    (Admit, {"authority": AUTHORITY, "connection": WIREGUARD}),
    (Cut, {"authority": AUTHORITY, "generation": 8}),
    (
        WantedSet,
        {
            "authority": AUTHORITY,
            "generation": 9,
            "connections": [WIREGUARD, OPENVPN | {"connection_id": OTHER_ID, "common_name": OTHER_ID}],
            "confirmed": True,
        },
    ),
    (Usage, USAGE),
    (SessionEvent, EVENT),
    (Events, {"journal_id": ID, "first": 3, "head": 5, "events": [EVENT, EVENT | {"sequence": 5}]}),
    (
        Translations,
        {
            "is_kept": True,
            "translations": [{"client": "10.64.0.2", "protocol": 17, "began_at": 5, "ended_at": None}],
            "begins_at": 4,
            "gaps": [GAP],
        },
    ),
    (NodeInfo, INFO),
]


def says(sent: Any, given: Any) -> bool:
    """Tell whether ``sent`` holds all that ``given`` does; defaults may come on top."""
    if isinstance(given, dict) and isinstance(sent, dict):
        return all(key in sent and says(sent[key], value) for key, value in given.items())
    if isinstance(given, list) and isinstance(sent, list):
        return len(sent) == len(given) and all(map(says, sent, given))
    return type(sent) is type(given) and bool(sent == given)


NAMES = [f"{kind.__name__}{i}" for i, (kind, _) in enumerate(EXAMPLES)]


@pytest.mark.parametrize(("kind", "data"), EXAMPLES, ids=NAMES)
def test_message_survives_the_way_through_json(kind, data):
    message = kind.parse(data)

    sent = json.loads(json.dumps(message.to_dict()))

    assert kind.parse(sent) == message
    assert says(sent, data)


@pytest.mark.parametrize(("kind", "data"), EXAMPLES[:-1], ids=NAMES[:-1])
def test_unknown_key_is_refused(kind, data):
    with pytest.raises(MessageError, match="unknown key 'surprise'"):
        kind.parse(data | {"surprise": 1})


def test_portal_goes_on_with_agents_of_other_releases():
    """R85: a later one tells more, an earlier one does not count clients by profile."""
    earlier = {key: value for key, value in INFO.items() if key not in ("openvpn_clients", "software")}

    assert NodeInfo.parse(INFO | {"surprise": 1}) == NodeInfo.parse(INFO)
    assert NodeInfo.parse(earlier).openvpn_clients is None
    assert NodeInfo.parse(earlier).software is None


def test_a_node_that_knows_no_gaps_tells_none():
    assert Translations.parse({"is_kept": True, "translations": [], "begins_at": 4}).gaps == ()


@pytest.mark.parametrize("gaps", [None, {}, [1], [{"began_at": 6}], [GAP | {"began_at": -1}], [GAP] * 101])
def test_gaps_that_are_none_are_refused(gaps):
    with pytest.raises(MessageError):
        Translations.parse({"is_kept": True, "translations": [], "gaps": gaps})


@pytest.mark.parametrize(("kind", "data"), EXAMPLES, ids=NAMES)
def test_missing_key_is_refused_by_name(kind, data):
    required = {"generation", "authority", "deployment_id", "connection_id", "journal_id", "v"} & data.keys()
    for key in required:
        with pytest.raises(MessageError, match=f"missing {key}"):
            kind.parse({k: v for k, v in data.items() if k != key})


@pytest.mark.parametrize("data", [None, [], "text", 5, True, [["a", 1]], b"{}"])
@pytest.mark.parametrize("kind", sorted({kind for kind, _ in EXAMPLES}, key=lambda k: k.__name__))
def test_what_is_no_object_is_refused(kind, data):
    with pytest.raises(MessageError, match="not an object"):
        kind.parse(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(EXAMPLES), st.data())
def test_one_field_of_garbage_gives_an_equal_message_or_message_error(example, data):
    """Never another exception, and never a message that says something else than what was sent."""
    kind, good = example
    garbage = good | {data.draw(st.sampled_from(sorted(good))): data.draw(JSON)}
    try:
        message = kind.parse(garbage)
    except MessageError:
        return
    sent = json.loads(json.dumps(message.to_dict()))
    assert says(sent, garbage)
    assert kind.parse(sent) == message


@given(st.sampled_from([kind for kind, _ in EXAMPLES]), JSON)
def test_any_json_is_a_message_or_refused(kind, garbage):
    with pytest.raises(MessageError):
        kind.parse(garbage)


BAD_CONNECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "id too short": (WIREGUARD | {"connection_id": "0"}, "connection_id"),
    "id in capitals": (WIREGUARD | {"connection_id": ID.upper()}, "connection_id"),
    "id with a line break": (WIREGUARD | {"connection_id": ID[:-1] + "\n"}, "connection_id"),
    "id with one line break too many": (WIREGUARD | {"connection_id": ID + "\n"}, "connection_id"),
    "profile id with a slash": (WIREGUARD | {"profile_id": "../x"}, "profile_id"),
    "other protocol": (WIREGUARD | {"protocol": "ipsec"}, "protocol"),
    "protocol as a list": (WIREGUARD | {"protocol": ["wireguard"]}, "protocol"),
    "WireGuard without a key": (WIREGUARD | {"public_key": None}, "public_key"),
    "key of 31 bytes": (WIREGUARD | {"public_key": base64.b64encode(bytes(31)).decode()}, "public_key"),
    "key of 33 bytes": (WIREGUARD | {"public_key": base64.b64encode(bytes(33)).decode()}, "public_key"),
    "key in another spelling": (WIREGUARD | {"public_key": KEY[:-2] + "9="}, "public_key"),
    "key with a line break": (WIREGUARD | {"public_key": KEY + "\n"}, "public_key"),
    "WireGuard with a common name": (WIREGUARD | {"common_name": ID}, "common_name"),
    "WireGuard without IPv6": (WIREGUARD | {"ipv6": None}, "ipv6"),
    "address with a prefix": (WIREGUARD | {"ipv4": "10.64.0.2/16"}, "ipv4"),
    "address as a number": (WIREGUARD | {"ipv4": 171966466}, "ipv4"),
    "IPv6 as IPv4": (WIREGUARD | {"ipv4": "fd00:64::2"}, "ipv4"),
    "IPv6 in another spelling": (WIREGUARD | {"ipv6": "fd00:64:0::2"}, "ipv6"),
    "IPv6 with a zone": (WIREGUARD | {"ipv6": "fe80::1%eth0"}, "ipv6"),
    "OpenVPN with a key": (OPENVPN | {"public_key": KEY}, "public_key"),
    "OpenVPN with an address": (OPENVPN | {"ipv4": "10.64.0.2"}, "ipv4"),
    "OpenVPN without a common name": (OPENVPN | {"common_name": None}, "common_name"),
    "OpenVPN with another's name": (OPENVPN | {"common_name": OTHER_ID}, "common_name"),
    "expiry as a text": (WIREGUARD | {"expires_at": "2027-01-01"}, "expires_at"),
    "expiry as a fraction": (WIREGUARD | {"expires_at": 1.5}, "expires_at"),
    "expiry before 1970": (WIREGUARD | {"expires_at": -1}, "expires_at"),
    "generation as a truth": (WIREGUARD | {"generation": True}, "generation"),
    "generation that no column holds": (WIREGUARD | {"generation": MOST + 1}, "generation"),
}


@pytest.mark.parametrize(("data", "field"), BAD_CONNECTIONS.values(), ids=BAD_CONNECTIONS)
def test_connection_with_a_bad_field_is_refused_by_name(data, field):
    with pytest.raises(MessageError, match=f"^{field}: bad value"):
        Connection.parse(data)


def test_admission_with_a_bad_connection_inside_is_refused():
    with pytest.raises(MessageError, match="ipv4: bad value"):
        Admit.parse({"authority": AUTHORITY, "connection": WIREGUARD | {"ipv4": "10.64.0.2\nEndpoint"}})


@pytest.mark.parametrize("connections", [None, {}, "text", 5])
def test_wanted_set_without_a_list_is_refused(connections):
    with pytest.raises(MessageError, match="connections: not a list"):
        WantedSet.parse({"authority": AUTHORITY, "generation": 1, "connections": connections})


def test_wanted_set_with_one_bad_connection_is_refused_as_a_whole():
    data = {"authority": AUTHORITY, "generation": 1, "connections": [OPENVPN, WIREGUARD | {"ipv6": "x"}]}

    with pytest.raises(MessageError, match="ipv6"):
        WantedSet.parse(data)


def test_wanted_set_that_names_a_connection_twice_is_refused():
    with pytest.raises(MessageError, match="comes twice"):
        WantedSet.parse({"authority": AUTHORITY, "generation": 1, "connections": [OPENVPN, OPENVPN]})


def test_confirmation_is_true_or_false_and_nothing_like_it():
    for value in (1, "true", None, []):
        with pytest.raises(MessageError, match="confirmed"):
            WantedSet.parse({"authority": AUTHORITY, "generation": 1, "connections": [], "confirmed": value})


def test_wanted_set_is_not_confirmed_unless_said():
    assert not WantedSet.parse({"authority": AUTHORITY, "generation": 1, "connections": []}).confirmed


@pytest.mark.parametrize("sequences", [(4, 4), (5, 4), (4, 6)])
def test_events_ascend_and_end_at_the_head_at_most(sequences):
    events = [EVENT | {"sequence": s} for s in sequences]

    with pytest.raises(MessageError, match="events"):
        Events.parse({"journal_id": ID, "first": 1, "head": 5, "events": events})


def test_more_than_1000_events_are_refused():
    events = [EVENT | {"sequence": s} for s in range(1001)]

    with pytest.raises(MessageError, match="at most 1000"):
        Events.parse({"journal_id": ID, "first": 0, "head": 1001, "events": events})


@pytest.mark.parametrize(
    "changes",
    [
        {"openvpn_clients": ["employees"]},
        {"software": ["OpenVPN"]},
        {"software": {"openvpn": 2.6}},
        {"software": {"openvpn": "x" * 101}},
        {"software": {f"s{n}": "1" for n in range(11)}},
        {"openvpn_clients": {"../x": 1}},
        {"openvpn_clients": {"employees": -1}},
        {"openvpn_clients": {"employees": True}},
        {"openvpn_clients": {f"p{n}": 1 for n in range(1001)}},
        {"load_average": [1, 2]},
        {"load_average": [1, 2, float("nan")]},
        {"load_average": [1, 2, float("inf")]},
        {"load_average": [1, 2, -1]},
        {"load_average": "123"},
        {"rel_load_average": [True, 1, 1]},
        {"profiles": {"a/b": []}},
        {"profiles": {"a": ["ipsec"]}},
        {"profiles": {"a": "wireguard"}},
        {"profiles": []},
        {"problems": "cannot save"},
        {"problems": ["line\nbreak"]},
        {"problems": ["x"] * 51},
        {"held": "x" * 501},
        {"v": "<b>\x1b[31m"},
        {"boot_id": "3f2b6a0e-0000-0000-0000-000000000000"},
        {"wireguard_public_key": "key"},
        {"deployment_id": ""},
        {"maintenance_mode": 0},
        {"node_number": -1},
    ],
)
def test_what_a_node_says_of_itself_is_not_believed_in_a_wrong_shape(changes):
    """N7"""
    (field,) = changes

    with pytest.raises(MessageError, match=field):
        NodeInfo.parse(INFO | changes)


def test_refusal_does_not_repeat_a_huge_value():
    with pytest.raises(MessageError) as caught:
        Connection.parse(WIREGUARD | {"ipv4": "1" * 1_000_000})

    assert len(str(caught.value)) < 120
