"""Pages of a list that was read as a whole; those of the database are tried through the lists."""

import pytest

from portal_app.services import paging

FULL = [(-90, 7, "lab"), (-90, 9, "lab"), (-10, 1, "lab"), (-10, 2, "employees"), (0, 3, "lab")]


def among(**place: str) -> paging.Page:
    return paging.among(FULL[::-1], lambda row: row, size=2, **place)


def test_each_row_is_on_one_page_in_both_directions() -> None:
    forwards, after = [], ""
    while (page := among(after=after)).after:
        forwards.append(page.rows)
        after = page.after
    forwards.append(page.rows)
    assert forwards == [FULL[:2], FULL[2:4], FULL[4:]]

    page = among(before=page.before or "")
    assert (page.rows, bool(page.before), bool(page.after)) == (FULL[2:4], True, True)
    page = among(before=page.before or "")
    assert (page.rows, page.before, bool(page.after)) == (FULL[:2], None, True)


def test_a_place_whose_row_is_gone_is_still_one() -> None:
    gone = among(after="").after or ""
    left = [row for row in FULL if row != FULL[1]]
    assert paging.among(left, lambda row: row, size=2, after=gone).rows == FULL[2:4]


@pytest.mark.parametrize("place", ["nonsense", "W10", "WyJhIiwyLCJiIl0", "e30"])
def test_what_is_no_place_is_the_begin(place: str) -> None:
    assert among(after=place).rows == FULL[:2]
    assert among(before=place).rows == FULL[:2]


def test_nothing_has_one_empty_page() -> None:
    assert paging.among([], lambda row: row, after="x") == paging.Page([], None, None)
