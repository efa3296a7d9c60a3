"""One host: its root directory, its processes, its power switch."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

from nspawn import access, image, network
from nspawn.machine import (
    ENDS_WITH_US,
    LabError,
    container_init,
    end_process,
    enter_own_cgroup,
    record_process,
    recorded_process,
    remove_cgroup,
    remove_tree,
    run,
)
from nspawn.topology import Host, Instance

_REBOOT = 133  # systemd-nspawn(1): the host asked to be started again
_BOOT_SECONDS = 90
_ROLES = ("supervisor", "nspawn", "init")


def directory(instance: Instance, host: Host) -> Path:
    return instance.directory / "hosts" / host.name


def root(instance: Instance, host: Host) -> Path:
    return directory(instance, host) / "root"


def _record(instance: Instance, host: Host, role: str) -> Path:
    return instance.runtime / f"{host.name}.{role}"


def init_pid(instance: Instance, host: Host) -> int | None:
    """Process 1 of a running host, as this machine numbers it; None when the host is off."""
    return recorded_process(_record(instance, host, "init"))


def is_on(instance: Instance, host: Host) -> bool:
    """Whether a host runs and is looked after, so that a reboot inside works."""
    return all(recorded_process(_record(instance, host, role)) for role in _ROLES)


def any_runs(instance: Instance) -> bool:
    """Whether a process of any host lives, also of one that its topology no longer names."""
    return any(recorded_process(file) for role in _ROLES for file in instance.runtime.glob(f"*.{role}"))


def create(instance: Instance, host: Host, base: Path) -> bool:
    """Make the root directory unless it is there; True when it was made. It is whole or absent."""
    if root(instance, host).exists():
        return False
    directory(instance, host).mkdir(parents=True, exist_ok=True)
    new = directory(instance, host) / "root.new"
    remove_tree(new)
    run([*ENDS_WITH_US, "cp", "--archive", "--reflink=auto", base, new])
    (new / "etc/machine-id").write_text(f"{secrets.token_hex(16)}\n")
    (new / "etc/hostname").write_text(f"{host.name}\n")
    (new / "etc/apt/apt.conf.d/99lab").write_text('APT::Keep-Downloaded-Packages "true";\n')
    # A host that loses its power while packages are unpacked is made anew.
    (new / "etc/dpkg/dpkg.cfg.d/99lab").write_text("force-unsafe-io\n")
    _copy_authorities(new)
    access.install_keys(instance, host, new)
    image.lend_packages(instance.release, new)
    new.rename(root(instance, host))
    return True


def address(instance: Instance, host: Host) -> None:
    """Write what depends on the instance's number. Only for a host that is off."""
    written = directory(instance, host) / "number"
    if written.exists() and written.read_text() == str(instance.number):
        return
    etc = root(instance, host) / "etc"
    resolv_conf = etc / "resolv.conf"
    resolv_conf.unlink(missing_ok=True)
    shutil.copyfile(network.resolv_conf(), resolv_conf)
    localhost = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
    (etc / "hosts").write_text(localhost + network.hosts_lines(instance))
    internet = ""
    if host.on_the_internet:
        ipv4, ipv6 = instance.internet_addresses(host)
        internet = f"Address={ipv4}/{instance.internet_ipv4.prefixlen}\n"
        internet += f"Address={ipv6}/{instance.internet_ipv6.prefixlen}\n"
    (etc / "systemd/network/10-lab.network").write_text(
        f"""\
[Match]
Name=host0

[Network]
Address={instance.host_ipv4(host)}/{instance.ipv4.prefixlen}
Address={instance.host_ipv6(host)}/{instance.ipv6.prefixlen}
{internet}Gateway={instance.ipv4[1]}
Gateway={instance.ipv6[1]}
IPv6AcceptRA=no
LinkLocalAddressing=ipv6

# The machine routes no IPv6, so hosts on the Internet are neighbours.
[Route]
Destination={instance.internet_ipv6}
"""
    )
    wants = etc / "systemd/system/multi-user.target.wants/systemd-networkd.service"
    if not wants.is_symlink():
        wants.symlink_to("/lib/systemd/system/systemd-networkd.service")
    written.write_text(str(instance.number))


def _copy_authorities(new: Path) -> None:
    """Behind a TLS-inspecting proxy a host needs the machine's extra CAs too."""
    target = new / "usr/local/share/ca-certificates"
    target.mkdir(parents=True, exist_ok=True)
    for certificate in Path("/usr/local/share/ca-certificates").rglob("*.crt"):
        shutil.copyfile(certificate, target / certificate.name)


def power_on(instance: Instance, host: Host) -> bool:
    """Start a host that is off; True when it was started. It has not booted yet when this returns."""
    if is_on(instance, host):
        return False
    power_off(instance, host)  # what a crash left of it
    address(instance, host)
    log = (directory(instance, host) / "console.log").open("a")
    with log:
        lab = str(Path(__file__).parents[1] / "lab.py")
        supervisor = subprocess.Popen(
            [sys.executable, lab, "supervise", "--name", instance.name, host.name],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
        )  # fmt: skip
    deadline = time.monotonic() + 30
    while not is_on(instance, host):
        if supervisor.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"{host.name} did not start, see {log.name}")
        time.sleep(0.05)
    return True


def wait_until_booted(instance: Instance, host: Host) -> str:
    """Wait for sshd and then for systemd; returns what ``systemctl is-system-running`` says."""
    deadline = time.monotonic() + _BOOT_SECONDS
    while not _greets(str(instance.host_ipv4(host))):
        if time.monotonic() > deadline or not recorded_process(_record(instance, host, "supervisor")):
            log = directory(instance, host) / "console.log"
            raise LabError(f"{host.name} does not answer on port 22, see {log}")
        time.sleep(0.1)
    done = subprocess.run(
        access.ssh_command(instance, host, "systemctl is-system-running --wait"),
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_BOOT_SECONDS, check=False,
    )  # fmt: skip
    return done.stdout.strip() or done.stderr.strip() or "no answer"


def _greets(ipv4: str) -> bool:
    try:
        with socket.create_connection((ipv4, 22), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def power_off(instance: Instance, host: Host) -> None:
    """Cut the power: nothing inside gets a chance to write or say goodbye.

    Process 1 goes first. systemd-nspawn killed alone would hand it to this machine's process 1, and the
    host's services would run on. Each signal goes to a process recorded with its start time.
    """
    record = {role: _record(instance, host, role) for role in _ROLES}
    end_process(record["supervisor"], how=signal.SIGKILL, timeout_seconds=5)
    nspawn = recorded_process(record["nspawn"])
    if nspawn and (init := container_init(nspawn)):
        record_process(record["init"], init)  # the supervisor was killed before it wrote this down
    gone = end_process(record["init"], how=signal.SIGKILL, timeout_seconds=20)
    # Without its host systemd-nspawn ends by itself and cleans up; a signal 0 only waits for that.
    if not _ended_by_itself(record["nspawn"]):
        gone = end_process(record["nspawn"], how=signal.SIGKILL, timeout_seconds=5) and gone
    if not gone:
        raise LabError(f"{host.name}: a process does not end, see {instance.runtime}")
    for file in record.values():
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # systemd-nspawn's mount point for its children
        Path("/run/systemd/nspawn/propagate", instance.machine_name(host)).rmdir()
    remove_cgroup(instance.machine_name(host))
    _remove_port(instance, host)


def _ended_by_itself(record: Path, timeout_seconds: float = 3) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while recorded_process(record) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def shut_down(instance: Instance, host: Host) -> None:
    """Ask the host to power off in order, as a sysadmin would, and cut its power if it takes too long."""
    end_process(_record(instance, host, "supervisor"), how=signal.SIGTERM, timeout_seconds=60)
    power_off(instance, host)


def remove(instance: Instance, host: Host) -> None:
    """Delete the root directory of a host that is off."""
    for name in ("root.new", "root"):
        path = directory(instance, host) / name
        if str(path) + "/" in Path("/proc/self/mountinfo").read_text():
            raise LabError(f"something is mounted below {path}: unmount it first")
        remove_tree(path)
    (directory(instance, host) / "number").unlink(missing_ok=True)


def supervise(instance: Instance, host: Host) -> None:
    """Run a host until it powers off, and start it again when it reboots. SIGTERM shuts it down in order."""
    record_process(_record(instance, host, "supervisor"), os.getpid())
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        if pid := recorded_process(_record(instance, host, "nspawn")):
            os.kill(pid, signal.SIGTERM)  # systemd-nspawn asks the host to power off

    signal.signal(signal.SIGTERM, stop)
    status = _REBOOT
    while status == _REBOOT and not stopping:
        _wait_until_port_is_free(instance, host)
        remove_cgroup(instance.machine_name(host))
        status = _run_once(instance, host)
        print(f"lab: {time.ctime()}: systemd-nspawn ended with status {status}", flush=True)
    for role in _ROLES:
        _record(instance, host, role).unlink(missing_ok=True)


def _run_once(instance: Instance, host: Host) -> int:
    child = os.fork()
    if child == 0:
        # Recorded before it becomes systemd-nspawn, so that a kill at any moment leaves nothing unknown.
        try:
            record_process(_record(instance, host, "nspawn"), os.getpid())
            command = _command(instance, host)
            if "--keep-unit" in command:
                enter_own_cgroup(instance.machine_name(host))
            os.execvp(command[0], command)  # noqa: S606
        except BaseException:
            traceback.print_exc()  # into the host's console.log
        finally:
            os._exit(127)
    while (init := container_init(child)) is None:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    record_process(_record(instance, host, "init"), init)
    # Not by looking again and again: there may be a dozen of these, and the hosts want the processors.
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _command(instance: Instance, host: Host) -> list[str]:
    command = [
        "systemd-nspawn", "--quiet", "--boot",
        f"--directory={root(instance, host)}",
        f"--machine={instance.machine_name(host)}",
        "--register=no",
        f"--network-bridge={instance.bridge}",
        "--resolv-conf=off", "--timezone=off", "--link-journal=no",
        f"--bind={_tun_node(instance)}:/dev/net/tun",
    ]  # fmt: skip
    if not Path("/run/systemd/system").exists():
        command.append("--keep-unit")  # no systemd on this machine that could make a unit
    return command


def _tun_node(instance: Instance) -> Path:
    """A TUN device with the mode that Debian's udev gives it; the machine's own may be 0600 and stays so."""
    node = instance.directory / "tun"
    usual = Path("/dev/net/tun")
    if not usual.exists():
        run(["modprobe", "tun"])
    with contextlib.suppress(FileExistsError):  # the hosts of an instance start at the same time
        os.mknod(node, 0o020666, usual.stat().st_rdev)
    node.chmod(0o666)
    try:
        os.close(os.open(node, os.O_RDWR))
    except OSError:  # a file system mounted with nodev
        return usual
    return node


def _wait_until_port_is_free(instance: Instance, host: Host, timeout_seconds: float = 10) -> None:
    """After a reboot the kernel takes a moment to remove the old end of the cable."""
    port = Path("/sys/class/net", instance.bridge_port(host))
    deadline = time.monotonic() + timeout_seconds
    while port.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    _remove_port(instance, host)


def _remove_port(instance: Instance, host: Host) -> None:
    if Path("/sys/class/net", instance.bridge_port(host)).exists():
        with contextlib.suppress(LabError):  # the kernel was faster
            run(["ip", "link", "delete", instance.bridge_port(host)])
