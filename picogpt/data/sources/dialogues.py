"""Dialogues as data sets publish them: a list of turns, each with who speaks and what is said.

`messages` is the form of chat programs ({"role": "user", "content": "..."}), `conversations` that of ShareGPT
({"from": "human", "value": "..."}). Both become text between marks, as a question and its answer do.
"""

from picogpt.errors import UserError, shown
from picogpt.tokenizers.base import Mark

FIELDS = ("messages", "conversations")
"""The usual names of the field that has the turns."""

_KEYS = (("role", "content"), ("from", "value"))
# Who speaks, by PicoGPT's names of the marks.
_SPEAKERS = {"system": "S", "developer": "S", "user": "Q", "human": "Q", "prompter": "Q"}
_SPEAKERS |= {"assistant": "A", "gpt": "A", "chatgpt": "A", "bot": "A", "model": "A"}


def dialogue(turns: list[object]) -> list[str]:
    """Return the parts of a document of these turns; empty where a user or assistant says nothing.

    Raises UserError for what is no turn, and for a speaker that is none of system, user and assistant.
    """
    parts: list[str] = []
    for turn in turns:
        speaker, text = _said(turn)
        if not text and speaker == "S":  # many data sets have one that is empty
            continue
        if not text:
            return []
        parts += ["\n"] * bool(parts) + [Mark(f"<{speaker}>"), text, Mark(f"</{speaker}>")]
    return parts


def _said(turn: object) -> tuple[str, str]:
    """Return the letter of a turn's speaker and what is said."""
    for who, what in _KEYS:
        if isinstance(turn, dict) and who in turn and what in turn:
            speaker = turn[who]
            if not isinstance(speaker, str) or speaker.lower() not in _SPEAKERS:
                raise UserError(
                    f"a dialogue has a turn of {shown(speaker)}, and picogpt knows system, user and assistant: "
                    "rename or remove such turns"
                )
            return _SPEAKERS[speaker.lower()], _text(turn[what])
    raise UserError("a dialogue has a turn without role and content, or from and value: correct it")


def _text(content: object) -> str:
    """Return the text of a content, which may be a list of pieces; "" where a piece is no text, as a picture."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    texts = [piece.get("text") if isinstance(piece, dict) else None for piece in content]
    found = [text for text in texts if isinstance(text, str)]
    return "".join(found) if len(found) == len(texts) else ""
