"""The nearest valid choice, for error messages."""

import difflib
from collections.abc import Iterable


def nearest(word: str, choices: Iterable[str]) -> str:
    """A half-sentence that names the choice most like `word`, such as "did you mean 'digits'? "; empty if none is."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"did you mean {found[0]!r}? " if found else ""
