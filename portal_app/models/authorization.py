"""A user's consent for one app, with its codes and tokens. Codes and tokens are stored as SHA-256 only."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, LargeBinary, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from portal_app.db import Base


class Authorization(Base):
    """``expires_at`` is fixed at consent. Codes and tokens go with the row, connections by the service."""

    __tablename__ = "authorizations"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    client_id: Mapped[str] = mapped_column(String(255))
    scope: Mapped[str] = mapped_column(String(255))
    authorized_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    last_used_at: Mapped[datetime | None]


class AuthorizationCode(Base):
    """Kept after its use as long as the authorization lives, so that a second use is noticed."""

    __tablename__ = "authorization_codes"
    code_hash: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    authorization_id: Mapped[int] = mapped_column(
        ForeignKey("authorizations.id", ondelete="CASCADE"), index=True
    )
    redirect_uri: Mapped[str] = mapped_column(Text)
    code_challenge: Mapped[str] = mapped_column(String(43))
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class AccessToken(Base):
    __tablename__ = "access_tokens"
    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    authorization_id: Mapped[int] = mapped_column(
        ForeignKey("authorizations.id", ondelete="CASCADE"), index=True
    )
    expires_at: Mapped[datetime] = mapped_column(index=True)


class RefreshToken(Base):
    """One link of an authorization's chain; ``used_at`` is set when it was redeemed or died unused.

    At most one link of a chain is alive. A link has two successors only by the grace rule (design.md,
    "Tokens").
    """

    __tablename__ = "refresh_tokens"
    __table_args__ = (
        Index(
            "uq_refresh_tokens_living",
            "authorization_id",
            unique=True,
            postgresql_where=text("used_at IS NULL"),
            sqlite_where=text("used_at IS NULL"),
        ),
    )
    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    authorization_id: Mapped[int] = mapped_column(
        ForeignKey("authorizations.id", ondelete="CASCADE"), index=True
    )
    parent_hash: Mapped[bytes | None] = mapped_column(LargeBinary(32), index=True)
    issued_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
