"""What the API of the model takes and gives: steering, heads of an edge, attention scores."""

from __future__ import annotations

from pydantic import BaseModel, Field

from circuits.serve.schemas import NodeId, Strict

MAX_STEERED = 1_000
MAX_MULTIPLIER = 100
MAX_GENERATED = 200
MAX_TOP = 100


class SteeredNode(Strict):
    """What a node is to be."""

    id: NodeId = Field(description="Id of a feature, error or token of the graph.")
    multiplier: float = Field(ge=-MAX_MULTIPLIER, le=MAX_MULTIPLIER, allow_inf_nan=False, description="Times its own "
                              "value: 0 removes it, -1 turns it round, 1 holds it as it is whatever else changes.")


class SteerRequest(Strict):
    """Nodes to change together, and what to say about it."""

    nodes: list[SteeredNode] = Field(min_length=1, max_length=MAX_STEERED, description="{id, multiplier} of each node, "
                                     "once; of a supernode its members. Multipliers are at most 100 in size.")
    top: int = Field(default=10, ge=1, le=MAX_TOP, description="How many tokens to list, the likeliest first.")
    generate: int = Field(default=0, ge=0, le=MAX_GENERATED, description="Tokens to continue the prompt by, "
                          "unchanged and steered; 0 for none.")
    temperature: float = Field(default=0, ge=0, le=100, allow_inf_nan=False, description="0 always takes the likeliest "
                               "token.")
    top_k: int | None = Field(default=None, ge=1, le=1_000_000, description="Draw from the k likeliest tokens only.")
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False, description="Draw from the likeliest "
                                "tokens that hold this probability.")
    seed: int = Field(default=0, ge=0, lt=2**53, description="The same seed draws the same text.")


class Change(BaseModel):
    """A target or token before and after. Logits are less their mean over the vocabulary, as those of a graph are."""

    logit: float = Field(description="On the unchanged prompt; of a contrast the difference of two logits.")
    predicted: float = Field(description="Its change in the local replacement model: what the graph says.")
    measured: float = Field(description="Its change in the model itself.")
    probability: float | None = Field(description="On the unchanged prompt; null where the target is no token.")
    probability_predicted: float | None = Field(description="Afterwards, in the local replacement model.")
    probability_measured: float | None = Field(description="Afterwards, in the model itself.")


class TargetChange(Change):
    """A target of the graph."""

    id: str
    label: str


class TokenChange(Change):
    """A candidate for the next token."""

    token: int
    text: str


class ReactingFeature(BaseModel):
    """A feature that reacts in the model itself. Nodes that are steered are left out."""

    id: str | None = Field(description="Its node in the graph, if it has one.")
    name: str
    layer: int
    position: int
    feature: int
    before: float = Field(description="Activation on the unchanged prompt.")
    change: float = Field(description="Of its activation.")


class Text(BaseModel):
    """How a text goes on."""

    text: str
    tokens: int
    ended: bool = Field(description="The model ended it; else it was cut.")


class Texts(BaseModel):
    """The prompt continued; both meet the same noise."""

    unchanged: Text
    steered: Text


class Steered(BaseModel):
    """What steering does, predicted and measured."""

    targets: list[TargetChange]
    tokens: list[TokenChange] = Field(description="By the larger of the probabilities before and measured.")
    kl_predicted: float = Field(description="KL(before || after) of the next token in the local replacement model, "
                                "nats.")
    kl_measured: float = Field(description="The same in the model itself.")
    reacting: list[ReactingFeature] = Field(description="The 20 whose activation changes most.")
    n_reacting: int = Field(description="How many features react.")
    texts: Texts | None


class HeadPart(BaseModel):
    """The part of an edge that moves through one head."""

    layer: int
    head: int
    loading: float
    share: float | None = Field(description="Of the edge; null where the edge is 0.")


class EdgeParts(BaseModel):
    """An edge taken apart: at every layer the loadings of the heads and the bypass add up to the edge."""

    weight: float
    heads: list[HeadPart] = Field(description="Those with a part, the largest first.")
    bypass: list[float] = Field(description="By layer: what that layer's attention does not touch.")


class ScorePart(BaseModel):
    """A component of the residual stream, and what it adds to a score."""

    id: str | None = Field(description="Its node in the graph, if it has one.")
    name: str
    value: float


class ScorePair(BaseModel):
    """What a component at the query and one at a key add together."""

    query_id: str | None
    query_name: str
    key_id: str | None
    key_name: str
    value: float


class Attention(BaseModel):
    """Why a head's query gives a key its score, before the softmax."""

    score: float = Field(description="Of the key, or its lead over the other key.")
    residual: float = Field(description="How far the sum of all pairs is from the score, relative to it.")
    pattern: list[float] = Field(description="What the query gives to each key up to itself, after the softmax.")
    scores: list[float | None] = Field(description="Before the softmax; null outside of the layer's window.")
    pairs: list[ScorePair] = Field(description="The largest first. In a contrast, the key's side is its difference.")
    queries: list[ScorePart] = Field(description="The largest query-side components, summed over the key side.")
    keys: list[ScorePart] = Field(description="The largest key-side components, summed over the query side.")
