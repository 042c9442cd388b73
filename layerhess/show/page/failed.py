"""A page that says why there is none: an error in a figure must not lose the numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from html import escape

from layerhess.errors import LayerhessWarning


def page_or_reason(make: Callable[[], str], stacklevel: int = 4) -> str:
    """The page that ``make`` returns, or one with the reason why it could not be made, of which a warning tells too.

    Args:
        stacklevel: of the warning, to name the line of the user's that saves.
    """
    try:
        return make()
    except Exception as error:
        reason = f"the report could not be made ({type(error).__name__}: {error}); the numbers are saved and complete"
        warnings.warn(reason, LayerhessWarning, stacklevel=stacklevel)
        return (
            "<!doctype html><html lang='en'><meta charset='utf-8'><title>layerhess</title>"
            f"<p>{escape(reason[0].upper() + reason[1:])}. Try again with <code>layerhess report DIR</code>.</p></html>"
        )
