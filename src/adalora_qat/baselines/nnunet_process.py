"""nnU-Net's planning, preprocessing and training: what runs in a process of its own.

nnU-Net is steered by environment variables and prints what it does. Both stay in this process,
which ``nnunet.py`` starts and reads: a line that begins with ``EVENT`` is for the parent, as
JSON; the rest is nnU-Net's log. The plan, the network, augmentation, loss, optimizer and
learning rates are nnU-Net's; only the number of epochs and of their steps is given.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from adalora_qat.baselines.nnunet_data import DATASET, DATASET_ID
from adalora_qat.checkpoint import write_tensors
from adalora_qat.files import write_json

EVENT: Final = "@adalora-qat "
CONFIGURATION: Final = "2d"
PLANS: Final = "nnUNetPlans"
WEIGHTS: Final = "weights.safetensors"
EPOCHS: Final = "epochs.json"


@dataclass(frozen=True)
class Task:
    """What the process is asked to do.

    Attributes
    ----------
    folder : holds ``raw`` and ``preprocessed``; the weights are written into it.
    epochs, steps : the schedule, nnU-Net's own being 1000 of 250.
    """

    folder: str
    epochs: int
    steps: int
    seed: int
    cpu: bool
    processes: int

    def text(self) -> str:
        """Return the task as one argument."""
        return json.dumps(asdict(self))


def main(argument: str) -> None:
    """Do the task: what an earlier process finished is not done again."""
    task = Task(**json.loads(argument))
    preprocessed = Path(task.folder) / "preprocessed" / DATASET
    if not (preprocessed / "done").is_file():
        plan(task)
        (preprocessed / "done").touch()
    train(task, preprocessed)


def plan(task: Task) -> None:
    """Let nnU-Net look at the data, plan, and preprocess for its 2D configuration."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
    )
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    tell(what="plan", done=0, total=3)
    extract_fingerprints([DATASET_ID], num_processes=task.processes)
    tell(what="plan", done=1, total=3)
    plan_experiments([DATASET_ID])
    tell(what="plan", done=2, total=3)
    DefaultPreprocessor().run(DATASET_ID, CONFIGURATION, PLANS, num_processes=task.processes)
    tell(what="plan", done=3, total=3)


def train(task: Task, preprocessed: Path) -> None:
    """Train to the end, from the newest checkpoint if there is one, and write the weights."""
    random.seed(task.seed)
    np.random.seed(task.seed)
    torch.manual_seed(task.seed)
    torch.backends.cudnn.benchmark = not task.cpu
    plans = json.loads((preprocessed / f"{PLANS}.json").read_text("utf-8"))
    dataset = json.loads((Path(task.folder) / "raw" / DATASET / "dataset.json").read_text("utf-8"))
    trainer = _trainer(task, plans, dataset)
    output = Path(trainer.output_folder)
    found = [output / f"checkpoint_{which}.pth" for which in ("final", "latest")]
    newest = next((path for path in found if path.is_file()), None)
    if newest is not None:
        trainer.load_checkpoint(str(newest))
    if newest != found[0]:
        trainer.run_training()
    rows = _history(trainer, task.steps)
    write_json(Path(task.folder) / EPOCHS, rows)
    header = {
        "plans": json.loads((preprocessed / f"{PLANS}.json").read_text("utf-8")),
        "dataset": dataset,
        "mirroring": list(trainer.inference_allowed_mirroring_axes or ()),
        "schedule": {"epochs": task.epochs, "steps_per_epoch": task.steps},
    }
    network = getattr(trainer.network, "_orig_mod", trainer.network)
    # Its state lists some tensors up to four times, under the names of all who refer to them.
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    write_tensors(Path(task.folder) / WEIGHTS, tensors, header)


def tell(**event: Any) -> None:
    """Tell the parent process."""
    sys.stdout.write(EVENT + json.dumps(event) + "\n")
    sys.stdout.flush()


def _trainer(task: Task, plans: dict[str, Any], dataset: dict[str, Any]) -> Any:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class ShorterTrainer(nnUNetTrainer):  # type: ignore[misc]
        """nnU-Net's trainer, telling the parent about every step."""

        def train_step(self, batch: Any) -> Any:
            answer = super().train_step(batch)
            loss = float(answer["loss"])
            if not np.isfinite(loss):
                tell(what="failed", epoch=self.current_epoch + 1)
                raise SystemExit(1)
            self.steps_done += 1
            tell(what="step", epoch=self.current_epoch + 1, step=self.steps_done, loss=loss)
            return answer

        def on_epoch_start(self) -> None:
            super().on_epoch_start()
            self.steps_done = self.current_epoch * self.num_iterations_per_epoch

        def on_epoch_end(self) -> None:
            super().on_epoch_end()
            tell(what="epoch", dice=float(self.logger.get_value("mean_fg_dice", step=-1)))

    device = torch.device("cpu" if task.cpu or not torch.cuda.is_available() else "cuda")
    # Newer versions of nnU-Net want to be told here; older ones ignore it.
    plans = {**plans, "continue_training": False}
    trainer = ShorterTrainer(plans, CONFIGURATION, 0, dataset, device)
    trainer.num_epochs, trainer.num_iterations_per_epoch = task.epochs, task.steps
    trainer.num_val_iterations_per_epoch = max(1, task.steps // 5)
    # A killed training loses one epoch at most.
    trainer.save_every = 1
    return trainer


def _history(trainer: Any, steps: int) -> list[dict[str, float]]:
    """Return a row an epoch; Dice is nnU-Net's own, over the pixels of random patches."""
    found = trainer.logger.get_value("mean_fg_dice", step=None)
    losses = trainer.logger.get_value("train_losses", step=None)
    return [
        {"epoch": n, "step": n * steps, "train_loss": float(loss), "val_dice": float(dice)}
        for n, (dice, loss) in enumerate(zip(found, losses, strict=True), start=1)
    ]


if __name__ == "__main__":
    main(sys.argv[1])
