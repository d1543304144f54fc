"""Ends a text at the first of some strings, without ever showing a part of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Passes text on piece by piece until one of `stops` occurs; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def put(self, text: str) -> str:
        """Takes the next piece of text and returns what is certain to stand before any stop string."""
        if self.matched:
            return ""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.matched = True
            certain, self._held = self._held[: min(places)], ""
            return certain
        keep = self._open_end()
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def finish(self) -> str:
        """Ends the text: returns what was held back."""
        rest, self._held = self._held, ""
        return rest

    def _open_end(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
