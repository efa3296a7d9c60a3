"""Who may speak to an agent, and whom portals believe: mutual TLS on port 41194 of deployed nodes."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.e2e.hosts import Host, OfficialApp, wait_until, within
from tests.e2e.multi_node.world import Pings, World
from vpn_control.authority import Authority, issue, make_authority

NODE, NEIGHBOUR = "fra1", "fra2"
DIRECTORY = "/root/e2e-certificates"
AGENT_CERTIFICATE = "/etc/causeway/node/agent.crt"
PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def management(world: World) -> Authority:
    variables = world.deployment.variables(world.portal.name)
    return Authority(variables["vault_management_ca_certificate"], variables["vault_management_ca_key"])


def new_key() -> tuple[str, str]:
    """Return a private and a public key in PEM."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


@pytest.fixture(scope="module")
def identities(world: World, management: Authority) -> Iterator[dict[str, str]]:
    """Certificates with their keys on the portal's host, by what is wrong with them: two files each."""
    now, portal = datetime.now(UTC), world.portal
    stranger = make_authority("Somebody else's CA", "ed25519", now)
    files: dict[str, bytes] = {}
    for name, authority, subject, use, age in (
        ("expired", management, "portal", "client", timedelta(days=3)),
        ("another authority", stranger, "portal", "client", timedelta()),
        ("another name", management, "intruder", "client", timedelta()),
        ("made for servers", management, "portal", "server", timedelta()),
    ):
        private, public = new_key()
        files[f"{name}.key"] = private.encode()
        files[f"{name}.crt"] = issue(authority, public, subject, use, 1, now - age).encode()
    for suffix in ("crt", "key"):
        found = world.node(NEIGHBOUR).output(f"cat /etc/causeway/node/agent.{suffix}")
        files[f"another node.{suffix}"] = found.encode() + b"\n"
    portal.put(files, DIRECTORY)
    names = {name.rsplit(".", 1)[0] for name in files}
    yield {n: f"'{DIRECTORY}/{n}.crt' '{DIRECTORY}/{n}.key'" for n in names} | {"none": ""}
    portal.run(f"rm -r {DIRECTORY}")


#: Calls an agent; prints how many bytes were answered, or why there was no answer.
CALL = """
import socket, ssl, sys
host, number, *pair = sys.argv[1:]
context = ssl.create_default_context(cafile="/etc/causeway/portal/management-ca.crt")
if pair:
    context.load_cert_chain(*pair)
data = b""
try:
    with socket.create_connection((host, 41194), 5) as plain:
        with context.wrap_socket(plain, server_hostname="node-" + number) as tls:
            tls.sendall(b"GET /n/info HTTP/1.1\\r\\nHost: agent\\r\\nConnection: close\\r\\n\\r\\n")
            while chunk := tls.recv(65536):
                data += chunk
except (ssl.SSLError, ConnectionError) as error:
    print("refused", type(error).__name__)
print("answered", len(data))
"""
NUMBERS = {"ams1": 1, "fra1": 2, "fra2": 3}
OWN = "/etc/causeway/portal/management.crt /etc/causeway/portal/secrets/management.key"


def answered(world: World, node: str, pair: str) -> int:
    """Call a node's agent from the portal's host with a certificate and key; return the bytes it answers."""
    address = world.node(node).address
    said = world.portal.output(f"python3 - {address} {NUMBERS[node]} {pair}", stdin=CALL)
    return int(said.split()[-1])


@pytest.mark.parametrize(
    "who",
    ["none", "another node", "expired", "another authority", "another name", "made for servers"],
)
def test_agent_answers_nobody_but_a_portal(world: World, identities: dict[str, str], who: str) -> None:
    """N1, R66: it ends in the handshake, nothing is shown, and the log says who called, not too often."""
    assert answered(world, NODE, OWN) > 500

    assert answered(world, NODE, identities[who]) == 0

    log = world.node(NODE).output("journalctl -u vpn-node-agent.service --since '-300 s' -o cat")
    assert f"event=refused source={world.portal.address}" in log, log[-500:]


@pytest.mark.parametrize("caller", ["client1", "inet1", NEIGHBOUR])
def test_agents_port_is_open_to_the_portal_only(world: World, caller: str) -> None:
    """N10: for others it is as if nothing was there, over IPv4 and IPv6."""
    for node in ("ams1", NODE):
        fqdn = world.ask("node", "show", node)["hostname"]
        for family in (4, 6):
            # IPv6 is closed to the lab's portal, too: `vpn_portal_addresses` is not set there.
            assert reaches(world.portal, fqdn, family) == (family == 4)
            assert not reaches(world.deployment.named(caller), fqdn, family)


def test_agents_port_opens_to_the_addresses_that_are_named(world: World) -> None:
    """N10: `vpn_portal_addresses` with the portal's IPv6 lets it in over IPv6, and nobody else."""
    fqdn = world.ask("node", "show", NODE)["hostname"]
    both = [world.portal.address, world.portal.output("getent ahostsv6 portal1 | head -1 | cut -d' ' -f1")]
    words = ["--limit", NODE, "--tags", "firewall"]
    try:
        opened = world.deployment.playbook(
            "node", *words, "-e", json.dumps({"vpn_portal_addresses": both}), log="portal-addresses"
        )
        assert opened.returncode == 0, opened.stdout[-3000:]
        for family in (4, 6):
            assert reaches(world.portal, fqdn, family)
            for caller in ("client1", "inet1", NEIGHBOUR):
                assert not reaches(world.deployment.named(caller), fqdn, family)
    finally:
        closed = world.deployment.playbook("node", *words, log="portal-addresses-back")
    assert closed.returncode == 0, closed.stdout[-3000:]
    assert not reaches(world.portal, fqdn, 6)


def reaches(host: Host, name: str, family: int) -> bool:
    """Tell whether a host gets through to an agent's port."""
    address = host.output(f"getent ahostsv{family} {name} | head -1 | cut -d' ' -f1")
    assert (":" in address) == (family == 6), address
    probe = f"timeout 3 bash -c '</dev/tcp/{address}/41194' 2>/dev/null"
    return host.run(probe, check=False).returncode == 0


def test_agents_ports_are_closed_to_tunnels(world: World, make_app) -> None:
    """N10: not through a tunnel either, at the gateway or at the public address of any node."""
    app = make_app("alice")
    got = world.connect(app, "frankfurt")
    for address in (got["gateway"], *(world.node(n).address for n in ("ams1", NODE, NEIGHBOUR))):
        words = ["curl", "-sk", "-m", "3", f"https://{address}:41194/n/info"]
        assert app.do("inside", words=words)["code"] in (7, 28)


def test_node_with_the_certificate_of_another_is_not_believed(world: World) -> None:
    """N6: the portal checks the name; the node is not used, and it is said why."""
    node, other = world.node(NODE), world.node(NEIGHBOUR)
    own = identity_of(node, "/etc/causeway/node")
    try:
        put_certificate(node, identity_of(other, "/etc/causeway/node"))
        # While the agent starts anew it is refused for another reason.
        wait_until(
            lambda: "not its certificate" in world.vpn_portal("node", "show", NODE), 30, "the portal says why"
        )
        assert world.state(NODE) == "down"
        with world.probing("frankfurt") as prober:
            wait_until(lambda: len(prober.attempts) > 5, 60, "some connects")
        assert prober.failures() == []
        assert prober.nodes(0) == {NEIGHBOUR}
    finally:
        put_certificate(node, own)
    world.wait_until_up(NODE)


def identity_of(node: Host, directory: str) -> dict[str, bytes]:
    names = ("agent.key", "agent.crt")
    return {name: node.output(f"cat {directory}/{name}").encode() + b"\n" for name in names}


def put_certificate(node: Host, files: dict[str, bytes]) -> None:
    """Replace what an agent proves itself with; kept-alive connections end with its restart."""
    node.put(files, "/root/e2e-agent")
    node.run(
        "for f in /root/e2e-agent/*; do cat $f >/etc/causeway/node/$(basename $f); done;"
        " rm -r /root/e2e-agent; systemctl restart vpn-node-agent.service"
    )


def test_expired_certificate_ends_no_tunnel_and_one_run_repairs_it(
    world: World, make_app, management: Authority
) -> None:
    """R68: the reason is shown; tunnels live on."""
    app, node = make_app("alice"), world.node(NODE)
    with world.only(NODE):
        got = world.connect(app, "frankfurt")
    pings = Pings(app, got["gateway"], "alice")
    renew(node, management, "node-2", "server", age=timedelta(days=731))
    wait_until(lambda: "expired" in world.vpn_portal("node", "show", NODE), 30, "the reason is shown")

    began = time.monotonic()
    done = world.deployment.playbook("node", "--limit", NODE, log="renew-expired")

    assert done.returncode == 0, done.stdout[-3000:]
    world.wait_until_up(NODE)
    assert time.monotonic() - began <= within(60)
    assert pings.lost() == 0


def renew(node: Host, management: Authority, name: str, use: str, *, age: timedelta) -> None:
    """Give the agent's key a certificate of two years that was made ``age`` ago."""
    public = node.output("openssl pkey -pubout -in /etc/causeway/node/agent.key") + "\n"
    certificate = issue(management, public, name, use, 730, datetime.now(UTC) - age)
    put_certificate(node, {"agent.crt": certificate.encode()})


def test_renewal_fails_no_call(world: World, management: Authority) -> None:
    """R68: certificates with a third of their life left are renewed by a run, under load, on both sides."""
    for name, number in ((NODE, 2), (NEIGHBOUR, 3)):
        renew(world.node(name), management, f"node-{number}", "server", age=timedelta(days=600))
        world.wait_until_up(name)
    before = {name: serial(world.node(name), AGENT_CERTIFICATE) for name in (NODE, NEIGHBOUR)}

    with world.probing("frankfurt") as prober:
        words = ["--limit", f"{NODE},{NEIGHBOUR}", "--tags", "pki,node_agent"]
        done = world.deployment.playbook("node", *words, log="renew")
        wait_until(lambda: prober.attempts, 30, "a connect")

    assert done.returncode == 0, done.stdout[-3000:]
    assert prober.failures() == []
    for name, old in before.items():
        assert serial(world.node(name), AGENT_CERTIFICATE) != old


def test_renewal_of_the_portals_own_certificate_fails_no_call(world: World, management: Authority) -> None:
    """R68: the portal starts anew for it, and whoever connects meanwhile waits a moment."""
    portal, file = world.portal, "/etc/causeway/portal/management.crt"
    public = portal.output("openssl pkey -pubout -in /etc/causeway/portal/secrets/management.key") + "\n"
    made_at = datetime.now(UTC) - timedelta(days=600)
    portal.run(f"cat >{file}", stdin=issue(management, public, "portal", "client", 730, made_at))
    running = "systemctl show -P MainPID vpn-portal.service vpn-portal-controller.service"
    old, before = serial(portal, file), portal.output(running).split()

    with world.probing("frankfurt") as prober:
        done = world.deployment.playbook("portal", "--tags", "pki,portal", log="renew-portal")
        wait_until(lambda: prober.attempts, 30, "a connect")

    assert done.returncode == 0, done.stdout[-3000:]
    assert prober.failures() == []
    assert serial(portal, file) != old
    assert not set(portal.output(running).split()) & set(before)
    assert answered(world, NODE, OWN) > 500


def serial(host: Host, file: str) -> str:
    return host.output(f"openssl x509 -noout -serial -in {file}").removeprefix("serial=")


@pytest.mark.faults
def test_withdrawn_certificates_count_no_more(world: World, identities: dict[str, str]) -> None:
    """N5: one variable and one run. The thief is refused, who was robbed has another key."""
    portal, node = world.portal, world.node(NODE)
    own = "/etc/causeway/portal/management.crt"
    key = "/etc/causeway/portal/secrets/management.key"
    portal.run(f"cp {own} {DIRECTORY}/old.crt; cp {key} {DIRECTORY}/old.key")
    node.run("mkdir -p /root/e2e-old; cp /etc/causeway/node/agent.* /root/e2e-old/")
    stolen = f"{DIRECTORY}/old.crt {DIRECTORY}/old.key"
    assert answered(world, NODE, stolen) > 500
    withdrawn = {"vpn_withdrawn_certificates": [serial(portal, own), serial(node, AGENT_CERTIFICATE)]}
    words = ["-e", json.dumps(withdrawn)]
    before = portal.output(f"sha256sum {key}")

    done = world.deployment.playbook("site", *words, log="withdraw")

    try:
        assert done.returncode == 0, done.stdout[-3000:]
        assert portal.output(f"sha256sum {key}") != before
        for name in ("ams1", NODE, NEIGHBOUR):
            assert answered(world, name, stolen) == 0
        world.wait_until_up(NODE)
        # The node's old certificate, on a machine that answers in its place.
        new = identity_of(node, "/etc/causeway/node")
        put_certificate(node, identity_of(node, "/root/e2e-old"))
        wait_until(lambda: "is withdrawn" in world.vpn_portal("node", "show", NODE), 30, "it is not believed")
        put_certificate(node, new)
        world.wait_until_up(NODE)
    finally:
        # As the inventory says again; what was withdrawn is not in use any more.
        done = world.deployment.playbook("site", log="withdraw-back")
        node.run("rm -rf /root/e2e-old")
    assert done.returncode == 0, done.stdout[-3000:]


def test_no_key_of_an_authority_is_on_any_host(world: World, management: Authority) -> None:
    """N2, N3: searched by a piece of each key; the first 48 characters are the same in all of its kind."""
    variables = world.deployment.variables(world.portal.name)
    pieces = {
        name: value.splitlines()[1][-16:]
        for name, value in variables.items()
        if name.endswith("_ca_key") and name != "vault_client_ca_key"
    }
    assert len(pieces) == 3
    for name in ("portal1", "ams1", NODE, NEIGHBOUR):
        for piece in pieces.values():
            found = world.deployment.named(name).run(
                f"grep -rlF -e '{piece}' /etc /opt /var/lib /var/log /root /run --exclude-dir=proc",
                check=False,
            )
            assert found.stdout == ""


def test_tunnels_end_with_their_own_node_only(world: World, make_app) -> None:
    """N7 by deployment: what one node holds is about its own connections, and holds no name of a user."""
    app: OfficialApp = make_app("alice")
    got = world.connect(app, "frankfurt")
    for name in ("ams1", NODE, NEIGHBOUR):
        held = world.node(name).run("grep -rl alice /var/lib/causeway-node /etc/causeway", check=False)
        assert held.stdout == "", f"N9: {name} knows a user"
    assert app.pings(got["gateway"])
