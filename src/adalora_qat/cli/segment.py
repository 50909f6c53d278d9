"""The command that segments new radiographs; it runs on the base install."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from adalora_qat.cli.app import Json, Out, app, err_console, out_console, print_json
from adalora_qat.cli.watch import watching
from adalora_qat.errors import DataError, printable

if TYPE_CHECKING:
    from adalora_qat.runtime.segment import Outcome

# Lines of what was left out; the table has all.
_SHOWN = 10


@app.command()
def segment(
    images: Annotated[
        list[str],
        typer.Argument(help="Images, folders of images, patterns such as 'scans/*.png'."),
    ],
    out: Out,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="An exported ONNX file; both lungs, as packaged, if left."),
    ] = None,
    box: Annotated[str | None, typer.Option(help="x0,y0,x1,y1 in pixels of the original.")] = None,
    boxes: Annotated[
        Path | None, typer.Option(help="CSV with the columns file,x0,y0,x1,y1.")
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Enter folders in folders; keep the tree.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep results of the same image, model and options.")
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first image that cannot be used.")
    ] = False,
    write: Annotated[
        str, typer.Option(help="Of mask, overlay, json (always written) and contours (GeoJSON).")
    ] = "mask,overlay,json",
    mask_values: Annotated[
        str, typer.Option(help="Masks hold 255, or labels: the number of the box.")
    ] = "255",
    structures: Annotated[
        str | None,
        typer.Option(help="Of a model with several: which to keep; lungs is both as one mask."),
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Size of a pixel, row,column in mm: areas in mm².")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Leave out images with more; 100 million by default.")
    ] = None,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Take what can be decoded of damaged files.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")] = None,
    engine: Annotated[
        str,
        typer.Option(help="onnxruntime, openvino, … (bench --engines); auto: the first."),
    ] = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="End with exit code 3 if there are warnings.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Segment new images: <stem>_mask.png, <stem>_overlay.png and <stem>.json for each.

    Without a box the model finds one itself. A line warns of images that are rotated, inverted or
    unlike the training data, and of odd masks. An image that cannot be used is left out, with its
    reason in segments.csv, which has a row for each; the exit code is then 1. A run that was
    stopped or killed goes on with --resume.
    """
    from adalora_qat.imaging.image_file import MAX_PIXELS
    from adalora_qat.runtime.model import load
    from adalora_qat.runtime.segment import Options, segment_files

    options = Options(
        _numbers(spacing, 2, "--spacing", "two numbers row,column in mm"),  # type: ignore[arg-type] # of two
        _words(write),
        mask_values,  # type: ignore[arg-type]  # Options refuses other words
        _words(structures or ""),
        MAX_PIXELS if max_pixels is None else max_pixels,
        lenient,
    )
    numbers = _numbers(box, 4, "--box", "four numbers x0,y0,x1,y1 in original pixels")
    loaded = load(model, threads=threads, engine=engine)
    _say_threads(threads)
    if loaded.metadata.automatic_prompt is False and box is None and boxes is None:
        _warn(f"{loaded.name} was never trained without a box: its masks may be poor; give boxes")
    with stopping() as signals, watching() as watch:
        outcome = segment_files(
            images,
            loaded,
            out,
            box=numbers,
            boxes_csv=boxes,
            options=options,
            recursive=recursive,
            resume=resume,
            fail_fast=fail_fast,
            progress=lambda done, total, what: watch.progress(done, total, escape(what)),
            stop=lambda: bool(signals),
        )
    odd = [result for result in outcome.results if result["warnings"]]
    _say_warnings(odd)
    _say_left_out(outcome, out)
    if as_json:
        print_json(outcome.results)
    else:
        _say_done(outcome, out)
    if outcome.stopped:
        _warn("stopped; the same command with --resume goes on from here")
        raise typer.Exit(128 + signals[0])
    if outcome.failed:
        raise typer.Exit(1)
    if strict and odd:
        raise typer.Exit(3)


@contextmanager
def stopping() -> Iterator[list[int]]:
    """Note signals to stop, so that the image at hand is done first; a second one acts at once."""
    noted: list[int] = []

    def note(number: int, _: object) -> None:
        noted.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, note)
    try:
        yield noted
    except KeyboardInterrupt:
        _warn("stopped; the same command with --resume goes on from here")
        raise typer.Exit(128 + signal.SIGINT) from None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _say_threads(asked: int | None) -> None:
    from adalora_qat.runtime.session import available_cpus

    available = available_cpus()
    if asked is not None and asked > available:
        _warn(f"{asked} threads asked for, {available} used: no more processors are available")


def _say_warnings(odd: Sequence[dict[str, Any]]) -> None:
    from adalora_qat.runtime.model import NO_BOX_TRAINING

    for result in odd:
        # That of the model was said once, for all images.
        warnings = [one for one in result["warnings"] if one["code"] != NO_BOX_TRAINING]
        if warnings:
            _warn(f"{result['image']}: {'; '.join(one['message'] for one in warnings)}")


def _say_left_out(outcome: Outcome, out: Path) -> None:
    listed = sorted(outcome.left_out, key=lambda one: not one.failed)
    for one in listed[:_SHOWN]:
        name = printable(one.path)
        _warn(f"left out: {one.reason if name in one.reason else f'{name}: {one.reason}'}")
    if len(listed) > _SHOWN:
        _warn(f"and {len(listed) - _SHOWN} more, all in {out / 'segments.csv'}")


def _say_done(outcome: Outcome, out: Path) -> None:
    count, failed = len(outcome.results), len(outcome.failed)
    line = f"{count} image{'s' * (count != 1)} segmented into {printable(out)}"
    if outcome.resumed:
        line += f", {outcome.resumed} of them by an earlier run"
    if failed:
        line += f"; {failed} could not be used"
    out_console.print(line, markup=False, highlight=False, soft_wrap=True)


def _warn(line: str) -> None:
    err_console.print(printable(line), style="yellow", markup=False, soft_wrap=True)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str | None, count: int, option: str, wanted: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise DataError(f"{option} {text!r} must be {wanted}")
    return numbers
