"""What can be reached, from outside and from inside a tunnel."""

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from portal_app.verification.browser import App, Browser
from portal_app.verification.tunnel import inside, namespace, new_wireguard_key, ping, wireguard
from tests.e2e.hosts import Deployment, Host, OfficialApp, wait_until
from tests.e2e.test_deployment import changed


@pytest.fixture(scope="module")
def tunnel(client: Host, deployment: Deployment) -> Iterator[tuple[OfficialApp, dict]]:
    """An open tunnel of alice through the profile with default gateway."""
    app = OfficialApp(client)
    app.do("start", user="alice", password=deployment.passwords["alice"])
    app.do("add_server", url=deployment.portal_url)
    got = app.do("get_config", url=deployment.portal_url, profile="employees")
    opened = app.do("up", config=got["config"], protocol=got["protocol"])
    wait_until(lambda: app.pings(opened["gateways"][0]), 20, "tunnel")
    yield app, opened
    app.do("down")
    app.do("disconnect")
    app.close()


def reaches(app: OfficialApp, address: str, port: int) -> bool:
    """Tell whether a TCP connection through the tunnel opens."""
    family = "-6" if ":" in address else "-4"
    words = ["curl", family, "-sk", "--connect-timeout", "2", "-m", "3", "-o", "/dev/null"]
    host = f"[{address}]" if ":" in address else address
    # 7 is refused, 28 is a time-out; anything else has got an answer on the port.
    return app.do("inside", words=[*words, f"http://{host}:{port}/"])["code"] not in (7, 28)


def caller(app: OfficialApp, address: str) -> tuple[str, int]:
    """Let the client connect to this machine; return where it seems to come from, and its segment size."""
    seen = []
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 8765), family=family) as listener:
        listener.settimeout(10)

        def accept() -> None:
            connection, peer = listener.accept()
            seen.append((peer[0], connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)))
            connection.close()

        waiting = threading.Thread(target=accept)
        waiting.start()
        reaches(app, address, 8765)
        waiting.join()
    return seen[0]


def test_only_named_ports_are_open(client: Host, server: Host) -> None:
    """N10, H4: SSH, web, OpenVPN; nothing else answers on TCP."""
    found = client.output(
        f"nmap -n -Pn -p- --min-rate 4000 --max-retries 2 -oG - {server.address}", timeout=300
    )
    open_ports = sorted(
        int(p.split("/")[0]) for p in found.split("Ports: ")[1].split("\t")[0].split(", ") if "/open/" in p
    )
    assert open_ports == [22, 80, 443, 1194, 1195]


@pytest.mark.parametrize("port", [22, 41194])
def test_a_client_does_not_reach_the_host_itself(
    tunnel: tuple[OfficialApp, dict], server: Host, port: int
) -> None:
    """V2, H6: neither by the gateway's address nor by the host's own."""
    app, opened = tunnel
    for address in (*opened["gateways"], server.address):
        assert not reaches(app, address, port), address


def test_a_client_resolves_names_at_the_gateway(
    tunnel: tuple[OfficialApp, dict], deployment: Deployment
) -> None:
    app, opened = tunnel
    assert opened["dns_servers"] == opened["gateways"]
    name = deployment.portal_url.removeprefix("https://")
    for server in opened["dns_servers"]:
        words = ["python3", "-m", "portal_app.verification.resolver", server, name]
        assert app.do("inside", words=words)["code"] == 0


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_client_reaches_the_world_behind_nat(
    tunnel: tuple[OfficialApp, dict], deployment: Deployment, server: Host, family: str
) -> None:
    """V6: the lab's stand-in for the Internet is reached, and sees the node's address, not the client's."""
    app, _ = tunnel
    variables = deployment.variables(server.name)
    source, _ = caller(app, variables[f"lab_internet_{family}"])
    own = server.output(f"ip -{'6' if family == 'ipv6' else '4'} -o address show dev host0 scope global")
    assert f" {source}/" in own


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_tcp_through_a_tunnel_is_told_what_fits(
    tunnel: tuple[OfficialApp, dict], deployment: Deployment, server: Host, family: str
) -> None:
    """The node lowers the segment size of a client that believes in more than the tunnel takes."""
    app, opened = tunnel
    app.do("inside", words=["ip", "link", "set", "cwverify0", "mtu", "1500"])
    try:
        _, segment = caller(app, deployment.variables(server.name)[f"lab_internet_{family}"])
    finally:
        app.do("inside", words=["ip", "link", "set", "cwverify0", "mtu", str(opened["mtu"])])
    assert 1000 < segment <= opened["mtu"] - (60 if family == "ipv6" else 40)


def test_clients_do_not_reach_each_other(tunnel: tuple[OfficialApp, dict], deployment: Deployment) -> None:
    """V2: alice on the client host and bob on this machine have the gateway, not each other."""
    app, _ = tunnel
    bob = App(deployment.portal_url, Browser(deployment.ca_file))
    bob.discover()
    bob.authorize("bob", deployment.passwords["bob"])
    private_key, public_key = new_wireguard_key()
    config = bob.connect("employees", "application/x-wireguard-profile", public_key)
    addresses = config.split("Address = ")[1].splitlines()[0].split(",")
    of_bob = [address.split("/")[0] for address in addresses]
    of_alice = app.do(
        "inside", words=["ip", "-json", "address", "show", "dev", "cwverify0", "scope", "global"]
    )
    try:
        with namespace(), wireguard(config, private_key) as bobs:
            ping(bobs.gateways[0], bobs.mtu)
            for address in of_bob:
                assert not app.pings(address), address
            alices = [entry["local"] for entry in json.loads(of_alice["output"])[0]["addr_info"] if entry]
            assert len(alices) == 2
            for address in alices:
                assert inside("ping", "-n", "-c", "1", "-W", "1", address).returncode != 0, address
    finally:
        bob.disconnect()


def test_a_client_cannot_use_anothers_address(tunnel: tuple[OfficialApp, dict]) -> None:
    """V1: what comes from a source that is not the client's is dropped, in both families."""
    app, opened = tunnel
    device = "cwverify0"
    for gateway in opened["gateways"]:
        forged = gateway[: -len(gateway.split(":" if ":" in gateway else ".")[-1])] + "99"
        prefix = "128" if ":" in gateway else "32"
        app.do("inside", words=["ip", "address", "add", f"{forged}/{prefix}", "dev", device])
        answered = (
            app.do("inside", words=["ping", "-n", "-c", "2", "-W", "1", "-I", forged, gateway])["code"] == 0
        )
        app.do("inside", words=["ip", "address", "del", f"{forged}/{prefix}", "dev", device])
        assert not answered


def test_rules_that_shut_us_out_are_taken_back(deployment: Deployment, server: Host) -> None:
    """R82, H6: nobody comes in through the new rules, so the ones before return; the next run tries again."""

    def is_open() -> bool:
        try:
            socket.create_connection((server.address, 22), timeout=1).close()
        except OSError:
            return False
        return True

    files = "/etc/causeway/firewall"
    what = f"cat {files}/confirmed.nft; nft --stateless list chain inet causeway input"
    before = server.output(what)
    elsewhere = json.dumps({"firewall_ssh_sources": ["203.0.113.0/24"]})

    done = deployment.playbook("site", "--tags", "firewall", "-e", elsewhere, log="firewall-shut")

    assert done.returncode != 0
    assert "do firewall_ssh_sources" in done.stdout or "UNREACHABLE" in done.stdout
    wait_until(is_open, 60, "the rules before are back")
    assert server.output(what) == before
    assert server.run(f"ls {files}/unconfirmed", check=False).returncode == 0
    for words, changes in ((), True), (("--check",), False), ((), False):
        done = deployment.playbook("portal", "--tags", "firewall", *words, log="firewall")
        assert done.returncode == 0, done.stdout[-3000:]
        assert (sum(changed(done.stdout).values()) > 0) is changes, done.stdout[-3000:]
    assert server.run(f"ls {files}/unconfirmed", check=False).returncode != 0
    server.run(f"cmp {files}/rules.nft {files}/confirmed.nft")
