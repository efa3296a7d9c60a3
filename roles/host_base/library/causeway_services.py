#!/usr/bin/python
"""Bring systemd units to what is on disk."""

DOCUMENTATION = r"""
module: causeway_services
short_description: Enable and start units, and restart those that run with older files than those on disk
description:
  - A handler that was notified in a run that was killed is lost. So what a unit runs with is compared with
    what is on disk, in each run, by the times that systemd and the file system keep.
  - A unit is restarted when its own files or anything in C(restart_on) changed after it was started, and
    reloaded when anything in C(reload_on) changed after its last change of state.
  - In check mode its action plugin adds the files that the run would have changed by then, so what is told is
    what a run would do.
options:
  units:
    type: list
    elements: dict
    required: true
    description: Started in order of dependencies by systemd.
    suboptions:
      name: {type: str, required: true, description: With its suffix.}
      restart_on: {type: list, elements: path, default: [], description: What it reads at its start.}
      reload_on: {type: list, elements: path, default: [], description: What a reload makes it read again.}
      reload_while: {type: path, description: Reload in each run as long as this file exists.}
      started: {type: bool, default: true, description: False leaves it to systemd whether the unit runs.}
      enabled: {type: bool, default: true, description: Start it at boot.}
  absent:
    type: str
    description: >-
      Shell pattern of units that are stopped and disabled unless they are in C(units), such as
      C(openvpn-server@*.service).
  before_restart:
    type: path
    description: >-
      Program that runs once before any unit is restarted, such as one that lets another host take over. Its
      failure ends the run with nothing restarted. A program that is not there (yet) is left out.
  wait_seconds:
    type: int
    default: 60
    description: How long units may take to become active.
  foreseen:
    type: list
    elements: path
    default: []
    description: Files that a run would have changed; the action plugin fills it in.
author: Causeway
"""

EXAMPLES = r"""
- name: Run the portal
  causeway_services:
    units:
      - name: vpn-portal.service
        restart_on: [/etc/causeway/portal/settings.toml]
"""

RETURN = r"""
done:
  description: What was done, or would be, such as C(restart vpn-portal.service).
  returned: always
  type: list
  elements: str
units:
  description: >-
    By name of a unit, what was done or would be (C(verb)), and the files that are the reason (C(because)).
  returned: always
  type: dict
"""

import datetime
import os
import re
import time

from ansible.module_utils.basic import AnsibleModule

UNITS = "/etc/systemd/system"
PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,Result,UnitFileState,FragmentPath,DropInPaths,"
    "ActiveEnterTimestamp,StateChangeTimestamp,ConditionResult,ConditionTimestamp,Type"
)


class Systemd:
    """The manager, asked and told through systemctl."""

    def __init__(self, module):
        self.module = module
        self.done = []
        self.units = {}
        self.refusals = []

    def run(self, *words, check=True):
        status, output, error = self.module.run_command(["systemctl", "--no-ask-password", *words])
        if status and check:
            self.module.fail_json(
                msg=f"systemctl {' '.join(words)}: {error.strip() or output.strip()}", done=self.done
            )
        return status, output, error

    def do(self, verb, because_of):
        """Do it to the units that are the keys; the values are the files that are the reason."""
        if names := list(because_of):
            self.done += [f"{verb} {name}" for name in names]
            self.units |= {name: {"verb": verb, "because": because_of[name]} for name in names}
            if not self.module.check_mode:
                status, _, error = self.run(verb, *names, check=False)
                if status:
                    self.refusals.append(error.strip())

    def prepare(self, program):
        """Run the program that comes before a restart, where there is one."""
        if not program or not os.path.exists(program):
            return
        self.done.append(program)
        if not self.module.check_mode:
            status, output, error = self.module.run_command([program])
            if status:
                self.module.fail_json(msg=f"{program}: {error.strip() or output.strip()}", done=self.done)

    def is_outdated(self):
        """Tell whether a unit file changed since they were read. NeedDaemonReload misses a first drop-in."""
        _, output, _ = self.run("show", "--property=UnitsLoadTimestamp", "--timestamp=us+utc")
        return newest([UNITS]) > seconds(output.strip().partition("=")[2])

    def show(self, names):
        _, output, _ = self.run("show", f"--property={PROPERTIES}", "--timestamp=us+utc", "--", *names)
        return [
            dict(line.split("=", 1) for line in block.splitlines())
            for block in output.strip("\n").split("\n\n")
        ]


def seconds(timestamp):
    """Return what systemd prints, such as ``Sun 2026-11-22 22:58:00.123456 UTC``, in seconds since 1970."""
    try:
        moment = datetime.datetime.strptime(timestamp.replace("UTC", "+0000"), "%a %Y-%m-%d %H:%M:%S.%f %z")
    except ValueError:
        return 0.0
    return moment.timestamp()


def newest(paths):
    """Return when the newest of these, and of what is in them, changed: seconds since 1970."""
    found = 0.0
    for path in paths:
        entries = [path]
        for top, directories, files in os.walk(path):
            entries += [os.path.join(top, name) for name in directories + files]
        for entry in entries:
            try:
                found = max(found, os.lstat(entry).st_ctime, os.stat(entry).st_ctime)
            except OSError:
                continue
    return found


def verb_for(unit, shown, foreseen):
    """Return start, restart, reload or None, and the files that are the reason."""
    if shown["ActiveState"] not in ("active", "reloading"):
        # Started before and refused by a condition of its own, such as a clock in a container.
        refused = shown["ConditionResult"] == "no" and shown["ConditionTimestamp"]
        return (None if refused else "start"), []
    own_files = [path for path in (shown["FragmentPath"], *shown["DropInPaths"].split()) if path]
    started, changed = seconds(shown["ActiveEnterTimestamp"]), seconds(shown["StateChangeTimestamp"])
    because = [path for path in own_files + unit["restart_on"] if newest([path]) > started]
    because += touched(own_places(unit["name"]) + own_files + unit["restart_on"], foreseen)
    if because:
        return "restart", sorted(set(because))
    because = [path for path in unit["reload_on"] if newest([path]) > changed]
    because += touched(unit["reload_on"], foreseen)
    if unit["reload_while"] and os.path.lexists(unit["reload_while"]):
        because.append(unit["reload_while"])
    return ("reload", sorted(set(because))) if because else (None, [])


def own_places(name):
    """Return where a unit's own files are made, also those that systemd does not know yet."""
    template = re.sub("@.*[.]", "@.", name)
    return [f"{UNITS}/{name}", f"{UNITS}/{name}.d", f"{UNITS}/{template}.d"]


def touched(paths, foreseen):
    """Return what of ``foreseen`` is one of these paths or in one of them."""
    return [file for file in foreseen for path in paths if file == path or file.startswith(path + "/")]


def ended(shown):
    """Tell whether a unit that should stay is gone. A oneshot may end, a condition may refuse."""
    return (
        shown["ActiveState"] == "inactive" and shown["Type"] != "oneshot" and shown["ConditionResult"] != "no"
    )


def wait(systemd, names, wait_seconds):
    """Wait until every unit is active; fail with the first that is not."""
    deadline = time.monotonic() + wait_seconds
    while True:
        shown = systemd.show(names)
        pending = [s for s in shown if s["ActiveState"] in ("activating", "reloading", "deactivating")]
        failed = [s for s in shown if s["ActiveState"] == "failed" or ended(s)]
        # A unit that systemd restarts on failure passes through "activating (auto-restart)" again and again.
        crashed = [s for s in pending if s["SubState"].startswith("auto-restart")]
        if failed or crashed or time.monotonic() > deadline:
            bad = (failed or crashed or pending)[0]
            systemd.module.fail_json(
                msg=f"{bad['Id']} is {bad['ActiveState']} ({bad['SubState']}, result {bad['Result']});"
                f" see: journalctl -u {bad['Id']}",
                done=systemd.done,
            )
        if not pending:
            return
        time.sleep(0.1)


def superfluous(systemd, pattern, wanted):
    """Return the units of a pattern that run or are enabled and are not wanted."""
    # Without --all, which also names units that are only mentioned in the file of another one.
    _, listed, _ = systemd.run("list-units", "--plain", "--no-legend", "--full", pattern)
    _, files, _ = systemd.run(
        "list-unit-files", "--plain", "--no-legend", "--full", "--state=enabled", pattern, check=False
    )
    names = {line.split()[0] for line in (listed + files).splitlines() if line.split()}
    return sorted(name for name in names - set(wanted) if "@." not in name)


def main():
    unit = {
        "name": {"type": "str", "required": True},
        "restart_on": {"type": "list", "elements": "path", "default": []},
        "reload_on": {"type": "list", "elements": "path", "default": []},
        "reload_while": {"type": "path"},
        "started": {"type": "bool", "default": True},
        "enabled": {"type": "bool", "default": True},
    }
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "dict", "required": True, "options": unit},
            "absent": {"type": "str"},
            "before_restart": {"type": "path"},
            "foreseen": {"type": "list", "elements": "path", "default": []},
            "wait_seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    systemd = Systemd(module)
    units = {item["name"]: item for item in module.params["units"]}
    if module.params["absent"]:
        gone = {name: [] for name in superfluous(systemd, module.params["absent"], units)}
        systemd.do("disable", gone)
        systemd.do("stop", gone)
        if gone and not module.check_mode:
            systemd.run("reset-failed", *gone, check=False)
    if units:
        bring_up(systemd, units, module.params["wait_seconds"])
    module.exit_json(changed=bool(systemd.done), done=systemd.done, units=systemd.units)


def bring_up(systemd, units, wait_seconds):
    names = list(units)
    shown = dict(zip(names, systemd.show(names), strict=True))
    missing = [name for name in names if shown[name]["LoadState"] == "not-found"]
    if not systemd.module.check_mode and systemd.is_outdated():
        systemd.run("daemon-reload")
        shown = dict(zip(names, systemd.show(names), strict=True))
        missing = [name for name in names if shown[name]["LoadState"] == "not-found"]
        if missing:
            systemd.module.fail_json(msg=f"{missing[0]}: there is no such unit")
    verbs, because = {}, {}
    foreseen = systemd.module.params["foreseen"]
    for name in names:
        verbs[name], because[name] = (
            ("start", []) if name in missing else verb_for(units[name], shown[name], foreseen)
        )
        if verbs[name] == "start" and not units[name]["started"]:
            verbs[name] = None
    to_enable = {
        n: []
        for n in names
        if units[n]["enabled"]
        and shown[n]["UnitFileState"] in ("disabled", "indirect", "")
        and n not in missing
    }
    systemd.do("enable", to_enable)
    if "restart" in verbs.values():
        systemd.prepare(systemd.module.params["before_restart"])
    for verb in ("start", "restart", "reload"):
        systemd.do(verb, {name: because[name] for name in names if verbs[name] == verb})
    acted = [name for name in names if verbs[name]]
    if acted and not systemd.module.check_mode:
        wait(systemd, acted, wait_seconds)
        # All of them run, and yet something was not done: a unit may refuse to be restarted by hand.
        if systemd.refusals:
            systemd.module.fail_json(msg="; ".join(systemd.refusals), done=systemd.done)


if __name__ == "__main__":
    main()
