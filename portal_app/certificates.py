"""How long the certificates of portals and agents still last (reliability.md R68)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

#: A run of the playbooks, and an ACME client, renews what has so much of its life left: with less, none did.
LEAST_LIFE = 1 / 3


@dataclass(frozen=True)
class Certificate:
    """What is known of a certificate; times are UTC."""

    serial_number: int
    not_before: datetime
    not_after: datetime

    def warning(self, now: datetime) -> str | None:
        """Return that it ends, long before it does, and what to do."""
        life = self.not_after - self.not_before
        if self.not_after - now >= life * LEAST_LIFE:
            return None
        return f"ends on {self.not_after:%Y-%m-%d}; run site.yml, which renews it"

    def days_left(self, now: datetime) -> int:
        return (self.not_after - now).days

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it: the serial number in hexadecimal digits, times as Unix time."""
        return {
            "serial": f"{self.serial_number:x}",
            "not_before": int(self.not_before.timestamp()),
            "not_after": int(self.not_after.timestamp()),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        moments = (datetime.fromtimestamp(data[key], UTC) for key in ("not_before", "not_after"))
        return cls(int(data["serial"], 16), *moments)
