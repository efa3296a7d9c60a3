"""The control machine's half of the module of the same name: it decides and signs."""

from datetime import UTC, datetime
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from vpn_control import foreseen
from vpn_control.authority import Authority, issue, reason_to_issue, serial_number

#: What the host is told; the rest, the authority's key above all, stays here.
_FOR_HOST = ("key", "certificate", "key_type", "owner", "group", "key_mode")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Ask for the public keys, sign what is due, send the certificates."""

    _VALID_ARGS = frozenset({"certificates", "withdrawn"})

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        wanted = self._task.args["certificates"]
        answer = self._on_host([_for_host(item) for item in wanted], task_vars)
        if answer.get("failed"):
            return answer
        now = datetime.now(UTC)
        withdrawn = {int(str(serial), 16) for serial in self._task.args.get("withdrawn") or ()}
        signed, issued = [], {}
        for item, found in zip(wanted, answer["found"], strict=True):
            if serial_number(found["certificate"]) in withdrawn:
                issued[str(item["certificate"])] = "it was withdrawn"
                if self._task.check_mode:
                    continue
                # Whoever has the old certificate may have its key, too.
                again = self._on_host([_for_host(item) | {"new_key": True}], task_vars)
                if again.get("failed"):
                    return again
                found = again["found"][0] | {"certificate": None}
            public_key = found["public_key"]
            authority = Authority(item["authority_certificate"], item["authority_key"])
            reason: str | None = "there is none"
            if public_key is not None:
                reason = reason_to_issue(
                    found["certificate"], public_key, authority.certificate, item["name"], item["use"], now
                )
            if reason is None:
                continue
            issued.setdefault(str(item["certificate"]), reason)
            if public_key is not None and not self._task.check_mode:
                try:
                    content = issue(
                        authority, public_key, item["name"], item["use"], int(item.get("days", 730)), now
                    )
                except ValueError as error:
                    raise AnsibleActionFail(f"{item['certificate']}: {error}") from error
                signed.append(_for_host(item) | {"content": content})
        if signed:
            answer = self._on_host(signed, task_vars)
            if answer.get("failed"):
                return answer
        result |= {"changed": bool(issued), "issued": issued}
        if self._task.check_mode:
            keys = [
                str(i["key"])
                for i, found in zip(wanted, answer["found"], strict=True)
                if not found["public_key"]
            ]
            changes = dict.fromkeys(keys, "made") | {
                path: f"certified: {why}" for path, why in issued.items()
            }
            return foreseen.with_files(result, task_vars, changes)
        return result

    def _on_host(self, items: list[dict[str, Any]], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="causeway_certificates", module_args={"certificates": items}, task_vars=task_vars
        )
        return answer


def _for_host(item: dict[str, Any]) -> dict[str, Any]:
    return {name: item[name] for name in _FOR_HOST if name in item}
