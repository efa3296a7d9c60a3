"""Chains of refresh tokens under any sequence of events (design.md, "Tokens"; I5, R16, R37)."""

from datetime import timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import AccessToken, Authorization, RefreshToken, User
from portal_app.services import authorizations
from portal_app.services.authorizations import GRACE, InvalidGrant
from portal_app.statements import run
from tests.portal.app_user import LINUX, add_user

CHALLENGE = "c" * 43


class Chain(RuleBasedStateMachine):
    """A model of the rule: the living token, its parent with its time of use, and all that are spent."""

    @initialize()
    def begin(self) -> None:
        with transaction() as db:
            db.execute(delete(Authorization))
            db.execute(delete(User))
        self.now = utc_now()
        user = add_user("alice")
        code = authorizations.create(
            user, LINUX, scope="config", redirect_uri="x:/y", code_challenge=CHALLENGE, now=self.now
        )
        tokens = authorizations.redeem_code(
            code, client_id=LINUX, redirect_uri="x:/y", code_challenge=CHALLENGE, now=self.now
        )
        self.living: str | None = tokens.refresh_token
        self.access = tokens.access_token
        self.parent: str | None = None
        self.parent_used_at = self.now
        self.spent: list[str] = []

    def refresh(self, token: str) -> authorizations.Tokens | None:
        try:
            return authorizations.refresh(token, client_id=LINUX, scope=None, now=self.now)
        except InvalidGrant:
            return None

    @rule(seconds=st.integers(1, 60))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.living)
    @rule()
    def use_the_living_one(self) -> None:
        tokens = self.refresh(self.living)
        assert tokens is not None
        if self.parent is not None:
            self.spent.append(self.parent)
        self.parent, self.parent_used_at = self.living, self.now
        self.living, self.access = tokens.refresh_token, tokens.access_token

    @precondition(lambda self: self.living and self.parent)
    @rule()
    def use_its_parent(self) -> None:
        tokens = self.refresh(self.parent)
        if self.now - self.parent_used_at <= GRACE:
            assert tokens is not None, "once more within the grace time"
            self.spent += [self.parent, self.living]
            self.parent = None
            self.living, self.access = tokens.refresh_token, tokens.access_token
        else:
            assert tokens is None
            self.living = None

    @precondition(lambda self: self.living and self.spent)
    @rule(data=st.data())
    def use_a_spent_one(self, data: st.DataObject) -> None:
        assert self.refresh(data.draw(st.sampled_from(self.spent))) is None
        self.living = None

    @precondition(lambda self: not self.living)
    @rule(data=st.data())
    def nothing_works_after_the_end(self, data: st.DataObject) -> None:
        if self.spent or self.parent:
            assert (
                self.refresh(data.draw(st.sampled_from([*self.spent, self.parent or self.spent[0]]))) is None
            )

    @invariant()
    def there_is_one_living_end_or_none(self) -> None:
        with transaction(read_only=True) as db:
            living = db.scalars(select(RefreshToken.token_hash).where(RefreshToken.used_at.is_(None))).all()
            assert list(living) == ([authorizations.hashed(self.living)] if self.living else [])
            assert len(db.scalars(select(Authorization.id)).all()) == len(living)
            if not self.living:
                assert db.scalars(select(AccessToken.token_hash)).all() == []
            bearer = authorizations.bearer_of(run(db, *authorizations.bearer(self.access, self.now)))
        assert (bearer is not None) == bool(self.living) or self.now > utc_now() + timedelta(minutes=50)


def test_any_sequence_of_refreshes_keeps_one_living_end_or_none(app):
    run_state_machine_as_test(
        Chain,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
