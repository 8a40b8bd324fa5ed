"""A request that is refused: an HTTP status and one sentence for the person who asked."""

from __future__ import annotations

from circuits.errors import CircuitsError


class Refusal(CircuitsError):
    """``status`` is the HTTP status of the answer, the message its sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def sentence(error: BaseException, longest: int = 500) -> str:
    """The first line of an error's message, at most ``longest`` characters of it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= longest else lines[0][:longest] + "…"
