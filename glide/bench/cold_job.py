"""`python -m glide.bench.cold_job MODEL TEXTS.json OUT.json`: load a model, compute the texts, and end.

The program writes `{"texts": […], "seconds": …}` into OUT.json: the generated texts, and the time without loading.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from glide.bench.sticky import GENERATE, OPTIONS
from glide.server.engines import EngineRecord
from glide.server.engines.transformers import Transformers
from glide.template import Template


def main(model: str, source: str, target: str) -> None:
    engine = Transformers(Template("bench", "transformers", model), Transformers.Options(**OPTIONS))
    engine.prepare()
    engine.load(model, lambda state: None)
    loaded = time.monotonic()
    texts = json.loads(Path(source).read_text("utf-8"))
    records = [EngineRecord(number, text, GENERATE) for number, text in enumerate(texts)]
    texts = [completion.text for call in engine.plan(records) for completion in engine.call(call)]
    Path(target).write_text(json.dumps({"texts": texts, "seconds": time.monotonic() - loaded}), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
