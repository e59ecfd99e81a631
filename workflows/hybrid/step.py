"""One step of a search for a summit, as an HTCondor job: simulate, ask the model, and write what it decided.

The step climbs a random landscape with a number of walkers. It asks the model, through OpenAI's API, whether the height
that it has found supports the height of the step before. If it does, the search has converged, and the later steps of
this mountain do nothing. Otherwise the next step climbs with twice as many walkers. Only the address of the API and the
file of its token are glide's; any other service with this API would do.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import openai

NAMES = ("Kelden", "Norcroft", "Ellgate", "Harridge", "Morwick", "Ostberg", "Vanholm", "Zander")
FIRST, GRID = 1000, 400  # the model knows heights of 1000, 1400, 1800 and so on, in metres
MOVES, TERMS = 300, 1_000  # moves of each walker, and peaks of a mountain


def height(x: float, y: float, seed: int) -> float:
    """Return the height in metres at a point of a mountain: a dome with many smaller peaks."""
    rough = sum(
        math.sin((number + 1.3) * x + seed) * math.cos((number + 0.7) * y - seed) / (number + 1)
        for number in range(TERMS)
    )
    return 3000 + 300 * (seed % 9) + 900 * rough - 20 * (x * x + y * y)


def climb(seed: int, walkers: int, luck: random.Random) -> float:
    """Return the largest height that walkers find with the Metropolis algorithm, at a falling temperature."""
    best = -math.inf
    for _ in range(walkers):
        x, y = luck.uniform(-6, 6), luck.uniform(-6, 6)
        here = height(x, y, seed)
        for move in range(MOVES):
            temperature = 400 * (1 - move / MOVES) + 1
            east, north = x + luck.gauss(0, 0.3), y + luck.gauss(0, 0.3)
            there = height(east, north, seed)
            if there > here or luck.random() < math.exp((there - here) / temperature):
                x, y, here = east, north, there
            best = max(best, here)
    return best


def ask(name: str, before: int, now: int) -> str:
    """Ask the model whether the new height supports the one before. Return its verdict."""
    client = openai.OpenAI(api_key=Path(os.environ["API_KEY_FILE"]).read_text("utf-8").split()[0], max_retries=10)
    prompt = f"Claim: Mount {name} is {before} metres high.\nEvidence: Mount {name} rises to {now} metres.\nVerdict:"
    answer = client.completions.create(model="tiny-verifier", prompt=prompt, max_tokens=4, temperature=0)
    return answer.choices[0].text.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mountain", type=int)
    parser.add_argument("step", type=int)
    parser.add_argument("folder", type=Path, help="folder with the files of all steps")
    asked = parser.parse_args()
    own, earlier = (asked.folder / f"{asked.mountain}-{step}.json" for step in (asked.step, asked.step - 1))
    before = json.loads(earlier.read_text("utf-8")) if earlier.exists() else {"height": 0, "verdict": ""}
    if before["verdict"] == "SUPPORTED":
        own.write_text(json.dumps(before | {"simulated": None, "asked": None}), "utf-8")
        return
    began = time.time()
    found = climb(asked.mountain + 1, 2**asked.step, random.Random(f"{asked.mountain} {asked.step}"))
    now = FIRST + GRID * round((found - FIRST) / GRID)
    simulated = time.time()
    verdict = ask(NAMES[asked.mountain % len(NAMES)], before["height"], now) if asked.step else "NOT ENOUGH INFO"
    times = {"simulated": [began, simulated], "asked": [simulated, time.time()] if asked.step else None}
    own.write_text(json.dumps({"height": now, "verdict": verdict, **times}), "utf-8")


if __name__ == "__main__":
    main()
