"""In check mode, remembers what the module of the same name would have changed."""

from typing import Any

from ansible.plugins.action import ActionBase

from vpn_control import foreseen


class ActionModule(ActionBase):  # type: ignore[misc]
    """Run the module on the host."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result |= self._execute_module(task_vars=task_vars)
        if self._task.check_mode:
            return foreseen.with_files(result, task_vars, result.get("changes", {}))
        return result
