"""Runs of playbooks while a host is away, and machines that are not what they were (R60, R81)."""

import json
import subprocess
from collections.abc import Callable

import pytest

from tests.e2e.hosts import PROJECT, OfficialApp, wait_until
from tests.e2e.multi_node.world import Pings, World, address_of
from tests.e2e.test_deployment import changed

LOST = "fra2"
#: A change for every node that restarts the agents, which nobody notices.
CHANGE = ["-e", json.dumps({"node_agent_journal_days": 29})]
SETTINGS = "/etc/causeway/node/settings.toml"


@pytest.mark.faults
def test_run_without_a_host_touches_none_and_can_leave_it_out(world: World) -> None:
    """R81: one that cannot be reached stops the run before anything changes."""
    world.deployment.lab("power-off", LOST)
    try:
        stopped = world.deployment.playbook("site", *CHANGE, log="unreachable")
        left_out = world.deployment.playbook("site", "--limit", f"!{LOST}", log="left-out")
    finally:
        world.deployment.lab("power-on", LOST)
    assert stopped.returncode != 0
    assert "unreachable=1" in stopped.stdout
    assert set(changed(stopped.stdout).values()) == {0}, stopped.stdout[-2000:]
    assert left_out.returncode == 0, left_out.stdout[-2000:]
    world.wait_until_up(LOST)


@pytest.mark.faults
def test_host_that_is_lost_during_a_run_keeps_no_other_back(world: World) -> None:
    """R81: the others finish, the run ends with an error, the next one finishes the rest."""
    seen = []
    with subprocess.Popen(
        [*world.deployment.playbook_command("node"), *CHANGE],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=world.deployment.environment,
    ) as process:  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            if not seen and line.startswith("TASK [wireguard"):
                world.deployment.lab("power-off", LOST)
                seen.append(line)
            elif seen:
                seen.append(line)
    status = process.returncode
    world.deployment.lab("power-on", LOST)

    output = "".join(seen)
    assert status != 0, output[-2000:]
    for name in ("ams1", "fra1"):
        assert "journal_days = 29" in world.node(name).output(f"cat {SETTINGS}")
        world.wait_until_up(name)
    assert "journal_days = 29" not in world.node(LOST).output(f"cat {SETTINGS}")
    again = world.deployment.playbook("node", *CHANGE, log="again")
    assert again.returncode == 0, again.stdout[-2000:]
    assert "journal_days = 29" in world.node(LOST).output(f"cat {SETTINGS}")
    back = world.deployment.playbook("node", log="back")
    assert back.returncode == 0, back.stdout[-2000:]


@pytest.mark.faults
def test_node_that_was_installed_anew_needs_one_run(
    world: World, make_app: Callable[..., OfficialApp]
) -> None:
    """R60: another machine under a node's name is not used until whoever deploys vouches for it."""
    alice, carol, erin = (make_app(name) for name in ("alice", "carol", "erin"))
    with world.only("fra1"):
        elsewhere = world.connect(alice, "frankfurt")
    with world.only(LOST):
        old = world.connect(carol, "frankfurt")
        of_erin = world.connect(erin, "frankfurt", prefer_tcp=True)
    pings = Pings(alice, elsewhere["gateway"], "alice")
    node = world.node(LOST)
    key = node.output("wg show wg0 public-key")

    node.run(INSTALL_ANEW)
    wait_until(lambda: "another machine answers" in world.vpn_portal("node", "show", LOST), 60, "an alarm")
    with world.probing("frankfurt") as prober:
        wait_until(lambda: len(prober.attempts) > 8, 60, "some connects")
    assert prober.failures() == []
    assert prober.nodes(0) == {"fra1"}

    done = world.deployment.playbook("node", "--limit", LOST, log="installed-anew")

    assert done.returncode == 0, done.stdout[-3000:]
    world.wait_until_up(LOST)
    assert node.output("wg show wg0 public-key") != key
    # With a configuration that names the old key nobody gets in: it is over, and its address is free.
    address = address_of(old["config"])
    wait_until(
        lambda: world.ask("address", address)["holders"][0]["until"], 60, "carol's connection is ended"
    )
    with world.only(LOST):
        assert world.connect(carol, "frankfurt")["node"] == LOST
    # OpenVPN's clients trust the authority: the same configuration goes on.
    wait_until(lambda: erin.pings(of_erin["gateway"]), 120, "erin's tunnel works again")
    world.wait_until_in_step(LOST)
    assert pings.lost() == 0


#: What a new disk lacks: keys, the wanted set, the journal. An agent that somebody set up by hand runs there.
INSTALL_ANEW = """
set -e
systemctl stop vpn-node-agent causeway-wireguard 'openvpn-server@*'
find /var/lib/causeway-node -mindepth 1 -delete
rm /etc/causeway/node/wireguard/private.key /etc/causeway/node/openvpn/server.*
(umask 077; wg genkey >/etc/causeway/node/wireguard/private.key)
chgrp causeway-node /etc/causeway/node/wireguard/private.key
chmod 0640 /etc/causeway/node/wireguard/private.key
systemctl start causeway-wireguard vpn-node-agent
"""
