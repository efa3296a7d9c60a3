"""A portal whose clock is wrong (R20): who is let in, and for how long, is the same at both portals.

Hosts of the lab share the machine's clock, so Python itself tells a service another time: under libfaketime
what sleeps ends with an error (Python 3.11 sleeps until a moment of another clock).
"""

import pytest

from portal_app.verification.browser import App, Browser, VerificationError
from tests.e2e.ha_portal import test_alternating
from tests.e2e.ha_portal.world import primary, sql
from tests.e2e.hosts import Deployment, Host, wait_until

UNITS = ("vpn-portal.service", "vpn-portal-controller.service")
EXPIRE = """UPDATE authorizations SET expires_at = now() - interval '5 minutes'
    WHERE id = (SELECT max(id) FROM authorizations)"""
SERVES = "/etc/causeway/virtual-ip/ready"
SAYS = f"journalctl -u {UNITS[1]} --since -2min | grep -Eq 'clock_wrong seconds_behind=%s(59|60).$'"

_FAKE = """
set -e
mkdir -p /run/e2e-clock
cat >/run/e2e-clock/sitecustomize.py <<X
import datetime, time

OFF = {minutes} * 60
now, away = time.time, datetime.timedelta(seconds=OFF)
time.time = lambda: now() + OFF

class Wrong(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + away

datetime.datetime = Wrong
X
chmod -R a+rX /run/e2e-clock
for unit in {units}; do
  mkdir -p /run/systemd/system/$unit.d
  printf '[Service]\\nEnvironment=PYTHONPATH=/run/e2e-clock\\n' >/run/systemd/system/$unit.d/e2e-clock.conf
done
systemctl daemon-reload
systemctl restart {units}
"""
_TRUE = """
for unit in {units}; do rm -f /run/systemd/system/$unit.d/e2e-clock.conf; done
rm -rf /run/e2e-clock
systemctl daemon-reload
systemctl restart {units}
"""


def set_clock(host: Host, minutes: int) -> None:
    """Let a portal take the time to be so many minutes later than it is."""
    host.run(_FAKE.format(minutes=minutes, units=" ".join(UNITS)))


def true_clock(host: Host) -> None:
    host.run(_TRUE.format(units=" ".join(UNITS)))


@pytest.mark.parametrize("minutes", [-10, 10])
def test_portal_s_clock_is_wrong(deployment: Deployment, asked: list[str], minutes: int) -> None:
    wrong, _right = deployment.hosts("portals")
    database, _standby = primary(deployment)
    set_clock(wrong, minutes)
    try:
        wait_until(lambda: wrong.run(SERVES, check=False).returncode == 0, 30, "it serves")
        wait_until(
            lambda: wrong.run(SAYS % ("-" if minutes > 0 else ""), check=False).returncode == 0,
            60,
            "it says so",
        )

        asked.clear()
        test_alternating.test_one_login_one_authorization_and_one_app_alternate(deployment, asked)
        asked.clear()
        test_alternating.test_pages_of_one_admin_alternate(deployment, asked)

        app = App(deployment.portal_url, Browser(deployment.ca_file))
        app.discover()
        app.authorize("alice", deployment.passwords["alice"])
        assert app.info()
        assert app.info()
        sql(database, EXPIRE)
        for _portal in deployment.hosts("portals"):
            with pytest.raises(VerificationError, match="401"):
                app.info()
    finally:
        true_clock(wrong)
    wait_until(lambda: wrong.run(SERVES, check=False).returncode == 0, 30, "it serves again")
