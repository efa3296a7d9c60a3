#!/usr/bin/python
"""Keys that are born on this host, and their certificates."""

DOCUMENTATION = r"""
module: causeway_certificates
short_description: Keys that are born on a host, with certificates that the control machine signs
description:
  - A private key is made on the host and stays there. Its public key goes to the control machine, which
    decides whether a new certificate is needed, signs it and sends it back. The authority's key never
    reaches the host.
  - A certificate is made anew when it is missing, has another name, key, use or authority, or a third of its
    life left. One that was withdrawn is made anew with another key.
options:
  certificates:
    type: list
    elements: dict
    required: true
    description: One entry per key.
    suboptions:
      key: {type: path, required: true, description: File of the private key.}
      certificate: {type: path, required: true, description: File of the certificate.}
      key_type: {type: str, default: ed25519, choices: [ed25519, ecdsa], description: Kind of the key.}
      owner: {type: str, default: root, description: Owner of both files.}
      group: {type: str, default: root, description: Group of both files.}
      key_mode: {type: str, default: "0600", description: Octal mode of the key.}
      name: {type: str, required: true, description: DNS name or address in the certificate.}
      use: {type: str, required: true, choices: [server, client], description: Extended key usage.}
      days: {type: int, default: 730, description: Life of the certificate.}
      authority_certificate: {type: str, required: true, description: The CA in PEM.}
      authority_key: {type: str, required: true, description: Its key in PEM. Stays on the control machine.}
  withdrawn:
    type: list
    elements: str
    default: []
    description: Serial numbers, in hex, of certificates that count no more. Used on the control machine.
author: Causeway
"""

EXAMPLES = r"""
- name: Certify the agent's key
  causeway_certificates:
    certificates:
      - key: /etc/causeway/node/agent.key
        certificate: /etc/causeway/node/agent.crt
        name: node-1
        use: server
        authority_certificate: "{{ vault_management_ca_certificate }}"
        authority_key: "{{ vault_management_ca_key }}"
  no_log: true
"""

RETURN = r"""
issued:
  description: File of each new certificate and why it was made.
  returned: always
  type: dict
"""

import grp
import os
import pwd
import tempfile

from ansible.module_utils.basic import AnsibleModule

KINDS = {
    "ed25519": ["-algorithm", "ed25519"],
    "ecdsa": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
}


def write(path, content, owner, group, mode):
    descriptor, beside = tempfile.mkstemp(prefix=".causeway-", dir=os.path.dirname(path))
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
            file.flush()
            os.fchown(file.fileno(), pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return None


def main():
    entry = {
        "key": {"type": "path", "required": True, "no_log": False},
        "certificate": {"type": "path", "required": True},
        "key_type": {"type": "str", "default": "ed25519", "choices": list(KINDS), "no_log": False},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "key_mode": {"type": "str", "default": "0600", "no_log": False},
        "content": {"type": "str"},
        "new_key": {"type": "bool", "default": False, "no_log": False},
    }
    module = AnsibleModule(
        argument_spec={
            "certificates": {"type": "list", "elements": "dict", "required": True, "options": entry}
        },
        supports_check_mode=True,
    )
    found, changed = [], False
    for item in module.params["certificates"]:
        key = None if item["new_key"] else read(item["key"])
        if key is None:
            changed = True
            if module.check_mode:
                found.append({"public_key": None, "certificate": None})
                continue
            _, key, _ = module.run_command(["openssl", "genpkey", *KINDS[item["key_type"]]], check_rc=True)
            write(item["key"], key, item["owner"], item["group"], int(item["key_mode"], 8))
        if item["content"] is not None:
            changed = True
            write(item["certificate"], item["content"], item["owner"], item["group"], 0o644)
        _, public_key, _ = module.run_command(
            ["openssl", "pkey", "-pubout", "-in", item["key"]], check_rc=True
        )
        found.append({"public_key": public_key, "certificate": read(item["certificate"])})
    module.exit_json(changed=changed, found=found)


if __name__ == "__main__":
    main()
