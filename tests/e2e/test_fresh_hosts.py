"""From nothing, on Debian 13: check mode first, then runs that are killed, then one that converges."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.hosts import PROJECT, Deployment, read_deployment
from tests.e2e.test_deployment import changed

NAME = "fresh"
#: Of a release that is neither in use nor deployed.
OLD_RELEASE = "/opt/causeway/0.0.1-0123456789ab"
LEFT_BESIDE = "/etc/ssh/sshd_config.d/.causeway-left"


def make(*words: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-s", *words],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def fresh() -> Iterator[Deployment]:
    """Hosts with Debian 13 and nothing on them but sshd and Python; the secrets of their inventory."""
    make("lab-down", f"NAME={NAME}")
    make("lab-hosts", f"NAME={NAME}", "LAB_RELEASE=trixie")
    deployment = read_deployment("single_host", NAME)
    done = deployment.playbook("init_secrets")
    assert done.returncode == 0, done.stdout[-2000:]
    # What is in the way: an old release, cloud-init's word on SSH, what a killed write left.
    deployment.host("portals").run(
        f"mkdir -p {OLD_RELEASE} {LEFT_BESIDE} && touch {LEFT_BESIDE}/00-causeway.conf &&"
        " echo PasswordAuthentication yes > /etc/ssh/sshd_config.d/50-cloud-init.conf"
    )
    yield deployment
    make("lab-down", f"NAME={NAME}")


def run_until(deployment: Deployment, task: str) -> None:
    """Start ``site.yml`` and kill it hard when it begins a task, as a lost terminal or laptop would."""
    process = subprocess.Popen(
        deployment.playbook_command("site"),
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=deployment.environment,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("TASK [") and task in line:
            break
    else:
        pytest.fail(f"no task {task!r} in:\n{''.join(seen[-40:])}")
    os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()


def test_check_mode_works_before_anything_is_there(fresh: Deployment) -> None:
    """R84: an operator sees what would happen on a host that has nothing yet; nothing happens."""
    host = fresh.host("portals")
    before = host.output(
        "dpkg-query -W | sha256sum; find /etc -newer /etc/hostname -type f | sort | sha256sum"
    )
    done = fresh.playbook("site", "--check", "--diff", log="check-fresh")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "  vpn1: first deployment as portal and node: " in done.stdout
    after = host.output(
        "dpkg-query -W | sha256sum; find /etc -newer /etc/hostname -type f | sort | sha256sum"
    )
    assert after == before


def test_a_host_without_ipv6_is_refused_before_anything_changes(fresh: Deployment) -> None:
    """R94."""
    host = fresh.host("portals")
    setting = "net.ipv6.conf.default.disable_ipv6"
    host.run(f"sysctl -q -w {setting}=1")
    try:
        done = fresh.playbook("site", log="without-ipv6")
    finally:
        host.run(f"sysctl -q -w {setting}=0")
    assert done.returncode != 0
    assert f"IPv6 is switched off (ipv6.disable=1 at boot, or the sysctl {setting}=1)" in done.stdout
    assert set(changed(done.stdout).values()) == {0}


@pytest.mark.faults
@pytest.mark.parametrize(
    "task",
    [
        "Lay down the settings of kernel",
        "Install the locked wheels",
        "Migrate the database",
        "Run the processes",
    ],
)
def test_a_killed_run_leaves_something_that_can_be_repeated(fresh: Deployment, task: str) -> None:
    """R80: first half; what comes of it is the next test's."""
    run_until(fresh, task)


def test_after_killed_runs_the_next_converges(fresh: Deployment) -> None:
    """R80: and verify, the last play, proves the service on Debian 13."""
    done = fresh.playbook("site", log="converge")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "0 failed" in done.stdout
    host = fresh.host("portals")
    for gone in (OLD_RELEASE, LEFT_BESIDE):
        assert host.run(f"ls -d {gone}", check=False).returncode != 0
    assert "passwordauthentication no" in host.output("sshd -T").splitlines()


def test_the_run_after_changes_nothing(fresh: Deployment) -> None:
    done = fresh.playbook("site", log="second-run")
    assert done.returncode == 0, done.stdout[-3000:]
    assert set(changed(done.stdout).values()) == {0}, done.stdout[-3000:]


def test_hosts_have_no_compiler(fresh: Deployment) -> None:
    """C5: everything came as wheels from the control machine."""
    assert fresh.host("portals").run("which gcc cc clang rustc cargo", check=False).stdout == ""
