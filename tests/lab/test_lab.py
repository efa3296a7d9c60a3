"""The lab on an instance of its own, beside whatever else is running."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
RUNTIME = Path("/run/causeway-lab")
NAME = "labtest"

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("labtest")]


def lab(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "molecule/shared/lab.py"), words[0], "--name", NAME, *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


def ssh(host: str, command: str, *, check: bool = True) -> str:
    config = str(PROJECT / f".lab/{NAME}/ssh_config")
    done = subprocess.run(
        ["ssh", "-F", config, host, command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout


def info() -> dict[str, Any]:
    return dict(json.loads(lab("info").stdout))


def pids() -> dict[str, int | None]:
    return {host["name"]: host["pid"] for host in info()["hosts"]}


def runtime() -> Path:
    """Where the lab writes down the processes of this instance."""
    number = json.loads((PROJECT / f".lab/{NAME}/instance.json").read_text())["number"]
    return RUNTIME / str(number)


def recorded(host: str, role: str) -> int:
    return int(json.loads((runtime() / f"{host}.{role}").read_text())["pid"])


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for(condition: Callable[[], object], timeout_seconds: float = 30) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.2)


def traces(number: str) -> list[str]:
    """What one instance changes on the machine outside its own folders."""
    listings = (
        ["ip", "-brief", "address"],
        ["ip", "-4", "route"],
        ["ip", "-6", "route"],
        ["nft", "list", "tables"],
    )
    text = "".join(
        subprocess.run(words, capture_output=True, text=True, check=True).stdout for words in listings
    )
    text += Path("/etc/hosts").read_text() + Path("/proc/mounts").read_text()
    marks = (
        f"cwlab{number} ",
        f"cw{number}-",
        f"causeway_lab_{number}\n",
        f"lab {number}\n",
        f"/.lab/{NAME}/",
    )
    return [mark for mark in marks if mark in text]


@pytest.fixture(scope="module")
def instance() -> Iterator[None]:
    lab("up")
    yield
    lab("down")


@pytest.fixture
def running(instance: None) -> None:
    """Every host on, whatever the test before did."""
    if None in pids().values():
        lab("up")


def test_hosts_boot_completely(running: None) -> None:
    for host in info()["hosts"]:
        assert ssh(host["name"], "systemctl is-system-running").strip() == "running"
        assert ssh(host["name"], "stat -c %a /dev/net/tun").strip() == "666"


def test_hosts_reach_each_other_and_the_stand_in_for_the_internet_but_nothing_else(running: None) -> None:
    number = runtime().name
    stand_in = f"198.51.100.{int(number) * 16 + 1}"
    reach = "timeout 3 bash -c 'echo > /dev/tcp/{0}/{1}' 2>&1 || true"

    assert ssh("client1", reach.format("vpn1", 22)) == ""
    # The machine answers there itself: refused by it, which is an answer.
    assert "refused" in ssh("client1", reach.format(stand_in, 9))
    for outside in ("203.0.113.9", "10.78.0.1", "198.51.100.250"):
        assert "No route to host" in ssh("client1", reach.format(outside, 8080))


def test_second_up_leaves_hosts_alone(running: None) -> None:
    first = pids()

    lab("up")

    assert pids() == first


def test_up_makes_room_for_the_files_that_many_hosts_watch(running: None) -> None:
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    limit.write_text("128\n")

    lab("up")

    assert int(limit.read_text()) == 1024


def test_two_ups_at_once_do_not_collide(running: None) -> None:
    lab("power-off", "client1")
    command = [sys.executable, str(PROJECT / "molecule/shared/lab.py"), "up", "--name", NAME]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]

    assert [one.wait(timeout=120) for one in both] == [0, 0]
    assert None not in pids().values()


def test_reboot_inside_a_host_boots_it_again(running: None) -> None:
    first = pids()
    boot = ssh("client1", "cat /proc/1/sched | head -1; stat -c %Y /run/systemd")

    ssh("client1", "systemctl reboot", check=False)

    wait_for(lambda: pids()["client1"] not in (None, first["client1"]))
    wait_for(lambda: ssh("client1", "systemctl is-system-running", check=False).strip() == "running")
    assert ssh("client1", "cat /proc/1/sched | head -1; stat -c %Y /run/systemd") != boot
    assert pids()["vpn1"] == first["vpn1"]


def test_power_off_ends_every_process_of_the_host(running: None) -> None:
    ssh("client1", "touch /root/kept; systemd-run --quiet sleep 600")
    inside = [recorded("client1", role) for role in ("supervisor", "nspawn", "init")]
    service = int(subprocess.run(
        ["pgrep", "--ns", str(inside[2]), "--nslist", "pid", "--exact", "sleep"],
        capture_output=True, text=True, check=True,
    ).stdout.split()[0])  # fmt: skip

    lab("power-off", "client1")

    assert not any(runs(pid) for pid in [*inside, service])
    assert pids()["client1"] is None
    lab("power-on", "client1")
    assert ssh("client1", "ls /root/kept").strip() == "/root/kept"


def test_restart_shuts_down_in_order(running: None) -> None:
    ssh("client1", "printf '[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStop=touch /root/stopped\\n'"
        " > /etc/systemd/system/farewell.service; systemctl start farewell")  # fmt: skip

    lab("restart", "client1")

    assert ssh("client1", "ls /root/stopped").strip() == "/root/stopped"


def test_reinstall_gives_a_host_a_new_disk(running: None) -> None:
    """The same name, addresses and SSH key; nothing of what was on the old one."""
    ssh("client1", "touch /root/old")
    machine = ssh("client1", "cat /etc/machine-id")

    lab("reinstall", "client1")

    assert ssh("client1", "ls /root/old", check=False) == ""
    assert ssh("client1", "cat /etc/machine-id") != machine
    assert ssh("client1", "getent hosts vpn1")


def test_up_repairs_what_kills_left_behind(running: None) -> None:
    """A host without its systemd-nspawn runs on as an orphan; up ends it and boots a new one."""
    orphan = recorded("client1", "init")
    for role in ("supervisor", "nspawn"):
        os.kill(recorded("client1", role), signal.SIGKILL)

    lab("up")

    assert not runs(orphan)
    assert ssh("client1", "systemctl is-system-running").strip() == "running"


@pytest.mark.parametrize("moment", ["bridge", "booting"])
def test_up_works_after_being_killed(instance: None, moment: str) -> None:
    if moment == "bridge":  # then hosts are copied from the base image
        lab("down")
    else:
        for host in ("vpn1", "client1"):
            lab("power-off", host)
    command = [sys.executable, str(PROJECT / "molecule/shared/lab.py"), "up", "--name", NAME]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        next(line for line in killed.stdout if moment in line)
        time.sleep(0.1)
        killed.kill()

    lab("up")

    assert None not in pids().values()


def test_down_finds_its_processes_even_when_its_folder_was_deleted(instance: None) -> None:
    lab("up")
    left = [recorded(host, role) for host in ("vpn1", "client1") for role in ("supervisor", "nspawn", "init")]
    where = runtime()
    (PROJECT / f".lab/{NAME}/instance.json").unlink()

    lab("down")

    assert not any(runs(pid) for pid in left)
    assert not where.exists()


def test_a_namesake_in_another_checkout_is_refused_and_its_leftovers_go(
    instance: None, tmp_path: Path
) -> None:
    """The host names of both are the same, so names that a dead one left would point nowhere."""
    lab("up")
    shutil.copytree(PROJECT / "molecule", tmp_path / "molecule")
    other = [sys.executable, str(tmp_path / "molecule/shared/lab.py"), "up", "--name", NAME]

    refused = subprocess.run(other, capture_output=True, text=True, check=False)

    assert refused.returncode == 1
    assert f"labtest is up in {PROJECT}" in refused.stderr
    assert not (tmp_path / ".lab").exists()

    for host in ("vpn1", "client1"):
        lab("power-off", host)
    (tmp_path / "molecule/single_host/lab.toml").write_text('[hosts.vpn1]\ngroups = ["portals"]\n')
    taken = subprocess.run(other, capture_output=True, text=True, check=False)

    try:
        assert taken.returncode == 0, taken.stderr
        assert f"removed what was left of labtest in {PROJECT}" in taken.stdout
        assert Path("/etc/hosts").read_text().count(" vpn.labtest.example.org") == 2
        assert "is not up" in lab("power-on", "vpn1", check=False).stderr
    finally:
        subprocess.run([*other[:2], "down", "--name", NAME], check=True, capture_output=True)
    lab("up")
    assert None not in pids().values()


def test_down_leaves_nothing(instance: None) -> None:
    lab("up")
    where = runtime()

    assert traces(where.name)

    lab("down")

    assert traces(where.name) == []
    assert not where.exists()
    assert not (PROJECT / ".lab" / NAME).exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/causeway-cw{where.name}-*"))


def test_without_root_it_says_so_in_one_line() -> None:
    with tempfile.TemporaryDirectory() as name:
        # Where another user may read: root's home, in which a checkout may be, is closed.
        shutil.copytree(PROJECT / "molecule/shared", f"{name}/shared")
        subprocess.run(["chmod", "-R", "a+rX", name], check=True)
        command = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", f"{name}/shared/lab.py"]
        done = subprocess.run([*command, "up", "--name", NAME], capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert "needs root" in done.stderr
    assert done.stderr.count("\n") == 1
