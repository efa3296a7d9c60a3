"""When the periodic jobs ran last."""

from datetime import datetime

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from portal_app.db import Base


class PeriodicJob(Base):
    """One job of the controllers. Who moves ``started_at`` runs it: once per interval, whatever portals
    believe. ``error`` says why the run that began last failed, at ``failed_at``; a run that ends well clears
    both.
    """

    __tablename__ = "periodic_jobs"
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    started_at: Mapped[datetime]
    failed_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(Text)
