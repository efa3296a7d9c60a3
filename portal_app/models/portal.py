"""The portals that share this database."""

from datetime import datetime

from sqlalchemy import JSON, String
from sqlalchemy.orm import Mapped, mapped_column

from portal_app.db import Base


class Portal(Base):
    """What one portal host has of what all must have the same: digests by their subject, no secrets."""

    __tablename__ = "portals"
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    seen_at: Mapped[datetime]
    digests: Mapped[dict[str, str]] = mapped_column(JSON)
