"""What ``make plan`` says, from records as the callback writes them."""

import json
from typing import Any

import pytest

from vpn_control import capacity, plan, report, summary
from vpn_core.plan import make_plan

PROFILES: dict[str, Any] = {
    "employees": {
        "display_name": "Employees",
        "dns_servers": ["@GW4@"],
        "wireguard": {"ipv4": "10.64.0.0/20", "ipv6": "fd00:64::/96"},
        "openvpn": {"ipv4": "10.65.0.0/20", "ipv6": "fd00:65::/96"},
    },
    "lab": {
        "display_name": "Laboratory",
        "default_gateway": False,
        "routes": ["198.51.100.0/24"],
        "nodes": ["ams1"],
        "wireguard": {"ipv4": "10.66.0.0/20", "ipv6": "fd00:66::/96"},
    },
}
NODES = {
    "ams1": {"number": 1, "hostname": "ams1.example.org"},
    "fra1": {"number": 2, "hostname": "fra1.example.org"},
}
PLAN = make_plan(PROFILES, NODES).to_dict()
SHARE = 253  # addresses of a WireGuard share in these plans


def answer(value: object) -> dict[str, Any]:
    return {"rc": 0, "stdout": json.dumps(value), "stderr": ""}


def occupancy(*, given_out: int = 0, on_wireguard: int = 0, on_openvpn: int = 0) -> list[dict[str, Any]]:
    """What ``vpn-portal status --by-node --json`` prints, with somebody on ams1 only."""

    def connected(number: int) -> dict[str, int]:
        return {"connections": number, "users": max(number - 1, 0)}

    return [
        {
            "node": name,
            "number": node["number"],
            "wireguard": connected(on_wireguard if name == "ams1" else 0),
            "shares": [
                {"profile_id": s["profile_id"], "connected": connected(0), "capacity": s["capacity"],
                 "allocated": given_out if (name, s["profile_id"]) == ("ams1", "employees") else 0}
                for s in node["wireguard"]
            ],
            "processes": [
                {"name": p["name"], "profile_id": p["profile_id"], "protocol": p["protocol"],
                 "port": p["port"], "capacity": p["max_clients"],
                 "connected": connected(on_openvpn if (name, p["name"]) == ("ams1", "employees-0") else 0)}
                for p in node["openvpn"]
            ],
        }
        for name, node in PLAN["nodes"].items()
    ]  # fmt: skip


def portal(
    said: dict[str, Any] | None = None, occupied: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    said = {"changed": False, "changes": [], "cut": 0, "cuts": []} | (said or {})
    return {"plan": answer(said), "occupancy": answer(occupancy() if occupied is None else occupied)}


def record(plan_of: dict[str, Any] = PLAN, **hosts: dict[str, Any]) -> dict[str, Any]:
    """A run in which every host answered and nothing differed, unless ``hosts`` says otherwise."""
    found: dict[str, Any] = {"portal1": {"portal": portal()}, "ams1": {}, "fra1": {}}
    for name, entry in hosts.items():
        found[name] = found.get(name, {}) | entry
    return {"plan": plan_of, "portals": ["portal1"], "hosts": found}


def text(of: dict[str, Any]) -> str:
    return "\n".join(report.lines(summary.make(of)))


def restarts(unit: str, because: str, verb: str = "restart") -> dict[str, Any]:
    return {"files": {because: "changed"}, "units": {unit: {"verb": verb, "because": [because]}}}


def test_nothing_to_change_is_one_line():
    printed = text(record())

    assert printed.startswith("Nothing changes.\n\nCapacity")
    assert "Hosts" not in printed


def test_a_host_that_did_not_answer_is_not_unchanged():
    message = (
        'Task failed: Data could not be sent to remote host "x". Reach it: ssh: connect to host x: refused'
    )

    printed = text(record(fra1={"unreachable": message}))

    assert "Nothing changes" not in printed
    assert "  portal1, ams1: nothing changes\n" in printed
    assert "  fra1: unknown, cannot be reached: connect to host x: refused\n" in printed
    assert "  unknown on fra1\n" in printed


def test_what_the_portal_makes_of_the_plan_is_told_and_whom_it_ends():
    said = {
        "changes": [
            "profile lab: default_gateway False → True",
            "cut 3 connections, the range moved: alice, bob",
        ],
        "cuts": [
            {"profile_id": "lab", "node": "ams1", "connections": 3, "users": 2, "because": "the range moved"}
        ],
    }

    printed = text(record(portal1={"portal": portal(said)}))

    assert "Profiles and nodes\n  profile lab: default_gateway False → True\n\n" in printed
    assert "  lab on ams1: 3 connections of 2 users end and connect anew, the range moved\n" in printed
    assert "  cut 3 connections, the range moved: alice, bob\n" in printed
    assert "  nobody\n" not in printed


@pytest.mark.parametrize(
    ("unit", "verb", "said"),
    [
        ("causeway-wireguard.service", "restart",
         "WireGuard restarts: 12 connections of 11 users, no traffic for up to 15 seconds"),
        ("causeway-wireguard.service", "reload", "WireGuard reloads: nobody notices"),
        ("openvpn-server@employees-0.service", "restart",
         "OpenVPN employees-0 restarts: 3 connections of 2 users, reconnecting by themselves"),
        ("openvpn-server@employees-1.service", "restart",
         "OpenVPN employees-1 restarts: nobody is connected"),
        ("openvpn-server@employees-0.service", "stop",
         "OpenVPN employees-0 stops: cuts 3 connections of 2 users"),
        ("vpn-node-agent.service", "restart", "agent restarts: nobody connected notices"),
        ("causeway-firewall.service", "reload", "firewall reloads: nobody notices"),
        ("chrony.service", "restart", "chrony.service restarts: nobody notices"),
    ],
)  # fmt: skip
def test_what_users_notice_of_a_service(unit, verb, said):
    occupied = occupancy(on_wireguard=12, on_openvpn=3)
    ams1 = restarts(unit, "/etc/a", verb)

    assert f"    {said}" in text(record(portal1={"portal": portal(occupied=occupied)}, ams1=ams1))


def test_a_restart_of_what_nobody_uses_cuts_nobody():
    ams1 = restarts("causeway-wireguard.service", "/etc/a")

    assert "Who is cut\n  nobody\n\n" in text(record(ams1=ams1))


def test_who_is_interrupted_is_unknown_without_a_portal():
    hosts = {"portal1": {"unreachable": "no route"}, "ams1": restarts("causeway-wireguard.service", "/etc/a")}

    printed = text(record(**hosts))

    assert "WireGuard restarts: an unknown number of connections" in printed
    assert "  unknown whom the plan ends: portal1 cannot be reached\n" in printed
    assert "  WireGuard on ams1 restarts: unknown who\n" in printed
    assert "in use is unknown: portal1 cannot be reached" in printed


def test_portal_of_an_older_release_cannot_tell_who_is_connected():
    old = {"rc": 2, "stdout": "", "stderr": "usage: …\nvpn-portal: error: unrecognized arguments: --by-node"}
    asked = portal() | {"occupancy": old}

    assert "in use is unknown: the release that runs on portal1 cannot tell" in text(
        record(portal1={"portal": asked})
    )


def test_portal_with_a_broken_database_is_quoted():
    broken = {"rc": 1, "stdout": "", "stderr": "vpn-portal: the database refused: OperationalError"}
    asked = portal() | {"plan": broken}

    assert "  unknown: portal1: vpn-portal: the database refused: OperationalError\n" in text(
        record(portal1={"portal": asked})
    )


def test_the_second_portal_is_asked_when_the_first_is_away():
    of = record(
        portal1={"unreachable": "no route"}, portal2={"portal": portal(occupied=occupancy(given_out=7))}
    )

    found = summary.make(of | {"portals": ["portal1", "portal2"]})

    assert found.changes == ()
    assert found.capacity[0].used == 7


def test_first_deployment_is_one_line_a_host():
    new = {
        "files": {"/opt/causeway/current": "made"} | {f"/etc/{n}": "made" for n in range(40)},
        "units": {"vpn-node-agent.service": {"verb": "start", "because": []}},
        "packages": ["nginx", "openvpn"],
    }
    nothing_there = {"rc": 2, "stdout": "", "stderr": ""}
    of = record(
        portal1=new | {"portal": {"plan": nothing_there, "occupancy": nothing_there}}, ams1=new, fra1=new
    )

    printed = text(of)

    assert "  portal1: first deployment as portal: 2 packages, 41 files, 1 service\n" in printed
    assert "  ams1: first deployment as node: 2 packages, 41 files, 1 service\n" in printed
    assert "  profile lab: added\n" in printed
    assert "Who is cut\n  nobody\n" in printed
    assert len(printed.splitlines()) < 40


def test_many_files_are_counted():
    ams1 = {"files": {f"/etc/causeway/{n}": "changed" for n in range(30)}}

    printed = text(record(ams1=ams1))

    assert printed.count("    file ") == 8
    assert "    and 22 more files\n" in printed


def test_release_is_told_with_the_one_before():
    ams1 = {"files": {"/opt/causeway/current": "0.1.0-aaa → 0.2.0-bbb", "/etc/gone": "removed"}}

    printed = text(record(ams1=ams1))

    assert "    release 0.1.0-aaa → 0.2.0-bbb\n    file /etc/gone (removed)\n" in printed


def test_a_change_without_a_file_is_told_by_its_task():
    printed = text(record(ams1={"tasks": ["openvpn : Make the user that OpenVPN becomes"]}))

    assert "  ams1:\n    openvpn : Make the user that OpenVPN becomes\n" in printed


def test_refusal_stands_first_and_is_an_exit_status(capsys):
    of = record(portal1={"failed": ["portal1: vpn_max_nodes: 16 → 8 renumbers everyone"]})

    status = plan.show(of, as_json=False)

    printed = capsys.readouterr().out
    assert status == 1
    assert printed.startswith(
        "A deployment would stop\n  portal1: vpn_max_nodes: 16 → 8 renumbers everyone\n"
    )
    assert "  portal1: refused, as said above\n" in printed


def test_wrong_inventory_is_its_message_alone(capsys):
    of = {
        "plan": None,
        "portals": [],
        "hosts": {"ams1": {"failed": ["vpn_profiles.lab.wireguard: too small"]}},
    }

    assert plan.show(of, as_json=False) == 1

    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "vpn_profiles.lab.wireguard: too small\n")


def test_inventory_that_is_not_there_is_named_with_the_way_out(tmp_path, capsys):
    assert plan.main(["--inventory", str(tmp_path / "mine")]) == 1

    assert "mine: no such inventory; name yours: make plan INVENTORY=" in capsys.readouterr().err


def test_json_says_the_same(capsys):
    occupied = occupancy(on_wireguard=12, given_out=SHARE)
    ams1 = restarts("causeway-wireguard.service", "/etc/systemd/system/causeway-wireguard.service")

    status = plan.show(record(portal1={"portal": portal(occupied=occupied)}, ams1=ams1), as_json=True)

    said = json.loads(capsys.readouterr().out)
    (host,) = (host for host in said["hosts"] if host["name"] == "ams1")
    assert status == 0
    assert said["nothing_changes"] is False
    assert host["services"][0]["verb"] == "restart"
    assert host["services"][0]["because"] == ["/etc/systemd/system/causeway-wireguard.service"]
    assert host["services"][0]["connected"] == {"connections": 12, "users": 11}
    assert said["capacity"][0] == {
        "profile": "employees", "node": "ams1", "by": "WireGuard", "used": SHARE, "most": SHARE
    }  # fmt: skip
    assert any("employees on ams1: 253 of 253" in warning for warning in said["warnings"])


def test_capacity_has_a_line_for_each_share_and_process():
    printed = text(record(portal1={"portal": portal(occupied=occupancy(given_out=50, on_openvpn=4))}))

    rows = [line.split() for line in printed.splitlines()]
    assert ["employees", "ams1", "WireGuard", "50", str(SHARE), "19", "%"] in rows
    assert ["employees", "ams1", "OpenVPN", "udp/1194", "4", "124", "3", "%"] in rows
    assert ["employees", "fra1", "OpenVPN", "tcp/1194", "0", "124", "0", "%"] in rows


def test_capacity_of_very_many_nodes_is_told_by_profile():
    nodes = {f"n{number}": {"number": number, "hostname": f"n{number}.example.org"} for number in range(30)}
    many = make_plan({"employees": PROFILES["employees"]}, nodes, {"max_nodes": 32}).to_dict()

    printed = text(record(many))

    assert "  90 shares on all nodes; profile by profile:\n" in printed
    assert "  employees  all   WireGuard" in printed


def warnings_of(plan_of: dict[str, Any], occupied: list[dict[str, Any]] | None) -> list[str]:
    return list(capacity.warnings(plan_of, capacity.shares(plan_of, occupied)))


@pytest.mark.parametrize(("given_out", "warned"), [(227, False), (228, True)])
def test_a_share_is_warned_of_from_90_percent_on(given_out, warned):
    found = [
        line for line in warnings_of(PLAN, occupancy(given_out=given_out)) if "employees on ams1" in line
    ]

    assert bool(found) is warned


def test_a_profile_that_is_full_everywhere_is_one_warning():
    full = occupancy()
    for node in full:
        for share in node["shares"]:
            share["allocated"] = share["capacity"] if share["profile_id"] == "employees" else 0

    found = [line for line in warnings_of(PLAN, full) if "employees" in line]

    assert found == [
        "employees: 506 of 506 WireGuard addresses are given out (100 %);"
        " add a node, or end sooner what nobody uses"
    ]


def test_full_openvpn_is_warned_of_over_all_processes_of_a_node():
    one_full, both_full = occupancy(on_openvpn=124), occupancy(on_openvpn=124)
    for process in both_full[0]["processes"]:
        process["connected"] = {"connections": 124, "users": 1}

    assert not [line for line in warnings_of(PLAN, one_full) if "OpenVPN" in line]
    assert [line for line in warnings_of(PLAN, both_full) if "employees on ams1: 248 of 248 OpenVPN" in line]


def test_profile_on_one_of_several_nodes_is_warned_of():
    alone = "profile lab is on ams1 alone: nobody gets it while that node is away"

    assert alone in warnings_of(PLAN, None)
    one = make_plan(PROFILES, {"ams1": NODES["ams1"]}).to_dict()
    assert warnings_of(one, None) == []


def test_node_numbers_are_warned_of_before_the_last_is_used():
    def plan_with(count: int) -> dict[str, Any]:
        nodes = {f"n{n}": {"number": n, "hostname": f"n{n}.example.org"} for n in range(count)}
        return make_plan({"employees": PROFILES["employees"]}, nodes).to_dict()

    assert warnings_of(plan_with(14), None) == []
    assert warnings_of(plan_with(15), None) == [
        "15 of 16 node numbers are used; more (vpn_max_nodes) would renumber everyone"
    ]


def test_what_the_plan_warns_of_is_among_the_warnings():
    profiles = {"employees": PROFILES["employees"] | {"dns_servers": []}}
    of = record(make_plan(profiles, NODES).to_dict())

    assert "Warnings\n  vpn_profiles.employees: default_gateway without dns_servers" in text(of)
