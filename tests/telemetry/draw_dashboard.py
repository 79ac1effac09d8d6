"""Draw what the dashboard shows, without Grafana: its own queries, answered by a real Prometheus, drawn by matplotlib.

    PYTHONPATH=src:tests python tests/telemetry/draw_dashboard.py docs/images/dashboard.png

A server on the echo engine, with delays, is asked by six clients for a minute; one expert fails for a while.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from monitoring import DASHBOARD, filled
from PIL import Image
from test_prometheus import prometheus

from expert_router.caching.memory import MemoryStore
from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.types import AUTO
from support import CARS_QUESTION, OTHER_QUESTION, SLEEP_QUESTION, STAGES, UNSURE_QUESTION, FixedKnowledge, serve

if TYPE_CHECKING:
    import httpx2

    from support import Server

SECONDS = 60
CLIENTS = 6
COLUMNS = 3
COLOURS = 64


def main(picture: Path) -> None:
    mpl.use("Agg")
    engine = EchoEngine(
        EchoScript(0.05, 0.01),
        {"sleep": EchoScript(0.08, 0.015), "cars": EchoScript(0.15, 0.02), "general": EchoScript(fail_after_tokens=3)},
    )
    knowledge, answers = FixedKnowledge({"sleep": [STAGES]}), MemoryStore(1_000_000, 60)
    serving = serve(engine, knowledge=knowledge, answers=answers, max_running=3)
    with tempfile.TemporaryDirectory() as folder, serving as server, prometheus(Path(folder), server) as client:
        began = time.time()
        asking = [threading.Thread(target=ask, args=(server, number, began)) for number in range(CLIENTS)]
        for each in asking:
            each.start()
        for each in asking:
            each.join()
        draw(client, began, time.time(), picture)


def ask(server: Server, number: int, began: float) -> None:
    chance = random.Random(number)
    questions = [f"{SLEEP_QUESTION} {n}" for n in range(40)] + [CARS_QUESTION, UNSURE_QUESTION]
    for asked in itertools.count():
        if (now := time.time() - began) > SECONDS:
            return
        failing = 25 < now < 35 and asked % 4 == 0
        server.post(question=OTHER_QUESTION if failing else chance.choice(questions), model=AUTO)
        if asked % 3 == 0:
            server.post(question=f"{CARS_QUESTION} {chance.random()}", model="cars")
        time.sleep(chance.random() * 0.4)


def draw(client: httpx2.Client, began: float, ended: float, picture: Path) -> None:
    from matplotlib import pyplot as plt

    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] == "timeseries"]
    figure, axes = plt.subplots(-(-len(panels) // COLUMNS), COLUMNS, figsize=(15, 15), layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for panel, axis in zip(panels, axes.flat, strict=False):
        for target in panel["targets"]:
            query = {"query": filled(target["expr"], "10s"), "start": began + 5, "end": ended, "step": "1s"}
            for series in client.get("/api/v1/query_range", params=query).json()["data"]["result"]:
                times, values = np.array(series["values"], dtype=float).T
                axis.plot(times - began, values, label=legend(target["legendFormat"], series["metric"]))
        axis.set_title(f"{panel['title']} ({panel['fieldConfig']['defaults']['unit']})", fontsize=10)
        axis.set_ylim(0, axis.get_ylim()[1] * 1.05)
        axis.set_xlim(5, SECONDS)
        axis.legend(fontsize=7, loc="upper left")
        axis.grid(alpha=0.3)
    figure.supxlabel("seconds", fontsize=9)
    figure.savefig(picture, dpi=75)
    Image.open(picture).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(picture, optimize=True)


def legend(shape: str, labels: dict[str, Any]) -> str:
    for name in ("expert", "adapter", "kind", "code", "status", "path", "finished_reason", "instance"):
        shape = shape.replace(f"{{{{{name}}}}}", labels.get(name, ""))
    return shape.strip() or "nobody"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
