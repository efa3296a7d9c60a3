"""One markdown table on standard output."""

from collections.abc import Sequence


def show(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    for cells in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
