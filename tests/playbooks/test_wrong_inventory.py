"""R94: a wrong inventory stops ``site.yml`` before any host is touched; the message names variable and fix.

The one host of these inventories is an address that nobody answers at (RFC 5737): had Ansible tried to reach
it, the run would have ended with "unreachable" and not with the message.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
PROFILE: dict[str, Any] = {
    "display_name": "Employees",
    "dns_servers": ["@GW4@"],
    "wireguard": {"ipv4": "10.64.0.0/16", "ipv6": "fd00:64::/96"},
}
#: ssh finds no host then, at once.
AWAY = "-o ProxyCommand=false"
VARIABLES: dict[str, Any] = {
    "ansible_host": "192.0.2.7",
    "vpn_portal_hostname": "vpn.example.org",
    "vpn_portal_tls": "selfsigned",
    "vpn_node": {"number": 1, "hostname": "vpn.example.org"},
    "vpn_profiles": {"employees": PROFILE},
}


@pytest.fixture(scope="module")
def vault(tmp_path_factory) -> str:
    """Return the secrets of an environment, as the playbook makes them."""
    directory = tmp_path_factory.mktemp("secrets")
    write(directory, VARIABLES)
    done = play(directory, "init_secrets.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    return (directory / "group_vars/all/vault.yml").read_text()


def write(directory: Path, variables: dict[str, Any], hosts: dict[str, Any] | None = None) -> None:
    (directory / "group_vars/all").mkdir(parents=True, exist_ok=True)
    (directory / "group_vars/all/vpn.yml").write_text(yaml.safe_dump(variables))
    inventory = hosts or {"portals": {"hosts": {"vpn1": None}}, "nodes": {"hosts": {"vpn1": None}}}
    (directory / "hosts.yml").write_text(yaml.safe_dump(inventory))


def play(directory: Path, playbook: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            "-i",
            directory,
            f"playbooks/{playbook}",
            *options,
        ],
        cwd=PROJECT,
        env=os.environ
        | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "contact": (
        {"portal_support_contact": "+49 30 1234567"},
        "portal_support_contact: '+49 30 1234567' is neither a mail address nor an address that begins with",
    ),
    "logo": ({"portal_logo": "logo.svg"}, "logo.svg: an SVG file here has no DOCTYPE; take that line out"),
    "notice": (
        {"portal_notices": [{"text": "Work", "from": "tonight", "until": "2026-12-05T22:00:00Z"}]},
        "portal_notices[0]: from: 'tonight' is no time such as 2026-12-05T22:00:00Z",
    ),
    "overlap": (
        {"vpn_profiles": {"employees": PROFILE, "lab": PROFILE}},
        "vpn_profiles.lab.wireguard.ipv4: 10.64.0.0/16 overlaps vpn_profiles.employees.wireguard.ipv4",
    ),
    "range too small": (
        {
            "vpn_profiles": {
                "employees": PROFILE | {"wireguard": {"ipv4": "10.64.0.0/28", "ipv6": "fd00::/96"}}
            }
        },
        "vpn_profiles.employees.wireguard.ipv4: 10.64.0.0/28 is too small for vpn_max_nodes=16; use a /25",
    ),
    "unknown key of a profile": (
        {"vpn_profiles": {"employees": PROFILE | {"dns_server": "192.0.2.53"}}},
        "vpn_profiles.employees: unknown key 'dns_server'; did you mean 'dns_servers'?",
    ),
    "name where the firewall needs an address": (
        {"firewall_ssh_sources": ["192.0.2.0/24", "bastion.example.org"]},
        "firewall_ssh_sources: bastion.example.org: no address and no network",
    ),
    "range in which the host is": (
        {"ansible_host": "10.64.3.4"},
        "vpn_profiles: a range of clients contains 10.64.3.4, where a host of this inventory is",
    ),
    "load balancer that is a name": (
        {"vpn_trusted_proxies": ["lb.example.org"]},
        "vpn_trusted_proxies: lb.example.org: no address and no network",
    ),
    "script host that is a name": (
        {"web_frontend_admin_api_sources": ["scripts.example.org"]},
        "web_frontend_admin_api_sources: scripts.example.org: no address and no network",
    ),
    "everybody is a load balancer": (
        {"vpn_trusted_proxies": ["0.0.0.0/0"]},
        "vpn_trusted_proxies: a network of /0 is everybody",
    ),
    "network with host bits": (
        {"vpn_portal_addresses": ["192.0.2.7/24"]},
        "vpn_portal_addresses: 192.0.2.7/24: no address and no network",
    ),
    "unknown variable of a role": (
        {"portal_sesion_expiry_seconds": 3600},
        "unknown variable portal_sesion_expiry_seconds (did you mean portal_session_expiry_seconds?)",
    ),
    "unknown variable": ({"vpn_profile": {}}, "unknown variable vpn_profile (did you mean vpn_profiles?)"),
    "bad host name": (
        {"vpn_node": {"number": 1, "hostname": "vpn_1.example.org"}},
        "vpn_node of vpn1.hostname: 'vpn_1.example.org' is no DNS name",
    ),
    "no portal name": ({"vpn_portal_hostname": "vpn"}, "vpn_portal_hostname"),
    "unknown certificate": ({"vpn_portal_tls": "letsencrypt"}, "use selfsigned, provided or acme"),
    "unknown way to choose a node": (
        {"vpn_node_selection": "fastest"},
        'vpn_node_selection: "fastest"; use weighted or random',
    ),
    "serial number that is a number": (
        {"vpn_withdrawn_certificates": [12345]},
        "vpn_withdrawn_certificates: 12345: no serial number in hex, such as 5f0a…; write it as a text",
    ),
    "log of NAT that outlives the names": (
        {"vpn_log_nat": True, "node_agent_nat_log_days": 90},
        "node_agent_nat_log_days: 90 is more than portal_retention_days (30); whose the addresses",
    ),
    "typing mistake that would mean false": (
        {"vpn_log_nat": "ture"},
        'vpn_log_nat: "ture": neither true nor false; write one of the two',
    ),
    "neither true nor false": ({"vpn_log_origins": None}, "vpn_log_origins: null: neither true nor false"),
    "port out of range": (
        {"vpn_firewall_tcp_ports": [8443, 70000]},
        "vpn_firewall_tcp_ports: 70000 is no port; write numbers from 1 to 65535",
    ),
    "port that is no list": (
        {"vpn_firewall_udp_ports": 5000},
        "vpn_firewall_udp_ports: 5000 is no list, such as [8443]",
    ),
    "CA that is not there": (
        {"vpn_portal_tls": "acme", "vpn_portal_ca": "ca.crt"},
        "ca.crt: No such file or directory",
    ),
    "CA that is no certificate": (
        {"vpn_portal_tls": "acme", "vpn_portal_ca": "logo.svg"},
        "logo.svg: no certificate in PEM",
    ),
    "CA that is not asked": (
        {"vpn_portal_tls": "selfsigned", "vpn_portal_ca": "ca.crt"},
        "vpn_portal_ca: with vpn_portal_tls: selfsigned the environment's own CA is trusted",
    ),
    "database that nobody asks for its certificate": (
        {"vpn_database_url": "postgresql+psycopg://causeway:PRIVATE KEY@db.example.org/causeway"},
        "vpn_database_url: names another host and no sslmode, so nobody would look whether it is",
    ),
    "certificate that is not in the vault": ({"vpn_portal_tls": "provided"}, "vault_portal_tls_certificate"),
}


#: Variables of which a run says only one thing: of the plan what it finds first, of unknown ones all at once.
SAID_ONCE = (
    {"ansible_host", "vpn_node", "vpn_profiles"},
    {"portal_sesion_expiry_seconds", "vpn_profile"},
)


def together(cases: dict[str, tuple[dict[str, Any], str]]) -> list[list[str]]:
    """Return the names of cases in groups that one inventory can hold, since none says of a variable what
    another says otherwise: a run takes four seconds and names everything that is wrong.
    """
    groups: list[tuple[set[str], list[str]]] = []
    for name, (changes, _message) in cases.items():
        keys = set(changes).union(*(names for names in SAID_ONCE if names & set(changes)))
        for taken, names in groups:
            if not taken & keys:
                taken |= keys
                names.append(name)
                break
        else:
            groups.append((keys, [name]))
    return [names for _taken, names in groups]


@pytest.mark.slow
@pytest.mark.parametrize("names", together(WRONG), ids=lambda names: f"{names[0]} and {len(names) - 1} more")
def test_wrong_inventory_is_refused_before_any_host_is_reached(tmp_path, vault, names):
    changes = {key: value for name in names for key, value in WRONG[name][0].items()}
    write(tmp_path, VARIABLES | changes)
    (tmp_path / "group_vars/all/vault.yml").write_text(vault)
    (tmp_path / "logo.svg").write_text('<!DOCTYPE svg><svg xmlns="http://www.w3.org/2000/svg"/>')

    done = play(tmp_path, "site.yml")

    printed = re.sub(r"\s+", " ", done.stdout + done.stderr)
    for name in names:
        assert WRONG[name][1] in printed, name
    assert "unreachable=0" in printed
    assert done.returncode != 0
    assert "PRIVATE KEY" not in printed
    # The message stands for itself, without Ansible's words about the filter that found it.
    assert "filter plugin" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vpn_log_nat", "vpn_log_origins", "vpn_renumber"])
def test_what_the_command_line_says_is_true_or_false(tmp_path, vault, name):
    write(tmp_path, VARIABLES | {"ansible_ssh_common_args": AWAY})
    (tmp_path / "group_vars/all/vault.yml").write_text(vault)

    wrong = play(tmp_path, "check.yml", "-e", f"{name}=ture")
    right = [play(tmp_path, "check.yml", "-e", f"{name}={value}").stdout for value in ("FALSE", "yes")]

    assert f'{name}: "ture": neither true nor false' in " ".join(wrong.stdout.split())
    assert "unreachable=0" in wrong.stdout
    assert all("unreachable=1" in printed and "neither true" not in printed for printed in right)


URL = "postgresql+psycopg://causeway:x@192.0.2.9/causeway?sslmode=verify-full"
VIRTUAL_IP = {"ipv4": "192.0.2.10/24", "ipv6": "2001:db8::10/64"}
#: Of several portals: variables, whether there is a group of databases, and what is said.
WRONG_TOGETHER: dict[str, tuple[dict[str, Any], int, str]] = {
    "SQLite": (
        {"vpn_virtual_ip": VIRTUAL_IP},
        0,
        "vpn_database_url: 2 hosts in group 'portals' cannot share SQLite; name a PostgreSQL database",
    ),
    "two databases": (
        {"vpn_virtual_ip": VIRTUAL_IP, "vpn_database_url": URL},
        1,
        "vpn_database_url: set, and group 'databases' has hosts; keep one of the two",
    ),
    "no address in front": (
        {"vpn_database_url": URL},
        0,
        "vpn_virtual_ip: 2 hosts in group 'portals' need one address in front; set it",
    ),
    "no prefix": (
        {"vpn_database_url": URL, "vpn_virtual_ip": {"ipv4": "192.0.2.10"}},
        0,
        "vpn_virtual_ip: ipv4: '192.0.2.10' is no IPv4 address with a prefix length",
    ),
    "unknown key": (
        {"vpn_database_url": URL, "vpn_virtual_ip": VIRTUAL_IP | {"interface": "eth0"}},
        0,
        "has ipv4, and ipv6 if you like, nothing else",
    ),
    "unknown frontend": (
        {"vpn_database_url": URL, "vpn_portal_frontend": "anycast"},
        0,
        'vpn_portal_frontend: "anycast"; use virtual_ip or dns',
    ),
    "certificate fetched by one": (
        {"vpn_database_url": URL, "vpn_virtual_ip": VIRTUAL_IP, "vpn_portal_tls": "acme"},
        0,
        "vpn_portal_tls: acme fetches the certificate on one host; with several portals use provided",
    ),
    "virtual IP that a portal has": (
        {"vpn_database_url": URL, "vpn_virtual_ip": {"ipv4": "192.0.2.8/24"}},
        0,
        "vpn_virtual_ip: ipv4: 192.0.2.8 is a host's own address; take a free one of the portals' network",
    ),
    "virtual IP that portals call from": (
        {
            "vpn_database_url": URL,
            "vpn_virtual_ip": VIRTUAL_IP,
            "vpn_portal_addresses": ["192.0.2.7", "192.0.2.8", "2001:db8:0:0::0010"],
        },
        0,
        "vpn_virtual_ip: ipv6: 2001:db8::10 is a host's own address",
    ),
    "virtual IP that a node has": (
        {
            "vpn_database_url": URL,
            "vpn_virtual_ip": VIRTUAL_IP,
            "vpn_node": {"number": 1, "hostname": "192.0.2.10", "agent_address": "192.0.2.11"},
        },
        0,
        "vpn_virtual_ip: ipv4: 192.0.2.10 is a host's own address",
    ),
    "virtual IP among the clients": (
        {"vpn_database_url": URL, "vpn_virtual_ip": {"ipv4": "10.64.0.9/24"}},
        0,
        "vpn_virtual_ip: ipv4: 10.64.0.9 lies in 10.64.0.0/16, a range of clients",
    ),
    "agent on loopback": (
        {
            "vpn_database_url": URL,
            "vpn_virtual_ip": VIRTUAL_IP,
            "vpn_node": {"number": 1, "hostname": "vpn1.example.org", "agent_address": "127.0.0.1"},
        },
        0,
        "agent_address in vpn_node of vpn1: 127.0.0.1: leads each portal to itself, and there is one on",
    ),
    "two standbys": (
        {"vpn_virtual_ip": VIRTUAL_IP},
        3,
        "group 'databases': db0, db1, db2; one takes writes and one is its standby, so two hosts at most",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "databases", "message"), WRONG_TOGETHER.values(), ids=WRONG_TOGETHER)
def test_several_portals_that_cannot_work_are_refused(tmp_path, vault, changes, databases, message):
    hosts = {
        "portals": {"hosts": {"p1": {"ansible_host": "192.0.2.7"}, "p2": {"ansible_host": "192.0.2.8"}}},
        "nodes": {"hosts": {"vpn1": {"ansible_host": "192.0.2.11"}}},
    }
    if databases:
        hosts["databases"] = {
            "hosts": {f"db{n}": {"ansible_host": f"192.0.2.{20 + n}"} for n in range(databases)}
        }
    variables = {key: value for key, value in VARIABLES.items() if key != "ansible_host"}
    write(tmp_path, variables | changes, hosts)
    (tmp_path / "group_vars/all/vault.yml").write_text(vault)

    done = play(tmp_path, "site.yml")

    printed = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert message in printed
    assert "unreachable=0" in printed
    assert done.returncode != 0


#: An inventory of somebody's own may lie beside them; it has secrets.
EXAMPLES = sorted(
    path.name
    for path in (PROJECT / "inventory").iterdir()
    if not (path / "group_vars/all/vault.yml").exists()
)
TWO_PORTALS = {
    "portals": {"hosts": {"p1": {"ansible_host": "192.0.2.7"}, "p2": {"ansible_host": "192.0.2.8"}}},
    "nodes": {"hosts": {"p1": None}},
}


@pytest.mark.slow
def test_portals_that_would_agree_over_ipv6_are_refused(tmp_path, vault):
    """keepalived leaves out addresses of another family than that of its peers."""
    hosts = {"p1": {"ansible_host": "2001:db8::7"}, "p2": {"ansible_host": "192.0.2.8"}}
    variables = {key: value for key, value in VARIABLES.items() if key != "ansible_host"}
    together = {"vpn_database_url": URL, "vpn_virtual_ip": VIRTUAL_IP}
    write(tmp_path, variables | together, TWO_PORTALS | {"portals": {"hosts": hosts}})
    (tmp_path / "group_vars/all/vault.yml").write_text(vault)

    printed = re.sub(r"\s+", " ", play(tmp_path, "site.yml").stdout)

    assert "ansible_host of p1: an IPv6 address; portals agree over IPv4 on who has vpn_virtual_ip" in printed
    assert "unreachable=0" in printed


@pytest.mark.slow
@pytest.mark.parametrize(("second", "refused"), [("vpn", True), ("vpn2", False)])
def test_two_portals_of_one_host_name_are_refused(tmp_path, vault, monkeypatch, second, refused):
    """What was asked of the hosts before stands in a cache, so nobody has to answer."""
    facts, inventory = tmp_path / "facts", tmp_path / "inventory"
    facts.mkdir()
    for host, name in (("p1", "vpn"), ("p2", second)):
        known = {
            "distribution": "Debian",
            "distribution_version": "13",
            "distribution_major_version": "13",
            "architecture": "x86_64",
            "service_mgr": "systemd",
            "user_uid": 0,
            "nodename": name,
        }
        content = json.dumps({f"ansible_{key}": value for key, value in known.items()})
        # As Ansible writes it.
        (facts / f"of_s1_{host}").write_text(json.dumps({"__payload__": content}))
    monkeypatch.setenv("ANSIBLE_CACHE_PLUGIN", "jsonfile")
    monkeypatch.setenv("ANSIBLE_CACHE_PLUGIN_CONNECTION", str(facts))
    monkeypatch.setenv("ANSIBLE_CACHE_PLUGIN_PREFIX", "of_")
    variables = {key: value for key, value in VARIABLES.items() if key != "ansible_host"}
    together = {"vpn_database_url": URL, "vpn_virtual_ip": VIRTUAL_IP, "ansible_ssh_common_args": AWAY}
    write(inventory, variables | together, TWO_PORTALS)
    (inventory / "group_vars/all/vault.yml").write_text(vault)

    printed = re.sub(r"\s+", " ", play(inventory, "check.yml").stdout)

    said = "p1 and p2: have the same host name, vpn, by which portals know each other"
    assert (said in printed) == refused
    assert ("unreachable=0" in printed) == refused


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_a_right_inventory(tmp_path, example):
    """Only its hosts are missing: nobody is called."""
    copy = tmp_path / example
    shutil.copytree(PROJECT / "inventory" / example, copy)
    assert play(copy, "init_secrets.yml").returncode == 0
    provided = {"vault_portal_tls_certificate": "-", "vault_portal_tls_key": "-"}
    (copy / "group_vars/all/provided.yml").write_text(yaml.safe_dump(provided))

    done = play(copy, "check.yml", "-e", json.dumps({"ansible_ssh_common_args": AWAY}))

    recap = re.findall(r"unreachable=(\d) +failed=(\d)", done.stdout)
    assert recap, done.stdout + done.stderr
    assert set(recap) == {("1", "0")}, done.stdout


def plan(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run what ``make plan`` runs, from elsewhere than the project."""
    return subprocess.run(
        [sys.executable, "-m", "vpn_control.plan", "--inventory", directory, *options],
        cwd=directory, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_plan_of_a_wrong_inventory_is_the_same_message_and_nothing_else(tmp_path, vault):
    changes, message = WRONG["overlap"]
    write(tmp_path, VARIABLES | changes)
    (tmp_path / "group_vars/all/vault.yml").write_text(vault)

    done = plan(tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    _asking, said = done.stderr.strip().splitlines()
    assert said.startswith(message)


@pytest.mark.slow
def test_plan_of_hosts_that_cannot_be_reached_says_what_it_knows(tmp_path, vault):
    """Nobody listens at that port: every host is unknown, the inventory is not."""
    write(tmp_path, VARIABLES | {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_user": "root"})
    (tmp_path / "group_vars/all/vault.yml").write_text(vault)

    done = plan(tmp_path, "--json")

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [(host["name"], host["state"]) for host in said["hosts"]] == [("vpn1", "unknown")]
    assert "Connection refused" in said["hosts"][0]["message"]
    assert said["changes"] is None
    assert (said["capacity"][0]["used"], said["capacity"][0]["most"]) == (None, 4093)


@pytest.mark.slow
def test_check_mode_ends_with_the_summary(tmp_path, vault):
    write(tmp_path, VARIABLES | {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_user": "root"})
    (tmp_path / "group_vars/all/vault.yml").write_text(vault)

    checked, run = play(tmp_path, "site.yml", "--check"), play(tmp_path, "site.yml")

    assert "  vpn1: unknown, cannot be reached: connect to host 127.0.0.1 port 1: " in checked.stdout
    assert "WireGuard  unknown  4093" in checked.stdout
    assert "Capacity" not in run.stdout


@pytest.mark.slow
def test_a_right_inventory_is_planned_once_for_all_hosts(tmp_path, vault):
    """A plan of hundreds takes long, and variables of roles name it dozens of times. A node that leaves makes
    another plan.
    """
    inventory, run = tmp_path / "inventory", tmp_path / "run"
    second = {"vpn_node": {"number": 2, "hostname": "vpn2.example.org"}}
    hosts = {"portals": {"hosts": {"p1": None}}, "nodes": {"hosts": {"vpn1": None, "vpn2": second}}}
    write(inventory, VARIABLES | {"vpn_portal_addresses": ["192.0.2.8"]}, hosts)
    (inventory / "group_vars/all/vault.yml").write_text(vault)
    planned = "vpn_plan.profiles | list == ['employees'] and vpn_plan.nodes | list == ['vpn1', 'vpn2']"
    anew = "vpn_plan.profiles | list == ['others'] and vpn_plan.nodes | list == ['vpn1']"
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.import_tasks": {"file": "tasks/inventory.yml"}},
        # Whoever plans from now on plans this.
        {"ansible.builtin.set_fact": {"vpn_profiles": {"others": PROFILE}}},
        {"ansible.builtin.assert": {"that": planned}},
        {"ansible.builtin.assert": {"that": anew}, "vars": {"__leaving_node": "vpn2"}},
    ]
    for shared in ("playbooks/tasks", "playbooks/group_vars", "roles"):
        (run / shared).parent.mkdir(parents=True, exist_ok=True)
        (run / shared).symlink_to(PROJECT / shared)
    play_of_all = {"name": "Plan", "hosts": "all", "gather_facts": False, "tasks": tasks}
    (run / "playbooks/all.yml").write_text(yaml.safe_dump([play_of_all]))

    done = play(inventory, os.path.relpath(run / "playbooks/all.yml", PROJECT / "playbooks"))

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_what_is_hardly_meant_is_a_warning(tmp_path, vault):
    write(
        tmp_path,
        VARIABLES | {"vpn_profiles": {"employees": PROFILE | {"dns_servers": []}}, "vpn_portal_tls": "x"},
    )
    (tmp_path / "group_vars/all/vault.yml").write_text(vault)

    printed = re.sub(r"\s+", " ", play(tmp_path, "site.yml").stderr)

    assert printed.count("[WARNING]: vpn_profiles.employees: default_gateway without dns_servers") == 1


@pytest.mark.slow
def test_inventory_without_secrets_is_refused_with_the_playbook_that_makes_them(tmp_path):
    write(tmp_path, VARIABLES)

    done = play(tmp_path, "site.yml")

    printed = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert "playbooks/init_secrets.yml" in printed
    assert "unreachable=0" in printed


@pytest.mark.slow
def test_secrets_are_written_once_and_for_their_owner_only(tmp_path):
    write(tmp_path, VARIABLES)
    vault_file = tmp_path / "group_vars/all/vault.yml"

    first = play(tmp_path, "init_secrets.yml")
    before = vault_file.read_bytes()
    second = play(tmp_path, "init_secrets.yml")

    assert vault_file.stat().st_mode & 0o777 == 0o600
    assert "changed=1" in first.stdout
    assert "changed=0" in second.stdout
    assert vault_file.read_bytes() == before
    assert "PRIVATE KEY" not in first.stdout + first.stderr + second.stdout + second.stderr


@pytest.mark.parametrize("playbook", ["drain_node.yml", "remove_node.yml"])
def test_downloads_are_not_ended_without_the_rest(tmp_path: Path, playbook: str) -> None:
    hosts = {"portals": {"hosts": {"vpn1": None}}, "nodes": {"hosts": {"vpn1": None, "fra1": None}}}
    write(tmp_path, VARIABLES, hosts)

    done = play(tmp_path, playbook, "-e", "node=fra1", "-e", "drain_downloads=true")

    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "drain_downloads: only with drain_cut; write -e drain_cut=true -e drain_downloads=true" in said
