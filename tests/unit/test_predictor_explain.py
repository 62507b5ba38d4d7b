"""Contributions are Shapley values, and they add up."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from predictor.columns import Layout, from_records
from predictor.explain import Explainer, load
from serin.model import Feature
from serin.model.explanation import Category, Code, Explanation, Linear, Number, Single, Tree, Trees

FEATURES = (
    *(Feature(name=name, input=name, dtype="number") for name in "abc"),
    Feature(name="s", input="s", dtype="string"),
)
LAYOUT = Layout.of(FEATURES)
COLUMNS = (
    Number(feature="a", fill=0.5),
    Number(feature="b", fill=0.25),
    Number(feature="c", fill=0.0),
    Code(feature="s", values=("x", "y")),
)
RECORDS = (
    {"a": 0.2, "b": 0.9, "c": 0.1, "s": "x"},
    {"a": 0.7, "b": None, "c": 0.8, "s": "y"},
    {"b": 0.3, "s": "unseen"},
)


def random_tree(rng: np.random.Generator, depth: int, columns: int) -> Tree:
    """Splits anywhere, also twice on one column; a third of the inner nodes end early."""
    left, right, column, value, cover = [], [], [], [], []

    def grow(level: int, weight: float) -> int:
        node = len(left)
        for array in (left, right, column, value, cover):
            array.append(0)
        cover[node] = weight
        if level == depth or (level and rng.random() < 0.33):
            left[node] = right[node] = -1
            value[node] = float(rng.normal())
            return node
        column[node], value[node] = int(rng.integers(columns)), float(np.float32(rng.random()))
        share = rng.uniform(0.1, 0.9)
        left[node] = grow(level + 1, weight * share)
        right[node] = grow(level + 1, weight * (1 - share))
        return node

    grow(0, 100.0)
    return Tree(left=left, right=right, column=column, value=value, cover=cover)


def expected(tree: Tree, row: np.ndarray, known: frozenset[int], node: int = 0) -> float:
    """The tree's value when only the `known` columns of the row are: unknown ones go both ways, by cover."""
    if tree.left[node] == -1:
        return tree.value[node]
    children = tree.left[node], tree.right[node]
    if tree.column[node] in known:
        return expected(tree, row, known, children[not row[tree.column[node]] < np.float32(tree.value[node])])
    return sum(expected(tree, row, known, child) * tree.cover[child] for child in children) / tree.cover[node]


def shapley(tree: Tree, row: np.ndarray, columns: int) -> list[float]:
    """From the definition: over all coalitions."""
    values = []
    for player in range(columns):
        others = [column for column in range(columns) if column != player]
        value = 0.0
        for size in range(columns):
            weight = math.factorial(size) * math.factorial(columns - size - 1) / math.factorial(columns)
            for coalition in itertools.combinations(others, size):
                without = frozenset(coalition)
                value += weight * (expected(tree, row, without | {player}) - expected(tree, row, without))
        values.append(value)
    return values


def explain(explanation: Explanation, *records: object) -> tuple[float, np.ndarray]:
    contributions = Explainer(explanation, LAYOUT).explain(from_records(LAYOUT, records), np.full(len(records), 0.7))
    assert contributions.features == ("a", "b", "c", "s")
    return contributions.base, contributions.values


@pytest.mark.parametrize("seed", range(8))
def test_tree_contributions_are_shapley_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trees = tuple(random_tree(rng, int(rng.integers(0, 6)), 4) for _ in range(3))
    learner = Trees(bias=0.5, trees=trees)
    base, values = explain(Explanation(slope=1.0, intercept=0.0, columns=COLUMNS, learner=learner), *RECORDS)
    rows = np.array([[0.2, 0.9, 0.1, 0], [0.7, 0.25, 0.8, 1], [0.5, 0.3, 0.0, -1]], np.float32)
    for row, found in zip(rows, values, strict=True):
        assert found == pytest.approx(np.sum([shapley(tree, row, 4) for tree in trees], axis=0), abs=1e-12)
        whole = 0.5 + sum(expected(tree, row, frozenset(range(4))) for tree in trees)
        assert base + found.sum() == pytest.approx(whole, abs=1e-12)


def test_linear_contributions_are_distances_from_the_mean() -> None:
    columns = (*COLUMNS[:3], Category(feature="s", value="x"), Category(feature="s", value="y"))
    learner = Linear(base=-1.0, weights=(2, 0, -1, 3, 5), centers=(0.5, 0, 0, 0.25, 0.5))
    base, values = explain(Explanation(slope=2.0, intercept=0.5, columns=columns, learner=learner), *RECORDS)
    assert base == pytest.approx(-1.5)
    assert values[0] == pytest.approx([2 * 2 * -0.3, 0, 2 * -0.1, 2 * (3 * 0.75 + 5 * -0.5)], abs=1e-6)
    assert values[2] == pytest.approx([0, 0, 0, 2 * (3 * -0.25 + 5 * -0.5)], abs=1e-6)


def test_a_single_feature_takes_all_the_difference() -> None:
    explanation = Explanation(slope=2.0, intercept=0.5, columns=(), learner=Single(base=-1.0, feature="s"))
    base, values = explain(explanation, RECORDS[0])
    assert values[0, :3].tolist() == [0, 0, 0]
    assert base + values.sum() == pytest.approx(math.log(0.7 / 0.3))


def test_a_model_may_come_without(tmp_path: Path) -> None:
    assert load(tmp_path, LAYOUT) is None
