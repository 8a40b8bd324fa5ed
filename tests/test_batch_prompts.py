"""The lines of a batch: what is read, and one clear sentence for every line that is not a prompt."""

import io
import sys
from pathlib import Path

import pytest

from circuits.batches.prompts import check_prompts, read_prompts
from circuits.errors import InputError


def written(folder: Path, *lines: str) -> Path:
    path = folder / "prompts.jsonl"
    path.write_bytes("\n".join(lines).encode())
    return path


def test_lines(tmp_path: Path) -> None:
    path = written(tmp_path, '\ufeff{"prompt": "a b", "family": "f", "kind": [1, {"x": null}]}\r', "", "  ",
                   '{"tokens": [2, 5], "id": "A.b_c-1", "target": 7, "versus": " x", "answer": "y"}',
                   '{"prompt": "\\ud83e\\udda9", "chat": true}', "")
    first, second, third = read_prompts(path)
    assert (first.id, first.prompt, first.family, first.extra) == ("00001", "a b", "f", {"kind": [1, {"x": None}]})
    assert (second.id, second.tokens, second.target, second.versus) == ("A.b_c-1", [2, 5], 7, " x")
    assert second.asked() == {"prompt": None, "tokens": [2, 5], "chat": False, "target": 7, "versus": " x",
                              "answer": "y"}
    assert (third.id, third.prompt, third.chat, third.extra) == ("00005", "🦩", True, {})


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "a"}\n{"prompt": 3}\n')))
    with pytest.raises(InputError, match="standard input, line 2: prompt: "):
        read_prompts("-")


@pytest.mark.parametrize(("line", "message"), [
    ("{", "line 2 is not JSON"),
    ("[" * 100_000, "line 2 is not JSON"),
    ('["a"]', "line 2 is a list"),
    ("{}", "line 2: expected either 'prompt'"),
    ('{"prompt": "a", "tokens": [2, 3]}', "expected either 'prompt'"),
    ('{"prompt": " "}', "prompt is empty"),
    ('{"prompt": 3}', "prompt: "),
    ('{"tokens": [2, true]}', "tokens: "),
    ('{"tokens": [2, "3"]}', "tokens: "),
    ('{"tokens": [2]}', "at least two"),
    ('{"tokens": [2, -1]}', "none below 0"),
    ('{"tokens": [2, 3], "chat": true}', "give 'prompt', not 'tokens'"),
    ('{"prompt": "a", "chat": "yes"}', "chat: "),
    ('{"prompt": "a", "versus": "b"}', "versus needs a target"),
    ('{"prompt": "a", "target": 1.5}', "target: "),
    ('{"prompt": "a", "family": 3}', "family: "),
    ('{"prompt": "a", "id": 3}', "id: "),
    ('{"prompt": "a", "id": "../a"}', "id is '../a'"),
    ('{"prompt": "a", "id": ".."}', "id is"),
    ('{"prompt": "a", "id": "a\\n"}', "id is"),
    ('{"prompt": "a", "id": ""}', "id is"),
    ('{"prompt": "a", "id": "00001"}', "taken by .*line 1"),
    ('{"prompt": "a\\ud800"}', "surrogate"),
    ('{"prompt": "a", "kind": NaN}', "plain JSON")])
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(written(tmp_path, '{"prompt": "a"}', line))
    assert "line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_that_name_one_file_where_case_does_not_count(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'Paris' is taken by prompt 1"):
        check_prompts((f"prompt {i}", i, {"prompt": "x", "id": id_}) for i, id_ in enumerate(("paris", "Paris"), 1))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_prompts(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no prompts"):
        read_prompts(written(tmp_path, "", ""))
    (tmp_path / "latin").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompts(tmp_path / "latin")
