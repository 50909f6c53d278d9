"""Planted duplicates among real radiographs: how many are found, how many pairs are wrong.

Usage: ``python benchmarks/duplicates_recall.py DATA [--rounds N] [--out RESULT.json]`` with DATA
holding jsrt/, shenzhen/, covid19_radiography/ and covid_qu_ex/. Each round plants 200 copies of
JSRT and Shenzhen images and runs a whole prepare. Prints JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from _machine import describe_machine
from adalora_qat.corpus.prepare import prepare
from adalora_qat.corpus.splits import read_manifest

PLANTED = 200
SIDES = (224, 256, 299)
# Pairs of originals that the search joins and that are one patient's, seen side by side at
# full size: the same ribs, vessels and lesions, another exposure.
ONE_PATIENT = {
    ("shenzhen/CHNCXR_0477_1", "shenzhen/CHNCXR_0605_1"),
    ("jsrt/JPCNN012", "jsrt/JPCNN036"),
}
# Inside COVID-19 Radiography, seen by eye and by keypoint matching: the first two pairs have
# the same pixels, the others are one patient's at two times.
KNOWN = {
    ("covid19_radiography/COVID-18", "covid19_radiography/COVID-21"): "same pixels",
    ("covid19_radiography/COVID-49", "covid19_radiography/COVID-52"): "same pixels",
    ("covid19_radiography/COVID-38", "covid19_radiography/COVID-41"): "same posture",
    ("covid19_radiography/COVID-21", "covid19_radiography/COVID-24"): "turned by 10 degrees",
    ("covid19_radiography/COVID-35", "covid19_radiography/COVID-41"): "other posture",
}

Picture = Image.Image
Change = Callable[[Picture, np.random.Generator], Picture]


def encoded(picture: Picture, random: np.random.Generator) -> Picture:
    """Store as JPEG of quality 50."""
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=50)
    return Image.open(stored)


def resized(picture: Picture, random: np.random.Generator) -> Picture:
    """Resize to one of three usual sides."""
    side = int(random.choice(SIDES))
    return picture.resize((side, side), Image.Resampling.BILINEAR)


def retouched(picture: Picture, random: np.random.Generator) -> Picture:
    """Change contrast by up to 30 % and brightness by up to 30 grey levels, clipped."""
    contrast, brightness = random.uniform(0.7, 1.3), random.uniform(-30, 30)
    values = (np.asarray(picture, float) - 128) * contrast + 128 + brightness
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def cropped(picture: Picture, random: np.random.Generator) -> Picture:
    """Cut 5 % off each border, or up to 5 % off each on its own."""
    even = random.random() < 0.5
    left, top, right, bottom = np.full(4, 0.05) if even else random.uniform(0, 0.05, 4)
    width, height = picture.size
    return picture.crop(
        (
            round(left * width),
            round(top * height),
            round((1 - right) * width),
            round((1 - bottom) * height),
        )
    )


KINDS: dict[str, tuple[Change, ...]] = {
    "JPEG q50": (encoded,),
    "resized": (resized,),
    "brightness and contrast": (retouched,),
    "cropped": (cropped,),
    "all at once": (cropped, retouched, resized, encoded),
}


def main() -> None:
    """Run the rounds and the known pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    start = perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        originals = sound_images(given.data, work / "originals", given.jobs)
        rounds = [
            planted_round(given.data, work, originals, number, given.jobs)
            for number in range(given.rounds)
        ]
        known = known_pairs(given.data, work, given.jobs)
    result = {
        "what": "planted duplicates found by prepare, and pairs joined wrongly",
        "command": "python " + " ".join(["benchmarks/duplicates_recall.py", *sys.argv[1:]]),
        "planted": sum(each["planted"] for each in rounds),
        "recall": round(
            sum(each["found"] for each in rounds) / sum(each["planted"] for each in rounds), 5
        ),
        "rounds": rounds,
        **known,
        "seconds": round(perf_counter() - start, 1),
        "machine": describe_machine(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n")


def sound_images(data: Path, out: Path, jobs: int | None) -> pd.DataFrame:
    """Return the originals that pass the quality gate."""
    prepare({name: data / name for name in ("jsrt", "shenzhen")}, out, jobs=jobs)
    return read_manifest(out)


def planted_round(
    data: Path, work: Path, originals: pd.DataFrame, number: int, jobs: int | None
) -> dict[str, Any]:
    """Plant 200 copies, prepare everything, and count."""
    random = np.random.default_rng(number)
    folder = work / f"planted{number}"
    folder.mkdir()
    truth: dict[str, tuple[str, str]] = {}
    chosen = originals.sample(PLANTED, random_state=number)
    for index, (key, image) in enumerate(zip(chosen["id"], chosen["image"], strict=True)):
        kind = list(KINDS)[index % len(KINDS)]
        picture = Image.open(image).convert("L")
        for change in KINDS[kind]:
            picture = change(picture, random)
        # What is not stored as JPEG anyway is stored without loss.
        picture.convert("L").save(folder / f"{index:03}.png")
        truth[f"images/{folder.name}/{index:03}.png"] = (key, kind)
    sources = {"jsrt": data / "jsrt", "shenzhen": data / "shenzhen", "images": folder}
    prepare(sources, work / f"out{number}", jobs=jobs)
    manifest = read_manifest(work / f"out{number}")
    return counted(manifest, truth) | {"round": number}


def counted(manifest: pd.DataFrame, truth: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Count the copies that stand with their originals, and the groups of two patients."""
    group = dict(zip(manifest["id"], manifest["group"], strict=True))
    found: Counter[str] = Counter()
    missed, set_aside = [], []
    for copy, (original, kind) in truth.items():
        if copy not in group:
            set_aside.append([copy, original, kind])
        elif group[copy] == group[original]:
            found[kind] += 1
        else:
            missed.append([original, kind])
    patients: dict[str, set[str]] = defaultdict(set)
    for key, name in group.items():
        patients[name].add(truth[key][0] if key in truth else key)
    joined = sorted(tuple(sorted(each)) for each in patients.values() if len(each) > 1)
    wrong = [pair for pair in joined if pair not in ONE_PATIENT]
    planted = len(truth) - len(set_aside)
    return {
        "images": len(manifest),
        "planted": planted,
        "found": found.total(),
        "recall": round(found.total() / planted, 5),
        "found_by_kind": dict(found),
        "missed": missed,
        "set_aside_by_the_quality_gate": set_aside,
        "joined_and_one_patient": [pair for pair in joined if pair in ONE_PATIENT],
        "joined_wrongly": wrong,
        "wrong_per_1000_images": round(1000 * len(wrong) / len(manifest), 3),
    }


def known_pairs(data: Path, work: Path, jobs: int | None) -> dict[str, Any]:
    """Prepare the two COVID sets, and one again as the other would have stored it."""
    radiography = sorted((data / "covid19_radiography" / "COVID" / "images").glob("*.png"))
    again = work / "as_covid_qu_ex"
    again.mkdir()
    for path in radiography:
        # COVID-QU-Ex holds 256-pixel PNG files of what COVID-19 Radiography has at 299.
        small = Image.open(path).convert("L").resize((256, 256), Image.Resampling.BILINEAR)
        small.save(again / path.name)
    names = ("covid19_radiography", "covid_qu_ex")
    prepare({name: data / name for name in names}, work / "covid", jobs=jobs)
    sources = {**{name: data / name for name in names}, "images": again}
    prepare(sources, work / "covid_again", jobs=jobs)
    plain = read_manifest(work / "covid").set_index("id")["group"]
    doubled = read_manifest(work / "covid_again").set_index("id")["group"]
    refound = sum(
        doubled[f"images/{again.name}/{path.name}"] == doubled[f"covid19_radiography/{path.stem}"]
        for path in radiography
    )
    links = pd.read_csv(work / "covid" / "groups.csv")
    across = links[links["first"].str.split("/").str[0] != links["second"].str.split("/").str[0]]
    return {
        "known_pairs": [
            {"pair": pair, "relation": relation, "found": bool(plain[pair[0]] == plain[pair[1]])}
            for pair, relation in KNOWN.items()
        ],
        "joined_in_the_covid_sets": links[["first", "second", "reason", "similarity"]]
        .astype(object)
        .where(lambda table: table.notna(), None)
        .values.tolist(),
        "joined_across_the_covid_sets": len(across),
        "radiography_restored_at_256_px": {"images": len(radiography), "found": refound},
    }


if __name__ == "__main__":
    main()
