"""Fine-tune the packaged model on 20 phantoms: time, memory, and Dice of later ones without a box.

    python benchmarks/finetune_packaged.py {poor,clear} [--out results/training/finetune_poor.json]

``poor`` runs the blocks of ``docs/howto/own-model.md`` as they stand: phantoms of a poor scanner.
``clear`` runs the same commands on phantoms as they are drawn. The packaged model itself is
evaluated beside them. Seconds are those of the whole ``train`` command.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _machine import describe_machine
from adalora_qat.files import write_json
from adalora_qat.runtime.packaged import packaged_predictor

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "own-model.md"
PACKAGED = (
    "adalora-qat evaluate {model} --data data --split external --box automatic --out packaged"
)
CLEAR = """
from pathlib import Path
from adalora_qat.phantom.phantom import write_phantoms
write_phantoms(Path("mine"), 20, 0)
write_phantoms(Path("later"), 16, 5000)
"""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=("poor", "clear"))
    parser.add_argument("--out", type=Path, help="a JSON file; it is printed in any case")
    arguments = parser.parse_args()
    out = None if arguments.out is None else arguments.out.resolve()
    section = PAGE.read_text("utf-8").partition("\n## Other weights")[0]
    blocks = re.findall(r"^```(sh|python)$\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        found = {"phantoms": arguments.kind, **run(blocks, arguments.kind)}
        os.chdir(here)
    found |= {"load_average": round(os.getloadavg()[0], 1), "measured_on": describe_machine()}
    if out is not None:
        write_json(out, found)
    print(json.dumps(found, indent=1))


def run(blocks: list[tuple[str, str]], kind: str) -> dict[str, Any]:
    """Run the blocks and return what was measured."""
    found: dict[str, Any] = {}
    packaged = PACKAGED.format(model=shlex.quote(str(packaged_predictor(1).path)))
    for language, text in blocks:
        if language == "python":
            exec(CLEAR if kind == "clear" else text, {"__name__": "page"})
            continue
        for line in [*text.splitlines(), *([packaged] if "evaluate" in text else [])]:
            words = shlex.split(line)
            if words[0] == "adalora-qat":
                words[:1] = [sys.executable, "-m", "adalora_qat.cli"]
            started = time.perf_counter()
            _, status, usage = os.wait4(os.posix_spawnp(words[0], words, os.environ), 0)
            if code := os.waitstatus_to_exitcode(status):
                sys.exit(f"{line!r} ended with {code}")
            if " train " in line:
                found["train"] = {
                    "command": line,
                    "seconds": round(time.perf_counter() - started, 1),
                    "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
                    "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
                }
            if " evaluate " in line:
                name = words[-1]
                found[name] = summary(Path(name))
    return found


def summary(folder: Path) -> dict[str, Any]:
    """Return mean and least Dice of an evaluation."""
    import pandas as pd

    dice = pd.read_csv(folder / "cases.csv")["dsc"]
    return {"cases": len(dice), "mean_dice": round(float(dice.mean()), 4),
            "least_dice": round(float(dice.min()), 4)}  # fmt: skip


if __name__ == "__main__":
    main()
