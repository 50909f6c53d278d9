"""What is found out before the first step: recipes that cannot run, folders in use, memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from adalora_qat.errors import ConfigError, UserError
from adalora_qat.recipe import load_config
from adalora_qat.train.alone import alone_in
from adalora_qat.train.memory import bytes_kept, free_memory, parts_that_fit
from adalora_qat.train.preflight import check_recipe


@pytest.mark.parametrize("recipe", ["demo", "litemedsam-w4a8", "unet"])
def test_recipes_of_the_package_pass(recipe: str) -> None:
    check_recipe(load_config(recipe))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("quantize.policy=ful", "did you mean full"),
        ("adapt.targets=[qkw]", "matches no module"),
        ("adapt.rank=100000", "choose adapt.rank"),
        ("model.side=250", "multiple of"),
        ("gradient_checkpointing=true", "ViT encoders"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_first(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_recipe(load_config("litemedsam", [override]))


HOLD = """
import sys
from pathlib import Path
from adalora_qat.train.alone import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_a_folder_is_held_by_one_process_until_it_dies(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdin=pipe, stdout=pipe, env=os.environ
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with (
        pytest.raises(UserError, match="another process is training in"),
        alone_in(tmp_path / "run"),
    ):
        pass
    other.kill()
    other.wait()
    with alone_in(tmp_path / "run"):
        assert list((tmp_path / "run").iterdir()) == []


def test_what_a_forward_pass_keeps_is_counted() -> None:
    # ReLU keeps its output, the second layer its input: the same 1000 floats. The first layer
    # keeps the 10 floats of its input.
    net = nn.Sequential(nn.Linear(10, 1000), nn.ReLU(), nn.Linear(1000, 1))
    assert bytes_kept(net, torch.ones(1, 10)) == 4 * (1000 + 10)


def test_a_control_group_bounds_what_is_free(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  8000 kB\n")
    assert free_memory(tmp_path) == 8000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1000\n")
    (group / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("5000\n")
    assert free_memory(tmp_path) == 4000
    assert free_memory(tmp_path / "elsewhere") is None


def test_a_step_is_shared_out_until_it_fits() -> None:
    # The small recipe where 7 GB are free: 16 images of 0.94 GB do not fit, 4 do.
    assert parts_that_fit(16, 1, 935_000_000, 7 * 10**9) == 4
    assert parts_that_fit(16, 1, 935_000_000, 10**11) == 1
    assert parts_that_fit(16, 8, 935_000_000, 10**11) == 8
    assert parts_that_fit(16, 1, 935_000_000, 0) == 16
