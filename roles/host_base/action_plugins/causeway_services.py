"""In check mode, tells the module of the same name which files a run would have changed by now."""

from typing import Any

from ansible.plugins.action import ActionBase

from vpn_control import foreseen


class ActionModule(ActionBase):  # type: ignore[misc]
    """Run the module on the host."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        if not self._task.check_mode:
            return result | self._execute_module(task_vars=task_vars)
        arguments = {**self._task.args, "foreseen": foreseen.files(task_vars)}
        result |= self._execute_module(module_args=arguments, task_vars=task_vars)
        return foreseen.with_statistics(result, {"causeway_units": result.get("units", {})})
