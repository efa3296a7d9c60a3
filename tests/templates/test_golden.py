"""Every template of every role, rendered from a plan, against a golden file.

Rendered by Ansible itself, so an undefined variable is an error here as it is there.
``CAUSEWAY_WRITE_GOLDEN=1`` writes the golden files anew; read the difference before committing it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
GOLDEN = HERE / "golden"
HOSTS = ("one", "two")
ROLES = PROJECT / "roles"
#: Part of another template, or rendered once for each of a list.
PARTS = {"portal/sandbox.j2", "postgresql/postgresql_sandbox.j2", "web_frontend/error.css.j2"}
TEMPLATES = sorted(
    f"{path.parents[1].name}/{path.name}"
    for path in ROLES.glob("*/templates/*.j2")
    if f"{path.parents[1].name}/{path.name}" not in PARTS
)
#: What to render more than once for: processes, of which the first is UDP, the second TCP; errors.
EACH = {
    "openvpn/server.conf.j2": (0, 1),
    "web_frontend/error.html.j2": (429, 503),
    "web_frontend/error.json.j2": (429, 503),
}


def outputs(template: str) -> list[tuple[str, int]]:
    """Return the name of each file that a template makes, and what it is for."""
    name = template.replace("/", "-").removesuffix(".j2")
    each = EACH.get(template)
    return [(f"{name}.{one}", one) for one in each] if each else [(name, 0)]


def play() -> dict[str, object]:
    """A play that renders everything with what the playbooks hand to the roles."""
    order = [PROJECT / "playbooks/group_vars/all/plan.yml"]
    order += sorted(ROLES.glob("*/defaults/main.yml")) + sorted(ROLES.glob("*/vars/main.yml"))
    order += [PROJECT / "playbooks/group_vars/all/roles.yml", HERE / "inventory/group_vars/all/vpn.yml"]
    items = [
        {"src": str(ROLES / template.replace("/", "/templates/")), "name": name, "one": one}
        for template in TEMPLATES
        for name, one in outputs(template)
    ]
    template = {
        "src": "{{ item.src }}",
        "dest": "{{ output }}/{{ inventory_hostname }}/{{ item.name }}",
        "mode": "0644",
    }
    return {
        "name": "Render every template",
        "hosts": list(HOSTS),
        "gather_facts": False,
        "vars_files": [str(path) for path in order],
        "tasks": [
            {
                "name": "Render",
                "ansible.builtin.template": template,
                "loop": items,
                "vars": {
                    "process": "{{ vpn_node_plan.openvpn[item.one] }}",
                    "status": "{{ item.one | string }}",
                },
            }
        ],
    }


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("rendered")
    for host in HOSTS:
        (output / host).mkdir()
    playbook = output / "render.yml"
    playbook.write_text(json.dumps([play()]))
    extra = {
        "output": str(output),
        "vpn_release": "/opt/causeway/1.0.0-abc",
        "role_path": str(ROLES / "any"),
        "ansible_python_interpreter": sys.executable,
        "vault_tls_crypt_secret": "tls_crypt_secret",
        "vault_portal_secret_key": "5a" * 32,
    }
    ansible = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [ansible, "-i", HERE / "inventory", playbook, "-e", json.dumps(extra)],
        cwd=PROJECT,
        env=os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if os.environ.get("CAUSEWAY_WRITE_GOLDEN"):
        for host in HOSTS:
            shutil.rmtree(GOLDEN / host, ignore_errors=True)
            shutil.copytree(output / host, GOLDEN / host)
    return output


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_template_is_rendered_as_agreed(template: str, host: str, rendered: Path) -> None:
    for name, _one in outputs(template):
        assert (rendered / host / name).read_text() == (GOLDEN / host / name).read_text()


@pytest.mark.parametrize("host", HOSTS)
def test_every_golden_file_has_a_template(host: str) -> None:
    expected = {name for template in TEMPLATES for name, _one in outputs(template)}

    assert {path.name for path in (GOLDEN / host).iterdir()} == expected
