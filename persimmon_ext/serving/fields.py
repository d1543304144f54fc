"""The fields of a JSON request, each read once with its type and range; what was not read is an error in the end."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from persimmon_ext.serving.errors import RequestError


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; RequestError if it is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body of the request is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise RequestError(f"The body of the request must be a JSON object, not {shown(value)}.")
    return value


def shown(value: Any) -> str:
    """`value` as JSON, cut to a length that fits in a sentence; halves of characters are escaped."""
    text = json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text)} characters)"


class Fields:
    """A JSON object whose fields are taken by name. A field that is null counts as absent.

    All methods raise RequestError with the name and value of a field that is wrong.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self._left = {name: value for name, value in values.items() if value is not None}

    def take(self, name: str, default: Any = None) -> Any:
        """The value of a field, unchecked."""
        return self._left.pop(name, default)

    def integer(self, name: str, default: int | None, least: int, most: int | None = None) -> int | None:
        """An integer from `least` to `most`."""
        value = self.take(name, default)
        kind = "an integer" + _range(least, most)
        if value is default:
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < least
            or (most is not None and value > most)
        ):
            refuse(name, kind, value)
        return int(value)

    def number(
        self, name: str, default: float, least: float, most: float | None = None, *, exclusive: bool = False
    ) -> float:
        """A finite number from `least`, or above it if `exclusive`, to `most`."""
        value = self.take(name, default)
        kind = "a number" + _range(least, most, exclusive)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
            refuse(name, kind, value)
        if value < least or (exclusive and value == least) or (most is not None and value > most):
            refuse(name, kind, value)
        return float(value)

    def boolean(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            refuse(name, "true or false", value)
        return bool(value)

    def text(self, name: str) -> str | None:
        """A text, or None."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            refuse(name, "a text", value)
        return value

    def finish(self) -> None:
        """Refuses fields that nobody has taken, so that none is ignored."""
        for name, value in self._left.items():
            raise RequestError(f"{name} is not a field that this server knows; it was {shown(value)}.", param=name)


def refuse(name: str, kind: str, value: Any) -> NoReturn:
    """Raises the RequestError of a field that should be `kind`."""
    raise RequestError(f"{name} must be {kind}, got {shown(value)}.", param=name)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _range(least: float, most: float | None, exclusive: bool = False) -> str:
    if most is None:
        return f" above {least:g}" if exclusive else f" of at least {least:g}"
    return f" above {least:g} and at most {most:g}" if exclusive else f" from {least:g} to {most:g}"
