"""What this package brings along: a transcoder for Gemma 3 270M, and the small world's models and transcoders."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
MODELS = ("small-world-s", "small-world-m")
"""Models, by the name they are opened with; see :mod:`circuits.small_world`."""
TRANSCODERS = {"bundled": "gemma-3-270m-clt",
               **{f"{model}-{kind}": f"{model}-{kind}" for model in MODELS for kind in ("clt", "plt")}}
"""Folders of transcoder sets by the name they are opened with."""


def set_for(model: str) -> str:
    """The name of the transcoder set that "bundled" means for a model: the one made for it, else Gemma 3 270M's."""
    return f"{model}-clt" if model in MODELS else "bundled"
