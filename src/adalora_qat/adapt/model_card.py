"""The model card of an adapter folder: README.md with the front matter that the Hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def model_card(
    config: Mapping[str, Any],
    ranks: Mapping[str, int],
    description: str,
    facts: Mapping[str, str],
) -> str:
    """Return the folder's README with the front matter that the Hugging Face Hub reads.

    Parameters
    ----------
    config : what ``adapter_config.json`` holds.
    ranks : layer → rank.
    description : a paragraph on the adapter; a plain one if empty.
    facts : rows of the table on the training; no table if empty.
    """
    base, method = config["base_model_name_or_path"], config["peft_type"]
    rows = "\n".join(f"| `{name}` | {rank} |" for name, rank in ranks.items())
    whole = config.get("modules_to_save")
    also = f", and the whole {', '.join(f'`{name}`' for name in whole)}" if whole else ""
    training = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    about = f"\n## Training\n\n| | |\n|---|---|\n{training}\n" if facts else ""
    return f"""---
base_model: {json.dumps(base)}
library_name: peft
pipeline_tag: image-segmentation
tags:
- adalora-qat
- {method.lower()}
- medical
- segment-anything
---

# {method} adapter for {base}

{description or "Low-rank adaptation of the image encoder, trained with adalora-qat."}

The folder holds the low-rank update of {len(ranks)} layers{also}, as safetensors.

## Use

```python
from peft import PeftModel
{_loading(base, ranks)}
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```

The prompt is a box around the organ, in pixels of the model's input. Not a medical device.
Masks need review by a qualified reader.
{about}
## Ranks

| layer | rank |
|---|---|
{rows}
| sum | {sum(ranks.values())} |
"""


def _loading(base: str, ranks: Mapping[str, int]) -> str:
    if all(name.startswith("vision_encoder.") for name in ranks):
        lines = ("from transformers import SamModel", f"base = SamModel.from_pretrained({base!r})")
        return "\n\n".join(lines)
    return f"\nbase = ...  # the model whose weights are {base}"
