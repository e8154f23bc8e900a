"""Faults of a manifest, and the error that lists them."""

from collections.abc import Sequence
from dataclasses import dataclass

LISTED = 20
"""Faults that a message lists; further ones are only counted. `ManifestError.faults` has all."""
_SHOWN = 300  # characters of a value in a message


@dataclass(frozen=True)
class Fault:
    """A fault of a row: the value of a column, and what was expected."""

    row: int
    """Number of the row, from 1 below the header; 0: the table as a whole."""
    column: str
    """Name of the column, or what else is wrong."""
    value: str
    """The value, as text."""
    expected: str
    """What was expected instead."""
    place: str = ""
    """Where it is, in a file that has no rows as a spreadsheet shows them: the line."""

    def __str__(self) -> str:
        place = self.place or (f"row {self.row}" if self.row else "")
        value = self.value if len(self.value) <= _SHOWN else f"{self.value[:_SHOWN]}..."
        text = f"{place and f'{place}: '}{self.column} is {value}; expected {self.expected}"
        # A terminal would obey some of the others, and cannot print lone surrogates.
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class ManifestError(ValueError):
    """Prompts with faults; `faults` has all of them."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        """Take at least one fault."""
        super().__init__(faults)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        lines = [str(fault) for fault in self.faults[:LISTED]]
        rest = len(self.faults) - LISTED
        return "\n".join([*lines, f"... and {rest:,} more"] if rest > 0 else lines)


def text_fault(number: int, column: str, text: str) -> Fault | None:
    """Return the fault of a text that files and tables do not take; None: there is none."""
    if "\0" in text:
        return Fault(number, column, ascii(text), "text without the character NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        return Fault(number, column, ascii(text), "text that UTF-8 can encode")
    return None
