"""The real nnU-Net v2 (Isensee et al. 2021) as a baseline: trained by itself, asked by us."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adalora_qat.baselines.model_file import BaselineFile, read_baseline
from adalora_qat.baselines.nnunet_data import to_8_bits
from adalora_qat.baselines.nnunet_process import CONFIGURATION, EPOCHS, EVENT, WEIGHTS, Task
from adalora_qat.checkpoint import read_tensors
from adalora_qat.errors import TrainingError, UserError
from adalora_qat.model.weights import load_strictly
from adalora_qat.progress import Progress
from adalora_qat.train.state import StepReport

STAGE = "stage1"


def require_nnunet() -> None:
    """Refuse early where nnU-Net is not installed.

    Raises
    ------
    UserError
        Names the extra that brings it.
    """
    if importlib.util.find_spec("nnunetv2") is None:
        raise UserError(
            "this baseline needs the package nnunetv2; install the extra: "
            "pip install 'adalora-qat[nnunet]'"
        )


def run_nnunet(
    task: Task,
    on_step: Callable[[StepReport], None] | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[dict[str, float]]]:
    """Plan, preprocess and train in a process of its own, going on where a killed one was.

    Returns
    -------
    weights, their description (plan, data set, mirroring, schedule) and a row an epoch.

    Raises
    ------
    UserError
        If nnU-Net is not installed, or fails; names its log.
    TrainingError
        If its loss was not finite.
    """
    require_nnunet()
    folder = Path(task.folder)
    if not (folder / WEIGHTS).is_file():
        _run_process(task, folder / "log.txt", on_step, progress)
    tensors, header = read_tensors(folder / WEIGHTS)
    return tensors, header, json.loads((folder / EPOCHS).read_text("utf-8"))


def environment(task: Task) -> dict[str, str]:
    """Return the variables that steer nnU-Net, for its process only."""
    folder = Path(task.folder).resolve()
    return {
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "results"),
        "nnUNet_n_proc_DA": str(task.processes),
        "nnUNet_def_n_proc": str(task.processes),
        "nnUNet_compile": "f",
        # Its own path must be found by the interpreter that it starts.
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }


def _run_process(
    task: Task,
    log: Path,
    on_step: Callable[[StepReport], None] | None,
    progress: Progress | None,
) -> None:
    command = [sys.executable, "-m", "adalora_qat.baselines.nnunet_process", task.text()]
    last_dice: float | None = None
    with (
        log.open("a", encoding="utf-8") as written,
        subprocess.Popen(
            command,
            env={**os.environ, **environment(task)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout or ():
            if not line.startswith(EVENT):
                written.write(line)
                continue
            event = json.loads(line.removeprefix(EVENT))
            if event["what"] == "failed":
                process.kill()
                raise TrainingError(
                    f"{STAGE}: nnU-Net's loss is not finite in epoch {event['epoch']}; its log "
                    f"is {log}"
                )
            if event["what"] == "epoch":
                last_dice = event["dice"]
            _pass_on(event, task, last_dice, on_step, progress)
    if process.returncode:
        lines = log.read_text("utf-8").strip().splitlines() or ["it said nothing"]
        raise UserError(f"nnU-Net failed ({lines[-1]}); its log is {log}")


def _pass_on(
    event: Mapping[str, Any],
    task: Task,
    dice: float | None,
    on_step: Callable[[StepReport], None] | None,
    progress: Progress | None,
) -> None:
    if event["what"] == "plan" and progress is not None:
        progress(event["done"], event["total"], "nnU-Net's plan and preprocessing")
    if event["what"] == "step" and on_step is not None:
        on_step(
            StepReport(
                STAGE,
                event["epoch"],
                task.epochs,
                event["step"],
                task.epochs * task.steps,
                event["loss"],
                dice,
            )
        )


class NnunetAnswerer:
    """Answers as nnU-Net predicts: its preprocessing, sliding window and mirroring."""

    def __init__(self, path: Path, device: torch.device) -> None:
        require_nnunet()
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        tensors, said = read_baseline(path)
        plans = PlansManager(said.more["plans"])
        network = network_of(said)
        load_strictly(network, _under_all_names(network, tensors), str(path))
        self.side = said.config.side
        self.predictor = nnUNetPredictor(device=device, allow_tqdm=False)
        self.predictor.manual_initialization(
            network.to(device).eval(),
            plans,
            plans.get_configuration(CONFIGURATION),
            [network.state_dict()],
            said.more["dataset"],
            "nnUNetTrainer",
            tuple(said.more["mirroring"]),
        )

    def __call__(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits, in the frame of the network; padding is background."""
        image = to_8_bits(unit)[None, None].astype(np.float32)
        _, shares = self.predictor.predict_single_npy_array(
            image, {"spacing": (999, 1, 1)}, None, None, True
        )
        share = np.clip(np.asarray(shares, np.float64)[1, 0], 1e-6, 1 - 1e-6)
        logits = np.full((self.side, self.side), np.log(1e-6), np.float32)
        logits[: unit.shape[0], : unit.shape[1]] = np.log(share / (1 - share))
        return logits


def _under_all_names(
    network: torch.nn.Module, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return each tensor under every name that the network's state has for it."""
    first = {id(each): name for name, each in network.named_parameters()}
    first |= {id(each): name for name, each in network.named_buffers()}
    known = {name: first[id(each)] for name, each in network.state_dict(keep_vars=True).items()}
    named = {name: tensors[one] for name, one in known.items() if one in tensors}
    # What fits no name stays, to be complained about.
    return {**{name: t for name, t in tensors.items() if name not in known}, **named}


def planned_network(side: int) -> torch.nn.Module:
    """Build the 2D network that nnU-Net plans for square images of ``side``, random weights.

    Its rule for images that fit the memory: halve while at least 4 pixels are left, 32 features
    doubled up to 512, two convolutions a stage (Isensee et al. 2021, and the code of v2).

    Raises
    ------
    UserError
        If nnU-Net is not installed.
    """
    require_nnunet()
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    stages = 1
    while side >> stages >= 4:
        stages += 1
    network: torch.nn.Module = PlainConvUNet(
        input_channels=1,
        n_stages=stages,
        features_per_stage=[min(512, 32 << stage) for stage in range(stages)],
        conv_op=torch.nn.Conv2d,
        kernel_sizes=3,
        strides=[1, *[2] * (stages - 1)],
        n_conv_per_stage=2,
        num_classes=2,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=torch.nn.LeakyReLU,
        deep_supervision=True,
    )
    return network


def network_of(said: BaselineFile) -> torch.nn.Module:
    """Build the network that a file's plan describes, with random weights."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(said.more["plans"])
    configuration = plans.get_configuration(CONFIGURATION)
    network: torch.nn.Module = nnUNetTrainer.build_network_architecture(
        plans, configuration, 1, 2, enable_deep_supervision=True
    )
    # Trained with it; without it, it answers at full size only.
    network.decoder.deep_supervision = False  # type: ignore[union-attr]
    return network
