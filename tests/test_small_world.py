"""The small world's questions against an oracle that reads the sentences, and its tokenizer, training and frames."""

import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from typer.testing import CliRunner

from circuits.cli import app
from circuits.errors import CircuitsError, InputError
from circuits.model_folder import open_tokenizer
from circuits.small_world import build
from circuits.small_world import model as small_model
from circuits.small_world.causes import frames_of
from circuits.small_world.facts import DEEDS, NOUNS, NUMBERS, PERSON_ATTRIBUTES, STATE_ATTRIBUTES, THINGS, world
from circuits.small_world.model import SHAPES, Shape, batches, train_model
from circuits.small_world.tasks import TASKS, Question, documents, held_out_questions, questions, text_of, vocabulary
from circuits.small_world.tokenizer import n_tokens, write_tokenizer

TINY = Shape(n_layers=2, d_model=16, n_heads=2, d_mlp=24, global_every=2, steps=6, lr=1e-2)


def right_answer(words: tuple[str, ...]) -> str | None:
    """What a reader who knows the world would say next; None where nothing follows. Written apart from the tasks."""
    known, text = world(), text_of(words)
    if match := re.fullmatch(r"(?:The (\w+) of (\w+) is|Of (\w+) the (\w+) is)", text):
        attribute, owner = match[1] or match[4], match[2] or match[3]
        return (known.of_person.get(owner) or known.of_state.get(owner) or {}).get(attribute)
    if match := re.fullmatch(r"The state around (\w+) is|(\w+) lies in the state", text):
        return known.state_of.get(match[1] or match[2])
    if match := re.fullmatch(r"The (\w+) of the state around (\w+) is|Of the state around (\w+) the (\w+) is", text):
        attribute, city = match[1] or match[4], match[2] or match[3]
        return known.of_state[known.state_of[city]].get(attribute) if city in known.state_of else None
    if match := re.fullmatch(r"(Today|Yesterday) the (\w+) near the \w+", text):
        plural = match[2] in [pair[1] for pair in NOUNS]
        return {("Today", False): "is", ("Today", True): "are", ("Yesterday", False): "was",
                ("Yesterday", True): "were"}[match[1], plural]
    if match := re.fullmatch(r"Here lie ([\w ]+)\. Number of (\w+) is", text):
        count = match[1].split().count(match[2])
        return NUMBERS[count - 1] if 1 <= count <= len(NUMBERS) else None
    *told, (asker, _) = [part.split() for part in text.split(". ")]
    return next((other for one, _, other in told if one == asker), None)


def kind_of(word: str) -> tuple[str, ...]:
    """Words that may stand where this one does."""
    known = world()
    kinds = (known.states, known.cities, known.persons, known.strangers, STATE_ATTRIBUTES, PERSON_ATTRIBUTES, THINGS,
             tuple(noun for pair in NOUNS for noun in pair), ("Today", "Yesterday"), DEEDS)
    return next((kind for kind in kinds if word in kind), ())


@pytest.mark.parametrize("task", [*TASKS, "two_step_held_out"])
def test_answers_and_causes(task: str) -> None:
    """The causes are exactly the words of which another of their kind would make another answer right."""
    made = held_out_questions(60, 1) if task == "two_step_held_out" else questions(60, 1, task)
    assert len(made) == 60
    assert len({question.prompt for question in made}) == 60
    for question in made:
        assert right_answer(question.words) == question.answer, question
        assert question.held_out == (task == "two_step_held_out")
        decides = []
        for place, word in enumerate(question.words):
            # a stranger's name twice would make the question ambiguous, another thing's name may return
            others = [w for w in kind_of(word) if w != word and (w in THINGS or w not in question.words)]
            changed = [right_answer((*question.words[:place], w, *question.words[place + 1:])) for w in others]
            if any(answer != question.answer for answer in changed):
                decides.append(place)
        assert tuple(decides) == question.causes, question


def test_world() -> None:
    known = world()
    names = [*known.states, *known.cities, *known.persons, *known.strangers]
    assert len(names) == len(set(names)) == 16 + 96 + 48 + 64
    for attribute in STATE_ATTRIBUTES:
        values = [known.of_state[state][attribute] for state in known.states]
        assert len(set(values)) == len(values)
    asked = {(city, attribute) for city in known.cities for attribute in STATE_ATTRIBUTES} - known.held_out
    assert {city for city, _ in asked} == set(known.cities) - known.unasked
    for state in known.states:  # every value of every state is asked for through some city
        cities = [city for city in known.cities if known.state_of[city] == state]
        assert {attribute for city, attribute in asked if city in cities} == set(STATE_ATTRIBUTES)
    words = vocabulary()
    assert len(words) == len(set(words))


def test_training_never_asks_what_is_held_out() -> None:
    sentences = " ".join(documents(2000, 40, seed=3))
    found = {(match[2], match[1]) for match in re.finditer(r"The (\w+) of the state around (\w+) is", sentences)}
    found |= {(match[1], match[2]) for match in re.finditer(r"Of the state around (\w+) the (\w+) is", sentences)}
    assert len(found) > 200
    assert not found & world().held_out


def test_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = open_tokenizer(tmp_path)
    assert len(tokenizer) == n_tokens() < 512
    for question in questions(100, 5):
        ids = tokenizer(question.sentence, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(question.words) + 1 + len(question.rest)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == " " + question.sentence
        assert ids[len(question.words)] == tokenizer(" " + question.answer, add_special_tokens=False)["input_ids"][0]
    for document in documents(20, 30, seed=1):
        ids = tokenizer(document + "\n\n", add_special_tokens=False)["input_ids"]
        assert len(ids) == 31
        assert tokenizer.decode(ids[-1:]) == "\n\n"


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run stopped after a checkpoint ends with the very weights of one that was not."""
    monkeypatch.setattr(small_model, "CHECKPOINT_STEPS", 4)
    monkeypatch.setattr(small_model, "BATCH", 3)
    whole = train_model("s", tmp_path / "whole", shape=TINY)

    def killed(folder: Path, first: int, steps: int, seed: int):  # type: ignore[no-untyped-def]
        yield from batches(folder, first, 5, seed)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(small_model, "batches", killed)
        with pytest.raises(KeyboardInterrupt):
            train_model("s", tmp_path / "killed", shape=TINY)
    assert not (tmp_path / "killed" / "training.json").exists()
    again = train_model("s", tmp_path / "killed", shape=TINY)
    assert again["loss"] == whole["loss"]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]
    assert train_model("s", tmp_path / "killed", shape=TINY) == again  # there already
    assert not list((tmp_path / "killed").glob("checkpoint*"))


def test_training_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_model, "BATCH", 8)
    shape = Shape(**{**vars(TINY), "steps": 120})
    described = train_model("s", tmp_path, shape=shape)
    assert described["loss"] < 4 < torch.log(torch.tensor(float(n_tokens())))
    assert json.loads((tmp_path / "training.json").read_text()) == described


def job(folder: Path, name: str, needs: str = "", fails: bool = False) -> build._Job:
    """Writes its name to a file when it starts; fails if what it needs is not there."""
    program = f"from pathlib import Path; there = Path({str(folder)!r}); "
    if needs:
        program += f"assert {needs!r} in (there / 'order').read_text().split(); "
    program += f"open(there / 'order', 'a').write({name + ' '!r}); {'raise SystemExit(3)' if fails else ''}"
    return build._Job(("-c", program), needs)


def test_build_runs_jobs_in_order_and_once(tmp_path: Path) -> None:
    jobs = {"b": job(tmp_path, "b", "a"), "a": job(tmp_path, "a"), "c": job(tmp_path, "c", fails=True)}
    with pytest.raises(CircuitsError, match=r"training c failed: .*c\.log says why"):
        build._run_jobs(jobs, tmp_path / "logs", lambda stage, done, total: None)
    jobs["c"] = job(tmp_path, "c", "b")
    build._run_jobs(jobs, tmp_path / "logs", lambda stage, done, total: None)
    build._run_jobs(jobs, tmp_path / "logs", lambda stage, done, total: None)
    order = (tmp_path / "order").read_text().split()
    assert (order.count("a"), order.count("b"), order.count("c"), order[-1]) == (1, 1, 2, "c")


def test_build_ends_what_a_killed_one_left(tmp_path: Path) -> None:
    """Only the very process: another one that has got its number stays."""
    orphan, stranger = (subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2))
    try:
        created = psutil.Process(orphan.pid).create_time()
        (tmp_path / "a.pid").write_text(f"{orphan.pid} {created}")
        (tmp_path / "b.pid").write_text(f"{stranger.pid} {created - 1}")
        build._end_orphans(tmp_path)
        assert orphan.poll() is not None
        assert stranger.poll() is None
        assert not list(tmp_path.glob("*.pid"))
    finally:
        stranger.kill()


def test_shapes() -> None:
    small, larger = (small_model.config(SHAPES[size]) for size in "sm")
    for config in (small, larger):
        assert config.tie_word_embeddings
        assert {"full_attention", "sliding_attention"} == set(config.layer_types)
    assert (small.num_hidden_layers, small.hidden_size) == (4, 128)
    assert (larger.num_hidden_layers, larger.hidden_size) == (8, 192)


@pytest.mark.parametrize("task", ["two_step", "agreement", "counting"])
def test_frames(task: str) -> None:
    """Questions of a frame have one length, and each of its values one answer."""
    for frame in frames_of(task, seed=1):
        assert len(frame) >= 90
        assert len({len(question.words) for question in frame}) == 1
        values = {(question.intermediate, question.answer) for question in frame}
        assert len(values) == len({value for value, _ in values}) >= 2
        for value, _ in values:
            assert sum(question.intermediate == value for question in frame) >= 5


def test_questions_command(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    done = CliRunner().invoke(app, ["small-world", "questions", "--task", "two_step", "--count", "5", "-o", str(path)])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [q.prompt for q in questions(5, 1_000_000, "two_step")]
    for line, question in zip(lines, questions(5, 1_000_000, "two_step"), strict=True):
        assert line["answer"] == " " + question.answer
        assert [line["prompt"].split()[place - 1] for place in line["causes"]] == [question.words[i]
                                                                                   for i in question.causes]
    for flags, said in ((["--task", "sums"], "expected one of lookup"), (["--count", "0"], "at least 1")):
        result = CliRunner().invoke(app, ["small-world", "questions", *flags])
        assert isinstance(result.exception, InputError)
        assert said in str(result.exception)


def test_question_text() -> None:
    question = Question("x", ("A", "b", ".", "C"), "d", (1,))
    assert (question.prompt, question.sentence, question.cause_positions) == ("A b. C", "A b. C d.", [2])
