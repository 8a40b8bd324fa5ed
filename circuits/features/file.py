"""Feature data on disk: one file beside a transcoder, read one feature at a time.

Layout, little-endian: 8 bytes MAGIC; uint32 length and uint32 CRC-32 of the header; the header (JSON in UTF-8); tables;
blocks. Shapes: N features of all layers, V tokens that occur in the file, T tokens of one block's contexts, n of its
token lists. Tables: block length uint32 (N,), 0 for a feature that never fired; positions fired on uint32 (N,); largest
activation float32 (N,); token ids uint32 (V,), the most used first; lengths uint16 (V,) of their texts; the texts
(UTF-8). A block (zlib): uint8 counts (contexts; tokens of each of LISTS; histogram bins); length, peak
and quantile (of 255) of each context, uint8; context tokens as three byte planes (3, T) of their place in the token
table; their activations, uint8 of the feature's largest; list tokens as three byte planes (3, n); list scores
float16 (n,); effect spread float16; first histogram bin int16; histogram as four byte planes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from circuits.errors import FormatError, InputError
from circuits.features.feature import LISTS, Context, Feature, TokenScores
from circuits.graphs.store import replacing

FILE_NAME = "features.bin"
MAGIC = b"GCFEATS\x00"
FORMAT = "gemma-circuits-features"
VERSION = 1
_MAX_SCORE = float(np.finfo(np.float16).max)


class FeatureData:
    """Opened feature data of one transcoder set. Opening reads the header and tables; reading a feature, its block."""

    def __init__(self, path: Path):
        self.path = path
        self.bytes = _mapped(path)
        self.header, start = _header(path, self.bytes)
        self.d_transcoder: tuple[int, ...] = tuple(self.header["d_transcoder"])
        self.n_layers = len(self.d_transcoder)
        self.positions: int = self.header["positions"]
        self.candidates: int = self.header["candidates"]
        n, v = sum(self.d_transcoder), self.header["vocabulary"]
        columns = [("<u4", n), ("<u4", n), ("<f4", n), ("<u4", v), ("<u2", v), ("u1", self.header["text_bytes"])]
        tables, first = [], start
        for dtype, count in columns:
            size = np.dtype(dtype).itemsize * count
            tables.append(self.bytes[start:start + size])
            start += size
        if start > len(self.bytes) or zlib.crc32(self.bytes[first:start].data) != self.header["tables_crc"]:
            raise _damaged(path, "its tables do not match their checksum")
        lengths, self._count, self._largest, self._ids, text_lengths, self._texts = (
            table.view(dtype) for table, (dtype, _) in zip(tables, columns, strict=True))
        self._ends, self._text_ends = start + lengths.cumsum(dtype=np.int64), text_lengths.cumsum(dtype=np.int64)
        self._lengths, self._text_lengths = lengths, text_lengths
        self._first = np.concatenate([[0], np.cumsum(self.d_transcoder)])
        if len(self.bytes) != (self._ends[-1] if n else start) or len(self._texts) != (self._text_ends[-1] if v else 0):
            raise _damaged(path, f"it has {len(self.bytes)} bytes, other than its tables say")

    @classmethod
    def open(cls, where: str | Path) -> FeatureData:
        """Open ``features.bin`` in a folder, or a file of that format.

        Raises:
            InputError: there is none, or it may not be read.
            FormatError: damaged, of a newer version or another kind of file.
        """
        path = Path(where)
        path = path / FILE_NAME if path.is_dir() else path
        try:
            return cls(path)
        except (KeyError, TypeError, ValueError) as error:  # a header of foreign making
            raise _damaged(path, f"its header lacks or garbles {error}") from None

    def live(self, layer: int) -> np.ndarray:
        """Features of a layer that fired, ascending."""
        return np.flatnonzero(self._lengths[self._first[layer]:self._first[layer + 1]])

    def density(self, layer: int) -> np.ndarray:
        """(F,) share of positions each feature of a layer fired on."""
        return self._count[self._first[layer]:self._first[layer + 1]] / self.positions

    def read(self, layer: int, feature: int) -> Feature | None:
        """One feature; None where it never fired on the text.

        Raises:
            InputError: no such layer or feature.
            FormatError: its block is damaged.
        """
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer is {layer}, expected 0 to {self.n_layers - 1}")
        if not 0 <= feature < self.d_transcoder[layer]:
            raise InputError(f"feature is {layer}/{feature}, but layer {layer} has features 0 to "
                             f"{self.d_transcoder[layer] - 1}")
        i = int(self._first[layer]) + feature
        if not self._lengths[i]:
            return None
        end = int(self._ends[i])
        block = self.bytes[end - int(self._lengths[i]):end].tobytes()
        try:
            return self._unpack(zlib.decompress(block), i, layer, feature)
        except (zlib.error, ValueError, IndexError) as error:
            raise _damaged(self.path, f"the block of feature {layer}/{feature}: {error}") from None

    def _unpack(self, block: bytes, i: int, layer: int, feature: int) -> Feature:
        take = _Reader(block)
        n_contexts, *n_lists, n_bins = take.array("u1", 2 + len(LISTS)).tolist()
        lengths, peaks, quantiles = (take.array("u1", n_contexts) for _ in range(3))
        places = take.planes(3, int(lengths.sum()))
        largest = float(self._largest[i])
        activations = take.array("u1", len(places)) * np.float32(max(largest, 0.0) / 255)
        list_places = take.planes(3, sum(n_lists))
        scores = take.array("<f2", len(list_places)).astype(np.float32)
        spread, first_bin = float(take.array("<f2", 1)[0]), int(take.array("<i2", 1)[0])
        histogram = take.planes(4, n_bins)
        take.finish()
        ids, list_ids = (self._ids[p].astype(np.int64) for p in (places, list_places))
        bounds = np.cumsum([0, *lengths.tolist()])
        contexts = tuple(
            Context(ids[a:b], activations[a:b], int(peak), int(quantile) / 255)
            for a, b, peak, quantile in zip(bounds[:-1], bounds[1:], peaks, quantiles, strict=True))
        bounds = np.cumsum([0, *n_lists])
        lists = {name: TokenScores(list_ids[a:b], scores[a:b])
                 for name, a, b in zip(LISTS, bounds[:-1], bounds[1:], strict=True)}
        texts = _Texts(dict(zip(ids.tolist() + list_ids.tolist(), places.tolist() + list_places.tolist(), strict=True)),
                       self._text)
        return Feature(layer, feature, int(self._count[i]), self.positions, largest, first_bin, histogram, contexts,
                       **lists, effect_spread=spread, candidates=self.candidates, texts=texts)

    def _text(self, place: int) -> str:
        end = int(self._text_ends[place])
        return self._texts[end - int(self._text_lengths[place]):end].tobytes().decode("utf-8", "replace")


class _Texts(Mapping[int, str]):
    """Token id -> text, read from the file when asked for: most of a feature's tokens are not."""

    def __init__(self, places: dict[int, int], read: Callable[[int], str]):
        self._places, self._read = places, read

    def __getitem__(self, token: int) -> str:
        return self._read(self._places[token])

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def write(path: Path, *, d_transcoder: Iterable[int], positions: int, candidates: int, tokens: np.ndarray,
          texts: Iterable[str], features: Iterable[Feature], about: dict[str, Any]) -> None:
    """Write feature data at once or not at all.

    Args:
        d_transcoder: (L,) features of every layer.
        candidates: see :class:`Feature`.
        tokens: (V,) ids of all tokens in ``features``, the most used first; ``texts``: the text of each.
        features: the live ones, by layer and feature.
        about: what else the header is to say, such as the text they were collected on.

    Raises:
        InputError: ``path`` cannot be written.
    """
    widths = [int(width) for width in d_transcoder]
    first = np.concatenate([[0], np.cumsum(widths)])
    lengths, count = np.zeros(first[-1], "<u4"), np.zeros(first[-1], "<u4")
    largest = np.zeros(first[-1], "<f4")
    place = np.zeros(int(tokens.max(initial=-1)) + 1, np.int64)
    place[tokens] = np.arange(len(tokens))
    blocks = []
    for feature in features:
        i = first[feature.layer] + feature.feature
        blocks.append(zlib.compress(_pack(feature, place), 9))
        lengths[i], count[i], largest[i] = len(blocks[-1]), feature.count, feature.max_activation
    encoded = [text.encode("utf-8", "replace")[:0xFFFF] for text in texts]
    table = b"".join([lengths.tobytes(), count.tobytes(), largest.tobytes(), tokens.astype("<u4").tobytes(),
                      np.array([len(text) for text in encoded], "<u2").tobytes(), *encoded])
    header = json.dumps({
        "format": FORMAT, "version": VERSION, **about, "d_transcoder": widths, "positions": positions,
        "candidates": candidates, "vocabulary": len(tokens), "text_bytes": sum(map(len, encoded)),
        "tables_crc": zlib.crc32(table)}).encode()
    header = header.ljust(-(-len(header) // 8) * 8)  # aligned tables read faster
    with replacing(path) as scratch, scratch.open("wb") as file:
        file.write(MAGIC + np.array([len(header), zlib.crc32(header)], "<u4").tobytes() + header + table)
        file.writelines(blocks)


def _pack(feature: Feature, place: np.ndarray) -> bytes:
    contexts, lists = feature.contexts, [getattr(feature, name) for name in LISTS]
    ids = np.concatenate([[], *(context.tokens for context in contexts)]).astype(np.int64)
    activations = np.concatenate([[], *(context.activations for context in contexts)])
    # an activation too small for the scale still differs from silence
    scaled = np.clip(np.rint(255 * activations / max(feature.max_activation, 1e-30)), activations > 0, 255)
    list_ids = np.concatenate([scores.tokens for scores in lists]).astype(np.int64)
    list_scores = np.concatenate([scores.scores for scores in lists])
    columns = [[len(context.tokens), context.peak, round(255 * context.quantile)] for context in contexts]
    numbers = np.array([*list_scores, feature.effect_spread])
    return b"".join([
        np.array([len(contexts), *map(len, lists), len(feature.histogram)], np.uint8).tobytes(),
        np.array(columns, np.uint8).T.tobytes(), _planes(place[ids], 3), scaled.astype(np.uint8).tobytes(),
        _planes(place[list_ids], 3), np.clip(numbers, -_MAX_SCORE, _MAX_SCORE).astype("<f2").tobytes(),
        np.array([feature.first_bin], "<i2").tobytes(), _planes(feature.histogram, 4)])


def _planes(values: np.ndarray, n_bytes: int) -> bytes:
    """The low bytes of all values, then the next bytes, ...: high ones are mostly zero and compress to little."""
    return values.astype("<u4").view(np.uint8).reshape(-1, 4).T[:n_bytes].tobytes()


class _Reader:
    """Takes arrays off the front of a block."""

    def __init__(self, block: bytes):
        self.block, self.at = block, 0

    def array(self, dtype: str, count: int) -> np.ndarray:
        """Raises:
            ValueError: fewer bytes are left.
        """
        found = np.frombuffer(self.block, dtype, count, self.at) if count else np.zeros(0, dtype)
        self.at += found.nbytes
        return found

    def planes(self, n_bytes: int, count: int) -> np.ndarray:
        bytes_of = self.array("u1", n_bytes * count).reshape(n_bytes, count).astype(np.int64)
        return (bytes_of << (8 * np.arange(n_bytes))[:, None]).sum(0)

    def finish(self) -> None:
        if self.at != len(self.block):
            raise ValueError(f"it has {len(self.block)} bytes, expected {self.at}")


def _mapped(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size < len(MAGIC) + 8:
            raise _damaged(path, "it is too short")
        return np.asarray(np.memmap(path, np.uint8, "r"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; circuits features --collect makes it"
                         ) from error


def _header(path: Path, content: np.ndarray) -> tuple[dict[str, Any], int]:
    """The header, and where the tables start."""
    if content[:len(MAGIC)].tobytes() != MAGIC:
        raise FormatError(f"{path} holds no feature data: expected a file made by circuits features --collect")
    length, crc = content[len(MAGIC):len(MAGIC) + 8].view("<u4").tolist()
    start = len(MAGIC) + 8
    raw = content[start:start + length].tobytes()
    if len(raw) != length or zlib.crc32(raw) != crc:
        raise _damaged(path, "its header does not match its checksum")
    header = json.loads(raw)
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise FormatError(f"{path} has {header.get('format')} version {header.get('version')}, this program reads "
                          f"{FORMAT} version {VERSION}: upgrade gemma-circuits, or collect the feature data again")
    return header, start + length


def _damaged(path: Path, how: str) -> FormatError:
    return FormatError(f"{path} is damaged ({how}): copy it again, or make it again with circuits features --collect")
