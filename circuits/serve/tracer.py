"""The model behind the server: loaded by the first trace or question, kept for the next ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from circuits.errors import InputError
from circuits.serve.folder import GraphFolder
from circuits.serve.jobs import Result
from circuits.serve.question import Report
from circuits.serve.schemas import TraceRequest

if TYPE_CHECKING:
    from circuits.gemma3 import Gemma3
    from circuits.transcoder import Transcoders


@dataclass(frozen=True)
class Source:
    """What to trace with; fields as the options of ``circuits trace``."""

    model: str = "gemma-3-270m"
    transcoders: str = "bundled"
    device: str = "auto"
    memory: int | None = None
    """Bytes; by default what is free."""
    max_tokens: int = 1024


@dataclass
class Tracer:
    """Traces requests into ``folder``; called by one thread."""

    folder: GraphFolder
    source: Source
    _opened: tuple[Gemma3, Transcoders] | None = field(default=None, init=False)

    def __call__(self, request: TraceRequest, report: Report) -> Result:
        """Trace, prune as ``circuits trace`` does, and save.

        Raises:
            CircuitsError: whatever cannot be opened, traced or written.
        """
        import circuits

        model, transcoders = self.open(report)
        self._check(model, request)
        graph = circuits.trace(
            model, transcoders, request.prompt, chat=request.chat, target=request.target, versus=request.versus,
            coverage=request.coverage, max_features=request.max_features, memory=self.source.memory, progress=report)
        report("pruning", 0, 1)
        small = graph.prune(request.node_threshold, request.edge_threshold)
        report("saving", 0, 1)
        return Result(self.folder.add(small, request.name or request.prompt), list(graph.header.warnings))

    def check(self, request: TraceRequest) -> None:
        """What can be told of a request before its turn: all of its text, once the model is there.

        Raises:
            InputError: a prompt that is empty or has too many tokens, or a target that is not one token.
        """
        if not request.prompt.strip():
            raise InputError("the prompt is empty: give at least one word")
        if request.versus is not None and request.target is None:
            raise InputError("versus needs a target: the trace explains logit(target) - logit(versus)")
        if self._opened is not None:
            self._check(self._opened[0], request)

    def _check(self, model: Gemma3, request: TraceRequest) -> None:
        from circuits.prompt import single_token, tokenize

        self.check_length(len(tokenize(model, request.prompt, request.chat)))
        for token in (request.target, request.versus):
            if token is not None:
                single_token(model, token)

    def check_length(self, n_tokens: int) -> None:
        """Raises:
            InputError: a prompt with more tokens than this server takes.
        """
        if n_tokens > self.source.max_tokens:
            raise InputError(f"the prompt has {n_tokens} tokens, this server traces at most {self.source.max_tokens}: "
                             "shorten it, or start the server with a larger --max-tokens")

    def open(self, report: Report) -> tuple[Gemma3, Transcoders]:
        """The model and the transcoders, loaded by the first call.

        Raises:
            CircuitsError: they cannot be opened.
        """
        if self._opened is None:
            import circuits

            report("loading the model", 0, 1)
            model = circuits.load_model(self.source.model, device=self.source.device, progress=report)
            report("opening the transcoders", 0, 1)
            self._opened = model, circuits.open_transcoders(self.source.transcoders, device=model.device,
                                                                      model=model.name)
        return self._opened
