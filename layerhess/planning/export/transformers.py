"""For Hugging Face's transformers: the ``quantization_config`` of a model that torchao quantises when it is loaded.

It says the same of each weight as the format "torchao". Every linear layer it does not name stays as it is; embeddings
and output heads are quantised where the plan says so, and tied ones stay tied.
"""

from __future__ import annotations

from layerhess.planning.export.kept import as_text
from layerhess.planning.export.torchao import content_of
from layerhess.results.plan import PlanRecord


def text(plan: PlanRecord) -> tuple[str, list[str]]:
    """The file's content, and a sentence for each weight that is not in it.

    Raises:
        InputError: torchao is missing.
    """
    content, left_out = content_of(plan)
    config = {
        "quant_method": "torchao",
        "quant_type": {"default": content},
        "modules_to_not_convert": [],  # otherwise output heads are left out
        "include_input_output_embeddings": True,
        "untie_embedding_weights": False,
    }
    return as_text(config), left_out
