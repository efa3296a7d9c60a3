"""When the periodic jobs ran last."""

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from portal_app.db import Base


class PeriodicJob(Base):
    """One job of the controllers. Who moves ``started_at`` runs it: once per interval, whatever portals
    believe.
    """

    __tablename__ = "periodic_jobs"
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    started_at: Mapped[datetime]
