"""The last connect of each user that was refused, with what was decided: for administrators."""

import logging
from datetime import datetime, timedelta

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from portal_app.db import is_postgresql, retried, transaction
from portal_app.errors import Forbidden, KeyInUse, NoCapacity, NoCommonProtocol, NotFound, PortalError
from portal_app.models import RefusedConnect

logger = logging.getLogger(__name__)

#: What is noted: decisions about a user who may come in, not outages of ours.
NOTED = (Forbidden, KeyInUse, NoCapacity, NoCommonProtocol, NotFound)
#: An app that asks again and again is noted this often.
EVERY = timedelta(seconds=5)
_LONGEST_ANSWER, LONGEST_WHY = 255, 1000


def note(user_id: int, device: str, profile_id: str, error: PortalError, *, now: datetime) -> None:
    """Remember a refusal, its reasons being the notes of the error (PEP 678). Never fails: the answer to the
    app is what counts.
    """
    why = "; ".join(getattr(error, "__notes__", ()))
    row = {
        "user_id": user_id,
        "at": now,
        "device": device[:64],
        "profile_id": profile_id[:60],
        "answer": str(error)[:_LONGEST_ANSWER],
        "why": why[:LONGEST_WHY] or None,
    }
    try:
        _store(row, unless_since=now - EVERY)
    except (PortalError, SQLAlchemyError) as failure:
        logger.warning("a refused connect was not noted: %s", type(failure).__name__)


@retried
def _store(row: dict[str, object], *, unless_since: datetime) -> None:
    with transaction() as db:
        insert = postgresql.insert if is_postgresql(db) else sqlite.insert
        stored = insert(RefusedConnect).values(row)
        db.execute(
            stored.on_conflict_do_update(
                index_elements=["user_id"], set_=row, where=RefusedConnect.at <= unless_since
            )
        )
