"""Signing in with a local account: one answer for all failures, guessing bounded, nobody locked out.

Three buckets bound guessing from where nobody of this account signed in before: per account and source, per
source, and per account over all sources. Only failures count. Somebody who hammers an account from one
address fills that address's buckets and nobody else's. Somebody who does so from many addresses empties the
account's bucket; its owner still gets in from a browser that they used before, because a *known browser* (a
signed cookie from an earlier sign-in) has a bucket of its own, and anywhere else as soon as the bucket has
a token again, with a one-time link at once.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from portal_app import events
from portal_app.db import retried, transaction
from portal_app.errors import N_, Forbidden, PortalError, TooManyRequests
from portal_app.models import LocalAccount, User
from portal_app.services import audit, browser_sessions, passwords, profiles, throttles, users
from portal_app.services.throttles import Bucket, Limit
from portal_app.settings import Settings

PER_ACCOUNT_AND_SOURCE = Limit("sign-in account source", burst=5, refill_seconds=60)
PER_SOURCE = Limit("sign-in source", burst=30, refill_seconds=10)
#: 100 failures at once, then 1,440 a day: against a password that is not common that is nothing.
PER_ACCOUNT = Limit("sign-in account", burst=100, refill_seconds=60)
PER_KNOWN_BROWSER = Limit("sign-in browser", burst=5, refill_seconds=60)
PER_PASSWORD_CHANGE = Limit("password change", burst=5, refill_seconds=60)
#: Failures of one account that are audit rows; the journal has them all. Names of nobody share one bucket.
AUDITED = Limit("sign-in audit", burst=30, refill_seconds=60)


class WrongPassword(PortalError):
    """Also for a user who does not exist or has no password: the answer is the same."""

    status = 403


@dataclass(frozen=True)
class KnownBrowser:
    """A browser in which a user signed in since the password was set (``password_set_at``, seconds)."""

    user_id: int
    password_set_at: int
    browser_id: str


@dataclass(frozen=True)
class SignedIn:
    token: str
    known_browser: KnownBrowser


def sign_in(
    name: str,
    password: str,
    *,
    source: str | None,
    known_browser: KnownBrowser | None,
    new_browser_id: str,
    old_token: str | None,
    user_agent: str = "",
    settings: Settings,
    now: datetime,
) -> SignedIn:
    """Check a password and begin a browser session; ``old_token``'s ends.

    Raises WrongPassword, TooManyRequests, and Forbidden for a disabled account or one without access.
    """
    name = users.normalized(name)
    with transaction(read_only=True) as db:
        found = users.find_account(db, name)
        known = known_browser if found is not None and _is_known(known_browser, *found) else None
        buckets = _buckets(name, source, known)
        wait = throttles.wait_seconds(db, buckets, now=now)
    # A refusal writes nothing: a flood of tries costs a read each.
    _refuse(name if found else None, source, wait)
    _refuse(name if found else None, source, _take(buckets, now=now))
    password_hash = found[1].password_hash if found is not None else None
    try:
        right = passwords.is_right(password, password_hash)
    except TooManyRequests:
        _give_back(buckets, now=now)
        raise
    if found is None or not right:
        events.log(
            "sign_in_failed", level=logging.WARNING, user=name if found else None, source=source
        )  # what was typed as a name may be a password
        _record_failure(name if found else None, source, now)
        raise WrongPassword(N_("User name or password is wrong."))
    user, account = found
    _check_access(user, settings)
    fresh = passwords.hash_password(password) if passwords.is_outdated(account.password_hash or "") else None
    token = _begin(
        user.id, account.password_hash or "", fresh, buckets,
        old_token=old_token, longest=timedelta(seconds=settings.browser_session_longest_seconds),
        user_agent=user_agent, source=source if settings.log_origins else None, now=now,
    )  # fmt: skip
    events.log("sign_in", user=name, source=source if settings.log_origins else None)
    browser_id = known.browser_id if known is not None else new_browser_id
    return SignedIn(token, KnownBrowser(user.id, _whole_seconds(account.changed_at), browser_id))


@retried
def begin(
    name: str,
    *,
    browser_id: str,
    old_token: str | None,
    user_agent: str = "",
    settings: Settings,
    now: datetime,
) -> SignedIn:
    """Begin a browser session for somebody who just set the password: the one-time link was the proof."""
    with transaction() as db:
        found = users.find_account(db, name)
        if found is None:
            raise WrongPassword(N_("User name or password is wrong."))
        user, account = found
        _check_access(user, settings)
        if old_token is not None:
            browser_sessions.end(db, old_token)
        longest = timedelta(seconds=settings.browser_session_longest_seconds)
        token = browser_sessions.begin(db, user, longest=longest, user_agent=user_agent, now=now)
    return SignedIn(token, KnownBrowser(user.id, _whole_seconds(account.changed_at), browser_id))


def change_password(
    user: User,
    current: str,
    new: str,
    *,
    browser_id: str,
    source: str | None,
    user_agent: str = "",
    settings: Settings,
    now: datetime,
) -> SignedIn:
    """Replace the password of a signed-in user: every session ends, the caller's goes on under a new id.

    Raises WrongPassword for the current one, WeakPassword for the new one, TooManyRequests.
    """
    buckets = [PER_PASSWORD_CHANGE.bucket(str(user.id))]
    passwords.check_new(new, user.name)
    _refuse(user.name, source, _take(buckets, now=now))
    with transaction(read_only=True) as db:
        found = users.find_account(db, user.name)
    if found is None or not passwords.is_right(current, found[1].password_hash):
        raise WrongPassword(N_("The current password is wrong."))
    users.set_password(user.name, new, actor=user.name, source=source, now=now)
    _give_back(buckets, now=now)
    return begin(
        user.name, browser_id=browser_id, old_token=None, user_agent=user_agent, settings=settings, now=now
    )


def _check_access(user: User, settings: Settings) -> None:
    if user.is_disabled:
        raise Forbidden(N_("This account is disabled."))
    if not profiles.meets(settings.access_permissions, user.permissions):
        raise Forbidden(N_("This account may not use this service."))


def _is_known(browser: KnownBrowser | None, user: User, account: LocalAccount) -> bool:
    """A browser is known to one user, and only until the password changes."""
    return (
        browser is not None
        and browser.user_id == user.id
        and browser.password_set_at == _whole_seconds(account.changed_at)
    )


def _buckets(name: str, source: str | None, known: KnownBrowser | None) -> list[Bucket]:
    if known is not None:
        return [PER_KNOWN_BROWSER.bucket(known.browser_id)]
    account = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:32]
    network = throttles.network(source)
    return [
        PER_ACCOUNT_AND_SOURCE.bucket(f"{account} {network}"),
        PER_SOURCE.bucket(network),
        PER_ACCOUNT.bucket(account),
    ]


def _refuse(name: str | None, source: str | None, wait: float) -> None:
    if wait > 0:
        events.log("sign_in_throttled", level=logging.WARNING, user=name, source=source)
        error = TooManyRequests("Too many attempts. Wait a moment, then try again.")
        error.retry_after = int(wait) + 1
        raise error


@retried
def _take(buckets: Sequence[Bucket], *, now: datetime) -> float:
    with transaction() as db:
        return throttles.take(db, buckets, now=now)


@retried
def _give_back(buckets: Sequence[Bucket], *, now: datetime) -> None:
    with transaction() as db:
        throttles.give_back(db, buckets, now=now)


@retried
def _begin(
    user_id: int,
    password_hash: str,
    fresh_hash: str | None,
    buckets: Sequence[Bucket],
    *,
    old_token: str | None,
    longest: timedelta,
    user_agent: str,
    source: str | None,
    now: datetime,
) -> str:
    with transaction() as db:
        user = db.get(User, user_id)
        account = db.get(LocalAccount, user_id, with_for_update=True)
        if user is None or account is None or account.password_hash != password_hash or user.is_disabled:
            # Changed while the password was being checked.
            raise WrongPassword(N_("User name or password is wrong."))
        if fresh_hash is not None:
            account.password_hash = fresh_hash
        throttles.give_back(db, buckets, now=now)
        if old_token is not None:
            browser_sessions.end(db, old_token)
        audit.record(db, audit.SIGNED_IN, actor=user.name, object=user.name, source=source, now=now)
        return browser_sessions.begin(db, user, longest=longest, user_agent=user_agent, now=now)


@retried
def _record_failure(name: str | None, source: str | None, now: datetime) -> None:
    """Add an audit row: nobody is its actor, whose account it was is its object."""
    key = "nobody" if name is None else hashlib.sha256(name.encode(errors="replace")).hexdigest()[:32]
    with transaction() as db:
        if throttles.take(db, [AUDITED.bucket(key)], now=now) == 0:
            audit.record(db, audit.SIGN_IN_FAILED, actor=audit.VISITOR, object=name, source=source, now=now)


def _whole_seconds(moment: datetime) -> int:
    return int(moment.timestamp())
