"""What the API takes and gives, with the limits of every field; the OpenAPI document is made of this."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_PROMPT = 20_000
MAX_LABEL = 500
MAX_PINNED = 5_000
MAX_SUPERNODES = 1_000
MAX_LABELS = 10_000

NodeId = Annotated[str, Field(min_length=1, max_length=100)]
Label = Annotated[str, Field(max_length=MAX_LABEL)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Token = Annotated[str, Field(min_length=1, max_length=200)]


class Strict(BaseModel):
    """A body whose unknown fields are errors: a misspelt option must not be ignored."""

    model_config = ConfigDict(extra="forbid")


class TraceRequest(Strict):
    """A prompt to trace, with the options of ``circuits trace``."""

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT, description="The text whose continuation is explained.")
    chat: bool = Field(default=False, description="Wrap the prompt in the model's chat template.")
    target: Token | None = Field(default=None, description="Explain this token instead of the top logits. A leading "
                                 "space counts.")
    versus: Token | None = Field(default=None, description="With a target: why that token and not this one.")
    coverage: float = Field(default=0.95, gt=0, le=1, allow_inf_nan=False, description="Share of influence to explore; "
                            "1 computes every row.")
    max_features: int | None = Field(default=None, ge=1, le=10_000_000, description="Stop after this many features' "
                                     "rows.")
    node_threshold: Share = Field(default=0.8, description="Share of influence that kept nodes hold.")
    edge_threshold: Share = Field(default=0.98, description="Share of edge scores that kept edges hold.")
    name: str | None = Field(default=None, max_length=80, description="Name of the file, without suffix; by default "
                             "made of the prompt. A name that is taken gets a number.")


State = Literal["waiting", "running", "done", "failed", "cancelled"]


class TraceState(BaseModel):
    """Where a trace stands."""

    id: str
    state: State
    request: TraceRequest
    ahead: int = Field(description="Traces that come before this one; 0 unless it waits.")
    stage: str = Field(description="What the running trace is doing, such as 'rows'.")
    done: int = Field(description="How much of the stage is done.")
    total: int = Field(description="The most there can be; 1 or less when it cannot be told.")
    error: str | None = Field(description="Why it failed, in one sentence.")
    graph: str | None = Field(description="Name of the graph it made, for /api/graphs/{name}.")
    warnings: list[str] = Field(description="What the trace warned of.")
    created: str = Field(description="UTC time, ISO 8601.")
    finished: str | None = Field(description="UTC time, ISO 8601.")


class TraceList(BaseModel):
    """Traces of this server, newest first; the last 50 that ended are remembered."""

    traces: list[TraceState]


class GraphSummary(BaseModel):
    """What the gallery shows of a file. Of a damaged one only name, size, times and ``error``."""

    name: str
    bytes: int
    modified: str = Field(description="UTC time of the last change, ISO 8601.")
    etag: str = Field(description="Changes with the file; for If-Match.")
    error: str | None = Field(default=None, description="Why the file cannot be read, in one sentence.")
    prompt: str = ""
    model: str = ""
    transcoders: str = ""
    created: str = ""
    target: str = Field(default="", description="Label of the target with the largest weight.")
    target_weight: float | None = Field(default=None, description="Its probability; 1 for a contrast or a direction.")
    targets: int = 0
    scores: dict[str, float | None] = Field(default_factory=dict, description="replacement, completeness, "
                                            "completeness_all_nodes: of the graph before pruning.")
    unexplored: float | None = None
    nodes: int = 0
    edges: int = 0
    pinned: int = 0
    supernodes: int = 0
    page: bool = Field(default=False, description="Whether /graphs/{name} can show it.")
    thumbnail: bool = Field(default=False, description="Whether /graphs/{name}/thumbnail.svg can be drawn.")
    too_large: str | None = Field(default=None, description="Why there is no page or thumbnail.")


class GraphList(BaseModel):
    """The graphs of the folder, last changed first."""

    graphs: list[GraphSummary]
    left_out: int = Field(description="Older files beyond the most that are listed.")


class GraphDetails(GraphSummary):
    """A graph's summary and its whole header."""

    header: dict[str, Any] = Field(description="Where the graph comes from and what the trace measured.")


class Annotations(Strict):
    """What a reader adds to a graph."""

    pinned: list[NodeId] = Field(default_factory=list, max_length=MAX_PINNED, description="Ids of pinned nodes.")
    supernodes: list[Annotated[list[Label], Field(min_length=2)]] = Field(
        default_factory=list, max_length=MAX_SUPERNODES, description="[label, node id, node id, ...] each.")
    labels: dict[NodeId, Label] = Field(default_factory=dict, max_length=MAX_LABELS, description="New label by node "
                                        "id. Nodes that are not named keep theirs.")


class Saved(BaseModel):
    """A graph that was written."""

    name: str
    etag: str


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(description="One sentence: what was expected, what came, what to do.")
