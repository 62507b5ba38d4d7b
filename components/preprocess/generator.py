"""Customers of a telephone company who never existed, with the columns of the Telco churn data.

A seeded simulation, month by month: customers pay, age, extend their contracts, leave, and are replaced. What drives
them away is known (`_hazard`), so it can be made to drift. A label is what happens in the three months after a record
and is known only then. The same seed gives the same history, however far it is followed.
"""

import argparse
import json
import signal
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

HORIZON_MONTHS: Final = 3
"""A positive label: the customer leaves within this time."""
BURN_IN_MONTHS: Final = 96
"""Simulated before month 0, so that old and new customers are in balance."""
MAX_TENURE_MONTHS: Final = 72
OTHER_ENDS: Final = 0.01
"""Share of accounts closed each month for reasons that are not churn, such as a move within the family."""
MONTH: Final = timedelta(days=30)

Numbers = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Population = dict[str, Codes | Numbers]
"""One array per trait, one entry per customer. Codes index into the tuples below; flags are 0 and 1."""

INTERNET: Final = ("No", "DSL", "Fiber optic")
CONTRACTS: Final = ("Month-to-month", "One year", "Two year")
PAYMENTS: Final = ("Electronic check", "Mailed check", "Bank transfer (automatic)", "Credit card (automatic)")
ADD_ONS: Final = {
    "OnlineSecurity": 0.34,
    "OnlineBackup": 0.42,
    "DeviceProtection": 0.42,
    "TechSupport": 0.35,
    "StreamingTV": 0.48,
    "StreamingMovies": 0.48,
}
"""How many internet customers book each."""


@dataclass(frozen=True)
class Drift:
    """What changes from a month on. `price_rise`: 0.2 makes every bill a fifth dearer; `mix_shift`: this share of new
    customers is of one kind (fibre, monthly contract, electronic check)."""

    price_rise: float = 0.0
    mix_shift: float = 0.0
    from_month: int = 0


@dataclass(frozen=True)
class Event:
    """One question to the model about one customer, and the answer that life gives later ("Yes" or "No")."""

    time: datetime
    customer: str
    record: dict[str, float | int | str | None]
    label: str
    label_time: datetime


NO_DRIFT: Final = Drift()


def snapshot(seed: int, customers: int, *, month: int = 0, drift: Drift = NO_DRIFT) -> pd.DataFrame:
    """All customers at one time, labelled, as the Telco file has them: TotalCharges is text, blank before the first
    bill."""
    rows = next(islice(months(seed, customers, drift), month, None))
    charges = rows["TotalCharges"].map("{:.2f}".format).where(rows["TotalCharges"].notna(), " ")
    return rows.assign(TotalCharges=charges)


def events(
    seed: int, customers: int, *, duration_months: int, start: datetime, drift: Drift = NO_DRIFT
) -> Iterator[Event]:
    """Each customer once a month, at a random time, in order of time."""
    rng = np.random.default_rng([seed, 1])
    for number, rows in enumerate(islice(months(seed, customers, drift), duration_months)):
        offsets = rng.random(customers)
        records = rows.astype(object).where(rows.notna(), None).to_dict("records")
        for i in np.argsort(offsets):
            record = records[i]
            time = start + (number + float(offsets[i])) * MONTH
            yield Event(time, record.pop("customerID"), record, record.pop("Churn"), time + HORIZON_MONTHS * MONTH)


def months(seed: int, customers: int, drift: Drift = NO_DRIFT) -> Iterator[pd.DataFrame]:
    """Month 0, 1, … without end: a row for each customer of that month, with the label `Churn`. TotalCharges is a
    number, NaN before the first bill."""
    waiting: deque[tuple[Population, Flags]] = deque()
    for month, people, leaving in _history(seed, customers, drift):
        if month >= 0:
            waiting.append((people, np.zeros(customers, dtype=np.bool_)))
        for then, left in waiting:
            left |= leaving & (then["number"] == people["number"])
        if len(waiting) == HORIZON_MONTHS:
            yield _rows(*waiting.popleft(), seed)


def _history(seed: int, customers: int, drift: Drift) -> Iterator[tuple[int, Population, Flags]]:
    """The population of each month and who leaves at its end."""
    rng = np.random.default_rng([seed, 0])
    number = 0
    people = _newcomers(rng, customers, number, 0.0)
    month = -BURN_IN_MONTHS
    while True:
        drifted = month >= drift.from_month
        price = people["list_price"] * people["discount"] * (1 + drift.price_rise * drifted)
        people["price"] = np.round(price * 20) / 20
        leaving = rng.random(customers) < _hazard(people)
        yield month, {name: values.copy() for name, values in people.items()}, leaving
        _age(rng, people)
        gone = leaving | (rng.random(customers) < OTHER_ENDS)
        number += customers
        for name, values in _newcomers(rng, int(gone.sum()), number, drift.mix_shift * drifted).items():
            people[name][gone] = values
        month += 1


def _hazard(people: Population) -> Numbers:
    """The probability to leave this month: what a model has to find out."""
    monthly, fibre = people["contract"] == 0, people["internet"] == 2
    protected = people["OnlineSecurity"] + people["TechSupport"]
    tenure = people["tenure"]
    logit = (
        -2.7
        + np.array([0.9, -0.8, -2.0])[people["contract"].astype(np.int64)]
        + np.array([-1.1, 0.0, 0.5])[people["internet"].astype(np.int64)]
        + np.array([0.5, 0.1, -0.1, -0.1])[people["payment"].astype(np.int64)]
        + 0.9 * np.exp(-tenure / 6)
        - 0.5 * protected * (people["internet"] > 0)
        + 0.4 * (monthly & fibre & (protected == 0))
        + 0.4 * people["senior"]
        - 0.3 * people["dependents"]
        + 0.3 * people["paperless"]
        + 3.0 * np.log(people["price"] / people["list_price"])
    )
    hazard: Numbers = 1 / (1 + np.exp(-logit))
    return hazard


def _age(rng: np.random.Generator, people: Population) -> None:
    """One month later, for those who stay."""
    oldest = people["tenure"] >= MAX_TENURE_MONTHS
    people["total"] *= np.where(oldest, 1 - 1 / MAX_TENURE_MONTHS, 1.0)
    people["total"] += people["price"]
    people["tenure"] = np.minimum(people["tenure"] + 1, MAX_TENURE_MONTHS)
    draw = rng.random(len(oldest))
    renewal = people["tenure"] % 12 == 0
    longer = np.where(people["contract"] == 0, draw < 0.012, (people["contract"] == 1) & renewal & (draw < 0.15))
    people["contract"] += longer


def _newcomers(rng: np.random.Generator, count: int, number: int, mix_shift: float) -> Population:
    """`number`: of the first of them, for their names."""

    def flag(share: float | Numbers) -> Codes:
        return (rng.random(count) < share).astype(np.int64)

    def code(*shares: float) -> Codes:
        return np.searchsorted(np.cumsum(shares[:-1]), rng.random(count), side="right").astype(np.int64)

    shifted = flag(mix_shift) == 1
    internet = np.where(shifted, 2, code(0.12, 0.30, 0.58))
    phone = np.where(internet == 0, 1, flag(0.9))
    partner = flag(0.48)
    people: Population = {
        "number": number + np.arange(count),
        "gender": flag(0.5),
        "senior": flag(0.16),
        "partner": partner,
        "dependents": flag(np.where(partner == 1, 0.55, 0.08)),
        "phone": phone,
        "lines": phone * flag(np.where(internet == 2, 0.6, 0.3)),
        "internet": internet,
        "contract": np.where(shifted, 0, code(0.93, 0.05, 0.02)),
        "paperless": flag(np.where(internet == 0, 0.3, 0.68)),
        "payment": np.where(shifted, 0, code(0.42, 0.22, 0.18, 0.18)),
        "tenure": 1 - flag(0.02),
        "discount": rng.normal(1.0, 0.05, count).clip(0.85, 1.15),
    }
    for name, share in ADD_ONS.items():
        people[name] = (internet > 0) * flag(share)
    streaming = people["StreamingTV"] + people["StreamingMovies"]
    others = sum(people[name] for name in ADD_ONS) - streaming
    people["list_price"] = (
        20.0 * phone + 5.0 * people["lines"] + np.array([0.0, 25.0, 50.0])[internet] + 5.0 * others + 10.0 * streaming
    )
    people["price"] = people["list_price"]
    people["total"] = people["tenure"] * people["list_price"] * people["discount"]
    return people


def _rows(people: Population, left: Flags, seed: int) -> pd.DataFrame:
    internet = people["internet"]
    named = {
        "Partner": people["partner"],
        "Dependents": people["dependents"],
        "PhoneService": people["phone"],
        "PaperlessBilling": people["paperless"],
    }
    yes_no = {name: _names(flags, ("No", "Yes")) for name, flags in named.items()}
    add_ons = {
        name: _names(np.where(internet == 0, 2, people[name]), ("No", "Yes", "No internet service"))
        for name in ADD_ONS
    }
    lines = _names(np.where(people["phone"] == 0, 2, people["lines"]), ("No", "Yes", "No phone service"))
    return pd.DataFrame(
        {
            "customerID": [_customer_id(seed, int(number)) for number in people["number"]],
            "gender": _names(people["gender"], ("Female", "Male")),
            "SeniorCitizen": people["senior"],
            "Partner": yes_no["Partner"],
            "Dependents": yes_no["Dependents"],
            "tenure": people["tenure"],
            "PhoneService": yes_no["PhoneService"],
            "MultipleLines": lines,
            "InternetService": _names(internet, INTERNET),
            **add_ons,
            "Contract": _names(people["contract"], CONTRACTS),
            "PaperlessBilling": yes_no["PaperlessBilling"],
            "PaymentMethod": _names(people["payment"], PAYMENTS),
            "MonthlyCharges": people["price"],
            "TotalCharges": np.where(people["tenure"] == 0, np.nan, np.round(people["total"], 2)),
            "Churn": _names(left, ("No", "Yes")),
        }
    )


def _names(codes: npt.NDArray[Any], names: tuple[str, ...]) -> npt.NDArray[np.object_]:
    return np.array(names, dtype=object)[codes.astype(np.int64)]


def _customer_id(seed: int, number: int) -> str:
    """Like 7590-VHVEG; different for each number, because the factor has no divisor in common with 10 or 26."""
    rest, digits = divmod((number * 48_611_730_719 + seed) % (10**4 * 26**5), 10**4)
    letters = ""
    for _ in range(5):
        rest, letter = divmod(rest, 26)
        letters += chr(ord("A") + letter)
    return f"{digits:04d}-{letters}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.preprocess.generator",
        description="Generate customers of a telephone company as CSV, or requests over months as JSON lines.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--customers", type=int, default=7043)
    parser.add_argument("--month", type=int, default=0, help="which month's customers to write")
    parser.add_argument("--events", type=int, metavar="MONTHS", help="months of requests and labels to write")
    parser.add_argument("--price-rise", type=float, default=0.0, help="drift: 0.2 raises every bill by a fifth")
    parser.add_argument("--mix-shift", type=float, default=0.0, help="drift: fraction of new customers of one kind")
    parser.add_argument("--drift-month", type=int, default=0, help="month in which the drift begins")
    parser.add_argument("--output", type=Path, default=Path("-"), help="file to write, - for standard output")
    options = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when the reader, such as head, has enough
    drift = Drift(options.price_rise, options.mix_shift, options.drift_month)
    with sys.stdout if options.output == Path("-") else options.output.open("w", encoding="utf-8") as out:
        if options.events is None:
            snapshot(options.seed, options.customers, month=options.month, drift=drift).to_csv(out, index=False)
            return
        start = datetime(2025, 1, 1, tzinfo=UTC)
        for event in events(
            options.seed, options.customers, duration_months=options.events, start=start, drift=drift
        ):
            out.write(json.dumps(asdict(event), default=datetime.isoformat) + "\n")


if __name__ == "__main__":
    main()
