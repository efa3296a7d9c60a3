"""What is secret in a deployment, and where it must not be read (S2, S3, S4)."""

from tests.e2e.hosts import Deployment, Host

#: What a host writes about what it does, from a time on in seconds since 1970.
_LOGS = """
journalctl --no-pager -o cat --since @{since}
cat /var/log/nginx/*.log /var/log/postgresql/*.log 2>/dev/null
true
"""
_PROCESSES = "ps -eo args; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"
_KEYS = """
cat /etc/causeway/node/*.key /etc/wireguard/*.key /etc/causeway/portal/secrets/*.key 2>/dev/null
cat /etc/causeway/tls/*.key /etc/causeway/tls/*/privkey.pem 2>/dev/null
true
"""


def secrets_of(deployment: Deployment) -> set[str]:
    """Return the vault's values, the accounts' passwords and the hosts' keys; of files each secret line."""
    found = set(deployment.passwords.values())
    for host in managed(deployment):
        variables = {n: v for n, v in deployment.variables(host.name).items() if n.startswith("vault_")}
        # The file of an elliptic curve key holds the public key too, which certificates show.
        public = "".join(v.replace("\n", "") for n, v in variables.items() if n.endswith("_certificate"))
        for name, value in variables.items():
            if not name.endswith("_certificate"):
                found |= {line for line in _lines(value) if line not in public}
        found |= {line for line in _lines(host.output(_KEYS)) if line not in public}
    assert len(found) > 8, "the vault's secrets were not found, so the search would prove nothing"
    return found


def managed(deployment: Deployment) -> list[Host]:
    """Return the hosts that playbooks deploy to."""
    groups = ("portals", "nodes", "databases")
    return list({host.name: host for group in groups for host in deployment.hosts(group)}.values())


def disclosed(secrets: set[str], *hosts: Host, since: float = 0) -> list[str]:
    """Return what hosts show in logs and in their lists of processes, by its first letters."""
    return [
        f"{host.name} shows {secret[:4]}… in {place}"
        for host in hosts
        for place, command in (("its logs", _LOGS.format(since=int(since))), ("its processes", _PROCESSES))
        for text in (host.output(command),)
        for secret in secrets
        if secret in text
    ]


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if len(line) > 20 and "-----" not in line]
