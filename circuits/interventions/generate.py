"""Text that the model writes under steering, beside what it writes unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.interventions.decoding import Cache, Decoder, GeneratedEdits
from circuits.interventions.edits import DirectionEdit, Edit, FeatureEdit, Intervention, TokenEdit
from circuits.interventions.intervene import intervene, local_replacement
from circuits.interventions.modes import FREE, Mode
from circuits.interventions.sampling import Sampler
from circuits.prompt import prompt_text
from circuits.replacement import LocalReplacement
from circuits.transcoder import Transcoders

END_OF_TURN = "<end_of_turn>"
"""What -it models end their answer with."""
NOTHING = TokenEdit(-1, 1.0)
"""An edit that changes nothing, and costs one position."""


@dataclass(frozen=True)
class Continuation:
    """What one text goes on with."""

    tokens: list[int]
    """With the token that ended it, if one did."""
    probabilities: list[float]
    """Of each token, as the (steered) model has it: temperature, top_k and top_p not applied."""
    text: str
    """Without the token that ended it."""
    ended: bool
    """Whether the model ended it; else it was cut."""


@dataclass(frozen=True)
class Generation:
    """Continuations of one prompt."""

    unchanged: Continuation
    steered: tuple[Continuation, ...]
    """Of each intervention."""


def generate(model: Gemma3, transcoders: Transcoders, prompt: str | Sequence[int] | LocalReplacement,
             interventions: Intervention | Sequence[Intervention] = (), *, max_new_tokens: int = 40,
             temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0,
             mode: Mode = FREE, chat: bool = False,
             progress: Callable[[str, int, int], None] = lambda stage, done, total: None) -> Generation:
    """Continue a prompt unchanged and under each intervention, all at once.

    Edits at positions of the prompt are made there; those with ``generated`` at every generated token, too, while it
    is read: the first new token comes from the prompt's last position. Every text ends by itself, at the end of the
    text or of the turn.

    Args:
        interventions: one, or a batch; with none, only the unchanged text is written. An edit with ``positions=()`` and
            ``generated`` is made at generated tokens only.
        temperature: 0 is greedy; ``top_k`` and ``top_p`` limit what is drawn from. Each text depends on its own edits
            and ``seed`` alone, and all meet the same noise: see :class:`circuits.interventions.sampling.Sampler`.
        mode: FREE, or constrained patching, whose layers are clamped on the prompt only: generated tokens have no
            unchanged values.

    Raises:
        InputError: settings out of range, a mode that cannot generate, a text longer than the model reads, or edits
            that are impossible on this prompt.
    """
    sampler = Sampler(temperature, top_k, top_p, seed)
    check_generates(mode, max_new_tokens)
    chosen = (interventions,) if isinstance(interventions, Intervention) else tuple(interventions)
    local = prompt if isinstance(prompt, LocalReplacement) else local_replacement(model, transcoders, prompt, chat)
    if local.n_positions + max_new_tokens > model.max_positions:
        raise InputError(f"the prompt has {local.n_positions} tokens, and with {max_new_tokens} new ones the text is "
                         f"longer than the {model.max_positions} that {model.name} reads: generate fewer")
    cache = Cache(local, max_new_tokens)
    batch = [Intervention((NOTHING,)), *chosen]
    edits = GeneratedEdits.of(transcoders, local, batch)
    outcome = intervene(model, transcoders, local, [on_prompt(i) for i in batch], mode, observer=cache)
    cache.begin()
    decoder, final = Decoder(model, cache, edits), outcome.final_before + outcome.final_changes
    ends = end_tokens(model)
    texts: list[list[tuple[int, float]]] = [[] for _ in batch]
    for step in range(max_new_tokens):
        progress("generating", step, max_new_tokens)
        logits = model.unembed(final)
        tokens = sampler.choose(logits)
        probabilities = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].exp()
        for text, token, probability in zip(texts, tokens.tolist(), probabilities.tolist(), strict=True):
            if not text or text[-1][0] not in ends:
                text.append((token, probability))
        if step == max_new_tokens - 1 or all(text[-1][0] in ends for text in texts):
            break
        final = decoder.step(tokens)
    unchanged, *steered = (_continuation(model, text, ends) for text in texts)
    return Generation(unchanged, tuple(steered))


def on_prompt(intervention: Intervention) -> Intervention:
    """The part of an intervention that is made on the prompt; where there is none, one that changes nothing."""
    edits = tuple(edit for edit in intervention.edits if not only_generated(edit))
    return replace(intervention, edits=edits or (NOTHING,)) if intervention.edits else intervention


def only_generated(edit: Edit) -> bool:
    """Whether an edit is made at generated tokens and nowhere on the prompt."""
    if not isinstance(edit, FeatureEdit | DirectionEdit) or not edit.generated:
        return False
    return edit.positions is not None and not isinstance(edit.positions, int) and len(edit.positions) == 0


def check_generates(mode: Mode, max_new_tokens: int) -> None:
    """Raises:
        InputError: a mode in which no more tokens can be read, or fewer than one are wanted.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}: expected at least 1")
    if mode.patterns_frozen or mode.norms_frozen or mode.mlps != "free":
        raise InputError("frozen attention, norms or MLPs exist on the prompt only, so nothing can be generated with "
                         "them: use the free mode, or constrained patching such as 5-12")


def end_tokens(model: Gemma3) -> set[int]:
    """Tokens that end a text or a turn."""
    ends = model.hf.config.eos_token_id
    found = {ends} if isinstance(ends, int) else set(ends or ())
    if model.tokenizer is not None:
        turn = model.tokenizer.convert_tokens_to_ids(END_OF_TURN)
        found |= {model.tokenizer.eos_token_id, turn} - {None, model.tokenizer.unk_token_id}
    return found


def _continuation(model: Gemma3, text: list[tuple[int, float]], ends: set[int]) -> Continuation:
    tokens, probabilities = [token for token, _ in text], [probability for _, probability in text]
    ended = tokens[-1] in ends
    return Continuation(tokens, probabilities, prompt_text(model, tokens[:-1] if ended else tokens), ended)
