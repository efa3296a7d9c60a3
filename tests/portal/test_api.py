"""Discovery, access tokens and /info (spec api-v3.md, sections 2, 5 and 6)."""

import json
from datetime import timedelta

import pytest
from sqlalchemy import select

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import AccessToken, Authorization
from portal_app.services import authorizations, connections
from tests.portal.conftest import PROFILES, seen_up
from tests.portal.waiting import wait_until


def test_well_known_document(client):
    response = client.get("/.well-known/vpn-user-portal")

    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json["api"] == {
        "http://eduvpn.org/api#3": {
            "api_endpoint": "https://vpn.example.org/api/v3",
            "authorization_endpoint": "https://vpn.example.org/oauth/authorize",
            "token_endpoint": "https://vpn.example.org/oauth/token",
        }
    }
    assert isinstance(response.json["v"], str)


def test_metadata_of_the_authorization_server(client):
    """RFC 8414, and issuer equal to iss (O5)"""
    document = client.get("/.well-known/oauth-authorization-server").json

    assert document["issuer"] == "https://vpn.example.org"
    assert document["revocation_endpoint"] == "https://vpn.example.org/oauth/revoke"
    assert document["code_challenge_methods_supported"] == ["S256"]
    assert document["response_types_supported"] == ["code"]
    assert document["authorization_response_iss_parameter_supported"] is True


@pytest.mark.parametrize("path", ["/api/v3/info", "/api/v3/connect", "/api/v3/disconnect"])
@pytest.mark.parametrize(
    ("authorization", "challenge"),
    [
        (None, 'Bearer realm="OAuth"'),
        ("Bearer", 'Bearer realm="OAuth",error="invalid_token"'),
        ("Bearer unknown", 'Bearer realm="OAuth",error="invalid_token"'),
        ("Bearer with space", 'Bearer realm="OAuth",error="invalid_token"'),
        ("Basic YTpi", 'Bearer realm="OAuth",error="invalid_token"'),
    ],
)
def test_request_without_a_good_token_is_unauthorized(client, path, authorization, challenge):
    headers = {"Authorization": authorization} if authorization else {}
    response = client.open(path, method="GET" if path.endswith("info") else "POST", headers=headers)

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == challenge
    assert response.headers["Content-Type"] == "application/json"
    assert response.json["error"] == "invalid_token"
    assert len(response.data) < 200


def test_token_in_query_or_form_is_not_looked_at(make_app_user):
    """O15"""
    app = make_app_user()
    token = {"access_token": app.tokens["access_token"]}

    assert app.http.get("/api/v3/info", query_string=token).status_code == 401
    assert app.http.post("/api/v3/disconnect", data=token).status_code == 401


def test_scope_is_asked_for(make_app_user):
    app = make_app_user()
    with transaction() as db:
        db.scalars(select(Authorization)).one().scope = "other"

    response = app.info()

    assert response.status_code == 403
    assert response.headers["WWW-Authenticate"].startswith(
        'Bearer realm="OAuth",error="insufficient_scope",error_'
    )
    assert response.json["error"] == "insufficient_scope"


def test_expired_access_token_is_refused_and_refreshing_helps(make_app_user):
    app = make_app_user()
    with transaction() as db:
        db.scalars(select(AccessToken)).one().expires_at = utc_now() - timedelta(seconds=1)
    assert app.info().status_code == 401

    app.tokens = app.refresh().json

    assert app.info().status_code == 200


def test_revocation_is_immediate(node, make_app_user):
    """I3, O12"""
    app = make_app_user()
    app.connect()
    with transaction() as db:
        ended = authorizations.end(db, Authorization.user_id == app.user.id, reason="revoked", now=utc_now())
    connections.tell(ended)

    assert app.info().status_code == 401
    assert node.peers == set()


def test_info_lists_what_the_user_may_use_by_priority(make_nodes, make_app_user):
    profiles = PROFILES | {
        "first": {
            "display_name": "First",
            "priority": 10,
            "dns_servers": ["198.51.100.53"],
            "dns_search_domains": ["example.org"],
            "openvpn": {"ipv4": "10.70.0.0/20", "ipv6": "fd43:70::/96", "udp_ports": [], "tcp_ports": [1443]},
        },
        "hidden": {
            "display_name": "Hidden",
            "hidden": True,
            "wireguard": {"ipv4": "10.71.0.0/20", "ipv6": "fd43:71::/108"},
        },
        "staff": {
            "display_name": "Staff",
            "permissions": ["staff"],
            "wireguard": {"ipv4": "10.72.0.0/20", "ipv6": "fd43:72::/108"},
        },
    }
    make_nodes(1, profiles)

    response = make_app_user().info()

    assert response.headers["Content-Type"] == "application/json"
    listed = json.loads(response.data)["info"]["profile_list"]
    assert [profile["profile_id"] for profile in listed] == ["first", "employees", "lab", "legacy"]
    assert listed[0] == {
        "profile_id": "first",
        "profile_priority": 10,
        "display_name": "First",
        "vpn_proto_list": ["openvpn"],
        "vpn_proto_transport_list": ["openvpn+tcp"],
        "default_gateway": True,
        "dns_search_domain_list": ["example.org"],
    }
    assert listed[1] == {
        "profile_id": "employees",
        "profile_priority": 0,
        "display_name": "Employees",
        "vpn_proto_list": ["openvpn", "wireguard"],
        "vpn_proto_transport_list": ["openvpn+udp", "openvpn+tcp", "wireguard+udp"],
        "default_gateway": True,
    }
    # WireGuard over TCP is not offered, so it is not listed.
    assert "wireguard+tcp" not in response.text


def test_empty_list_is_a_valid_answer(make_app_user):
    assert make_app_user().info().json == {"info": {"profile_list": []}}


def test_real_agent_admits_and_cuts_what_the_portal_says(make_agents, agents, make_app_user):
    (agent,) = make_agents(1)
    seen_up(0)
    user = make_app_user()

    assert user.connect("employees", accept="application/x-openvpn-profile").status_code == 200
    (first,) = agent.connections(agents)
    assert user.connect("legacy").status_code == 200
    wait_until(lambda: agent.connections(agents) and first not in agent.connections(agents))
    assert len(agent.connections(agents)) == 1
    assert user.disconnect().status_code == 204
    assert agent.connections(agents) == set()
