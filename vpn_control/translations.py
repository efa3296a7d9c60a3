"""The catalogues of the portal's texts: ``portal_app/translations/<language>.po``.

``python -m vpn_control.translations`` brings them to the state of the sources: new texts come in empty, those
that are used no more go. ``--missing`` prints what waits for a translation, and changes nothing. Needs what
``make setup`` installs.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from babel.messages import Catalog
from babel.messages.catalog import Message
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir
from babel.messages.pofile import read_po, write_po

PROJECT = Path(__file__).resolve().parents[1]
PORTAL = PROJECT / "portal_app"
DIRECTORY = PORTAL / "translations"
#: English is in the sources.
LANGUAGES = ("de", "fr", "nl")
_METHODS = [("**.py", "python"), ("templates/**.html", "jinja2")]
_OPTIONS = {"templates/**.html": {"trimmed": "true", "silent": "false"}}
_KEYWORDS = dict(DEFAULT_KEYWORDS) | {"N_": None, "counted": (1, 2)}
_PLACEHOLDER = re.compile(r"%(?:\((\w+)\)[a-z]|%)")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vpn_control.translations", description=__doc__)
    parser.add_argument("--missing", action="store_true", help="print what is not translated; exit 1 if any")
    options = parser.parse_args(arguments)
    found = texts()
    if options.missing:
        faults = [f"{language}: {fault}" for language in LANGUAGES for fault in check(language, found)]
        print("\n".join(faults))
        return 1 if faults else 0
    for language in LANGUAGES:
        file = DIRECTORY / f"{language}.po"
        file.write_bytes(updated(language, found))
        waiting = len(list(check(language, found)))
        print(f"{file.relative_to(PROJECT)}: {len(found)} texts, {waiting} wait")
    return 0


def texts() -> Catalog:
    """Return every text of the portal that is marked."""
    catalogue = Catalog(fuzzy=False)
    found = extract_from_dir(str(PORTAL), _METHODS, _OPTIONS, keywords=_KEYWORDS)
    for _file, _line, message, _comments, context in sorted(found, key=lambda row: str(row[2])):
        catalogue.add(message, context=context)
    return catalogue


def translated(language: str) -> Catalog:
    file = DIRECTORY / f"{language}.po"
    source = BytesIO(file.read_bytes()) if file.exists() else BytesIO()
    return read_po(source, locale=language)


def updated(language: str, found: Catalog) -> bytes:
    """Return the catalogue with exactly the texts of the sources."""
    catalogue = translated(language)
    catalogue.update(found, no_fuzzy_matching=True)
    written = BytesIO()
    write_po(
        written,
        catalogue,
        width=0,
        no_location=True,
        omit_header=True,
        sort_output=True,
        ignore_obsolete=True,
    )
    return written.getvalue()


def check(language: str, found: Catalog) -> Iterator[str]:
    """Yield what a reader of this language would trip over, text by text."""
    catalogue = translated(language)
    for message in found:
        if not message.id:
            continue
        there = catalogue.get(message.id, message.context)
        if there is None or not all(_strings(there)):
            yield f"not translated: {message.id!r}"
        elif there.fuzzy:
            yield f"only guessed: {message.id!r}"
        elif any(_values(text) - _values(*_ids(message)) for text in _strings(there)):
            yield f"names a value that is not there: {message.id!r}"
        elif any(_values(_ids(message)[-1]) - _values(text) for text in _strings(there)[-1:]):
            yield f"leaves a value out: {message.id!r}"
    known = {message.id for message in found}
    yield from (
        f"used no more: {message.id!r}" for message in catalogue if message.id and message.id not in known
    )


def _ids(message: Message) -> tuple[str, ...]:
    return tuple(message.id) if isinstance(message.id, (tuple, list)) else (message.id,)


def _strings(message: Message) -> tuple[str, ...]:
    return tuple(message.string) if isinstance(message.string, (tuple, list)) else (str(message.string),)


def _values(*texts: str) -> set[str]:
    return {name for text in texts for name in _PLACEHOLDER.findall(text) if name}


if __name__ == "__main__":
    sys.exit(main())
