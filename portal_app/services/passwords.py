"""Passwords of local accounts: the rule for new ones, and Argon2id with a bound on how many hash at once."""

import functools
import itertools
import re
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from portal_app.errors import N_, BadRequest, TooManyRequests

SHORTEST, LONGEST = 12, 1024
#: 19 MiB, two passes: OWASP's parameters. The default of argon2-cffi is 64 MiB: sixteen sign-ins took a
#: gigabyte.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.ID)
#: One hash is about 20 ms of a core. More than two at once gain nothing here; more than eight waiting are a
#: flood.
HASHING_AT_ONCE, WAITING_AT_MOST, WAIT_SECONDS = 2, 8, 3.0
#: "letmein-letmein-letmein" is three words of the list.
MOST_WORDS, LONGEST_WORD = 3, 30
_hashing = threading.BoundedSemaphore(HASHING_AT_ONCE)
_queue = threading.BoundedSemaphore(HASHING_AT_ONCE + WAITING_AT_MOST)
_ROWS = (
    "qwertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "qwertzuiop",
    "azertyuiop",
    "1234567890",
    "abcdefghijklmnopqrstuvwxyz",
)
_LIST = Path(__file__).parents[1] / "common_passwords.txt"
_LOOKS_LIKE = str.maketrans("@4301!$5|7", "aaeoiissit")


class WeakPassword(BadRequest):
    """A new password that is not accepted; the message says why."""


def hash_password(password: str) -> str:
    """Return the encoded Argon2id hash. Raises TooManyRequests when too many hash already."""
    with _turn():
        return _hasher.hash(_normalized(password))


def is_right(password: str, password_hash: str | None) -> bool:
    """Tell whether ``password`` fits; without a hash the answer is no, after the same amount of work."""
    if len(password) > LONGEST:
        password = ""
    with _turn():
        try:
            _hasher.verify(password_hash or _nobodys_hash(), _normalized(password))
        except (VerificationError, InvalidHashError):
            return False
    return password_hash is not None


def is_outdated(password_hash: str) -> bool:
    """Tell whether the hash was made with other parameters than today's."""
    return _hasher.check_needs_rehash(password_hash)


def check_new(password: str, user_name: str) -> None:
    """Raise WeakPassword for a password that is too short, common, or easily derived (reliability.md W10).

    No composition is asked for: length and not being guessable is what counts (NIST SP 800-63B, 3.1.1.2).
    """
    if len(password) < SHORTEST:
        raise WeakPassword(N_("Use at least %(least)s characters."), least=SHORTEST)
    if len(password) > LONGEST:
        raise WeakPassword(N_("Use at most %(most)s characters."), most=LONGEST)
    folded = _normalized(password).casefold()
    plain = re.sub(r"[\W_]+", "", folded)
    if any(_is_repetition(text) or _is_walk(text) for text in (folded, plain) if text):
        raise WeakPassword(N_("This password repeats itself or follows the keyboard. Choose another one."))
    if _is_common(folded):
        raise WeakPassword(N_("This password is one of those that are tried first. Choose another one."))
    name = user_name.casefold()
    for part in {name, name.partition("@")[0]}:
        if len(part) >= 3 and part in folded and len(folded.replace(part, "")) < SHORTEST - 4:
            raise WeakPassword(N_("This password is made of the user name. Choose another one."))


def _normalized(password: str) -> str:
    """NFC, so that two keyboards that compose an accented letter differently agree."""
    return unicodedata.normalize("NFC", password)


def _is_repetition(text: str) -> bool:
    """A short piece over and over: ``aaaaaaaaaaaa``, ``abc1abc1abc1``."""
    return any(
        text == (text[:size] * len(text))[: len(text)] for size in range(1, min(6, len(text) // 2) + 1)
    )


def _is_walk(text: str) -> bool:
    """Mostly neighbours on the keyboard or in the alphabet, in either direction."""
    steps = sum(_neighbours(left, right) for left, right in itertools.pairwise(text))
    return steps >= 0.75 * (len(text) - 1)


def _neighbours(left: str, right: str) -> bool:
    pair, back = left + right, right + left
    return left == right or pair == "90" or any(pair in row or back in row for row in _ROWS)


def _is_common(text: str) -> bool:
    """In the list, or a word of the list dressed up: ``P@ssword2024!`` is ``password``."""
    common = _common()
    plain = re.sub(r"[\W_]+", "", text)
    dressed = {text, plain, re.sub(r"\d+$", "", plain), re.sub(r"\d+", "", plain)}
    dressed |= {re.sub(r"^[\W\d_]+|[\W\d_]+$", "", text)}
    forms = dressed | {form.translate(_LOOKS_LIKE) for form in dressed}
    return any(_made_of(form, common, MOST_WORDS) for form in forms if form)


def _made_of(text: str, words: frozenset[str], most: int) -> bool:
    """Tell whether ``text`` is a word of the list, or up to ``most`` of them in a row."""
    if text in words:
        return True
    starts = range(3, min(len(text) - 2, LONGEST_WORD + 1))
    return most > 1 and any(text[:i] in words and _made_of(text[i:], words, most - 1) for i in starts)


@functools.cache
def _common() -> frozenset[str]:
    text = _LIST.read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if line and not line.startswith("#"))


@functools.cache
def _nobodys_hash() -> str:
    return _hasher.hash("nobody has this password")


@contextmanager
def _turn() -> Iterator[None]:
    if not _queue.acquire(blocking=False):
        raise TooManyRequests(N_("too many sign-ins at once"))
    try:
        if not _hashing.acquire(timeout=WAIT_SECONDS):
            raise TooManyRequests(N_("too many sign-ins at once"))
        try:
            yield
        finally:
            _hashing.release()
    finally:
        _queue.release()
