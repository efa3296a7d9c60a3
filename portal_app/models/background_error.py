"""What failed in the background."""

from datetime import datetime

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from portal_app.db import Base


class BackgroundError(Base):
    """One kind of fault: ``key`` is where it happened and its exception's type. ``host`` is the portal that
    met it last. ``message`` never has an exception's own text, which could quote what users sent.
    """

    __tablename__ = "background_errors"
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    part: Mapped[str] = mapped_column(String(60))
    message: Mapped[str] = mapped_column(Text)
    host: Mapped[str] = mapped_column(String(255))
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime] = mapped_column(index=True)
    count: Mapped[int]
