"""Which node a connect gets, and why. What comes of it over hours is in tests/portal."""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from portal_app.services import choice

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def row(number: int = 1, **changes: Any) -> SimpleNamespace:
    """Return what the database says of a node that serves a profile over both protocols."""
    values = {
        "number": number,
        "name": f"fra{number}",
        "hostname": f"fra{number}.example.org",
        "agent_address": "192.0.2.1",
        "generation": 0,
        "answered_at": NOW,
        "failing_since": None,
        "suspect_until": None,
        "maintenance_mode": False,
        "wireguard_public_key": "key",
        "info": {"rel_load_average": [41, 0, 0], "o_client_count": 0, "generation": 0},
        "profile_id": "employees",
        "capacity": 250,
        "allocated": 38,
        "has_wireguard": True,
        "openvpn": [{"max_clients": 60}, {"max_clients": 61}],
    }
    return SimpleNamespace(**values | changes)


def info(**changes: Any) -> dict[str, Any]:
    return {"rel_load_average": [0, 0, 0], "o_client_count": 0, "generation": 0} | changes


def names(found: choice.Choice) -> list[str]:
    return [candidate.node.name for candidate in found.candidates]


def test_reason_is_load_and_free_addresses():
    (candidate,) = choice.choose([row()], "wireguard", NOW).candidates

    assert candidate.reason == "41 % busy, 212 free addresses"


@pytest.mark.parametrize(
    ("changes", "protocol", "why"),
    [
        ({"allocated": 250}, "wireguard", "full"),
        ({"info": info(o_client_count=121)}, "openvpn", "full"),
        ({"has_wireguard": False, "capacity": 0, "allocated": 0}, "wireguard", "lacks wireguard"),
        ({"openvpn": []}, "openvpn", "lacks openvpn"),
        ({"wireguard_public_key": None}, "wireguard", "its WireGuard key is unknown"),
        ({"maintenance_mode": True}, "wireguard", "in maintenance"),
        ({"answered_at": None}, "wireguard", "does not answer"),
        ({"answered_at": NOW - timedelta(seconds=11)}, "openvpn", "does not answer"),
        ({"failing_since": NOW}, "wireguard", "does not answer"),
        ({"failing_since": NOW, "info": info(held="older epoch")}, "wireguard", "holds still"),
        ({"suspect_until": NOW + timedelta(seconds=1)}, "wireguard", "suspect"),
    ],
)
def test_node_that_cannot_be_taken_is_named_with_its_reason(changes, protocol, why):
    """R42, R62, R63"""
    found = choice.choose([row(1), row(2, **changes)], protocol, NOW)

    assert names(found) == ["fra1"]
    assert found.left_out == {"fra2": why}


@pytest.mark.parametrize(
    "changes", [{"suspect_until": NOW}, {"answered_at": NOW - timedelta(seconds=10)}, {"info": None}]
)
def test_node_is_taken_up_to_the_bound(changes):
    assert names(choice.choose([row(**changes)], "wireguard", NOW)) == ["fra1"]


@pytest.mark.parametrize("protocol", ["wireguard", "openvpn"])
def test_without_news_of_any_node_those_are_tried_that_were_well(protocol):
    """R51, R55: while no controller leads nobody asks the nodes; whether one is there its admission shows."""
    unheard = {"answered_at": NOW - timedelta(hours=1)}
    rows = [
        row(1, **unheard),
        row(2, **unheard, failing_since=NOW - timedelta(hours=1)),
        row(3, **unheard, maintenance_mode=True),
        row(4, answered_at=None),
    ]

    found = choice.choose(rows, protocol, NOW)

    assert names(found) == ["fra1"]
    assert found.left_out == {"fra2": "does not answer", "fra3": "in maintenance", "fra4": "does not answer"}
    assert found.candidates[0].reason.startswith("load unknown, ")


def test_full_node_will_do_for_who_gives_its_address_back():
    full = row(allocated=250)

    assert names(choice.choose([full], "wireguard", NOW, held={1})) == ["fra1"]
    assert names(choice.choose([full], "wireguard", NOW, held={2})) == []


@pytest.mark.parametrize(
    ("said", "free"),
    [
        ({"o_client_count": 30, "openvpn_clients": {"employees": 10, "lab": 20}}, 111),
        ({"o_client_count": 30, "openvpn_clients": {"lab": 30}}, 121),
        # An agent of the release before tells the sum only.
        ({"o_client_count": 30, "openvpn_clients": None}, 91),
        ({"o_client_count": 30}, 91),
    ],
)
def test_openvpn_clients_are_counted_for_their_profile(said, free):
    (candidate,) = choice.choose([row(info=info(**said))], "openvpn", NOW).candidates

    assert candidate.free == free


def test_openvpn_place_that_may_be_gone_counts_less_and_is_looked_at_again():
    """What the node's counter moved since the report may be as many new clients."""
    told = info(openvpn_clients={"employees": 111}, generation=50)
    rng = random.Random(1)  # noqa: S311 - the same each time
    rows = [row(1, info=told, generation=60), row(2, info=told, generation=52)]

    first = Counter(
        choice.choose(rows, "openvpn", NOW, rng=rng).candidates[0].node.number for _ in range(200)
    )
    found = {c.node.number: c.reported_free for c in choice.choose(rows, "openvpn", NOW).candidates}

    assert first[2] > 195
    assert found == {1: 10, 2: None}


def test_explanation_names_the_chosen_the_waiting_and_the_left_out():
    found = choice.choose([row(1), row(2, allocated=249), row(3, maintenance_mode=True)], "wireguard", NOW)
    chosen = next(c for c in found.candidates if c.node.name == "fra1")

    assert found.explain(chosen, found.left_out, ["no openvpn: fra1 (full)"]) == (
        "fra1: 41 % busy, 212 free addresses; before fra2 (41 % busy, 1 free address);"
        " without fra3 (in maintenance); no openvpn: fra1 (full)"
    )
    assert found.explain(chosen, {"fra2": "did not answer"}).endswith("; without fra2 (did not answer)")


def test_explanation_of_many_nodes_is_short():
    found = choice.choose([row(n) for n in range(300)], "wireguard", NOW)

    text = found.explain(found.candidates[0], {})

    assert len(text) == choice.LONGEST
    assert text.startswith(f"{found.candidates[0].node.name}: 41 % busy")


def test_random_asks_neither_size_nor_load():
    rng, first = random.Random(1), Counter[int]()  # noqa: S311 - the same each time
    rows = [row(1, capacity=2000), row(2, info=info(rel_load_average=[99, 99, 99]))]

    for _ in range(400):
        first[
            choice.choose(rows, "wireguard", NOW, selection="random", rng=rng).candidates[0].node.number
        ] += 1

    assert min(first.values()) > 160


def test_idler_node_by_an_old_report_does_not_get_all():
    rng, first = random.Random(1), Counter[int]()  # noqa: S311 - the same each time
    used = {1: 1000, 2: 1000}
    for _ in range(100):
        rows = [
            row(number, capacity=2000, allocated=used[number], info=info(rel_load_average=[busy] * 3))
            for number, busy in ((1, 40), (2, 50))
        ]
        number = choice.choose(rows, "wireguard", NOW, rng=rng).candidates[0].node.number
        used[number] += 1
        first[number] += 1

    assert first[1] > first[2] > 5


def test_last_places_are_all_used():
    """R34, R62: a node with one address comes after an empty one, and before a refusal."""
    used = {1: 248, 2: 249, 3: 250}
    for left in (3, 2, 1):
        rows = [row(number, allocated=count) for number, count in used.items()]
        found = choice.choose(rows, "wireguard", NOW)
        assert sum(250 - count for count in used.values()) == left
        used[found.candidates[0].node.number] += 1

    rows = [row(number, allocated=count) for number, count in used.items()]
    assert choice.choose(rows, "wireguard", NOW) == choice.Choice(
        [], dict.fromkeys(["fra1", "fra2", "fra3"], "full")
    )
