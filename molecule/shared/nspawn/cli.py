"""The command line of the lab."""

import argparse
import contextlib
import functools
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from nspawn import access, host, image, network
from nspawn.machine import LabError, install_missing_packages, locked, require_root, say
from nspawn.topology import (
    PROJECT,
    RELEASES,
    Host,
    Instance,
    known_instances,
    load_instance,
    make_instance,
    numbers_elsewhere,
    owned_numbers,
    read_topology,
)

T = TypeVar("T")


def up(options: argparse.Namespace) -> None:
    """Boot every host of a topology that is not running, with its network."""
    require_root()
    install_missing_packages()
    _retire_namesakes(options.name, options.topology)
    instance = make_instance(options.name, options.topology, options.release)
    hosts = instance.topology.hosts
    access.make_keys(instance)
    network.bring_up(instance)
    access.write_inventory(instance)
    say(f"{instance.name}: bridge {instance.bridge}, {instance.ipv4}, {instance.ipv6}")
    if not all(host.root(instance, one).exists() for one in hosts):
        with image.base_image(instance.release) as base:
            created = [host.create(instance, one, base) for one in hosts]
            say(f"created {_names(hosts, created)} from the base image of {instance.release}")
    started = _each(hosts, lambda one: host.power_on(instance, one))
    if any(started):
        say(f"booting {_names(hosts, started)}")
    states = _each(hosts, lambda one: host.wait_until_booted(instance, one))
    for one, state in zip(hosts, states, strict=True):
        say(f"{one.name} is {state} at {instance.host_ipv4(one)}: {', '.join(one.groups)}")


def _retire_namesakes(name: str, topology_name: str) -> None:
    """An instance of the same name in another checkout has the same host names, so one of the two can be up.

    What a crash or a deleted checkout left of it goes, so that its names do not point nowhere; one that
    is up stays. The lock on the name is held, so nobody is bringing one up just now.
    """
    for number, project in numbers_elsewhere(name).items():
        other = Instance(name, read_topology(topology_name), "", number)
        if host.any_runs(other) and project.exists():
            raise LabError(
                f"{name} is up in {project} with the same host names: make lab-down there, or NAME=... here"
            )
        _remove_from_machine(other)
        say(f"removed what was left of {name} in {project}")


def down(options: argparse.Namespace) -> None:
    """Remove an instance and everything it left on this machine."""
    require_root()
    for name in known_instances() if options.all else [options.name]:
        with locked(f"instance-{name}"):
            _down(name, options.topology)


def _down(name: str, topology_name: str) -> None:
    known = load_instance(name)
    numbers = owned_numbers(name)
    for number in numbers:
        # Without known its .lab was deleted: the processes are still to be found by the topology's hosts.
        topology = known.topology if known else read_topology(topology_name)
        instance = Instance(name, topology, known.release if known else "", number)
        for one in topology.hosts:
            if known and host.root(instance, one).exists():
                image.keep_packages(instance.release, host.root(instance, one))
        _remove_from_machine(instance)
        _each(topology.hosts, functools.partial(host.remove, instance))
    directory = PROJECT / ".lab" / name
    if directory.exists():
        shutil.rmtree(directory)
        with contextlib.suppress(OSError):
            directory.parent.rmdir()  # the last one
    say(f"{name} is gone" if numbers or known else f"{name}: there was nothing")


def _remove_from_machine(instance: Instance) -> None:
    """End the hosts and remove all that is outside of the checkout."""
    access.close_connections(instance.number)
    _each(instance.topology.hosts, functools.partial(host.power_off, instance))
    network.take_down(instance.number, instance.bridge, instance.nft_table)
    shutil.rmtree(instance.runtime)


def finish(options: argparse.Namespace) -> None:
    """After deploying: keep downloaded packages, fetch the portal's CA, create the accounts."""
    require_root()
    instance = _existing(options.name)
    roots = [host.root(instance, one) for one in instance.topology.hosts]
    kept = sum(image.keep_packages(instance.release, root) for root in roots)
    if kept:
        say(f"kept {kept} downloaded packages for the next hosts")
    access.remember_profiles(instance)
    access.fetch_portal_ca(instance)
    access.create_accounts(instance)


def info(options: argparse.Namespace) -> None:
    """Print the JSON object that scripts rely on."""
    instance = _existing(options.name)
    pids = {one.name: host.init_pid(instance, one) for one in instance.topology.hosts}
    print(json.dumps(access.info(instance, pids), indent=2))


def banner(options: argparse.Namespace) -> None:
    """Say where the portal is, how to log in and what to do next."""
    print(access.banner(_existing(options.name)))


def restart(options: argparse.Namespace) -> None:
    """Shut a host down in order and boot it again."""
    instance = _existing(options.name)
    one = instance.host(options.host)
    host.shut_down(instance, one)
    say(f"{one.name} is off")
    _power_on(instance, one)


def power_on(options: argparse.Namespace) -> None:
    """Boot a host that is off."""
    instance = _existing(options.name)
    _power_on(instance, instance.host(options.host))


def power_off(options: argparse.Namespace) -> None:
    """Cut a host's power: process 1 is killed, nothing is written any more."""
    instance = _existing(options.name)
    one = instance.host(options.host)
    host.power_off(instance, one)
    say(f"{one.name} is off")


def reinstall(options: argparse.Namespace) -> None:
    """Cut a host's power, give it a new disk with a fresh Debian, and boot it."""
    instance = _existing(options.name)
    one = instance.host(options.host)
    host.power_off(instance, one)
    image.keep_packages(instance.release, host.root(instance, one))
    host.remove(instance, one)
    with image.base_image(instance.release) as base:
        host.create(instance, one, base)
    _power_on(instance, one)


def supervise(options: argparse.Namespace) -> None:
    """Run a host and start it again when it reboots. Started by the lab itself."""
    instance = _existing(options.name)
    host.supervise(instance, instance.host(options.host))


def _power_on(instance: Instance, one: Host) -> None:
    host.power_on(instance, one)
    say(f"{one.name} is {host.wait_until_booted(instance, one)} at {instance.host_ipv4(one)}")


def _existing(name: str) -> Instance:
    instance = load_instance(name)
    if instance is None or instance.number not in owned_numbers(name):
        raise LabError(f"{name} is not up: make lab TOPOLOGY={name}")
    return instance


def _each(hosts: Sequence[Host], act: Callable[[Host], T]) -> list[T]:
    with ThreadPoolExecutor(max_workers=max(4, len(hosts))) as threads:
        return list(threads.map(act, hosts))


def _names(hosts: Sequence[Host], chosen: Sequence[bool]) -> str:
    return ", ".join(one.name for one, wanted in zip(hosts, chosen, strict=True) if wanted) or "nothing"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab.py", description="Real Debian hosts on one machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    instance = argparse.ArgumentParser(add_help=False)
    instance.add_argument("--topology", default="single_host", help="a folder of molecule/ (%(default)s)")
    instance.add_argument("--name", help="what to call this copy of it (default: the topology's name)")
    on_one_host = (restart, power_on, power_off, reinstall, supervise)
    for function in (up, finish, info, banner, down, *on_one_host):
        name, text = function.__name__.replace("_", "-"), function.__doc__ or ""
        command = commands.add_parser(name, help=text.splitlines()[0], description=text, parents=[instance])
        command.set_defaults(function=function, locks=function not in (info, banner, supervise, down))
        if function in on_one_host:
            command.add_argument("host")
        if function is up:
            command.add_argument("--release", choices=RELEASES, help=f"of Debian (default: {RELEASES[0]})")
        if function is down:
            command.add_argument("--all", action="store_true", help="every instance of this checkout")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    options.name = options.name or options.topology
    try:
        if not options.locks:
            options.function(options)
        else:
            require_root()
            with locked(f"instance-{options.name}"):
                options.function(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0
