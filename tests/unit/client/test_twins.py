"""The two drivers are one text in two ways of calling: what is mended in one is mended in the other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "services" / "tailrace" / "client"
WORDS = {
    "AsyncClient": "Client",
    "AsyncAnswer": "Answer",
    "AsyncGenerator": "Generator",
    "aclosing": "closing",
    "aclose": "close",
    "aread": "read",
    "aiter_raw": "iter_raw",
    "asyncio": "time",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
}


def blocking(text: str) -> str:
    """The asyncio module as it reads without asyncio."""
    text = re.sub(r"\b(await|async) ", "", text)
    text = re.sub("|".join(rf"\b{word}\b" for word in WORDS), lambda found: WORDS[found[0]], text)
    text = re.sub(r"Generator\[(\w+), None\]", r"Generator[\1, None, None]", text)
    text = text.replace("[part for part in self.bytes()]", "self.bytes()")
    return text.replace("(self.message()).text", "self.message().text")


def statements(text: str) -> list[str]:
    """The lines of a module without its docstring and its comments, the imports sorted."""
    body = ast.parse(text).body[1:]
    imports = [ast.unparse(one) for one in body if isinstance(one, ast.Import | ast.ImportFrom)]
    rest = [ast.unparse(one) for one in body if not isinstance(one, ast.Import | ast.ImportFrom)]
    return [*sorted(imports), *"\n".join(rest).splitlines()]


def test_the_blocking_client_is_the_asyncio_client_without_asyncio() -> None:
    expected = statements(blocking((FOLDER / "aio.py").read_text(encoding="utf-8")))
    assert statements((FOLDER / "sync.py").read_text(encoding="utf-8")) == expected
