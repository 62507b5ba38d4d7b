"""What stands in the way of learning from a table. Each finding ends as `UserError` or as a note."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.config import Config
from components.preprocess.contract import FIRST_ROWS, counted, show_rows
from components.preprocess.reading import Table
from components.preprocess.spelling import EXAMPLES, MISSING_NUMBERS, shown
from components.train.features import KNOWN_VALUES
from serin.errors import UserError
from serin.model import normalised

MIN_ROWS: Final = 100
MIN_CLASS_ROWS: Final = 10
"""Of each class in the training rows: what five folds of cross-validation can live on."""
MIN_GROUPS: Final = 5
"""Among the training rows: one for each fold of the cross-validation."""
CHANCE: Final = 4.0
"""Standard errors beyond which a difference is no accident of the split."""
LEAK_AUC: Final = 0.995
LEAK_BINS: Final = 64
NEAR_UNIQUE: Final = 0.5
"""A text column with more distinct values than this share of its rows names rows and describes nothing."""
ROW_NUMBER: Final = 0.95
"""Share of the steps from row to row that are 1 in a column that numbers the rows."""

_SAME_LABEL: Final = {"true": "1.0", "yes": "1.0", "false": "0.0", "no": "0.0"}


def check_columns(columns: Iterable[str], config: Config) -> None:
    """Every column the config names is there, and the target is nothing else besides."""
    names = list(columns)
    wanted = {"target": (config.target,), "ids": config.ids, "protected": config.protected, "drop": config.drop}
    wanted["keep"] = config.keep
    wanted |= {"data.types": tuple(config.data.types), "data.normalise": config.data.normalise}
    if config.split.group:
        wanted["split.group"] = (config.split.group,)
    if config.split.time:
        wanted["split.time"] = (config.split.time,)
    for key, columns_of_key in wanted.items():
        for column in columns_of_key:
            if column not in names:
                raise UserError(f"Config {key}: the data has no column {column!r}; {_suggestion(column, names)}")
            if key != "target" and column == config.target:
                raise UserError(f"Config {key}: {column!r} is the target; remove it there.")


def _suggestion(column: str, names: list[str]) -> str:
    folded = {name.strip().casefold(): name for name in names}
    close = get_close_matches(column.strip().casefold(), folded, n=1)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    return "its columns are " + ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else ".")


def label(rows: pd.DataFrame, config: Config) -> tuple[pd.Series, str, str]:
    """The target as 0/1, with the names of the positive and the negative class as the data spells them."""
    if len(rows) < MIN_ROWS:
        raise UserError(f"The data has {len(rows)} rows; at least {MIN_ROWS} are needed to train and test a model.")
    text = rows[config.target].str.strip()
    classes = text.map({value: _same_label(value) for value in text.unique()})
    positive = _same_label(config.positive)
    missing = (text == "") | (classes.isin(MISSING_NUMBERS) & (classes != positive))
    if missing.any():
        where = show_rows(int(missing.sum()), [int(i) + 1 for i in rows.index[missing][:FIRST_ROWS]])
        raise UserError(f"Target {config.target!r} is blank ({where}); label those rows or remove them.")
    names = text.groupby(classes).agg(lambda values: values.value_counts().index[0])
    shown = ", ".join(map(repr, names.iloc[:5])) + (", …" if len(names) > 5 else "")
    if len(names) > 2:
        raise UserError(
            f"Target {config.target!r} has {len(names)} classes ({shown}); choose a column with two classes."
        )
    if len(names) == 1:
        raise UserError(f"Target {config.target!r} has only one class ({shown}); provide data with both outcomes.")
    if positive not in names.index:
        raise UserError(
            f"Config positive: {config.positive!r} is not a value of target {config.target!r}; set it to one of "
            f"{shown}."
        )
    negative = next(name for name in names.index if name != positive)
    return (classes == positive).astype("int64").rename(config.target), names[positive], names[negative]


def _same_label(text: str) -> str:
    """One spelling for labels that mean the same: "Yes", "true", "1", "1.0"."""
    folded = text.strip().casefold()
    if folded in _SAME_LABEL:
        return _SAME_LABEL[folded]
    try:
        number = float(folded)
    except ValueError:
        return folded
    return folded if np.isnan(number) else repr(number)


def choose_features(table: Table, config: Config) -> tuple[tuple[str, ...], dict[str, str]]:
    """The columns a model may learn from, and why each of the others is left out."""
    features, dropped = [], {}
    for name in map(str, table.rows.columns):
        if name == config.target or name in config.ids:
            continue
        reason = _useless(table, name, config)
        if reason:
            dropped[name] = reason
        else:
            features.append(name)
    if not features:
        raise UserError("No column is left to train on: " + "; ".join(f"{k!r} {v}" for k, v in dropped.items()) + ".")
    return tuple(features), dropped


def _numbers_the_rows(values: pd.Series) -> bool:
    """Counts up by one from row to row, but for a few rows that were repeated or removed."""
    steps = values.diff().iloc[1:]
    return bool((steps == 1).mean() >= ROW_NUMBER and (values.dropna() % 1 == 0).all())


def _is_a_numbering(values: pd.Series) -> bool:
    """Whole numbers, nearly all different and nearly without gaps: an id, or a rank, which may say something."""
    span = values.max() - values.min() + 1
    if not ROW_NUMBER * len(values) <= span <= len(values) / ROW_NUMBER:
        return False
    return bool((values.dropna() % 1 == 0).all() and values.nunique() >= ROW_NUMBER * len(values))


def _useless(table: Table, name: str, config: Config) -> str | None:
    if name in config.drop:
        return "is named in drop"
    if name in (config.split.group, config.split.time):
        return "defines the split"
    values = table.rows[name]
    if values.nunique(dropna=False) == 1:
        return "has only one value"
    guessed = None if name in config.keep else _no_feature(table, name, config)
    return guessed and f"{guessed}; keep: [{name}] makes it a feature"


def _no_feature(table: Table, name: str, config: Config) -> str | None:
    """Why a column is thought to tell a model nothing that holds for other rows."""
    values = table.rows[name]
    if name in table.times:
        return "is a date or time, from which a number could be derived, such as an age in days"
    if values.dtype == np.float64:
        return "is a row number" if _numbers_the_rows(values) else None
    given = values[values != ""]
    distinct = len(_spellings(given)) if name in config.data.normalise else given.nunique()
    if distinct > NEAR_UNIQUE * len(given):
        guessed = f"; it {table.remarks[name]}" if name in table.remarks else ""
        return f"has {distinct} distinct values in {len(given)} rows{guessed}"
    return None


def check_leakage(rows: pd.DataFrame, target: pd.Series, features: Iterable[str]) -> None:
    """No single column gives the target away."""
    for name in features:
        auc = single_column_auc(rows[name], target.to_numpy())
        if auc >= LEAK_AUC:
            raise UserError(
                f"Column {name!r} leaks the target {target.name!r}: alone it separates the classes (AUC {auc:.3f}), "
                "so it is unlikely to be known at prediction time; add it to drop: in the config."
            )


def single_column_auc(values: pd.Series, target: npt.NDArray[np.int64]) -> float:
    """How well one column alone ranks the positives first.

    The score of a row is the event rate of its value (of its quantile bin, for a number) among the *other* rows, so a
    column of many rare values scores low, not high. Missing is a value. For numbers the order itself is tried too.
    """
    if values.dtype == np.float64:
        edges = np.unique(values.quantile(np.arange(1, LEAK_BINS) / LEAK_BINS).dropna())
        bins = np.where(values.isna(), -1, np.searchsorted(edges, values.to_numpy())) + 1
        ordered = _auc(values.fillna(-np.inf), target)
    else:
        bins = pd.factorize(values)[0]
        ordered = 0.5
    events, rows = np.bincount(bins, weights=target)[bins], np.bincount(bins)[bins]
    overall = target.mean()
    rate = np.where(rows > 1, (events - target) / np.maximum(rows - 1, 1), overall)
    return max(_auc(pd.Series(rate), target), ordered, 1 - ordered)


def _auc(scores: pd.Series, target: npt.NDArray[np.int64]) -> float:
    """Area under the ROC curve from the rank sum (Mann-Whitney), ties counted half."""
    positives = int(target.sum())
    negatives = len(target) - positives
    ranks = float(scores.rank().to_numpy()[target == 1].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def check_split(target: pd.Series, held_out: npt.NDArray[np.bool_], labels: tuple[str, str]) -> None:
    """Both classes are on both sides, with enough rows to learn from. `labels`: negative, positive."""
    for value, name in enumerate(labels):
        learned, tested = int((target[~held_out] == value).sum()), int((target[held_out] == value).sum())
        if learned < MIN_CLASS_ROWS:
            raise UserError(
                f"Class {name!r} has {learned} training rows; at least {MIN_CLASS_ROWS} are needed: provide more "
                "data or a smaller split.test."
            )
        if tested == 0:
            raise UserError(f"Class {name!r} has no held-out row; provide more data or a larger split.test.")


def check_groups(
    rows: pd.DataFrame, target: pd.Series, config: Config, held_out: npt.NDArray[np.bool_], labels: tuple[str, str]
) -> None:
    """Rows of one group stay together in cross-validation, too: it needs several groups, and each class in more than
    one of them. `labels`: negative, positive."""
    group = config.split.group
    if group is None:
        return
    groups, classes = rows.loc[~held_out, group], target[~held_out]
    if (count := groups.nunique()) < MIN_GROUPS:
        raise UserError(
            f"Config split.group: the training rows have {count} groups of {group!r}; at least {MIN_GROUPS} are "
            "needed: choose a finer column, or remove split.group."
        )
    for value, name in enumerate(labels):
        if groups[classes == value].nunique() < 2:
            raise UserError(
                f"Config split.group: all training rows of class {name!r} are in one group of {group!r}; name a "
                "finer column, or remove split.group."
            )


def uneven(target: pd.Series, held_out: npt.NDArray[np.bool_], config: Config) -> list[str]:
    """How the split misses what was asked for by more than chance does when rows fall independently: rows that stay
    together count as one throw of the dice."""
    if config.split.time:
        return []
    asked, share, rate = config.split.test, float(held_out.mean()), float(target.mean())
    together = config.split.group or " and ".join(config.ids)
    why = f"rows with the same {together} stay on one side" if together else "equal rows stay on one side"
    found = []
    if abs(share - asked) > CHANCE * np.sqrt(asked * (1 - asked) / len(target)):
        found.append(f"{share:.1%} of the rows are held out, not the {asked:.1%} of split.test: {why}.")
    tested, learned = float(target[held_out].mean()), float(target[~held_out].mean())
    error = np.sqrt(rate * (1 - rate) * (1 / held_out.sum() + 1 / (~held_out).sum()))
    if abs(tested - learned) > CHANCE * error:
        found.append(
            f"The event rate is {tested:.1%} in the held-out rows and {learned:.1%} in the training rows: {why}."
        )
    return found


def check_normalise(rows: pd.DataFrame, config: Config) -> None:
    for name in config.data.normalise:
        if rows[name].dtype == np.float64:
            raise UserError(
                f"Config data.normalise: {name!r} holds numbers; remove it there, or make it text with data.types: "
                f"{{{name}: string}}."
            )


def _spellings(values: pd.Series) -> dict[str, list[str]]:
    """The different values by what they are without case and outer spaces, the commonest first."""
    found: dict[str, list[str]] = {}
    for value in values.value_counts().index:
        found.setdefault(normalised(value), []).append(value)
    return found


def _near_copies(values: pd.Series) -> str | None:
    """Values that only a reader takes for the same."""
    several = [same for same in _spellings(values).values() if len(same) > 1]
    if not several:
        return None
    examples = ", ".join(shown(value, strip=False) for value in several[0][:EXAMPLES])
    return (
        f"`{values.name}` has values that differ only in case or outer spaces, such as {examples}; the model treats "
        f"them as different. data.normalise: [{values.name}] merges them."
    )


def _unknown_values(values: pd.Series) -> str | None:
    """What a model does not get to know of a column of very many values."""
    if (different := values.nunique()) <= KNOWN_VALUES:
        return None
    beyond = 1 - values.value_counts().head(KNOWN_VALUES).sum() / len(values)
    return (
        f"`{values.name}` has {different} distinct values; the model distinguishes the {KNOWN_VALUES} commonest and "
        f"treats the others ({beyond:.1%} of the rows) alike."
    )


def notes(
    rows: pd.DataFrame, config: Config, features: tuple[str, ...], held_out: npt.NDArray[np.bool_]
) -> list[str]:
    """What a careful reader of the run should know about its rows."""
    found = []
    for name in features:
        if rows[name].dtype == np.float64:
            if _is_a_numbering(rows[name]):
                found.append(f"`{name}` numbers the rows, but not in their order; if it is an id, add it to ids.")
            continue
        if note := _unknown_values(rows[name]):
            found.append(note)
        if name not in config.data.normalise and (note := _near_copies(rows[name])):
            found.append(note)
    if config.ids:
        ids = rows[list(config.ids)]
        named = " and ".join(config.ids)
        if blank := int((ids == "").all(axis=1).sum()):
            found.append(f"{named} is blank in {counted(blank)}, all on one side of the split.")
        if repeated := int(ids.duplicated().sum()):
            found.append(
                f"{named} repeats in {counted(repeated)}; rows with the same {named} are on one side of the split."
            )
    elif not config.split.group and not config.split.time:
        found.append(
            "No ids are configured: a row keeps its side of the split only as long as its content does not change."
        )
    content = pd.util.hash_pandas_object(rows[list(features)], index=False).to_numpy()
    if repeats := int(np.isin(content[held_out], content[~held_out]).sum()):
        found.append(f"{repeats} of {int(held_out.sum())} held-out rows equal a training row in every feature.")
    return found
