"""The page's numbers, small: columns as bytes, gzip, base64.

Layout before gzip: the length of the JSON text in 4 bytes (little endian), the JSON text in ASCII padded with spaces to
a multiple of 4, then the columns one after another, each padded to a multiple of 4. The JSON's ``columns`` says of
each column its type, where it starts (bytes after the JSON) and how many numbers it has. :file:`packed.js` reads it.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

_TYPES = {"float32": "Float32Array", "int32": "Int32Array", "uint8": "Uint8Array", "uint16": "Uint16Array"}
_ALIGNED = 4
_UNSAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def pack(values: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> str:
    """Base64 text that holds JSON values and one-dimensional columns of float32, int32, uint16 or uint8."""
    directory, parts, at = {}, [], 0
    for name, column in columns.items():
        raw = np.ascontiguousarray(column).astype(column.dtype.newbyteorder("<"), copy=False).tobytes()
        directory[name] = [_TYPES[column.dtype.name], at, len(column)]
        parts += [raw, b"\0" * (-len(raw) % _ALIGNED)]
        at += len(raw) + len(parts[-1])
    head = json.dumps({**values, "columns": directory}, allow_nan=False, separators=(",", ":")).encode("ascii")
    head += b" " * (-len(head) % _ALIGNED)
    whole = b"".join([len(head).to_bytes(4, "little"), head, *parts])
    return base64.b64encode(gzip.compress(whole, compresslevel=9, mtime=0)).decode()


def to_script_json(value: Any) -> str:
    """JSON in ASCII that cannot end or comment out the script element that holds it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)
