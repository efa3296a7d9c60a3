"""Says at the end of a run in check mode, in human terms, what a deployment would do."""

DOCUMENTATION = r"""
name: causeway_summary
type: aggregate
short_description: What a deployment would do, at the end of a run in check mode
description:
  - Collects what tasks hand over with C(ansible.builtin.set_stats), and which hosts could not be asked.
  - A run that changes something says nothing here.
requirements:
  - Enabled in C(ansible.cfg).
options:
  record:
    description: Write what was collected to this file, as JSON, and print nothing. For C(make plan).
    type: path
    env:
      - name: CAUSEWAY_SUMMARY_RECORD
author: Causeway
"""

import json
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase

from vpn_control import report, summary

_PREFIX = "causeway_"


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Remembers what went wrong, and what changed without a word of its own."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "causeway_summary"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._hosts: dict[str, dict[str, Any]] = {}

    def v2_runner_on_ok(self, result: Any) -> None:
        if result.is_changed():
            self._of(result).setdefault("tasks", []).append(result.task.get_name())

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._of(result)["unreachable"] = str(result.result.get("msg", "")).strip()

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if ignore_errors:
            return
        said = result.result
        messages = said["msg"] if isinstance(said.get("msg"), list) else [str(said.get("msg", "")).strip()]
        # A command's message is its exit status; what it said stands beside.
        self._of(result)["failed"] = messages + str(said.get("stderr", "")).strip().splitlines()[-1:]

    def v2_playbook_on_stats(self, stats: Any) -> None:
        if not context.CLIARGS.get("check"):
            return
        for name in stats.processed:
            collected = stats.custom.get(name, {})
            self._hosts.setdefault(name, {}).update(
                {
                    key.removeprefix(_PREFIX): value
                    for key, value in collected.items()
                    if key.startswith(_PREFIX)
                }
            )
        run = stats.custom.get("_run", {})
        record = json.loads(
            json.dumps(
                {
                    "plan": run.get("causeway_plan"),
                    "portals": run.get("causeway_portals", []),
                    "hosts": self._hosts,
                }
            )
        )
        if file := self.get_option("record"):
            Path(file).write_text(json.dumps(record))
        elif record["plan"] is not None:
            self._display.banner("SUMMARY")
            self._display.display("\n".join(report.lines(summary.make(record))))

    def _of(self, result: Any) -> dict[str, Any]:
        return self._hosts.setdefault(result.host.get_name(), {})
