"""Write an environment's secrets into its vault file, once."""

import os
import secrets
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.parsing.vault import VaultLib
from ansible.plugins.action import ActionBase

from vpn_control.authority import make_environment

_HEAD = """---
# Written by playbooks/init_secrets.yml. Keep a copy: without it nothing here can be deployed again.
"""


class ActionModule(ActionBase):  # type: ignore[misc]
    """Write ``dest``, encrypted when Ansible was given a vault password; never touch an existing file."""

    _VALID_ARGS = frozenset({"dest", "portal_ca_dest"})

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        dest, ca_dest = Path(self._task.args["dest"]), Path(self._task.args["portal_ca_dest"])
        if dest.exists():
            return result | {"changed": False, "note": f"{dest} exists and is left as it is"}
        if self._task.check_mode:
            return result | {"changed": True, "note": f"{dest} would be written"}
        values = dict(make_environment())
        values["vault_tls_crypt_secret"] = secrets.token_hex(64)
        values["vault_portal_secret_key"] = secrets.token_hex(32)
        content = _HEAD + "".join(_yaml(name, value) for name, value in values.items())
        vault_secrets = self._loader._vault.secrets
        if vault_secrets:
            content = VaultLib(vault_secrets).encrypt(content).decode()
        dest.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(dest, content.encode(), 0o600)
            _write(ca_dest, values["vault_portal_tls_ca_certificate"].encode(), 0o644)
        except OSError as error:
            raise AnsibleActionFail(f"{error.filename}: {error.strerror}") from error
        note = f"{dest} is encrypted"
        if not vault_secrets:
            note = (
                f"{dest} is NOT encrypted: no vault password was given. Keep it out of version control,"
                f" or encrypt it with: ansible-vault encrypt {dest}"
            )
        return result | {"changed": True, "note": note}


def _yaml(name: str, value: str) -> str:
    """One variable; PEM as a block, so that a person can read the file."""
    lines = value.splitlines()
    return (
        f"{name}: {value}\n" if len(lines) == 1 else f"{name}: |\n" + "".join(f"  {line}\n" for line in lines)
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that nobody else can read before it is complete."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
