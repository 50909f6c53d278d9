"""The section of a report on several structures: each one alone, and the heart's ratio."""

from __future__ import annotations

from collections.abc import Sequence

from adalora_qat.report.page import Section
from adalora_qat.report.tables import Column, Spread, Table, Value
from adalora_qat.study.measure import Measured, summarise_targets


def structure_section(found: Sequence[Measured]) -> Section:
    """Return a row for each model and structure, their mean, and the cardiothoracic ratio's error.

    Parameters
    ----------
    found : models that were measured on several targets.
    """
    rows: list[tuple[Value, ...]] = []
    ratios: list[tuple[Value, ...]] = []
    for measured in found:
        name = measured.model.name
        row = summarise_targets(name, measured.cases)
        for each in row.get("targets", [row | {"name": measured.cases["target"].iloc[0]}]):
            dice = Spread(each["dice_mean"], each["dice_std"])
            words = str(each["name"]).replace("_", " ")
            rows.append((name, words, each["n"], dice, each["iou_mean"]))
        if "mean" in row:
            rows.append((name, "mean", None, row["mean"]["dice_mean"], row["mean"]["iou_mean"]))
        if ratio := row.get("cardiothoracic_ratio"):
            keys = ("bias", "sd", "lower", "upper", "mean_absolute")
            ratios.append((name, ratio["n"], *(ratio[key] for key in keys)))
    caption = (
        "Dice as mean ± standard deviation over the images whose data set draws the structure: "
        "what a set does not draw is unknown and counts for nothing. The last row of a model is "
        "the mean of its rows."
    )
    columns = (Column("Model"), Column("Structure"), Column("n"), Column("DSC", 4),
               Column("IoU", 4))  # fmt: skip
    tables = [Table("structures-table", "By structure", caption, columns, tuple(rows))]
    if ratios:
        signed = (Column(name, 4, signed=True) for name in ("Bias", "SD", "Lower", "Upper"))
        head = (Column("Model"), Column("n"), *signed, Column("Mean absolute", 4))
        words = (
            "Ratio from predicted masks minus ratio from true masks; lower and upper are the 95 % "
            "limits of agreement (bias ± 1.96 sd)."
        )
        tables.append(Table("ratio-table", "Cardiothoracic ratio", words, head, tuple(ratios)))
    return Section("structures", "Structures", tuple(tables))
