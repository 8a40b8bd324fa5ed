"""Exact circuit tracing for Gemma 3. Public names load lazily, so ``import circuits.graphs`` needs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from circuits.errors import CircuitsError, ConservationError, FormatError, InputError, ModelError

if TYPE_CHECKING:
    from circuits.attribution import trace
    from circuits.batches.run import trace_batch
    from circuits.comparing.compare import compare
    from circuits.interventions.generate import generate
    from circuits.interventions.intervene import intervene
    from circuits.transcoder import open_transcoders
    from circuits.validation.validate import validate
    from circuits.weights import load_model

__version__ = "0.1.0"
__all__ = ["CircuitsError", "ConservationError", "FormatError", "InputError", "ModelError", "compare", "generate",
           "intervene", "load_model", "open_transcoders", "trace", "trace_batch", "validate"]

_LAZY = {"load_model": "circuits.weights", "open_transcoders": "circuits.transcoder", "trace": "circuits.attribution",
         "trace_batch": "circuits.batches.run", "compare": "circuits.comparing.compare",
         "validate": "circuits.validation.validate", "intervene": "circuits.interventions.intervene",
         "generate": "circuits.interventions.generate"}
_SUBPACKAGES = ("features", "graphs", "kernels", "training")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _SUBPACKAGES:
        return import_module(f"circuits.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
