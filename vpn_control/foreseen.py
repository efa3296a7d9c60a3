"""What a run in check mode would have changed so far: a fact of each host for the modules that come later,
and a statistic for the summary at the end (``playbooks/callback_plugins/causeway_summary.py``).

Only paths and words about them: the tasks that lay down secrets hide all else.
"""

from collections.abc import Mapping
from typing import Any

_FACT = "causeway_foreseen"


def files(task_vars: Mapping[str, Any] | None) -> list[str]:
    """Return the files that would be there, and be new or different, by now."""
    known: Mapping[str, str] = ((task_vars or {}).get("ansible_facts") or {}).get(_FACT, {})
    return [path for path, change in known.items() if change != "removed"]


def with_files(
    result: Mapping[str, Any], task_vars: Mapping[str, Any] | None, changes: Mapping[str, str]
) -> dict[str, Any]:
    """Return the result of an action with what it would change, by path."""
    if not changes:
        return dict(result)
    before: Mapping[str, str] = ((task_vars or {}).get("ansible_facts") or {}).get(_FACT, {})
    facts = {_FACT: {**before, **changes}}
    return with_statistics({**result, "ansible_facts": facts}, {"causeway_files": dict(changes)})


def with_statistics(result: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result with what ``ansible.builtin.set_stats`` would give its host."""
    return {**result, "ansible_stats": {"data": dict(data), "per_host": True, "aggregate": True}}
