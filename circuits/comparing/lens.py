"""What a model's residual stream says of the answer after every layer ("logit lens", nostalgebraist 2020).

Shapes: L layers, P positions, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuits.gemma3 import Gemma3
from circuits.graphs.decided import Reading
from circuits.interventions.unchanged import Unchanged
from circuits.prompt import check_tokens, token_text


@torch.no_grad()
def read_layers(model: Gemma3, tokens: Sequence[int], target: int) -> Reading:
    """The final norm and the unembedding applied to the last position's residual stream after the embeddings and after
    every layer; after the last layer that is the model's own output.

    Args:
        target: the token whose rank and probability are read.

    Raises:
        InputError: tokens that the model cannot read.
    """
    x = model.embed(torch.tensor(check_tokens(model, tokens)))
    last = [x[-1]]
    for layer in range(model.n_layers):
        block = model.block(layer)
        x = Unchanged.of(block, x.to(block.w_q.device)).out
        last.append(x[-1].to(model.device))
    probabilities = model.unembed(model.final_norm(torch.stack(last))).softmax(-1)
    own = probabilities[:, target]
    rank = (probabilities > own[:, None]).sum(1) + 1
    return Reading(target, token_text(model, target), rank.cpu().numpy(), own.cpu().double().numpy())
