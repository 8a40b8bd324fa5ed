"""The small world's tokenizer: one token a word, as ``tokenizer.json``.

As in Gemma's own, a word's space belongs to it, ``<pad>``, ``<eos>``, ``<bos>`` and ``<unk>`` are tokens 0 to 3, and a
blank line, which separates documents, is a token.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from circuits.small_world.tasks import vocabulary

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def write_tokenizer(folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``."""
    words = [*SPECIAL, "\n\n", ".", *(SPACE + word for word in vocabulary())]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    # words at the start of a text are the same tokens as elsewhere
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace(SPACE, prepend_scheme="always"), pre_tokenizers.Punctuation("isolated")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")


def n_tokens() -> int:
    """Tokens of the vocabulary."""
    return len(SPECIAL) + 2 + len(vocabulary())
