"""POST /api/v3/connect and /disconnect (spec api-v3.md, sections 7 and 8)."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from statistics import quantiles
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sqlalchemy import delete, select, update

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import Forbidden, InvalidToken, NodeUnreachable, NotFound, Unavailable
from portal_app.models import AddressUse, Authorization, Connection, NodeStatus, Offer, Profile, User
from portal_app.oauth import bearer
from portal_app.services import authorizations, connections, ending, nodes, transports
from portal_app.services.connections import Holder, Wanted
from portal_app.statements import run, run_together
from tests.portal.agent_server import WIREGUARD_KEY
from tests.portal.app_user import VpnApp, add_user, public_key
from tests.portal.conftest import PROFILES, seen_up
from tests.portal.waiting import wait_until

OPENVPN = "application/x-openvpn-profile"
WIREGUARD = "application/x-wireguard-profile"


def rows() -> list[Connection]:
    with transaction(read_only=True) as db:
        return list(db.scalars(select(Connection).order_by(Connection.created_at)))


def test_app_gets_a_wireguard_configuration_and_its_node_knows_the_peer(node, make_app_user):
    app = make_app_user()

    response = app.connect("employees")

    assert response.status_code == 200, response.text
    assert response.text == (
        "[Interface]\n"
        "MTU = 1392\n"
        "Address = 10.61.0.2/22,fd43:61::2/110\n"
        "DNS = 198.51.100.53,fd43:61::1\n"
        "\n"
        "[Peer]\n"
        f"PublicKey = {WIREGUARD_KEY}\n"
        "AllowedIPs = 0.0.0.0/0,::/0\n"
        "Endpoint = node0.example.org:51820\n"
    )
    assert len(node.peers) == 1


def test_headers_are_what_apps_accept(node, make_app_user):
    app = make_app_user()
    with transaction(read_only=True) as db:
        expires_at = db.scalars(select(Authorization.expires_at)).one()

    headers = app.connect("employees").headers

    assert headers["Content-Type"] == WIREGUARD
    assert headers["Expires"].endswith(" GMT")
    assert headers["Expires"] == expires_at.strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert headers["Cache-Control"] == "no-store"
    assert app.connect("employees", accept=OPENVPN).headers["Content-Type"] == OPENVPN


def test_split_tunnel_gets_its_routes_and_keepalive(node, make_app_user):
    text = make_app_user().connect("lab").text

    assert "DNS" not in text
    assert "PersistentKeepalive = 25\n" in text
    assert (
        "AllowedIPs = 10.0.0.0/16,10.2.0.0/15,10.4.0.0/14,10.8.0.0/13,10.16.0.0/12,10.32.0.0/11,"
        "10.64.0.0/10,10.128.0.0/9,fd43:63::/110\n"
    ) in text


def test_openvpn_configuration_holds_a_certificate_of_this_connection_only(node, make_app_user):
    response = make_app_user().connect("legacy")

    lines = response.text.splitlines()
    assert lines[:9] == [
        "dev tun",
        "client",
        "nobind",
        "remote-cert-tls server",
        "verb 3",
        "server-poll-timeout 10",
        "tls-version-min 1.3",
        "data-ciphers AES-256-GCM:CHACHA20-POLY1305",
        "reneg-sec 0",
    ]
    assert lines[-2:] == ["remote node0.example.org 1195 udp", "remote node0.example.org 1195 tcp"]
    certificate = x509.load_pem_x509_certificate(
        response.text.split("<cert>\n")[1].split("\n</cert>")[0].encode()
    )
    (row,) = rows()
    names = {attribute.oid: attribute.value for attribute in certificate.subject}
    assert names == {NameOID.COMMON_NAME: row.id, NameOID.ORGANIZATIONAL_UNIT_NAME: "legacy"}
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.not_valid_after_utc == row.expires_at.replace(microsecond=0)
    assert node.connections[row.id].common_name == row.id


def test_tcp_remotes_come_first_for_an_app_that_prefers_tcp(node, make_app_user):
    lines = make_app_user().connect("legacy", prefer_tcp="yes").text.splitlines()

    assert lines[-2:] == ["remote node0.example.org 1195 tcp", "remote node0.example.org 1195 udp"]


def test_old_name_of_prefer_tcp_counts(node, make_app_user):
    lines = make_app_user().connect("legacy", prefer_tcp=None, tcp_only="on").text.splitlines()

    assert lines[-2].endswith("tcp")


@pytest.mark.parametrize(
    ("form", "status", "message"),
    [
        ({"profile_id": None}, 400, 'missing post parameter "profile_id"'),
        ({"profile_id": "no/such"}, 400, 'invalid value for "profile_id"'),
        ({"profile_id": ""}, 400, 'invalid value for "profile_id"'),
        ({"public_key": "AAAA"}, 400, 'invalid value for "public_key"'),
        ({"public_key": "A" * 43 + "="}, 200, ""),
        ({"public_key": "A" * 42 + "B="}, 400, 'invalid value for "public_key"'),
        ({"public_key": "A" * 43 + "=\n"}, 400, 'invalid value for "public_key"'),
        ({"prefer_tcp": "maybe"}, 400, 'invalid value for "prefer_tcp"'),
        ({"tcp_only": "yes"}, 400, 'invalid value for "tcp_only"'),
        ({"prefer_tcp": "yes", "tcp_only": "banana"}, 400, 'invalid value for "tcp_only"'),
        ({"profile_id": "unknown"}, 404, 'no such "profile_id"'),
        ({"profile_id": "hidden"}, 404, 'no such "profile_id"'),
        ({"profile_id": "staff-only"}, 404, 'no such "profile_id"'),
        ({"profile_id": "nobody"}, 404, 'no such "profile_id"'),
        ({"profile_id": "lab", "public_key": None}, 406, ""),
    ],
)
def test_wrong_request_is_answered_with_its_row_of_the_table(
    make_nodes, make_app_user, form, status, message
):
    make_nodes(1, PROFILES | more_profiles())
    app = make_app_user()

    response = app.connect(**({"profile_id": "employees"} | form))

    assert response.status_code == status
    if status != 200:
        assert response.headers["Content-Type"] == "application/json"
        assert message in response.json["error"]


def more_profiles():
    def profile(number, **changes):
        ranges = {"ipv4": f"10.7{number}.0.0/20", "ipv6": f"fd43:7{number}::/108"}
        return {"display_name": f"Number {number}", "wireguard": ranges} | changes

    return {
        "hidden": profile(0, hidden=True),
        "staff-only": profile(1, permissions=["staff"]),
        "nobody": profile(2, permissions=[]),
    }


def test_profile_with_permissions_is_for_who_has_one_of_them(make_nodes, make_app_user):
    make_nodes(1, PROFILES | more_profiles())
    app = make_app_user(permissions=["staff", "other"])

    assert "staff-only" in app.info().text
    assert app.connect("staff-only").status_code == 200


def test_permission_that_was_lost_counts_at_once(make_nodes, make_app_user):
    """V3: permissions are looked up at each call."""
    make_nodes(1, PROFILES | more_profiles())
    app = make_app_user(permissions=["staff"])
    assert app.connect("staff-only").status_code == 200
    with transaction() as db:
        db.execute(update(User).values(permissions=[]))

    assert "staff-only" not in app.info().text
    assert app.connect("staff-only").status_code == 404


@pytest.mark.parametrize(
    ("settings_changes", "error"), [({}, NotFound), ({"access_permissions": ["staff"]}, InvalidToken)]
)
def test_permission_that_is_lost_during_the_call_counts(make_nodes, make_app_user, error):
    """V3, R38: what was looked up with the token is looked up again under the lock."""
    make_nodes(1, PROFILES | more_profiles())
    app = make_app_user(permissions=["staff"])
    with transaction() as db:
        (authorization,) = db.scalars(select(Authorization))
        db.execute(update(User).values(permissions=[]))
    before = Holder(
        app.user.id, "alice", ["staff"], authorization.client_id, authorization.id, authorization.expires_at
    )

    with app.app.app_context(), pytest.raises(error):
        connections.connect(
            before, Wanted("staff-only", public_key(), frozenset({transports.WIREGUARD_UDP})), now=utc_now()
        )

    assert rows() == []


@pytest.mark.parametrize("fails", ["signer", "suspect"])
def test_error_after_the_commit_leaves_no_connection(node, make_app_user, monkeypatch, fails):
    """I4, I6: nobody got it, so nobody has it."""
    app = make_app_user()
    extension = app.app.extensions["causeway"]

    def away(*_args, **_options):
        raise Unavailable("away")

    with monkeypatch.context() as patch:
        if fails == "signer":
            patch.setattr(type(extension.signer), "issue", away)
        else:
            patch.setattr(nodes, "mark_suspect", away)
            patch.setattr(
                extension.agents, "admit", lambda *_a, **_o: (_ for _ in ()).throw(NodeUnreachable("x"))
            )
        response = app.connect("legacy")

    assert response.status_code == 503
    assert rows() == []


def test_refused_request_does_not_end_the_connection_that_is_there(node, make_app_user):
    app = make_app_user()
    app.connect()
    before = node.peers

    assert app.connect("unknown").status_code == 404
    assert app.connect("lab", accept=OPENVPN).status_code == 406

    assert node.peers == before
    assert [row.id for row in rows()] == list(before)


def test_second_connect_replaces_the_first_at_database_and_node(node, make_app_user):
    """I5"""
    app = make_app_user()
    app.connect("employees")
    (first,) = node.peers

    app.connect("lab")

    (row,) = rows()
    assert row.profile_id == "lab"
    wait_until(lambda: node.peers == {row.id})
    assert first != row.id


def test_same_public_key_again_moves_to_the_new_connection(node, make_app_user):
    key = public_key()
    phone, laptop = make_app_user("alice"), None
    phone.connect(public_key=key)
    laptop = VpnApp(phone.app, phone.user, client_id="org.eduvpn.app.windows").authorize()

    assert laptop.connect(public_key=key).status_code == 200

    (row,) = rows()
    assert row.public_key == key
    assert node.peers == {row.id}


def test_public_key_of_another_user_is_a_conflict(node, make_app_user):
    key = public_key()
    make_app_user("alice").connect(public_key=key)

    response = make_app_user("bob").connect(public_key=key)

    assert response.status_code == 409
    assert len(rows()) == 1


def test_fourth_device_ends_the_oldest(node, make_app_user):
    alice = make_app_user("alice")
    devices = [alice] + [VpnApp(alice.app, alice.user).authorize() for _ in range(3)]
    bob = make_app_user("bob")
    bob.connect()
    for device in devices[:3]:
        assert device.connect().status_code == 200
    oldest = next(row for row in rows() if row.user_id == alice.user.id)

    assert devices[3].connect().status_code == 200

    living = rows()
    assert oldest.id not in {row.id for row in living}
    assert sum(row.user_id == alice.user.id for row in living) == 3
    wait_until(lambda: node.peers == {row.id for row in living})


@pytest.mark.parametrize("settings_changes", [{"max_app_connections": 0}])
def test_no_app_connections_when_switched_off(node, make_app_user):
    response = make_app_user().connect()

    assert response.status_code == 403
    assert response.json["error"] == "no API configuration downloads allowed"


def test_configurations_made_on_the_portal_do_not_count_as_devices(node, make_app_user):
    app = make_app_user()
    issued = connections.create_for_portal(app.user, "employees", "wireguard", "my laptop", now=utc_now())
    devices = [app] + [VpnApp(app.app, app.user).authorize() for _ in range(2)]

    for device in devices:
        device.connect()

    assert len(rows()) == 4
    assert issued.connection_id in {row.id for row in rows()}


def test_configuration_made_on_the_portal_has_its_key_and_says_what_it_is(node, make_app_user):
    user = make_app_user().user

    issued = connections.create_for_portal(user, "employees", "wireguard", "My <laptop>/1", now=utc_now())

    assert issued.config.startswith("# Portal: https://vpn.example.org\n# Profile: Employees (employees)\n")
    assert "\n\n[Interface]\nMTU = 1392\nPrivateKey = " in issued.config
    assert issued.file_name == f"vpn.example.org_employees_{utc_now():%Y%m%d}_My-laptop-1.conf"
    assert node.peers == {issued.connection_id}


def test_only_so_many_configurations_can_be_made_on_the_portal(node, make_app_user):
    user = make_app_user().user
    for number in range(3):
        connections.create_for_portal(user, "legacy", "openvpn", f"number {number}", now=utc_now())

    with pytest.raises(Forbidden):
        connections.create_for_portal(user, "legacy", "openvpn", "one more", now=utc_now())


def test_disconnect_ends_the_connection_and_can_be_repeated(node, make_app_user):
    app = make_app_user()
    app.connect()

    for _ in range(2):
        response = app.disconnect()
        assert (response.status_code, response.data) == (204, b"")

    assert node.peers == set()
    assert rows() == []
    assert app.info().status_code == 200


@pytest.mark.parametrize("settings_changes", [{"delete_authorization_on_disconnect": True}])
def test_disconnect_ends_the_authorization_if_so_configured(node, make_app_user):
    app = make_app_user()
    app.connect()

    assert app.disconnect().status_code == 204

    assert app.info().status_code == 401
    assert app.refresh().json["error"] == "invalid_grant"


def test_who_had_which_address_when_is_a_row(node, make_app_user):
    """I7: intervals of one address do not overlap, also when the next owner's clock is behind."""
    alice, bob = make_app_user("alice"), make_app_user("bob")
    fill(capacity=1)
    alice.connect()
    alice.disconnect()

    bob.connect()

    with transaction(read_only=True) as db:
        first, second = db.scalars(select(AddressUse).order_by(AddressUse.id))
    assert (first.user_name, second.user_name) == ("alice", "bob")
    assert first.ipv4 == second.ipv4 == "10.61.0.2"
    assert first.started_at < first.ended_at <= second.started_at
    assert (first.end_reason, second.ended_at) == ("disconnect", None)
    assert first.client_id == "org.eduvpn.app.linux"


def fill(capacity: int, profile_id: str = "employees") -> None:
    with transaction() as db:
        db.execute(update(Offer).where(Offer.profile_id == profile_id).values(capacity=capacity))


def test_full_range_is_a_clear_refusal_and_keeps_what_the_app_had(node, make_app_user):
    """R34"""
    alice, bob = make_app_user("alice"), make_app_user("bob")
    fill(capacity=1)
    alice.connect(accept=WIREGUARD)

    refused = bob.connect(accept=WIREGUARD)
    again = alice.connect(accept=WIREGUARD)

    assert refused.status_code == 503
    assert refused.json["error"].startswith("no capacity")
    assert int(refused.headers["Retry-After"]) > 0
    # Its own address is given back first, so a full range is none for who is in it.
    assert "Address = 10.61.0.2/22" in again.text


def test_full_node_is_left_for_another(make_nodes, make_app_user):
    make_nodes(2)
    with transaction() as db:
        db.execute(update(Offer).where(Offer.node_number == 0).values(capacity=0))

    assert "Endpoint = node1.example.org" in make_app_user().connect().text


@pytest.mark.parametrize(
    ("state", "offer"),
    [
        ({"suspect_until": datetime(2100, 1, 1, tzinfo=UTC)}, {}),
        ({"maintenance_mode": True}, {}),
        ({"answered_at": None}, {}),
        ({"wireguard_public_key": None}, {}),
        ({}, {"wireguard": None, "capacity": 0}),
    ],
    ids=["suspect", "maintenance", "silent", "without key", "without the protocol"],
)
def test_node_that_cannot_be_taken_is_left_for_another_of_the_same_protocol(
    make_nodes, make_app_user, state, offer
):
    """R42, R63"""
    make_nodes(2)
    seen_up(0, **state)
    if offer:
        with transaction() as db:
            db.execute(update(Offer).where(Offer.node_number == 0).values(**offer))

    response = make_app_user().connect()

    assert response.headers["Content-Type"] == WIREGUARD
    assert "Endpoint = node1.example.org" in response.text


def test_nodes_without_the_protocol_give_way_to_the_next(make_nodes, make_app_user):
    make_nodes(2)
    with transaction() as db:
        db.execute(update(Offer).values(wireguard=None, capacity=0))

    assert make_app_user().connect().headers["Content-Type"] == OPENVPN


def test_protocol_without_a_node_gives_way_to_the_next(node, make_app_user):
    fill(capacity=0)

    assert make_app_user().connect().headers["Content-Type"] == OPENVPN


def test_node_without_a_known_key_serves_openvpn_only(node, make_app_user):
    seen_up(0, wireguard_public_key=None)

    assert make_app_user().connect().headers["Content-Type"] == OPENVPN


def said(caplog, event: str) -> list[str]:
    return [r.message for r in caplog.records if r.message.startswith(f"event={event} ")]


def test_choice_is_stored_and_logged_with_its_reasons(make_nodes, make_app_user, caplog):
    """What spoke for the node, who waited, who was left out and why."""
    caplog.set_level(logging.INFO)
    make_nodes(4)
    seen_up(0, info={"rel_load_average": [41, 0, 0], "o_client_count": 0})
    seen_up(1, maintenance_mode=True)
    seen_up(2, suspect_until=datetime(2100, 1, 1, tzinfo=UTC))
    with transaction() as db:
        db.execute(update(Offer).where(Offer.node_number == 3).values(allocated=Offer.capacity))

    make_app_user().connect()

    (row,) = rows()
    assert row.choice == (
        "node0: 41 % busy, 1021 free addresses; wireguard: preferred by the profile;"
        " without node1 (in maintenance), node2 (suspect), node3 (full);"
        " open to everybody; 1 of 3 connections of apps"
    )
    (line,) = said(caplog, "connect")
    assert f'choice="{row.choice}"' in line


def test_choice_after_another_node_did_not_answer_says_so(make_nodes, make_app_user, monkeypatch):
    """R42, R54"""
    monkeypatch.setattr(connections, "ADMIT_SECONDS", 0.3)
    bad, _ = make_nodes(2)
    bad.mode = "silent"
    with transaction() as db:
        db.execute(update(Offer).where(Offer.node_number == 1).values(capacity=1))
    seen_up(1, info={"rel_load_average": [99, 99, 99], "o_client_count": 0})

    make_app_user().connect()

    (row,) = rows()
    assert row.choice == (
        "node1: 99 % busy, 1 free address; wireguard: preferred by the profile;"
        " without node0 (did not answer); open to everybody; 1 of 3 connections of apps"
    )


def test_choice_of_the_next_protocol_says_what_became_of_the_first(make_nodes, make_app_user):
    make_nodes(1)
    fill(capacity=0)

    make_app_user().connect()

    (row,) = rows()
    assert row.protocol == "openvpn"
    assert "free addresses; no wireguard: node0 (full); open to everybody" in row.choice


def test_choice_names_the_permission_and_what_the_limit_ended(app, node):
    with transaction() as db:
        db.execute(update(Profile).values(permissions=["board", "staff"]))
    user = add_user("alice", ["guest", "staff"])
    for _ in range(4):
        VpnApp(app, user).authorize().connect()

    assert [row.choice.partition("; allowed by ")[2] for row in rows()] == [
        "staff; 2 of 3 connections of apps",
        "staff; 3 of 3 connections of apps",
        "staff; 3 of 3 connections of apps, ends the oldest: eduVPN for Linux",
    ]


def test_refusal_for_want_of_nodes_is_503_with_the_reason_of_each_in_the_log(
    make_nodes, make_app_user, caplog, monkeypatch
):
    """R34: in maintenance, suspect, without the protocol, silent, refusing; the app learns none of it."""
    monkeypatch.setattr(connections, "ADMIT_SECONDS", 0.3)
    nodes = make_nodes(4)
    seen_up(0, maintenance_mode=True)
    seen_up(1, suspect_until=datetime(2100, 1, 1, tzinfo=UTC))
    nodes[2].mode, nodes[3].mode = "silent", "refuse"
    with transaction() as db:
        db.execute(update(Offer).where(Offer.node_number == 3).values(openvpn=[]))

    response = make_app_user().connect()

    assert response.status_code == 503
    assert response.json == {
        "error": "no capacity: no VPN server of this profile has room at the moment",
    }
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Retry-After"] == "10"
    assert response.headers["Cache-Control"] == "no-store"
    assert rows() == []
    (line,) = said(caplog, "no_capacity")
    no_wireguard, no_openvpn = line.split("; ")
    assert 'why="no wireguard: node0 (in maintenance), node1 (suspect), ' in no_wireguard
    assert "node2 (did not answer)" in no_wireguard
    assert "node3 (refused)" in no_wireguard
    assert no_openvpn.startswith("no openvpn: node0 (in maintenance), node1 (suspect), node3 (lacks openvpn)")
    assert "node2 (did not answer)" in no_openvpn


def test_profile_that_no_node_serves_is_503(node, make_app_user, caplog):
    with transaction() as db:
        db.execute(delete(Offer))

    assert make_app_user().connect().status_code == 503

    (line,) = said(caplog, "no_capacity")
    assert 'why="no wireguard: no node offers it; no openvpn: no node offers it"' in line


@pytest.mark.parametrize("accept", [WIREGUARD, OPENVPN])
def test_last_places_of_all_nodes_are_used_before_anybody_is_refused(make_nodes, make_app_user, accept):
    """R34, R62: also those of OpenVPN, whose reports are some seconds old."""
    make_nodes(3)
    process = {"name": "employees-1", "max_clients": 10}
    with transaction() as db:
        for number, left in enumerate((0, 1, 2)):
            values = {"capacity": left, "openvpn": [process | {"max_clients": 10 + left}]}
            db.execute(update(Offer).where(Offer.node_number == number).values(values))
    for number in range(3):
        seen_up(
            number,
            info={"rel_load_average": [0, 0, 0], "openvpn_clients": {"employees": 10}, "generation": 0},
        )

    answers = [make_app_user(f"user{n}").connect(accept=accept).status_code for n in range(5)]

    assert answers == [200, 200, 200, 503, 503]
    assert sorted(row.node_number for row in rows()) == [1, 2, 2]


def test_full_for_one_profile_is_not_full_for_another(node, make_app_user):
    """OpenVPN clients are counted for the profile whose processes they sit on."""
    count = {"employees": 0, "legacy": 10**6}
    seen_up(0, info={"rel_load_average": [0, 0, 0], "o_client_count": 10**6, "openvpn_clients": count})

    assert make_app_user("alice").connect("employees", accept=OPENVPN).status_code == 200
    assert make_app_user("bob").connect("legacy", accept=OPENVPN).status_code == 503


@pytest.mark.parametrize(
    "state",
    [
        {"answered_at": None},
        {"failing_since": datetime(2026, 1, 1, tzinfo=UTC)},
        {"suspect_until": datetime(2100, 1, 1, tzinfo=UTC)},
        {"maintenance_mode": True},
        {"info": {"o_client_count": 10**6}, "wireguard_public_key": None},
    ],
    ids=lambda state: next(iter(state)),
)
def test_node_that_is_not_usable_is_not_chosen(node, make_app_user, state):
    """R42, R63"""
    seen_up(0, **state)

    response = make_app_user().connect()

    assert response.status_code == 503
    assert response.headers["Content-Type"] == "application/json"
    assert node.peers == set()


def test_while_no_controller_asks_the_nodes_people_connect(node, make_app_user):
    """R51, R55: after an outage of all portals, and until another controller leads."""
    seen_up(0, answered_at=datetime(2026, 1, 1, tzinfo=UTC))

    assert make_app_user().connect().status_code == 200
    assert len(node.peers) == 1


@pytest.mark.parametrize("mode", ["silent", "drip", "half_open", "refuse", "garbage", "huge"])
def test_node_that_does_not_admit_gives_way_to_another_within_the_budget(make_nodes, make_app_user, mode):
    """R42, R54, R96: within 5 s."""
    bad, good = make_nodes(2)
    bad.mode = mode
    seen_up(1, info={"rel_load_average": [99, 99, 99], "o_client_count": 0})
    with transaction() as db:
        db.execute(update(Offer).where(Offer.node_number == 1).values(capacity=1))
    app = make_app_user()
    begin = time.monotonic()

    response = app.connect()

    assert time.monotonic() - begin <= 5
    assert "Endpoint = node1.example.org" in response.text
    (row,) = rows()
    assert good.peers == {row.id}
    with transaction(read_only=True) as db:
        # A node that says no at once is not kept away from the others, who may want something else.
        assert (db.get_one(NodeStatus, 0).suspect_until is None) == (mode == "refuse")
        allocated = dict(
            db.execute(
                select(Offer.node_number, Offer.allocated).where(Offer.profile_id == "employees")
            ).all()
        )
        assert allocated == {0: 0, 1: 1}


@pytest.mark.parametrize("mode", ["silent", "drip"])
def test_node_that_answers_slowly_holds_up_nobody_else(make_nodes, make_app_user, mode):
    """R96: nothing is locked meanwhile; 99 % of what others ask of other nodes is answered within 1 s."""
    bad, _good = make_nodes(2)
    with transaction() as db:
        db.execute(delete(Offer).where(Offer.node_number == 1, Offer.profile_id == "employees"))
        db.execute(delete(Offer).where(Offer.node_number == 0, Offer.profile_id == "lab"))
    waits, other = make_app_user(), make_app_user("bob")
    bad.mode = mode
    took = []

    with ThreadPoolExecutor(1) as threads:
        begin = time.monotonic()
        waiting = threads.submit(waits.connect)
        while not waiting.done():
            asked_at = time.monotonic()
            assert other.connect("lab").status_code == 200
            took.append(time.monotonic() - asked_at)
        refused = waiting.result()
        assert time.monotonic() - begin <= 5

    assert refused.status_code == 503
    assert len(took) > 10
    assert quantiles(took, n=100, method="inclusive")[-1] <= 1


def test_what_is_read_before_a_node_is_chosen_is_part_of_the_budget(node, make_app_user, monkeypatch):
    """R42: a database that was slow leaves no time for nodes, so they are not asked any more."""
    app = make_app_user()
    passed = [0.0]

    def slowly(db, asked):
        passed[0] += connections.BUDGET_SECONDS
        return run_together(db, asked)

    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0]))
    monkeypatch.setattr(bearer, "run_together", slowly)

    assert app.connect().status_code == 503
    assert (rows(), node.peers) == ([], set())


def test_portal_that_dies_after_the_commit_leaves_nothing_that_a_repeat_does_not_mend(
    node, make_app_user, monkeypatch
):
    """R15, I6: the row is there, no answer was sent; the app asks again."""

    class PowerCut(BaseException):
        """Nothing of the portal runs after it."""

    app = make_app_user()
    agents = app.app.extensions["causeway"].agents
    with monkeypatch.context() as patch:
        patch.setattr(agents, "admit", lambda *_args, **_kwargs: (_ for _ in ()).throw(PowerCut()))
        with pytest.raises(PowerCut):
            app.connect()
    (lost,) = rows()

    assert app.connect().status_code == 200

    (row,) = rows()
    assert row.id != lost.id
    wait_until(lambda: node.peers == {row.id})
    with transaction(read_only=True) as db:
        assert db.get_one(Offer, (0, "employees")).allocated == 1


def test_many_ends_at_a_dead_node_do_not_delay_those_at_a_living_one(make_nodes, make_app_user):
    """I3: cuts of one act at a silent node cost one time-out, not one each."""
    dead, living = make_nodes(2)
    user = make_app_user().user
    with transaction() as db:
        db.execute(update(NodeStatus).values(maintenance_mode=True))
    with transaction() as db:
        ended = []
        authority, refs = nodes.lock(db, {0, 1})
        for number, count in ((0, 200), (1, 8)):
            cut = ending.Cut(authority, nodes.next_generation(db, number))
            ended += [
                connections.Ended(
                    f"{number}{n:031x}", refs[number], cut, "test", user.name, "lab", "wireguard", None, None
                )
                for n in range(count)
            ]
    dead.mode = "silent"

    connections.tell(ended, seconds=2)

    assert len(living.cuts) == 8
    assert len(dead.calls) <= 2 * ending.LANES


def test_no_node_that_answers_is_a_503_and_nothing_stays_taken(make_nodes, make_app_user, monkeypatch):
    monkeypatch.setattr(connections, "ADMIT_SECONDS", 0.2)
    for agent in make_nodes(2):
        agent.mode = "silent"

    response = make_app_user().connect()

    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert rows() == []


def test_refused_admission_of_what_a_later_request_ended_is_a_conflict(node, make_app_user, monkeypatch):
    """R35: the loser of two connects at once learns that the other one holds."""
    app = make_app_user()
    admit = node.admit

    def overtaken(connection_id, body):
        with transaction() as db:
            ended = connections.end(db, Connection.id == connection_id, reason="replaced", now=utc_now())
        connections.tell(ended, agents=app.app.extensions["causeway"].agents)
        return admit(connection_id, body)

    monkeypatch.setattr(node, "admit", overtaken)

    assert app.connect().status_code == 409
    assert node.peers == set()


def test_connect_after_the_authorization_ended_meanwhile_is_unauthorized(node, make_app_user):
    """R38: what was true when the token was looked up is looked at again under the lock."""
    app = make_app_user()
    with transaction(read_only=True) as db:
        bearer = authorizations.bearer_of(
            run(db, *authorizations.bearer(app.tokens["access_token"], utc_now()))
        )
    with transaction() as db:
        authorizations.end(db, Authorization.user_id == app.user.id, reason="revoked", now=utc_now())

    wanted = connections.Wanted("employees", public_key(), frozenset({"wireguard+udp"}))
    with pytest.raises(InvalidToken):
        connections.connect(bearer.holder, wanted, now=utc_now())

    assert rows() == []


def test_disabled_account_cannot_connect(node, make_app_user):
    app = make_app_user()
    with transaction() as db:
        db.execute(update(User).values(is_disabled=True))

    assert app.connect().status_code == 401


def test_no_answer_before_a_plan_was_applied_but_503(app, make_app_user):
    user = make_app_user()

    assert user.info().json == {"info": {"profile_list": []}}
    assert user.connect().status_code == 404


def test_wrong_method_names_the_right_one(client):
    for path in ("/api/v3/connect", "/api/v3/disconnect", "/oauth/token", "/oauth/revoke"):
        response = client.get(path)
        assert (response.status_code, response.headers["Allow"]) == (405, "POST")


def test_expiry_of_the_session_is_the_expiry_of_the_connection(node, make_app_user):
    app = make_app_user()
    expires = parsedate_to_datetime(app.connect().headers["Expires"])

    (row,) = rows()
    (told,) = node.connections.values()
    assert int(row.expires_at.timestamp()) == told.expires_at == int(expires.timestamp())
