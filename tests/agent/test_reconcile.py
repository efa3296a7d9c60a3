"""What turns the peers that are into the peers that should be."""

from node_agent.reconcile import Peer, Remove, Set, changes

A, B = Peer(frozenset({"10.64.0.3/32"})), Peer(frozenset({"10.64.0.4/32"}))


def test_address_is_freed_before_another_key_gets_it() -> None:
    assert list(changes({"new": A}, {"old": A})) == [Remove("old"), Set("new", A)]


def test_equal_peers_are_left_alone() -> None:
    assert list(changes({"a": A, "b": B}, {"a": A, "b": B})) == []


def test_an_altered_peer_is_set_again() -> None:
    assert list(changes({"a": A}, {"a": B})) == [Set("a", A)]


def test_a_peer_with_a_preshared_key_is_made_anew() -> None:
    altered = Peer(A.allowed_ips, frozenset({"preshared-key"}))

    assert list(changes({"a": A}, {"a": altered})) == [Remove("a"), Set("a", A)]


def test_peers_to_keep_stay_though_nobody_wants_them() -> None:
    assert list(changes({}, {"a": A, "b": B}, keep=frozenset({"a"}))) == [Remove("b")]
    assert list(changes({"c": A}, {"a": B}, keep=None)) == [Set("c", A)]
