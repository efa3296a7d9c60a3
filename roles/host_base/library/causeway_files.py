#!/usr/bin/python
"""Lay down the files of one purpose in one call."""

DOCUMENTATION = r"""
module: causeway_files
short_description: Lay down directories, files and links of one purpose in one call
description:
  - Each file is written beside and renamed, so a killed run leaves the old or the new one, never half of it.
  - One call for all files of a role, because a task costs more time than writing a file.
  - In check mode nothing is needed on the host, no user and no directory. Its action plugin remembers what
    would change, so that C(causeway_services) can tell what would be restarted for it.
options:
  directories:
    type: list
    elements: dict
    default: []
    description: Made in order.
    suboptions:
      path: {type: path, required: true, description: Its absolute path.}
      owner: {type: str, default: root, description: User.}
      group: {type: str, default: root, description: Group.}
      mode: {type: str, default: "0755", description: Octal mode.}
      only:
        type: list
        elements: str
        description: Names that belong here; every other file in it is removed. Absent means keep all.
      pattern: {type: str, default: "*", description: What C(only) speaks of, a shell pattern.}
  files:
    type: list
    elements: dict
    default: []
    description: Written in order.
    suboptions:
      path: {type: path, required: true, description: Its absolute path.}
      content: {type: str, description: The whole text.}
      encoding:
        type: str
        choices: [utf-8, base64]
        default: utf-8
        description: What C(content) is in; V(base64) is for files that are no text.
      link: {type: str, description: Make a symbolic link to this instead.}
      owner: {type: str, default: root, description: User.}
      group: {type: str, default: root, description: Group.}
      mode: {type: str, default: "0644", description: Octal mode.}
      validate: {type: str, description: A command that must accept the file first; C(%s) is its name.}
  absent:
    type: list
    elements: path
    default: []
    description: Files and links that must not exist.
  secret:
    type: bool
    default: false
    description: Show no content in a difference. Set C(no_log) on the task too.
author: Causeway
"""

EXAMPLES = r"""
- name: Lay down the settings
  causeway_files:
    directories:
      - {path: /etc/causeway, mode: "0755"}
    files:
      - {path: /etc/causeway/a.conf, content: "{{ lookup('ansible.builtin.template', 'a.conf.j2') }}"}
"""

RETURN = r"""
changes:
  description: >-
    What was changed, or would be, by path: C(made), C(changed), C(removed), or for a link where it led and
    leads, such as C(0.1.0 → 0.2.0).
  returned: always
  type: dict
"""

import base64
import fnmatch
import grp
import os
import pwd
import shlex
import shutil
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule

#: How directories begin in which new files are written before they take their place.
BESIDE = ".causeway-"
MADE, CHANGED, REMOVED = "made", "changed", "removed"


class Layer:
    """Brings paths to their wanted state and remembers what differed."""

    def __init__(self, module):
        self.module = module
        self.changes = {}
        self.diff = []

    def note(self, path, change, before, after):
        self.changes.setdefault(path, change)
        if self.module.params["secret"]:
            before, after = (text and "(not shown)\n" for text in (before, after))
            after = after and after + "(changed)\n"
        self.diff.append({"before_header": path, "after_header": path, "before": before, "after": after})

    def identity(self, item):
        """Return the numbers of owner and group; None when they do not exist yet, in check mode."""
        try:
            return pwd.getpwnam(item["owner"]).pw_uid, grp.getgrnam(item["group"]).gr_gid
        except KeyError as error:
            if self.module.check_mode:
                return None
            self.module.fail_json(msg=f"{item['path']}: {error.args[0]}")

    def permissions(self, path, item, known):
        """Set owner and mode of an existing path if they differ."""
        wanted = self.identity(item)
        mode = int(item["mode"], 8)
        if wanted == known[:2] and mode == known[2]:
            return
        text = "owner {} group {} mode {:04o}\n"
        before = text.format(*known)
        self.note(path, CHANGED, before, text.format(*(wanted or (item["owner"], item["group"])), mode))
        if not self.module.check_mode:
            os.chown(path, *wanted)
            os.chmod(path, mode)

    def directory(self, item):
        path = item["path"]
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            self.note(path, MADE, "", "directory\n")
            if not self.module.check_mode:
                # Closed until it has its owner.
                os.makedirs(path, mode=0o700)
                os.chown(path, *self.identity(item))
                os.chmod(path, int(item["mode"], 8))
            return
        if not stat.S_ISDIR(found.st_mode):
            self.module.fail_json(msg=f"{path} is no directory; move it away")
        self.permissions(path, item, (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)))
        if item["only"] is not None:
            for name in sorted(os.listdir(path)):
                if fnmatch.fnmatch(name, item["pattern"]) and name not in item["only"]:
                    self.remove(os.path.join(path, name))

    def file(self, item):
        path, link = item["path"], item["link"]
        if (link is None) == (item["content"] is None):
            self.module.fail_json(msg=f"{path}: needs either content or link")
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if link is not None:
            before = os.readlink(path) if found and stat.S_ISLNK(found.st_mode) else None
            if before != link:
                change = f"{before} → {link}" if before else MADE
                self.note(path, change, f"link to {before}\n" if before else "", f"link to {link}\n")
                if not self.module.check_mode:
                    self.replace(path, lambda beside: os.symlink(link, beside))
            return
        binary = item["encoding"] == "base64"
        wanted = base64.b64decode(item["content"]) if binary else item["content"].encode()
        before = None
        if found and stat.S_ISREG(found.st_mode):
            with open(path, "rb") as file:
                before = file.read()
        if before == wanted:
            self.permissions(path, item, (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)))
            return
        change = MADE if found is None else CHANGED
        if binary:
            self.note(path, change, *(f"{len(text)} bytes\n" for text in (before or b"", wanted)))
        else:
            self.note(path, change, (before or b"").decode(errors="replace"), item["content"])
        if not self.module.check_mode:
            self.replace(path, lambda beside: self.write(beside, wanted, item))

    def write(self, beside, content, item):
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchown(file.fileno(), *self.identity(item))
            os.fchmod(file.fileno(), int(item["mode"], 8))
            os.fsync(file.fileno())
        if item["validate"]:
            command = [word.replace("%s", beside) for word in shlex.split(item["validate"])]
            status, output, error = self.module.run_command(command)
            if status:
                shown = "" if self.module.params["secret"] else ": " + (error or output).strip()
                self.module.fail_json(
                    msg=f"{item['path']} was refused by {command[0]}{shown}", changes=self.changes
                )

    def replace(self, path, make):
        with tempfile.TemporaryDirectory(prefix=BESIDE, dir=os.path.dirname(path)) as directory:
            beside = os.path.join(directory, os.path.basename(path))
            make(beside)
            os.replace(beside, path)

    def tidy(self, directory):
        """Remove what a run that was killed while it replaced a file has left."""
        if not os.path.isdir(directory):
            return
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            if name.startswith(BESIDE) and stat.S_ISDIR(os.lstat(path).st_mode):
                self.note(path, REMOVED, "left by a run that was killed\n", "")
                if not self.module.check_mode:
                    shutil.rmtree(path)

    def remove(self, path):
        if os.path.lexists(path):
            self.note(path, REMOVED, "present\n", "")
            if not self.module.check_mode:
                os.unlink(path)


def main():
    common = {
        "path": {"type": "path", "required": True},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
    }
    directory = common | {
        "mode": {"type": "str", "default": "0755"},
        "only": {"type": "list", "elements": "str"},
        "pattern": {"type": "str", "default": "*"},
    }
    file = common | {
        "mode": {"type": "str", "default": "0644"},
        "content": {"type": "str"},
        "encoding": {"type": "str", "choices": ["utf-8", "base64"], "default": "utf-8"},
        "link": {"type": "str"},
        "validate": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "directories": {"type": "list", "elements": "dict", "default": [], "options": directory},
            "files": {"type": "list", "elements": "dict", "default": [], "options": file},
            "absent": {"type": "list", "elements": "path", "default": []},
            "secret": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    layer = Layer(module)
    places = {item["path"] for item in module.params["directories"]}
    for place in sorted(places | {os.path.dirname(item["path"]) for item in module.params["files"]}):
        layer.tidy(place)
    for item in module.params["directories"]:
        layer.directory(item)
    for item in module.params["files"]:
        layer.file(item)
    for path in module.params["absent"]:
        layer.remove(path)
    module.exit_json(changed=bool(layer.changes), changes=layer.changes, diff=layer.diff)


if __name__ == "__main__":
    main()
