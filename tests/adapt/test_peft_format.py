"""Adapter folders that PEFT reads, and PEFT's that we read: the same logits to 1e-5."""

import json
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import SamConfig, SamModel, SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from adalora_qat.adapt.inject import adapters, inject, svd_adapters
from adalora_qat.adapt.peft_format import inject_peft, read_peft, save_peft
from adalora_qat.adapt.svd_linear import SVDLinear
from adalora_qat.config import AdaptConfig
from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.model.sam import Segmenter, random_segmenter

RANKS = {"0.qkv": 5, "1.qkv": 0, "2.qkv": 2}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v))


class Stack(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(Block(8), Block(8), Block(8))


def adapted(method: str, ranks: dict[str, int] | None = None, scaling: float = 1.0) -> Stack:
    model = Stack()
    config = AdaptConfig(method=method, rank=6, schedule=(), scaling=scaling)
    inject(model, config, seed=0, ranks=ranks)
    torch.manual_seed(7)
    with torch.no_grad():
        for adapter in adapters(model).values():
            for parameter in adapter.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.5)
    return model


X = torch.linspace(-2, 2, 2 * 5 * 8).reshape(2, 5, 8)


def loaded_by_peft(folder: Path) -> nn.Module:
    return peft.PeftModel.from_pretrained(Stack(), str(folder))


@pytest.mark.parametrize("method", ["adalora", "lora"])
@pytest.mark.parametrize("scaling", [1.0, 0.37])
@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_peft_computes_what_we_do(tmp_path: Path, method: str, scaling: float) -> None:
    model = adapted(method, RANKS, scaling)
    save_peft(tmp_path, adapters(model), base_model="somewhere/base")
    theirs = loaded_by_peft(tmp_path)
    with torch.no_grad():
        assert (model(X) - Stack()(X)).abs().max() > 0.1
        assert torch.allclose(theirs(X), model(X), atol=1e-5)
    kinds = {"adalora": peft.AdaLoraConfig, "lora": peft.LoraConfig}
    assert type(theirs.peft_config["default"]) is kinds[method]


@pytest.mark.parametrize("method", ["adalora", "lora"])
@settings(deadline=None, max_examples=10)
@given(
    ranks=st.fixed_dictionaries({name: st.integers(0, 6) for name in RANKS}).filter(
        lambda ranks: any(ranks.values())
    ),
    scaling=st.floats(0.05, 8),
)
def test_our_own_folder_reads_back(
    tmp_path_factory: pytest.TempPathFactory, method: str, ranks: dict[str, int], scaling: float
) -> None:
    folder = tmp_path_factory.mktemp("adapter")
    model = adapted(method, ranks, scaling)
    save_peft(folder, adapters(model), base_model="b", prefix="part.")
    again = Stack()
    found = inject_peft(again, folder, prefix="part.")
    wanted = ranks if method == "adalora" else {n: r for n, r in ranks.items() if r}
    assert {name: adapter.rank for name, adapter in found.items()} == wanted
    for adapter in found.values():
        assert adapter.scaling.item() == pytest.approx(scaling, rel=1e-6)
    with torch.no_grad():
        assert torch.allclose(again(X), model(X), atol=1e-5)


def test_pruned_triplets_are_left_out(tmp_path: Path) -> None:
    model = adapted("adalora")
    for adapter in adapters(model).values():
        adapter.mask[::2] = False
    save_peft(tmp_path, adapters(model), base_model="b")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors["base_model.model.0.qkv.lora_A"].shape == (3, 8)
    with torch.no_grad():
        assert torch.allclose(loaded_by_peft(tmp_path)(X), model(X), atol=1e-5)


@pytest.mark.parametrize("alpha", [0, 3, 16])
def test_an_adalora_that_peft_pruned_reads_the_same(tmp_path: Path, alpha: int) -> None:
    config = peft.AdaLoraConfig(
        target_modules=["qkv"],
        init_r=4,
        target_r=2,
        lora_alpha=alpha,
        total_step=6,
        tinit=1,
        tfinal=1,
        deltaT=1,
    )
    theirs = peft.get_peft_model(Stack(), config)
    trainable = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.05)
    for step in range(7):
        optimizer.zero_grad()
        (theirs(X) - X.flip(-1)).square().mean().backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
    theirs.save_pretrained(tmp_path)
    again = Stack()
    found = inject_peft(again, tmp_path)
    assert sum(adapter.rank for adapter in found.values()) < 12
    # PEFT's own reload is the reference: alpha 0 makes its live model and its reload differ.
    reference = loaded_by_peft(tmp_path)
    with torch.no_grad():
        assert torch.allclose(again(X), reference(X), atol=1e-5)
        assert not torch.allclose(again(X), Stack()(X), atol=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_lora_of_peft_reads_the_same(tmp_path: Path, rslora: bool) -> None:
    config = peft.LoraConfig(
        target_modules=["qkv"],
        r=2,
        lora_alpha=5,
        rank_pattern={"1.qkv": 3},
        alpha_pattern={"0.qkv": 9},
        use_rslora=rslora,
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(Stack(), config).eval()
    theirs.save_pretrained(tmp_path)
    again = Stack()
    inject_peft(again, tmp_path)
    with torch.no_grad():
        assert torch.allclose(again(X), theirs(X), atol=1e-5)


def test_a_sam_encoder_goes_through_peft(tmp_path: Path) -> None:
    def encoder() -> SamVisionEncoder:
        torch.manual_seed(0)
        return SamVisionEncoder(
            SamVisionConfig(
                hidden_size=16,
                output_channels=8,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=64,
                patch_size=16,
                window_size=2,
                global_attn_indexes=[1],
                mlp_dim=32,
            )
        ).eval()

    ours = encoder()
    for adapter in inject(ours, AdaptConfig(rank=4, schedule=()), seed=0).values():
        assert isinstance(adapter, SVDLinear)
        adapter.lam.data.normal_()
    save_peft(tmp_path, adapters(ours), base_model="facebook/sam-vit-base")
    theirs = peft.PeftModel.from_pretrained(encoder(), str(tmp_path))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = ours(pixels).last_hidden_state
        assert torch.allclose(theirs(pixels).last_hidden_state, wanted, atol=1e-5)


def test_a_whole_sam_goes_through_peft_with_its_decoder(tmp_path: Path) -> None:
    ours = random_segmenter("tiny-vit-test", 0, attention="eager")
    base = sam_of(ours)
    trained = random_segmenter("tiny-vit-test", 0, attention="eager")
    inject(trained.image_encoder, AdaptConfig(rank=4, schedule=()), seed=0)
    torch.manual_seed(5)
    with torch.no_grad():
        for adapter in svd_adapters(trained.image_encoder).values():
            adapter.lam.normal_()
        for parameter in trained.mask_decoder.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    modules = {"mask_decoder": trained.mask_decoder}
    save_peft(
        tmp_path, adapters(trained.image_encoder), base_model="b", prefix="vision_encoder.",
        modules=modules,
    )  # fmt: skip
    images, boxes = torch.randn(1, 3, 64, 64), torch.tensor([[[5.0, 6.0, 50.0, 40.0]]])
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    inject_peft(
        ours.image_encoder, tmp_path, prefix="vision_encoder.",
        modules={"mask_decoder": ours.mask_decoder},
    )  # fmt: skip
    with torch.no_grad():
        wanted, _ = trained(images, boxes)
        again, _ = ours(images, boxes)
        logits = theirs(pixel_values=images, input_boxes=boxes, multimask_output=False).pred_masks
    assert torch.allclose(again, wanted, atol=1e-5)
    # The encoder's and neck's norms have the same epsilon; the rest is PEFT's own arithmetic.
    assert torch.allclose(logits[:, :, 0], wanted, atol=1e-5)
    card = (tmp_path / "README.md").read_text()
    assert "and the whole `mask_decoder`" in card
    assert "base = SamModel.from_pretrained('b')" in card


def sam_of(segmenter: Segmenter) -> SamModel:
    """Return transformers' own model with the same weights."""
    config = SamConfig(
        vision_config=segmenter.image_encoder.config,
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 8},
        mask_decoder_config={
            "hidden_size": 32, "iou_head_hidden_dim": 32, "mlp_dim": 256, "layer_norm_eps": 1e-5,
        },
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = SamModel(config).eval()
    state = {
        name.replace("image_encoder.", "vision_encoder.", 1): tensor
        for name, tensor in segmenter.state_dict().items()
    }
    shared = "positional_embedding"
    embedding = segmenter.prompt_encoder.shared_embedding.get_parameter(shared)
    model.load_state_dict({**state, f"shared_image_embedding.{shared}": embedding})
    return model


def test_modules_saved_whole_must_be_named(tmp_path: Path) -> None:
    head = nn.Linear(2, 3)
    model = adapted("lora")
    save_peft(tmp_path, adapters(model), base_model="b", modules={"head": head})
    with pytest.raises(CheckpointError, match=r"whole modules \['head'\]"):
        inject_peft(Stack(), tmp_path)
    again = Stack()
    with pytest.raises(CheckpointError, match=r"head does not fit"):
        inject_peft(again, tmp_path, modules={"head": nn.Linear(2, 2)})
    assert not adapters(again)
    other = nn.Linear(2, 3)
    inject_peft(again, tmp_path, modules={"head": other})
    assert torch.equal(other.weight, head.weight)


def test_the_card_says_what_it_is(tmp_path: Path) -> None:
    save_peft(
        tmp_path,
        adapters(adapted("adalora", RANKS)),
        base_model="a/b",
        description="On phantoms.",
        facts={"recipe": "demo", "seed": "3"},
    )
    card = (tmp_path / "README.md").read_text()
    assert card.startswith('---\nbase_model: "a/b"\nlibrary_name: peft\n')
    assert "On phantoms." in card
    assert "| `1.qkv` | 0 |" in card
    assert "| sum | 7 |" in card
    assert "| recipe | demo |\n| seed | 3 |" in card
    assert "The folder holds the low-rank update of 3 layers, as safetensors." in card


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    mixed = adapted("adalora")
    mixed[0].qkv.scaling.fill_(2)
    with pytest.raises(ConfigError, match="one scaling"):
        save_peft(tmp_path, adapters(mixed), base_model="b")
    with pytest.raises(ConfigError, match="one kind"):
        save_peft(tmp_path, {}, base_model="b")
    empty = adapted("lora", dict.fromkeys(RANKS, 0))
    with pytest.raises(ConfigError, match="rank 0"):
        save_peft(tmp_path, adapters(empty), base_model="b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "'IA3' is not supported"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"peft_type": "LORA"}, "lacks 'lora_A.weight'"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    save_peft(tmp_path, adapters(adapted("adalora")), base_model="b")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read_peft(tmp_path)


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        read_peft(tmp_path)
    save_peft(tmp_path, adapters(adapted("adalora")), base_model="b")
    with pytest.raises(CheckpointError, match="give the prefix"):
        read_peft(tmp_path, prefix="vision_encoder.")
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        read_peft(tmp_path)
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="never loaded"):
        read_peft(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_peft(tmp_path)


def test_an_adapter_for_other_widths_leaves_the_model_alone(tmp_path: Path) -> None:
    save_peft(tmp_path, adapters(adapted("adalora")), base_model="b")
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.2.qkv.lora_A"] = torch.zeros(6, 9)
    save_file(tensors, path)
    model = Stack()
    with pytest.raises(CheckpointError, match=r"2\.qkv\.Q"):
        inject_peft(model, tmp_path)
    assert type(model[0].qkv) is nn.Linear
