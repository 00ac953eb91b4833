"""The nearest valid choice, for error messages."""

import difflib
from collections.abc import Iterable


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like `word`, whatever the case of its letters; None where none is alike."""
    by_folded = {choice.casefold(): choice for choice in choices}
    found = difflib.get_close_matches(word.casefold(), by_folded, n=1)
    return by_folded[found[0]] if found else None


def nearest(word: str, choices: Iterable[str]) -> str:
    """' Did you mean ...?' for the end of an error message, or nothing."""
    found = closest(word, choices)
    return f" Did you mean {found!r}?" if found else ""
