"""The client of the agent API against real TLS servers: deadlines, names, sizes (reliability.md R54, R96,
N6, N7).
"""

import dataclasses
import socket
import ssl
import threading
import time
from contextlib import suppress

import pytest
from cryptography import x509

from portal_app import agents as agents_module
from portal_app.agents import Agents
from portal_app.errors import NodeRefused, NodeUnreachable, SettingsError
from portal_app.services.nodes import NodeRef
from tests.portal.agent_server import AgentServer
from tests.portal.conftest import start_agent
from tests.portal.real_agent import loopback_address
from vpn_core.messages import Admit, Authority, Connection, Cut

AUTHORITY = Authority("d" * 32, 1)
ID = "c" * 32
ADMIT = Admit(AUTHORITY, Connection(ID, "legacy", "openvpn", 2_000_000_000, 1, common_name=ID))


@pytest.fixture
def database() -> str:
    """No test here asks the database."""
    return "sqlite"


@pytest.fixture
def agents(settings):
    made = Agents(settings)
    yield made
    made.close()


@pytest.fixture
def start(deployment):
    started: list[AgentServer] = []

    def start(number: int = 1, **details):
        started.append(start_agent(deployment, number, **details))
        return started[-1], NodeRef(number, f"node{number}", started[-1].address)

    yield start
    for server in started:
        server.stop()


def test_calls_use_one_connection_again(agents, start):
    server, node = start()

    for _ in range(3):
        agents.admit(node, ADMIT)
    assert agents.cut(node, ID, Cut(AUTHORITY, 2)).connection_id == ID

    assert agents.info(node).node_number == 1
    assert server.accepted == 1


@pytest.mark.parametrize("mode", ["silent", "drip"])
def test_deadline_holds_for_a_silent_and_for_a_dripping_agent(agents, start, mode):
    """R96: a dripping agent sends a byte each 0.1 s, which a time-out per read would allow for minutes."""
    server, node = start()
    server.mode = mode
    began_at = time.monotonic()

    with pytest.raises(NodeUnreachable, match="no answer in time"):
        agents.admit(node, ADMIT, seconds=0.5)

    assert 0.4 < time.monotonic() - began_at < 3
    server.mode = "ok"
    agents.admit(node, ADMIT)


def test_deadline_holds_while_the_body_drips(agents, start):
    server, node = start()
    server.mode = "drip_body"

    with pytest.raises(NodeUnreachable, match="no answer in time"):
        agents.info(node, seconds=0.5)


def test_deadline_holds_in_the_handshake(agents, deployment):
    address = loopback_address()
    # It accepts, and never says a word of TLS.
    with (
        socket.create_server((address, agents_module.AGENT_PORT)),
        pytest.raises(NodeUnreachable, match="no answer in time"),
    ):
        agents.info(NodeRef(1, "node1", address), seconds=0.3)


def test_nobody_there_is_unreachable(agents):
    with pytest.raises(NodeUnreachable, match="node1"):
        agents.info(NodeRef(1, "node1", "127.250.1.1"))


def test_certificate_of_another_node_is_refused(agents, start):
    """N6, R60: a stolen node cannot pose as another one."""
    server, _ = start(number=2)

    with pytest.raises(NodeUnreachable, match="not its certificate"):
        agents.admit(NodeRef(1, "node1", server.address), ADMIT)

    assert server.calls == []


def test_certificate_of_another_ca_is_refused(agents, start, deployment):
    """N6"""
    server, node = start(certificate=deployment.stranger.issue("node-1", server=True))

    with pytest.raises(NodeUnreachable, match="not its certificate"):
        agents.admit(node, ADMIT)

    assert server.calls == []


def test_clients_certificate_cannot_serve(agents, start, deployment):
    server, node = start(certificate=deployment.management.issue("node-1", server=False))

    with pytest.raises(NodeUnreachable, match="certificate"):
        agents.admit(node, ADMIT)

    assert server.calls == []


def test_portal_whose_certificate_is_refused_is_told_to_look_at_it(settings, start, deployment):
    """R66 from the portal's side: in TLS 1.3 a refusal looks like a cut connection."""
    pair = deployment.stranger.issue("portal", server=False)
    changed = dataclasses.replace(
        settings, management_certificate_file=pair.certificate, management_key_file=pair.key
    )
    server, node = start()
    agents = Agents(changed)

    with pytest.raises(NodeUnreachable, match="management certificate"):
        agents.admit(node, ADMIT)

    agents.close()
    assert server.calls == []


@pytest.mark.parametrize("mode", ["garbage", "huge", "redirect"])
def test_answer_that_is_no_agents_is_not_believed(agents, start, mode):
    """N7, N6: no redirect is followed."""
    server, node = start()
    server.mode = mode

    with pytest.raises(NodeUnreachable):
        agents.info(node)

    assert len(server.calls) == 1


def test_refusal_carries_its_status(agents, start):
    server, node = start()
    server.mode = "refuse"

    with pytest.raises(NodeRefused) as refused:
        agents.admit(node, ADMIT)

    assert refused.value.agent_status == 422


def test_agent_that_says_another_number_is_not_the_node(agents, start, monkeypatch):
    """R60"""
    server, node = start(number=1)
    monkeypatch.setattr(server, "number", 2)

    with pytest.raises(NodeUnreachable, match="answers as node 2"):
        agents.info(node)


def test_restart_of_an_agent_costs_no_call(agents, deployment):
    address = loopback_address()
    node = NodeRef(1, "node1", address)
    for _ in range(2):
        server = AgentServer(deployment, 1, address)
        agents.admit(node, ADMIT)
        server.stop()


def test_calls_together_end_with_their_deadline_and_the_living_are_heard(agents, start):
    """R98"""
    _good, good_node = start(number=1)
    bad, bad_node = start(number=2)
    bad.mode = "silent"
    calls = [lambda n=n: agents.info(n, seconds=1.0).node_number for n in (bad_node, good_node)]

    results = agents.together(calls, seconds=0.3)

    assert isinstance(results[0], NodeUnreachable)
    assert results[1] == 1


def test_many_threads_share_an_agent(agents, start):
    server, node = start()
    threads = [threading.Thread(target=agents.admit, args=(node, ADMIT)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(server.calls) == 20


def test_last_known_address_serves_while_the_resolver_is_dead(agents, start, monkeypatch):
    """R77"""
    server, _ = start()
    node = NodeRef(1, "node1", "node1.example.org")
    there = [(2, 1, 6, "", (server.address, agents_module.AGENT_PORT))]
    monkeypatch.setattr(agents_module.socket, "getaddrinfo", lambda *_: there)
    agents.info(node)

    def dead(*_):
        raise OSError("no resolver")

    monkeypatch.setattr(agents_module.socket, "getaddrinfo", dead)
    monkeypatch.setattr(agents_module, "NAME_SECONDS", 0.0)
    agents.hang_up()
    assert agents.info(node).node_number == 1


@pytest.fixture
def resolves_to(monkeypatch):
    """Let every name have these addresses, and be looked up at each call."""

    def resolves_to(*addresses):
        found = [(2, 1, 6, "", (address, agents_module.AGENT_PORT)) for address in addresses]
        monkeypatch.setattr(agents_module.socket, "getaddrinfo", lambda *_: list(found))

    monkeypatch.setattr(agents_module, "NAME_SECONDS", 0.0)
    monkeypatch.setattr(agents_module, "_names", agents_module._Names())
    return resolves_to


def test_address_that_worked_comes_first_after_a_new_lookup(agents, start, deployment, resolves_to):
    """A node whose IPv6 is closed costs its time once: nobody asks at the first address again."""
    server, _ = start()
    node = NodeRef(1, "node1", "node1.example.org")
    closed = loopback_address()
    resolves_to(closed, server.address)
    agents.info(node)
    opened = AgentServer(deployment, 1, closed)

    agents.hang_up()
    agents.info(node)

    opened.stop()
    assert (opened.accepted, server.accepted) == (0, 2)


def test_address_that_worked_before_does_not_hide_the_others(agents, start, deployment, resolves_to):
    server, _ = start()
    node = NodeRef(1, "node1", "node1.example.org")
    leaves = AgentServer(deployment, 1, loopback_address())
    resolves_to(leaves.address, server.address)
    agents.info(node)
    leaves.stop()

    agents.hang_up()
    agents.info(node)

    assert (leaves.accepted, server.accepted) == (1, 1)


def test_certificate_that_an_agent_showed_is_known(agents, start, deployment):
    _server, node = start()
    assert agents.certificate(1) is None

    agents.info(node, seconds=10)

    issued = x509.load_pem_x509_certificate(deployment.node(1).certificate.read_bytes())
    shown = agents.certificate(1)
    assert shown is not None
    assert (shown.serial_number, shown.not_after) == (issued.serial_number, issued.not_valid_after_utc)
    assert agents.certificate(2) is None


def test_agent_with_a_withdrawn_certificate_is_told_nothing(settings, start, deployment):
    """N5, N6: a stolen key of a node is of no use once its certificate is withdrawn."""
    serial = x509.load_pem_x509_certificate(deployment.node(1).certificate.read_bytes()).serial_number
    agents = Agents(dataclasses.replace(settings, withdrawn=["1", f"0{serial:X}"]))
    withdrawn, node = start(1)
    _good, other = start(2)

    for _ in range(2):
        with pytest.raises(NodeUnreachable, match=f"not its certificate: {serial:x} is withdrawn"):
            agents.admit(node, ADMIT)
    agents.admit(other, ADMIT)

    agents.close()
    assert withdrawn.calls == []


@pytest.fixture
def answer_with(deployment):
    """Serve one connection at an agent's port with the same bytes, whatever is asked."""
    pair = deployment.node(1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    servers, threads = [], []

    def serve(server: socket.socket, answer: bytes) -> None:
        with suppress(OSError), context.wrap_socket(server.accept()[0], server_side=True) as client:
            client.settimeout(5)
            client.recv(4096)
            client.sendall(answer)
            client.recv(1)

    def answer_with(answer: bytes) -> NodeRef:
        address = loopback_address()
        servers.append(socket.create_server((address, agents_module.AGENT_PORT)))
        threads.append(threading.Thread(target=serve, args=(servers[-1], answer)))
        threads[-1].start()
        return NodeRef(1, "node1", address)

    yield answer_with
    for thread in threads:
        thread.join(10)
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"220 mail.example.org ready\r\n\r\n", "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "no length of the body"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "no length of the body"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n", "answer longer than"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Long: 1\r\n" * 5000, "head longer than"),
    ],
)
def test_what_is_no_answer_of_an_agent_is_refused_at_once(agents, answer_with, answer, why):
    """N7"""
    with pytest.raises(NodeUnreachable, match=why):
        agents.info(answer_with(answer))


def test_words_nobody_asked_for_are_not_the_next_answer(agents, answer_with, start):
    node = answer_with(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")

    agents.admit(node, ADMIT)

    with pytest.raises(NodeUnreachable):
        agents.admit(node, ADMIT, seconds=0.5)


def test_unusable_certificate_stops_the_start(settings, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("no certificate")

    with pytest.raises(SettingsError, match="broken"):
        Agents(dataclasses.replace(settings, management_certificate_file=broken))
