"""A portal whose clock is wrong (R20): who is let in, and for how long, is the same at both portals."""

import pytest

from portal_app.verification.browser import App, Browser, VerificationError
from tests.e2e.clocks import set_clock, true_clock
from tests.e2e.ha_portal import test_alternating
from tests.e2e.ha_portal.world import primary, sql
from tests.e2e.hosts import Deployment, wait_until

UNITS = ("vpn-portal.service", "vpn-portal-controller.service")
EXPIRE = """UPDATE authorizations SET expires_at = now() - interval '5 minutes'
    WHERE id = (SELECT max(id) FROM authorizations)"""
SERVES = "/etc/causeway/virtual-ip/ready"
SAYS = f"journalctl -u {UNITS[1]} --since -2min | grep -Eq 'clock_wrong seconds_behind=%s(59|60).$'"


@pytest.mark.parametrize("minutes", [-10, 10])
def test_portal_s_clock_is_wrong(deployment: Deployment, asked: list[str], minutes: int) -> None:
    wrong, _right = deployment.hosts("portals")
    database, _standby = primary(deployment)
    set_clock(wrong, minutes, *UNITS)
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
        true_clock(wrong, *UNITS)
    wait_until(lambda: wrong.run(SERVES, check=False).returncode == 0, 30, "it serves again")
