"""The client of the agent API against real TLS servers: deadlines, names, sizes (reliability.md R54, R96,
N6, N7).
"""

import dataclasses
import socket
import threading
import time

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


def test_withdrawn_certificate_is_refused(settings, start, deployment):
    """N5: nothing is sent to whoever has it."""
    pair = deployment.node(1)
    serial = x509.load_pem_x509_certificate(pair.certificate.read_bytes()).serial_number
    server, node = start(certificate=pair)
    wary = Agents(dataclasses.replace(settings, withdrawn=["00", f"{serial:x}"]))

    with pytest.raises(NodeUnreachable, match=f"not its certificate: {serial:x} is withdrawn"):
        wary.admit(node, ADMIT)

    wary.close()
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
    agents._pools.clear()
    assert agents.info(node).node_number == 1


def test_unusable_certificate_stops_the_start(settings, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("no certificate")

    with pytest.raises(SettingsError, match="broken"):
        Agents(dataclasses.replace(settings, management_certificate_file=broken))
