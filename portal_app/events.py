"""Log lines: one event each, ``event=connect user=alice connection=… node=1``, never a secret.

A value with a space, a quote or a control character is written as a JSON string, so no value can forge a
line or a key.
"""

import json
import logging
import re
from datetime import datetime

logger = logging.getLogger("portal_app.events")

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+,%#~\[\]()-]+")


def line(event: str, **ids: object) -> str:
    """Return one log line; a value that is None is left out.

    >>> line("sign_in", user="eve\\nevent=root", node=1, source=None)
    'event=sign_in user="eve\\\\nevent=root" node=1'
    """
    found = [f"event={_value(event)}"]
    found += [f"{key}={_value(value)}" for key, value in ids.items() if value is not None]
    return " ".join(found)


def log(event: str, *, level: int = logging.INFO, **ids: object) -> None:
    logger.log(level, "%s", line(event, **ids))


def _value(value: object) -> str:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
