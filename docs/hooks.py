"""Fill the generated parts of the pages while MkDocs builds them.

What stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` is for readers on a code host: links to
the sources. Here the sources take its place: recipes and policies, the command line's options, the
card of the packaged model, the study's tables, speed on a GPU, changelog and contributing. Nothing
generated is committed, so nothing goes stale. Of the package only the command line is imported,
which does without torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "src" / "adalora_qat" / "recipes"
CARD = ROOT / "src" / "adalora_qat" / "weights" / "model_card.md"
POLICIES = ROOT / "src" / "adalora_qat" / "quantize" / "policies"
# A recipe with more settings than this is not repeated in the table.
SHORT = 6


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace the marked parts of a page; MkDocs calls this for each.

    Raises
    ------
    ValueError
        If a mark is opened and not closed.
    """
    for name, generate in (
        ("recipes", recipes),
        ("policies", policies),
        ("commands", commands),
        ("model card", model_card),
        ("study", study),
        ("provenance", provenance),
        ("speed", speed),
        ("changelog", changelog),
        ("contributing", contributing),
    ):
        before, opened, rest = markdown.partition(f"<!-- {name} -->")
        _, closed, after = rest.partition(f"<!-- /{name} -->")
        if bool(opened) != bool(closed):
            raise ValueError(f"<!-- {name} --> must be closed by <!-- /{name} -->")
        if opened:
            markdown = f"{before}{generate()}{after}"
    return _led_to_pages(markdown, page.file.src_uri.count("/"))


def _led_to_pages(markdown: str, depth: int) -> str:
    """Lead links to files outside of ``docs`` to the pages that show them."""
    return re.sub(
        r"\]\((?:\.\./)+(?:results/(study|speed)/README\.md|(CHANGELOG|CONTRIBUTING)\.md)",
        lambda found: f"]({'../' * depth}{(found[1] or found[2]).lower()}.md",
        markdown,
    )


def recipes() -> str:
    """Return a table of the recipes, then for each what its comments say and what it sets."""
    lines, parts = ["| recipe | laid over | sets |", "|---|---|---|"], []
    for path in sorted(RECIPES.glob("*.yaml")):
        text = path.read_text("utf-8")
        settings = yaml.safe_load(text)
        parent = settings.pop("extends", None)
        own = [f"`{key}={value}`" for key, value in _flat(settings) if key != "name"]
        sets = ", ".join(own) if len(own) <= SHORT else "see below"
        lines.append(f"| [`{path.stem}`](#{path.stem}) | {parent or '–'} | {sets} |")
        above = f" Extends [`{parent}`](#{parent})." if parent else ""
        body = "\n".join(line for line in text.splitlines() if not line.startswith("#")).strip()
        parts.append(f"### {path.stem}\n\n{_opening_comments(text)}{above}\n\n```yaml\n{body}\n```")
    return "\n".join(lines) + "\n\n" + "\n\n".join(parts)


def policies() -> str:
    """Return a table of the policies and their titles, then the rows of each."""
    lines = ["| policy | what it does |", "|---|---|"]
    parts = []
    for path in sorted(POLICIES.glob("*.yaml")):
        policy = yaml.safe_load(path.read_text("utf-8"))
        lines.append(f"| [`{path.stem}`](#policy-{path.stem}) | {policy['title']} |")
        parts.append(f"### {path.stem} {{ #policy-{path.stem} }}\n\n{_policy_rows(policy)}")
    return "\n".join(lines) + "\n\n" + "\n\n".join(parts)


def commands() -> str:
    """Return a section for each command: what it does, its arguments and options."""
    from typer.main import get_command

    from adalora_qat.cli import app

    parts = []
    for name, command in getattr(get_command(app), "commands", {}).items():
        lines = ["| argument or option | meaning | default |", "|---|---|---|"]
        lines += [_option(each) for each in command.params]
        parts.append(f"## {name}\n\n{_plain(command.help)}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def model_card() -> str:
    """Return the card that ``adalora-qat ship`` wrote beside the model."""
    if CARD.is_file():
        return CARD.read_text("utf-8")
    return "# Model card\n\nThis version of the package holds no model."


def study() -> str:
    """Return the findings and tables of the study."""
    return _tables("study").replace("(PROVENANCE.md)", "(provenance.md)")


def provenance() -> str:
    """Return what stands beside the study's tables."""
    return _tables("study", "PROVENANCE.md")


def speed() -> str:
    """Return the tables of speed on a GPU."""
    return _tables("speed")


def changelog() -> str:
    """Return the changelog."""
    return (ROOT / "CHANGELOG.md").read_text("utf-8").partition("\n")[2].strip()


def contributing() -> str:
    """Return the rules for contributors."""
    return (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("\n")[2].strip()


def _tables(name: str, page: str = "README.md") -> str:
    """Return what a script wrote beside its results, without the heading."""
    file = ROOT / "results" / name / page
    if not file.is_file():
        return "Not yet run."
    return file.read_text("utf-8").partition("\n")[2].strip()


def _option(option: Any) -> str:
    flag = option.opts[-1]
    argument = option.param_type_name == "argument"
    many = " …" if option.multiple or option.nargs == -1 else ""
    if option.required:
        default = "must be given"
    else:
        unset = option.default is None or option.default is False or option.default == ()
        default = "" if unset else f"`{option.default}`"
    name = flag.upper() if argument else flag
    return f"| `{name}{many}` | {_plain(getattr(option, 'help', ''))} | {default} |"


def _plain(text: str | None) -> str:
    return (text or "").replace("<", "&lt;").replace("|", "&#124;")


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{prefix}{key}", "…"
        else:
            yield f"{prefix}{key}", value


def _opening_comments(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def _policy_rows(policy: dict[str, Any]) -> str:
    if not policy["rows"]:
        return "No rows: every layer stays float32."
    lines = ["| layers | kinds | weight | input | why |", "|---|---|---|---|---|"]
    for row in policy["rows"]:
        cells = (
            f"`{row['match']}`",
            ", ".join(row.get("kinds", ["all"])),
            _numerics(row.get("weight")),
            _numerics(row.get("activation")),
            row.get("why", ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _numerics(given: dict[str, Any] | None) -> str:
    if given is None:
        return "float32"
    size = f" of {given['group_size']}" if "group_size" in given else ""
    return f"INT{given.get('bits', 8)} per {given.get('granularity', 'tensor')}{size}"
