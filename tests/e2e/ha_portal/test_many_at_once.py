"""32 people connect each second, to both portals at once: no address is given twice (R33)."""

import threading
import time
from base64 import b64encode
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from secrets import token_bytes

from portal_app.verification.browser import App, Browser
from tests.e2e.ha_portal.world import DOUBLED, PROFILE, primary, recorded, sql
from tests.e2e.hosts import Deployment
from tests.e2e.multi_node.world import WIREGUARD_TYPE, World, address_of

USERS = 32
ROUNDS = 10


def test_many_connect_to_both_portals(deployment: Deployment, world: World, asked: list[str]) -> None:
    """Each connect goes to the other portal than the one before, and replaces the user's last one."""
    names = [f"crowd{number}" for number in range(USERS)]
    world.add_users(names)
    apps = []
    for name in names:
        app = App(deployment.portal_url, Browser(deployment.ca_file))
        app.discover()
        app.authorize(name, world.password(name))
        apps.append(app)
    asked.clear()
    given: list[dict[str, str]] = [{} for _ in range(ROUNDS)]
    failures: list[str] = []
    together = threading.Barrier(USERS)

    def connect(number: int) -> None:
        app, name = apps[number], names[number]
        for turn in range(ROUNDS):
            together.wait(60)
            began = time.monotonic()
            answer = app.ask(PROFILE, WIREGUARD_TYPE, b64encode(token_bytes(32)).decode())
            if answer.status == 200:
                given[turn][name] = address_of(answer.text)
            else:
                failures.append(f"{name}: {answer.status} {answer.text[:200]}")
            time.sleep(max(0.0, began + 1 - time.monotonic()))

    with ThreadPoolExecutor(USERS) as people:
        list(people.map(connect, range(USERS)))

    assert failures == []
    assert min(Counter(asked).values()) >= USERS * ROUNDS // 2
    for turn in given:
        assert len(turn) == USERS
        assert len(set(turn.values())) == USERS
    database, _standby = primary(deployment)
    assert sql(database, DOUBLED) == "0"
    for name in names:
        assert not Counter(turn[name] for turn in given) - recorded(database, name)
