"""Users, how they sign in, and their browser sessions."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Float, ForeignKey, Index, LargeBinary, String, text
from sqlalchemy.orm import Mapped, mapped_column

from portal_app.db import Base
from portal_app.names import folded


class User(Base):
    """A person. The way of signing in gives ``name``, the stable identifier, and the permissions."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    permissions: Mapped[list[str]] = mapped_column(JSON, default=list)
    is_disabled: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]
    last_seen_at: Mapped[datetime | None]


# Lists of users: by name and by when they were added, all or only the disabled.
Index("ix_users_name_folded", folded(User.name), User.id)
Index("ix_users_created_at_id", User.created_at, User.id)
Index(
    "ix_users_disabled_name_folded",
    folded(User.name),
    User.id,
    postgresql_where=text("is_disabled"),
    sqlite_where=text("is_disabled = 1"),
)


class LocalAccount(Base):
    """A password kept here. No hash: the account waits for its one-time link."""

    __tablename__ = "local_accounts"
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    password_hash: Mapped[str | None] = mapped_column(String(255))  # argon2id, encoded
    changed_at: Mapped[datetime]


class OneTimeLink(Base):
    """Lets its holder set a password once; stored hashed."""

    __tablename__ = "one_time_links"
    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime]


class BrowserSession(Base):
    """One browser. The cookie holds the token, the row its SHA-256; ``user_id`` is null before sign-in."""

    __tablename__ = "browser_sessions"
    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    data: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[datetime]
    signed_in_at: Mapped[datetime | None]
    last_seen_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Throttle(Base):
    """A token bucket shared by all portals: ``tokens`` left at ``updated_at``; ``bucket`` is kind and key."""

    __tablename__ = "throttles"
    bucket: Mapped[str] = mapped_column(String(300), primary_key=True)
    tokens: Mapped[float] = mapped_column(Float)
    updated_at: Mapped[datetime] = mapped_column(index=True)
