"""The feature file: what is written comes back, damage is noticed, and a feature costs one small read."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from circuits.errors import FormatError, InputError
from circuits.features import Context, Feature, FeatureData, TokenScores
from circuits.features.feature import LISTS
from circuits.features.file import MAGIC, write

VOCABULARY = 262_144
WIDTHS = [40, 40]
TEXTS = {0: "", 1: "\x1b[31m\n", 2: "[bold]🦩[/]", 3: "a" * 300}


def random_feature(layer: int, i: int, rng: np.random.Generator, *, contexts: int = 12, window: int = 20,
                   scale: float = 30.0) -> Feature:
    """As many and as varied tokens as a real one: text with Zipf's frequencies, lists from all over."""
    def text() -> np.ndarray:
        return np.minimum(rng.zipf(1.15, window), 40_000).astype(np.int64)

    def scores(low: int, high: int) -> TokenScores:
        return TokenScores(rng.integers(low, high, 8), np.sort(rng.normal(size=8).astype(np.float32))[::-1])

    found = []
    for j in range(contexts):
        activations = np.where(rng.random(window) < 0.15, rng.random(window) * scale, 0)
        activations[14] = scale if j == 0 else rng.random() * scale
        found.append(Context(text(), activations.astype(np.float32), 14, 1.0 if j < 10 else 0.5))
    histogram = rng.integers(0, 3000, 16)
    return Feature(
        layer, i, int(histogram.sum()), 500_000, float(np.float32(scale)), -12, histogram, tuple(found),
        **{name: scores(0, 40_000) for name in LISTS}, effect_spread=0.25, candidates=40_000)


def save(path: Path, features: list[Feature], widths: list[int] = WIDTHS) -> FeatureData:
    ids = np.concatenate([c.tokens for f in features for c in f.contexts]
                         + [getattr(f, name).tokens for f in features for name in LISTS])
    tokens, counts = np.unique(ids, return_counts=True)
    tokens = tokens[np.argsort(-counts, kind="stable")]
    write(path, d_transcoder=widths, positions=500_000, candidates=40_000, tokens=tokens,
          texts=(TEXTS.get(t, f"token{t}") for t in tokens.tolist()), features=features, about={"text": "made up"})
    return FeatureData.open(path)


@pytest.fixture(scope="module")
def features() -> list[Feature]:
    rng = np.random.default_rng(0)
    return [random_feature(layer, i, rng) for layer in range(2) for i in range(0, 39, 3)]


def test_round_trip(features: list[Feature], tmp_path: Path) -> None:
    odd = [replace(features[0], layer=0, feature=1, contexts=(), promoted=TokenScores(np.zeros(0, int), np.zeros(0))),
           replace(features[0], layer=1, feature=39, max_activation=-2.0, effect_spread=1e9,
                   contexts=(Context(np.array([0, 1, 2, 3, 200_000]), np.zeros(5), 4, 1.0),))]
    ordered = [features[0], odd[0], *features[1:], odd[1]]
    data = save(tmp_path / "features.bin", ordered)
    assert FeatureData.open(tmp_path).header["text"] == "made up"
    assert data.live(0).tolist() == [0, 1, *range(3, 39, 3)]
    assert data.live(1).tolist() == [*range(0, 40, 3)]
    assert data.read(0, 2) is None
    np.testing.assert_allclose(data.density(0)[0], features[0].density)
    for made in ordered[:-1]:
        found = data.read(made.layer, made.feature)
        assert (found.count, found.positions, found.max_activation, found.first_bin, found.candidates) == (
            made.count, made.positions, made.max_activation, made.first_bin, made.candidates)
        np.testing.assert_array_equal(found.histogram, made.histogram)
        assert len(found.contexts) == len(made.contexts)
        for a, b in zip(found.contexts, made.contexts, strict=True):
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_allclose(a.activations, b.activations, atol=made.max_activation / 255)
            np.testing.assert_array_equal(a.activations > 0, b.activations > 0)
            assert (a.peak, a.quantile) == (b.peak, pytest.approx(b.quantile, abs=0.01))
        for name in LISTS:
            a, b = getattr(found, name), getattr(made, name)
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_allclose(a.scores, b.scores, rtol=1e-3)
            for token in a.tokens.tolist():
                assert found.texts[token] == TEXTS.get(token, f"token{token}")
    last = data.read(1, 39)
    assert [last.texts[t] for t in (0, 1, 2, 3, 200_000)] == [*TEXTS.values(), "token200000"]
    assert last.effect_spread == pytest.approx(65504)
    assert last.contexts[0].activations.tolist() == [0] * 5


def test_at_most_880_bytes_a_feature(tmp_path: Path) -> None:
    """The bundled set's budget: 25 MB for 27,648 features, tables included."""
    rng = np.random.default_rng(1)
    made = [random_feature(0, i, rng) for i in range(1500)]
    data = save(tmp_path / "f.bin", made, [1500])
    shared = 6 * data.header["vocabulary"] + data.header["text_bytes"]  # the token table: one for all features
    assert shared < 14 * 40_000
    assert (data.path.stat().st_size - shared) / len(made) + 14 * 40_000 / 27_648 <= 880
    assert len(data.read(0, 7).contexts) == 12


def test_a_read_touches_one_block_only(features: list[Feature], tmp_path: Path) -> None:
    data = save(tmp_path / "f.bin", features)
    raw = bytearray(data.path.read_bytes())
    block = zlib.compress(b"")
    assert len(block) < 20
    raw[-20:] = bytes(20)  # the last feature's
    (tmp_path / "hurt.bin").write_bytes(raw)
    hurt = FeatureData.open(tmp_path / "hurt.bin")
    assert hurt.read(0, 3).count == features[1].count
    with pytest.raises(FormatError, match=r"hurt.bin is damaged \(the block of feature 1/36"):
        hurt.read(1, 36)


def test_any_damage_is_noticed(features: list[Feature], tmp_path: Path) -> None:
    path = save(tmp_path / "f.bin", features[:3]).path
    whole = path.read_bytes()

    def read_all() -> None:
        data = FeatureData.open(path)
        for i in (0, 3, 6):
            data.read(0, i)

    read_all()
    for place in [*range(0, len(whole), 13), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1:])
        with pytest.raises(FormatError, match=r"f.bin"):
            read_all()
    for length in (0, 5, 15, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"f.bin"):
            read_all()
    path.write_bytes(whole + b"x")
    with pytest.raises(FormatError, match="other than its tables say"):
        read_all()


def test_foreign_and_newer_files(tmp_path: Path) -> None:
    path = tmp_path / "features.bin"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(FormatError, match="holds no feature data"):
        FeatureData.open(tmp_path)
    for header, message in ((b'{"format": "gemma-circuits-features", "version": 2}', "version 2, this program reads"),
                            (b'{"format": "gemma-circuits-features", "version": 1}', "header lacks or garbles")):
        path.write_bytes(MAGIC + np.array([len(header), zlib.crc32(header)], "<u4").tobytes() + header)
        with pytest.raises(FormatError, match=message):
            FeatureData.open(path)
    with pytest.raises(InputError, match=r"cannot read .*absent.bin"):
        FeatureData.open(tmp_path / "absent.bin")


def test_bad_names_and_places(features: list[Feature], tmp_path: Path) -> None:
    data = save(tmp_path / "f.bin", features)
    with pytest.raises(InputError, match="layer is 2, expected 0 to 1"):
        data.read(2, 0)
    with pytest.raises(InputError, match="feature is 1/40, but layer 1 has features 0 to 39"):
        data.read(1, 40)
    with pytest.raises(InputError, match="cannot write"):
        save(tmp_path / "absent" / "f.bin", features)
    broken = [replace(features[0]), replace(features[1], contexts=None)]
    before = (tmp_path / "f.bin").read_bytes()
    with pytest.raises(TypeError):
        write(tmp_path / "f.bin", d_transcoder=WIDTHS, positions=1, candidates=1, tokens=np.arange(50_000),
              texts=map(str, range(50_000)), features=broken, about={})
    assert (tmp_path / "f.bin").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"f.bin"}
