"""What an answer of a node means: pure decisions of the controller."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from portal_app.controller.observation import (
    Expected,
    Memory,
    Timing,
    has_another_key,
    hold,
    reason_to_send,
    refusal,
    went_back,
)
from portal_app.services.machines import DOUBLED, Known
from vpn_core.messages import NodeInfo

DEPLOYMENT, OTHER = "d" * 32, "e" * 32
TIMING = Timing(poll=5, moved=30, full=600)
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
EXPECTED = Expected(
    number=3, name="vpn3", agent_address="192.0.2.3", generation=10,
    known=Known("1" * 32, "1" * 32, "b" * 32, NOON, None), journal_id=None,
    journal_sequence=0, reconciled_generation=10, failing_since=None, suspect_until=None,
    maintenance_mode=False, issued_public_key=None, deployment_id=DEPLOYMENT, epoch=2,
)  # fmt: skip
INFO = NodeInfo(
    v="1", node_number=3, instance_id="1" * 32, boot_id="b" * 32, node_uptime=1, now=0,
    maintenance_mode=False, cpu_count=1, load_average=(), rel_load_average=(), profiles={},
    wireguard_public_key=None, w_peer_count=0, o_client_count=0, connection_count=0,
    deployment_id=DEPLOYMENT, epoch=2, generation=10, journal_id="c" * 32, journal_head=0,
)  # fmt: skip


def told(**changes: Any) -> NodeInfo:
    return replace(INFO, **changes)


def reason(info: NodeInfo, at: float = 1000, memory: Memory | None = None, **expected: Any) -> str | None:
    memory = memory or Memory(failing=False, set_at=at - 1)
    return reason_to_send(info, replace(EXPECTED, **expected), memory, at, TIMING)


def test_node_in_step_is_left_alone():
    assert reason(INFO) is None


@pytest.mark.parametrize("changes", [{"deployment_id": None, "epoch": 0}, {"epoch": 1}])
def test_node_without_our_authority_gets_the_set_at_once(changes):
    memory = Memory(failing=False)

    assert reason(told(**changes), memory=memory) == "authority"


def test_node_that_holds_is_asked_again_only_now_and_then():
    held = told(deployment_id=OTHER, held="deployment e is not d")

    assert reason(held, at=1000, memory=Memory(set_at=990)) is None
    assert reason(held, at=1000, memory=Memory(set_at=970)) == "authority"


def test_call_under_way_is_no_reason_for_a_set():
    """The row is committed first: for a moment every node is behind."""
    assert reason(told(generation=10), generation=11, reconciled_generation=11) is None


def test_node_behind_what_was_committed_before_the_last_round_missed_a_call():
    memory = Memory(failing=False, set_at=999, generation_before=11)

    assert reason(told(generation=10), memory=memory, generation=12) == "behind"


def test_every_change_is_followed_by_one_set():
    """The highest generation applied does not prove that all were."""
    changed = {"generation": 11, "reconciled_generation": 10}

    assert reason(told(generation=11), memory=Memory(set_at=980), **changed) is None
    assert reason(told(generation=11), memory=Memory(set_at=970), **changed) == "moved"


def test_node_that_was_away_gets_what_it_missed_at_once():
    memory = Memory(failing=True, set_at=999)

    assert reason(INFO, memory=memory, generation=11, reconciled_generation=10) == "back"
    assert reason(INFO, memory=memory) is None


def test_everything_is_compared_now_and_then():
    assert reason(INFO, memory=Memory(failing=False, set_at=399)) == "full"


def test_new_leader_does_not_send_every_set_at_once():
    """R53: no stampede when nothing has changed."""
    assert reason(INFO, memory=Memory(failing=False)) is None


def test_counter_ahead_of_ours_means_an_older_database():
    """R59."""
    ahead = told(generation=20)

    assert went_back(ahead, EXPECTED)
    assert reason(ahead) == "generation"
    assert not went_back(replace(ahead, epoch=1), EXPECTED)
    assert not went_back(replace(ahead, deployment_id=OTHER), EXPECTED)


def test_counter_that_cannot_be_is_not_believed():
    """N7: counting on from it would leave no room."""
    assert refusal(told(generation=2**63 - 1), EXPECTED, NOON) is not None


@pytest.mark.parametrize("changes", [{"node_number": 4}, {"instance_id": "2" * 32}])
def test_other_node_is_refused(changes):
    """R60."""
    assert refusal(told(**changes), EXPECTED, NOON) is not None


def test_first_answer_of_a_node_is_believed():
    unknown = replace(EXPECTED, known=Known(None, None, None, None, None))

    assert refusal(told(instance_id="2" * 32), unknown, NOON) is None


def heard(boot: str, at: datetime, doubled_at: datetime | None = None) -> Expected:
    return replace(EXPECTED, known=Known("1" * 32, "1" * 32, boot * 32, at, doubled_at))


@pytest.mark.parametrize("up_for", [0, 3, 64])
def test_rebooted_node_is_still_itself(up_for: int) -> None:
    """However soon it answers: it began after its last answer."""
    rebooted = told(boot_id="c" * 32, node_uptime=up_for)

    assert refusal(rebooted, heard("b", NOON), NOON + timedelta(seconds=up_for)) is None


def test_machine_that_ran_while_the_node_answered_is_a_second_one() -> None:
    """R60: a clone has every file, but a boot of its own; its last answer is all that counts."""
    clone = told(boot_id="c" * 32, node_uptime=60)
    first_answer = NOON + timedelta(seconds=5)

    assert "two machines" in str(refusal(clone, heard("b", NOON), first_answer))
    assert refusal(told(node_uptime=9999), heard("b", NOON), first_answer) is None


def test_neither_of_two_machines_is_used() -> None:
    """R60: until the second one was silent for ten minutes, or somebody confirms."""
    node = told(node_uptime=9999)

    assert "two machines" in str(refusal(node, heard("b", NOON, NOON), NOON + DOUBLED - timedelta(seconds=1)))
    assert refusal(node, heard("b", NOON, NOON), NOON + DOUBLED) is None


def test_clock_of_a_portal_that_is_wrong_makes_no_second_machine() -> None:
    """Everything lost its power, and the portal's clock is behind what it wrote before."""
    rebooted, behind = told(boot_id="c" * 32, node_uptime=60), NOON - timedelta(seconds=1)

    assert refusal(rebooted, heard("b", NOON), behind) is None
    assert refusal(told(), heard("b", NOON, NOON), behind) is None


def test_reinstalled_node_that_was_vouched_for_may_have_run_before() -> None:
    """R60: ``vpn-portal node enroll`` says that it is the node from now on."""
    enrolled = replace(EXPECTED, known=Known("2" * 32, "1" * 32, "b" * 32, NOON, None))

    assert refusal(told(instance_id="2" * 32, boot_id="c" * 32, node_uptime=9999), enrolled, NOON) is None


def test_held_node_says_why():
    assert hold(told(held="a set would remove 9 of 10"), EXPECTED) == "held: a set would remove 9 of 10"
    assert "new-epoch" in str(hold(told(epoch=3), EXPECTED))
    assert hold(INFO, EXPECTED) is None


@pytest.mark.parametrize(
    ("has", "issued", "another"),
    [
        ("new", "old", True),
        ("old", "old", False),
        ("old", None, False),
        # The interface is away: that is no other key.
        (None, "old", False),
    ],
)
def test_a_reinstalled_node_is_known_by_its_other_key(has, issued, another):
    keys = {"old": "o" * 42 + "g=", "new": "n" * 42 + "g=", None: None}

    info, expected = told(wireguard_public_key=keys[has]), replace(EXPECTED, issued_public_key=keys[issued])

    assert has_another_key(info, expected) is another
