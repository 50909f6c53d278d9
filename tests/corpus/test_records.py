"""Names of structures."""

from pathlib import Path

import pytest

from adalora_qat.corpus.records import Record, sort_structures, structure_named


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("Left Lungs", "left_lung"),
        ("heart_mask", "heart"),
        ("Left kidney", "left_kidney"),
        ("spleen-mask", "spleen"),
        ("vertebra L1", "vertebra_l1"),
        ("2", None),
        ("", None),
        ("Niere \u00fc", None),
        ("a" * 60, None),
    ],
)
def test_what_a_name_means(text: str, structure: str | None) -> None:
    assert structure_named(text) == structure


def test_the_chest_comes_first_and_two_lungs_make_a_lung_mask() -> None:
    assert sort_structures(["spleen", "heart", "liver", "lung"]) == [
        "lung",
        "heart",
        "liver",
        "spleen",
    ]
    masks = {name: Path(name) for name in ("left_lung", "right_lung", "spleen")}
    record = Record("a", "a", Path("i"), masks)
    assert record.mask_parts("lung") == (Path("left_lung"), Path("right_lung"))
    assert record.mask_parts("spleen") == (Path("spleen"),)
    assert record.mask_parts("liver") == ()
