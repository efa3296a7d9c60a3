"""Which run of which machine an agent says that it is."""

import os
import time
from pathlib import Path

import pytest

from node_agent import machine


def test_container_has_been_up_since_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R60: by its host's counter it would have run while the one before it still answered."""
    began = tmp_path / "container"
    monkeypatch.setattr(machine, "_CONTAINER", began)
    counted = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert machine.uptime_seconds() == pytest.approx(counted, abs=5)

    began.touch()
    assert machine.uptime_seconds() < 5
    os.utime(began, (time.time() + 60, time.time() + 60))
    assert machine.uptime_seconds() == 0
    os.utime(began, (1, 1))
    assert machine.uptime_seconds() == pytest.approx(counted, abs=5)
