"""Whether the statistics keep their promises, on simulated studies whose truth is known.

Usage: ``python benchmarks/statistics_calibration.py [--studies 500] [--resamples 9999]
[--out results/evaluation/statistics_calibration.json]``

Asked of each kind of study: are Wilcoxon's p-values uniform where the models do not differ
(Kolmogorov–Smirnov), does the 95 % bootstrap interval cover the true mean difference in 93 to
97 % of studies, and is equivalence claimed in at most 5 % of studies whose true difference is
exactly the margin (at the lower one that is also the rate of false non-inferiority, the other
of the two tests being passed nearly always). Rates carry their Monte Carlo error. All
but the last go through ``compare`` on a pair of per-case tables.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from _machine import describe_machine
from adalora_qat.evaluate.compare import DEFAULT_MARGIN, compare
from adalora_qat.evaluate.paired_tests import clustered_mean
from adalora_qat.files import write_json

Reals = NDArray[np.float64]
ALPHA = 0.05
EDGE_STUDIES = 10000
"""Studies at the margin: their tests are cheap, and so their rates can be exact."""


@dataclass(frozen=True)
class Study:
    """A kind of study: how differences arise, with a true mean of zero.

    Attributes
    ----------
    patients, images : clusters, and images of each.
    draw : (generator, (patients, images)) → differences, mean zero.
    symmetric : whether zero is also their centre of symmetry, Wilcoxon's null hypothesis.
    """

    patients: int
    images: int
    draw: Callable[[np.random.Generator, tuple[int, int]], Reals]
    symmetric: bool = True


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> Reals:
    """Independent, normal."""
    return rng.normal(0, 0.01, shape)


def heavy(rng: np.random.Generator, shape: tuple[int, int]) -> Reals:
    """Independent, heavy tails (t with 4 degrees of freedom): most alike, some far apart."""
    return 0.005 * rng.standard_t(4, shape)


def clustered(rng: np.random.Generator, shape: tuple[int, int]) -> Reals:
    """Images of a patient alike: intra-class correlation 0.8."""
    return np.asarray(rng.normal(0, 0.009, (shape[0], 1)) + rng.normal(0, 0.0045, shape))


def skewed(rng: np.random.Generator, shape: tuple[int, int]) -> Reals:
    """Skewed (gamma with shape 4): often a little worse, seldom much better."""
    return np.asarray((rng.gamma(4, 1, shape) - 4) * 0.005)


STUDIES = {
    "normal, 80 images": Study(80, 1, normal),
    "heavy tails, 80 images": Study(80, 1, heavy),
    "clustered, 60 patients with 3 images": Study(60, 3, clustered),
    "skewed, 80 images": Study(80, 1, skewed, symmetric=False),
    "normal, 20 images": Study(20, 1, normal),
}


def main() -> None:
    """Simulate every kind of study and judge the bars."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=9999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    load, start = os.getloadavg()[0], time.perf_counter()
    result = {
        "what": "calibration of compare() on simulated studies",
        "command": "python " + " ".join(["benchmarks/statistics_calibration.py", *sys.argv[1:]]),
        "load_average_before": round(load, 2),
        "studies_of_each_kind": given.studies,
        "bars": {
            "wilcoxon_ks_p": "> 0.01",
            "bootstrap_coverage": "0.93 to 0.97",
            "false_equivalence": "<= 0.05 within Monte Carlo error",
        },
        "kinds": {
            name: calibrate(study, given.studies, given.resamples, given.seed)
            for name, study in STUDIES.items()
        },
    }
    result["seconds"] = round(time.perf_counter() - start, 1)
    result["machine"] = describe_machine()
    if given.out:
        write_json(given.out, result)
    print(result)


def calibrate(study: Study, count: int, resamples: int, seed: int) -> dict[str, object]:
    """Return the rates of one kind of study, and whether each bar is met."""
    rng = np.random.default_rng([seed, study.patients, study.images])
    shape = (study.patients, study.images)
    p, covered = [], 0
    for number in range(count):
        null = compare(*tables(study.draw(rng, shape)), resamples=resamples, seed=number)
        p.append(null.wilcoxon.p)
        covered += null.ci_low <= 0 <= null.ci_high
    clusters = np.repeat(np.arange(study.patients), study.images)
    low = high = 0
    for _ in range(EDGE_STUDIES):
        d = study.draw(rng, shape).ravel()
        # Exactly at the margin no claim is true, from either side.
        low += claimed(d - DEFAULT_MARGIN, clusters)
        high += claimed(d + DEFAULT_MARGIN, clusters)
    ks = float(stats.kstest(p, "uniform").pvalue)
    most = float(stats.binom.ppf(0.99, EDGE_STUDIES, ALPHA)) / EDGE_STUDIES
    result: dict[str, object] = {
        "wilcoxon_ks_p": round(ks, 4) if study.symmetric else None,
        "wilcoxon_rejects_at_0.05": round(float(np.mean(np.array(p) < ALPHA)), 4),
        "bootstrap_coverage": covered / count,
        "false_equivalence_at_lower_margin": low / EDGE_STUDIES,
        "false_equivalence_at_upper_margin": high / EDGE_STUDIES,
        "standard_error_of_coverage": round(float(np.sqrt(0.05 * 0.95 / count)), 4),
    }
    result["met"] = {
        "wilcoxon_uniform": ks > 0.01 if study.symmetric else None,
        "coverage": 0.93 <= covered / count <= 0.97,
        "false_equivalence": max(low, high) / EDGE_STUDIES <= most,
    }
    return result


def claimed(d: Reals, clusters: NDArray[np.int64]) -> bool:
    """Return whether two one-sided tests claim equivalence, as ``compare`` does."""
    estimate = clustered_mean(d, clusters)
    above = estimate.cautious_p_above(-DEFAULT_MARGIN)
    return max(above, estimate.cautious_p_below(DEFAULT_MARGIN)) < ALPHA


def tables(d: Reals) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return per-case tables of two models whose DSC differ by ``d`` (patients, images)."""
    patient, image = (index.ravel() for index in np.indices(d.shape))
    base = pd.DataFrame(
        {
            "id": [f"study/{p}-{i}" for p, i in zip(patient, image, strict=True)],
            "patient": patient.astype(str),
            "source": "study",
            "target": "lung",
            "box": "oracle",
            "altered": "as-read",
        }
    )
    return base.assign(model="a", dsc=0.9 + d.ravel()), base.assign(model="b", dsc=0.9)


if __name__ == "__main__":
    main()
