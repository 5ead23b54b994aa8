"""Have the site show the docstrings of autotune: a Griffe extension that docs/mkdocs.yml names."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

#: A role of Sphinx: ``:meth:`run` ``.
_ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")


class Docstrings(Extension):
    """Translate what Sphinx and IDEs understand into what Griffe does."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Make ``Example:`` a section of code, a role its name, and drop the mark of a block."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = re.sub(r"^::$", "", text, flags=re.MULTILINE)
            obj.docstring.value = _ROLE.sub(r"`\1`", text)
