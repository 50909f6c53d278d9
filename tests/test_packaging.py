"""What is installed with the package, under which licences, and what its wheel holds."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# These are for whoever works on the package.
NOT_RUNTIME = {"dev"}
GROUPS = {"base": PROJECT["dependencies"]} | {
    name: listed
    for name, listed in PROJECT["optional-dependencies"].items()
    if name not in NOT_RUNTIME
}


def requirements(group: str) -> list[Requirement]:
    found = map(Requirement, GROUPS[group])
    return [each for each in found if each.name != "adalora-qat"]


def licence_of(name: str) -> str:
    """Return what a package's metadata state as its licence; a long text is cut short."""
    stated = metadata(name)
    classifiers = [c for c in stated.get_all("Classifier") or [] if c.startswith("License")]
    return " ".join([stated.get("License-Expression") or stated.get("License") or "", *classifiers])


def with_all_they_need(names: list[str]) -> Iterator[str]:
    """Yield packages and what they need in turn, extras left out, where installed."""
    seen: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        yield name
        names += [
            each.name
            for each in map(Requirement, needed)
            if each.marker is None or each.marker.evaluate({"extra": ""})
        ]


def table() -> list[tuple[str, str, str]]:
    text = (ROOT / "docs" / "licences.md").read_text().partition("\n## ")[0]
    rows = re.findall(r"^\| ([a-z]+) \| ([\w-]+) \| (.+) \|$", text, flags=re.MULTILINE)
    return [row for row in rows if row[0] != "extra"]


def test_the_lowest_versions_are_those_that_are_declared() -> None:
    text = (ROOT / "constraints-lowest.txt").read_text()
    pinned = dict(line.split("==") for line in text.splitlines() if line[:1] not in ("", "#"))
    floors = {each.name: str(each.specifier) for each in requirements("base")}
    assert floors.keys() == pinned.keys()
    for name, floor in floors.items():
        # 1.26 and 1.26.0 are one version: the lowest that the floor lets in.
        assert floor.startswith(">=")
        assert re.fullmatch(rf"{re.escape(floor[2:])}(\.0)*", pinned[name])


def test_the_page_lists_every_dependency_under_its_extra() -> None:
    assert {(extra, name) for extra, name, _ in table()} == {
        (group, each.name) for group in GROUPS for each in requirements(group)
    }


@pytest.mark.parametrize(("extra", "name", "licence"), table())
def test_the_page_says_what_the_metadata_say(extra: str, name: str, licence: str) -> None:
    try:
        stated = licence_of(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} ([{extra}]) is not installed")
    family = re.split(r"[-\s,]", licence)[0]
    known_as = {"PSF": "Python Software Foundation", "Apache": "Apache"}
    assert known_as.get(family, family).lower() in stated.lower()


def test_nothing_that_runs_is_under_the_gpl() -> None:
    names = [each.name for group in GROUPS for each in requirements(group)]
    # matplotlib's and SciPy's texts of all they carry name it where they say what is not meant.
    strong = re.compile(r"(?<!L)GPL|(?<!Lesser )General Public License", re.IGNORECASE)
    found = {name: licence_of(name)[:200] for name in with_all_they_need(names)}
    assert len(found) > 30
    assert {name: text for name, text in found.items() if strong.search(text)} == {}


def test_the_extra_for_dicom_is_small() -> None:
    names = set(with_all_they_need([each.name for each in requirements("dicom")]))
    assert names == {
        "highdicom", "numpy", "packaging", "pillow", "pydicom", "pyjpegls", "pylibjpeg",
        "pylibjpeg-openjpeg", "pynetdicom", "python-gdcm", "typing-extensions",
    }  # fmt: skip


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    tree = tmp_path / "tree"
    # The files of the checkout and no others: what lies about must not get into the wheel.
    for name in listed:
        if (name.startswith("src/") or "/" not in name) and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    subprocess.run(
        [sys.executable, "-c", "import sys; from setuptools import build_meta as b; "
         "b.build_wheel(sys.argv[1])", str(tmp_path)],
        cwd=tree, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {
        name.removeprefix("src/")
        for name in listed
        if name.startswith("src/adalora_qat/") and (ROOT / name).is_file()
    }
