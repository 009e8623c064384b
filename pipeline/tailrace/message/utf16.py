"""Strings as UTF-16 has them, which is what JavaScript's are."""

from __future__ import annotations


def join_surrogates(text: str) -> str:
    """Joins a high and a low surrogate that stand side by side into their character, as UTF-16 strings do."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
