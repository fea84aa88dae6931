"""What of a text that is being written may be shown already: whole characters, up to where it ends."""

from picogpt.tokenizers.base import Speller


class VisibleText:
    """What of a stream can be shown: up to the end of the text or `stop`, each character when it is whole."""

    def __init__(self, speller: Speller, end_of_text: int | None, stop: str) -> None:
        self._speller, self._end, self._until, self.over = speller, end_of_text, StopText(stop), False

    def show(self, id: int) -> str:
        if self.over:
            return ""
        if id == self._end:
            self.over = True
            return self._until.show(self._speller.end()) + self._until.rest()
        piece = self._until.show(self._speller.piece(id))
        self.over = self._until.over
        return piece

    def rest(self) -> str:
        """What was kept back, when no more comes now."""
        return "" if self.over else self._until.show(self._speller.rest()) + self._until.rest()


class StopText:
    """Lets text through up to `stop`, and keeps back what may be the beginning of it."""

    def __init__(self, stop: str) -> None:
        self._stop, self._kept, self.over = stop, "", False

    def show(self, piece: str) -> str:
        if not self._stop or self.over:
            return "" if self.over else piece
        text = self._kept + piece
        shown, found, _ = text.partition(self._stop)
        self.over, self._kept = bool(found), ""
        if not found:
            longest = min(len(text), len(self._stop) - 1)
            size = next(n for n in range(longest, -1, -1) if text.endswith(self._stop[:n]))
            shown, self._kept = text[: len(text) - size], text[len(text) - size :]
        return shown

    def rest(self) -> str:
        """What was kept back, when no more text comes."""
        return self._kept
