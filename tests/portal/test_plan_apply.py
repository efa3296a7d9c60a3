"""``vpn-portal plan apply``: the database follows the plan, and says what that did to whom."""

import copy
import json
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import (
    AddressUse,
    AuditEvent,
    Connection,
    Deployment,
    FreeAddress,
    Node,
    NodeStatus,
    Offer,
    Profile,
    User,
)
from portal_app.services import leases, nodes, plan, plan_file
from portal_app.services.plan import Outcome
from portal_app.services.plan_file import PlanRefused
from tests.portal.app_user import add_user, public_key
from vpn_core.plan import make_plan

PROFILES: dict[str, Any] = {
    "employees": {
        "display_name": "Employees",
        "dns_servers": ["198.51.100.53"],
        "wireguard": {"ipv4": "10.61.0.0/20", "ipv6": "fd43:61::/108"},
        "openvpn": {"ipv4": "10.62.0.0/20", "ipv6": "fd43:62::/96"},
    },
    "lab": {
        "display_name": "Laboratory",
        "default_gateway": False,
        "routes": ["10.0.0.0/8"],
        "wireguard": {"ipv4": "10.63.0.0/20", "ipv6": "fd43:63::/108"},
    },
}
NODES: dict[str, Any] = {
    "node0": {"number": 0, "hostname": "node0.example.org"},
    "node1": {"number": 1, "hostname": "node1.example.org"},
}


@pytest.fixture(autouse=True)
def database_is_connected(app: Flask) -> None:
    """Every test works on the database of ``app``."""


def made(
    profiles: dict[str, Any] = PROFILES, hosts: dict[str, Any] = NODES, max_nodes: int = 4
) -> dict[str, Any]:
    return make_plan(profiles, hosts, {"max_nodes": max_nodes}).to_dict()


def changed(entry: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy with the value at ``a.b.c`` replaced; None takes it away."""
    result = copy.deepcopy(entry)
    place = result
    *parents, last = path.split(".")
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return result


def apply(data: dict[str, Any], **options: Any) -> Outcome:
    # As it comes from the file.
    return plan.apply(plan_file.parse(json.loads(json.dumps(data))), now=utc_now(), **options)


def contents() -> dict[str, list[dict[str, Any]]]:
    """Return everything that a plan may change."""
    tables = (Deployment, Profile, Node, NodeStatus, Offer, Connection, FreeAddress, AuditEvent, AddressUse)
    with transaction(read_only=True) as db:
        return {model.__tablename__: rows(db, model) for model in tables}


def rows(db: Session, model: Any) -> list[dict[str, Any]]:
    table = model.__table__
    return [dict(row._mapping) for row in db.execute(select(table).order_by(*table.primary_key))]


def lease(user: User, profile_id: str = "employees", number: int = 0) -> Connection:
    """Commit a WireGuard connection as ``/connect`` does."""
    now = utc_now()
    with transaction() as db:
        taken = leases.take(db, number, profile_id)
        assert taken is not None
        connection = Connection(
            id=uuid.uuid4().hex, user_id=user.id, node_number=number, profile_id=profile_id,
            protocol="wireguard", public_key=public_key(), position=taken.position, ipv4=taken.ipv4,
            ipv6=taken.ipv6, display_name="test", created_at=now, expires_at=now + timedelta(days=1),
            generation=nodes.next_generation(db, number),
        )  # fmt: skip
        db.add(connection)
        db.add(
            AddressUse(connection_id=connection.id, user_name=user.name, profile_id=profile_id,
                       node_number=number, protocol="wireguard", ipv4=taken.ipv4, ipv6=taken.ipv6,
                       started_at=now)
        )  # fmt: skip
    return connection


def certificate(user: User, profile_id: str = "employees", number: int = 0) -> Connection:
    """Commit an OpenVPN connection as ``/connect`` does."""
    now = utc_now()
    with transaction() as db:
        connection = Connection(
            id=uuid.uuid4().hex, user_id=user.id, node_number=number, profile_id=profile_id,
            protocol="openvpn", display_name="test", created_at=now, expires_at=now + timedelta(days=1),
            generation=nodes.next_generation(db, number),
        )  # fmt: skip
        db.add(connection)
    return connection


def living() -> set[str]:
    with transaction(read_only=True) as db:
        return set(db.scalars(select(Connection.id)))


def test_first_plan_makes_deployment_profiles_nodes_and_offers():
    outcome = apply(made())

    assert outcome.changes[0] == "deployment: made"
    assert "profile employees: added" in outcome.changes
    assert "node node1: added as number 1" in outcome.changes
    assert "lab on node1: offered" in outcome.changes
    with transaction(read_only=True) as db:
        deployment = db.scalars(select(Deployment)).one()
        assert len(deployment.deployment_id) == 32
        assert deployment.epoch == 1
        offer = db.get_one(Offer, (1, "employees"))
        assert offer.wireguard["ipv4"] == "10.61.4.0/22"
        assert offer.capacity == 1021
        assert [p["protocol"] for p in offer.openvpn] == ["udp", "tcp"]
        assert db.get_one(Offer, (0, "lab")).openvpn == []
        assert [p.profile_id for p in db.scalars(select(Profile).order_by(Profile.position))] == [
            "employees",
            "lab",
        ]
        assert len(db.scalars(select(NodeStatus)).all()) == 2


def test_same_plan_again_changes_nothing():
    apply(made())
    before = contents()

    outcome = apply(made())

    assert not outcome.changed
    assert contents() == before


def test_dry_run_says_the_same_and_changes_nothing():
    """R84."""
    apply(made())
    lease(add_user("alice"), "lab")
    before = contents()
    smaller = made(changed(PROFILES, "lab", None))

    said = apply(smaller, dry_run=True)

    assert contents() == before
    assert said.changes == apply(smaller).changes
    assert len(said.ended) == 1


def test_deployment_keeps_its_id_when_the_plan_changes():
    apply(made())
    before = contents()["deployment"][0]["deployment_id"]

    apply(made(hosts=changed(NODES, "node1", None)))

    assert contents()["deployment"][0]["deployment_id"] == before


def test_changed_value_is_named_with_before_and_after():
    apply(made())

    outcome = apply(made(changed(PROFILES, "lab.routes", ["10.0.0.0/8", "192.0.2.0/24"])))

    assert outcome.changes == ("profile lab: routes 10.0.0.0/8 → 10.0.0.0/8 192.0.2.0/24",)


def test_process_that_only_pushes_otherwise_is_not_told_with_the_same_ports_twice():
    apply(made())

    outcome = apply(made(changed(PROFILES, "employees.dns_search_domains", ["example.org"])))

    assert "employees on node0: openvpn pushes other settings" in outcome.changes


def test_address_of_an_agent_changes_without_cutting_anybody():
    apply(made())
    connection = lease(add_user("alice"))

    outcome = apply(made(hosts=changed(NODES, "node0.agent_address", "192.0.2.7")))

    assert outcome.changes == ("node node0: agent_address node0.example.org → 192.0.2.7",)
    assert living() == {connection.id}


def test_added_node_renumbers_nobody():
    """R90."""
    apply(made(hosts=changed(NODES, "node1", None)))
    connection = lease(add_user("alice"))

    outcome = apply(made())

    assert outcome.ended == ()
    assert living() == {connection.id}
    assert apply(made()).changes == ()


@pytest.mark.parametrize(
    ("profiles", "hosts", "reason"),
    [
        (changed(PROFILES, "lab", None), NODES, "profile_removed"),
        (PROFILES, changed(NODES, "node0", None), "node_removed"),
        (changed(PROFILES, "lab", PROFILES["lab"] | {"nodes": ["node1"]}), NODES, "profile_removed"),
    ],
    ids=["profile", "node", "offer"],
)
def test_connection_that_has_no_place_any_more_is_ended(profiles, hosts, reason):
    apply(made())
    alice, bob = add_user("alice"), add_user("bob")
    lease(alice, "lab", 0)
    kept = lease(bob, "employees", 1)

    outcome = apply(made(profiles, hosts))

    assert [(e.user_name, e.node.name, e.reason) for e in outcome.ended] == [("alice", "node0", reason)]
    assert any(c.startswith("cut 1 connection, ") and c.endswith(": alice") for c in outcome.changes)
    assert living() == {kept.id}
    (use,) = [u for u in contents()["address_uses"] if u["user_name"] == "alice"]
    assert use["end_reason"] == reason
    assert apply(made(profiles, hosts)).changes == ()


def test_protocol_taken_away_ends_its_connections_only():
    apply(made())
    alice = add_user("alice")
    by_wireguard, _by_openvpn = lease(alice), certificate(alice)

    outcome = apply(made(changed(PROFILES, "employees.openvpn", None)))

    assert [e.protocol for e in outcome.ended] == ["openvpn"]
    assert living() == {by_wireguard.id}


@pytest.mark.parametrize(
    ("key", "value", "loses"),
    [
        ("permissions", ["staff"], ["bob"]),
        ("permissions", [], ["alice", "bob"]),
        ("hidden", True, ["alice", "bob"]),
    ],
)
def test_who_may_not_use_a_profile_any_more_is_cut(key, value, loses):
    """V3, I3."""
    apply(made())
    alice, bob = add_user("alice", ["staff"]), add_user("bob")
    lease(alice)
    certificate(bob)
    elsewhere = lease(bob, "lab")

    outcome = apply(made(changed(PROFILES, f"employees.{key}", value)))

    assert sorted((e.user_name, e.reason) for e in outcome.ended) == [
        (name, "permission_lost") for name in loses
    ]
    assert any("they may not use the profile any more: " + ", ".join(loses) in c for c in outcome.changes)
    assert elsewhere.id in living()
    assert apply(made(changed(PROFILES, f"employees.{key}", value))).ended == ()


def test_node_that_lost_connections_gets_a_new_generation():
    """I4: the cut that is lost on the way is repaired by the reconcile round."""
    apply(made())
    lease(add_user("alice"), "lab")
    before = contents()["nodes"][0]["generation"]

    (ended,) = apply(made(changed(PROFILES, "lab", None))).ended

    assert ended.cut.generation == contents()["nodes"][0]["generation"] == before + 1


def test_range_that_moves_under_clients_is_refused():
    apply(made())
    lease(add_user("alice"))
    before = contents()
    moved = made(changed(PROFILES, "employees.wireguard.ipv4", "10.71.0.0/20"))

    with pytest.raises(
        PlanRefused, match=r"employees.wireguard: .* would renumber 1 connection; .*--renumber"
    ):
        apply(moved)

    assert contents() == before


def test_range_that_moves_ends_its_clients_when_that_is_wanted():
    apply(made())
    alice = add_user("alice")
    lease(alice)
    by_openvpn, elsewhere = certificate(alice), lease(alice, "lab")
    moved = made(changed(PROFILES, "employees.wireguard.ipv4", "10.71.0.0/20"))

    outcome = apply(moved, renumber=True)

    assert [e.reason for e in outcome.ended] == ["renumbered"]
    # An OpenVPN client gets its address anew each time: its configuration stays good.
    assert living() == {by_openvpn.id, elsewhere.id}
    again = lease(alice)
    assert again.ipv4 == "10.71.0.2"
    with transaction(read_only=True) as db:
        assert db.get_one(Offer, (0, "employees")).allocated == 1
    assert apply(moved).changes == ()


def test_range_without_clients_moves_freely():
    apply(made())

    outcome = apply(made(changed(PROFILES, "employees.wireguard.ipv4", "10.71.0.0/20")))

    assert "employees on node0: wireguard.ipv4 10.61.0.0/22 → 10.71.0.0/22" in "\n".join(outcome.changes)


def test_range_that_grows_in_its_place_keeps_who_keeps_the_address():
    """Node 0's part begins where it did; node 1's moves."""
    apply(made(hosts=changed(NODES, "node1", None)))
    connection = lease(add_user("alice"))
    wider = changed(PROFILES, "employees.wireguard", {"ipv4": "10.61.0.0/19", "ipv6": "fd43:61::/107"})

    outcome = apply(made(wider, changed(NODES, "node1", None)))

    assert outcome.ended == ()
    assert living() == {connection.id}
    assert lease(add_user("bob")).ipv4 == "10.61.0.3"


def test_range_that_shrinks_in_its_place_ends_who_is_outside():
    apply(made(hosts=changed(NODES, "node1", None)))
    alice, bob = add_user("alice"), add_user("bob")
    inside = lease(alice)
    for _ in range(6):
        lease(bob)
    # Parts of /29: five clients.
    narrow = changed(PROFILES, "employees.wireguard", {"ipv4": "10.61.0.0/27", "ipv6": "fd43:61::/123"})
    small = made(narrow, changed(NODES, "node1", None))

    with pytest.raises(PlanRefused, match="would renumber 2 connections"):
        apply(small)
    outcome = apply(small, renumber=True)

    assert len(outcome.ended) == 2
    assert inside.id in living()
    with transaction() as db:
        offer = db.get_one(Offer, (0, "employees"))
        assert (offer.capacity, offer.next_position, offer.allocated) == (5, 5, 5)
        assert db.scalar(select(func.count()).select_from(FreeAddress)) == 0
        assert leases.take(db, 0, "employees") is None


def test_other_max_nodes_is_refused():
    """R94: it would cut every range anew."""
    apply(made())

    with pytest.raises(PlanRefused, match=r"vpn_max_nodes: 4 → 8 renumbers everyone; set it back to 4"):
        apply(made(max_nodes=8))
    apply(made(max_nodes=8), renumber=True)


def test_node_with_another_number_is_refused():
    """R94."""
    apply(made())
    hosts = changed(NODES, "node1.number", 2)

    with pytest.raises(
        PlanRefused, match=r"vpn_node of node1: number 1 → 2 renumbers its clients; set it back to 1"
    ):
        apply(made(hosts=hosts))


def test_two_nodes_may_exchange_their_numbers_when_that_is_wanted():
    apply(made())
    lease(add_user("alice"), "employees", 0)
    lease(add_user("bob"), "employees", 1)
    hosts = {"node0": NODES["node0"] | {"number": 1}, "node1": NODES["node1"] | {"number": 0}}

    outcome = apply(made(hosts=hosts), renumber=True)

    assert {e.user_name for e in outcome.ended} == {"alice", "bob"}
    assert {n["name"]: n["number"] for n in contents()["nodes"]} == {"node0": 1, "node1": 0}
    assert apply(made(hosts=hosts)).changes == ()


def test_node_with_a_free_number_takes_its_place_when_that_is_wanted():
    apply(made())
    hosts = changed(NODES, "node1.number", 3)

    apply(made(hosts=hosts), renumber=True)

    assert {n["name"]: n["number"] for n in contents()["nodes"]} == {"node0": 0, "node1": 3}
    assert apply(made(hosts=hosts)).changes == ()


def test_renamed_host_keeps_number_and_clients():
    apply(made())
    connection = lease(add_user("alice"))
    hosts = {"frankfurt": NODES["node0"], "node1": NODES["node1"]}

    outcome = apply(made(hosts=hosts))

    assert "node frankfurt (number 0): was node0" in outcome.changes
    assert living() == {connection.id}


def test_order_of_profiles_follows_the_inventory():
    apply(made())

    apply(made(dict(reversed(PROFILES.items()))))

    with transaction(read_only=True) as db:
        assert list(db.scalars(select(Profile.profile_id).order_by(Profile.position))) == ["lab", "employees"]


def test_act_is_recorded_with_what_it_changed():
    """P1."""
    apply(made())

    with transaction(read_only=True) as db:
        event = db.scalars(select(AuditEvent)).one()
    assert (event.action, event.actor) == ("plan.apply", "cli")
    assert "profile lab: added" in event.details["changes"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("version", 2, "version: 2 is not 1"),
        ("profiles.lab.display_nam", "x", "vpn_profiles.lab: unknown key 'display_nam'"),
        ("profiles.lab.priority", "high", "vpn_profiles.lab.priority: 'high' is not a whole number"),
        ("nodes.node0.number", 9, "number: 9 is not below vpn_max_nodes"),
        ("nodes.node0.number", 1, "1 is that of node0 and of node1"),
        ("nodes.node0.surprise", 1, "nodes.node0.surprise"),
        ("surprise", 1, "surprise"),
        ("profiles.lab.wireguard.ipv4", "10.61.0.0/20", "overlaps"),
        ("max_nodes", 2, "is not what vpn_plan makes"),
        ("nodes", None, "not a plan"),
    ],
)
def test_plan_that_vpn_plan_did_not_make_is_refused(path, value, message):
    """R94."""
    before = contents()

    with pytest.raises(PlanRefused, match=message):
        apply(changed(made(), path, value))

    assert contents() == before


def test_share_that_was_edited_by_hand_is_refused():
    data = made()
    data["nodes"]["node0"]["wireguard"][0]["ipv4"] = "10.61.0.0/21"

    with pytest.raises(PlanRefused, match=r"nodes.node0.wireguard.employees.ipv4"):
        apply(data)


def test_plan_written_with_sorted_keys_is_the_same_plan():
    """Ansible's to_nice_json sorts keys; positions follow the file, ranges do not."""
    apply(made())

    outcome = plan.apply(plan_file.parse(json.loads(json.dumps(made(), sort_keys=True))), now=utc_now())

    assert outcome.changes == ()


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"version": 1}'])
def test_file_that_is_no_plan_is_named(tmp_path: Path, text: str):
    file = tmp_path / "plan.json"
    file.write_text(text)

    with pytest.raises(PlanRefused, match=str(file)):
        plan_file.load(file)
