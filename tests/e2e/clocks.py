"""Wrong clocks: hosts of the lab share the machine's, so programs are told another time (libfaketime)."""

from tests.e2e.hosts import Host

_FAKE = """
set -e
export DEBIAN_FRONTEND=noninteractive
dpkg -s libfaketime >/dev/null 2>&1 ||
  {{ apt-get update -qq; apt-get install -y -qq --no-install-recommends libfaketime; }} >/dev/null
for unit in {units}; do
  mkdir -p /run/systemd/system/$unit.d
  cat >/run/systemd/system/$unit.d/e2e-clock.conf <<X
[Service]
Environment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1
Environment=FAKETIME={minutes:+d}m FAKETIME_DONT_FAKE_MONOTONIC=1
X
done
systemctl daemon-reload
systemctl restart {units}
"""
_TRUE = """
for unit in {units}; do rm -f /run/systemd/system/$unit.d/e2e-clock.conf; done
systemctl daemon-reload
systemctl restart {units}
"""


def set_clock(host: Host, minutes: int, *units: str) -> None:
    """Restart services that take the time to be so many minutes later than it is."""
    host.run(_FAKE.format(minutes=minutes, units=" ".join(units)))


def true_clock(host: Host, *units: str) -> None:
    host.run(_TRUE.format(units=" ".join(units)))
