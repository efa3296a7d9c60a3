"""Columns of text for people."""

from collections.abc import Iterable, Sequence


def lines(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterable[str]:
    """Yield lines with aligned columns; the last column may be of any length.

    >>> list(lines(["node", "state"], [["n1", "up"], ["node2", "down"]]))
    ['node   state', 'n1     up', 'node2  down']
    """
    cells = [list(heads), *([str(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
