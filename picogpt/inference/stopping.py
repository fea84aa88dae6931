"""Which part of a text can be shown while it is being written: whole characters, up to where the text ends."""

from picogpt.tokenizers.base import Speller


class VisibleText:
    """The visible part of a stream of tokens: up to the end of the text or `stop`, each character when it is whole."""

    def __init__(self, speller: Speller, end_of_text: int | None, stop: str) -> None:
        self._speller, self._end_of_text, self._filter = speller, end_of_text, StopFilter(stop)
        self.ended = False
        """Whether the text has come to its end."""

    def add(self, id: int) -> str:
        """Append a token. Returns the text that can be shown now."""
        if self.ended:
            return ""
        if id == self._end_of_text:
            self.ended = True
            return self._filter.add(self._speller.end()) + self._filter.held_back()
        piece = self._filter.add(self._speller.piece(id))
        self.ended = self._filter.ended
        return piece

    def held_back(self) -> str:
        """Return the text that was not shown yet, which can be shown when nothing more is written now."""
        return "" if self.ended else self._filter.add(self._speller.rest()) + self._filter.held_back()


class StopFilter:
    """A filter that lets text through up to `stop`, and holds back text that may be the beginning of `stop`."""

    def __init__(self, stop: str) -> None:
        self._stop, self._held_back = stop, ""
        self.ended = False
        """Whether `stop` has come."""

    def add(self, piece: str) -> str:
        """Append a piece of text. Returns the text that can be shown now."""
        if not self._stop or self.ended:
            return "" if self.ended else piece
        text = self._held_back + piece
        shown, found, _ = text.partition(self._stop)
        self.ended, self._held_back = bool(found), ""
        if not found:
            longest = min(len(text), len(self._stop) - 1)
            size = next(n for n in range(longest, -1, -1) if text.endswith(self._stop[:n]))
            shown, self._held_back = text[: len(text) - size], text[len(text) - size :]
        return shown

    def held_back(self) -> str:
        """Return the text that was held back, which can be shown when no more comes."""
        return self._held_back
