"""Model families by the choices that make them: which `ModelSpec` is which Hugging Face architecture."""

from __future__ import annotations

from dataclasses import dataclass

from bimo.core.config import ModelSpec


@dataclass(frozen=True, slots=True)
class Family:
    """A Hugging Face architecture.

    Attributes:
        model_type: Its name in config.json.
        architecture: Its class in transformers.
        qk_norm: The spec's choice that this family stands for; `biases` likewise.
    """

    model_type: str
    architecture: str
    qk_norm: bool
    biases: str

    def matches(self, spec: ModelSpec) -> bool:
        """Whether this family computes what the spec says."""
        return (
            (spec.positions, spec.norm, spec.feedforward) == ("rotary", "rmsnorm", "swiglu")
            and spec.qk_norm == self.qk_norm
            and spec.biases == self.biases
        )


FAMILIES = (
    Family("qwen3", "Qwen3ForCausalLM", qk_norm=True, biases="none"),
    Family("llama", "LlamaForCausalLM", qk_norm=False, biases="none"),
    Family("qwen2", "Qwen2ForCausalLM", qk_norm=False, biases="qkv"),
)


def family_of(spec: ModelSpec) -> Family | None:
    """The family that computes what the spec says; None when only bimo does."""
    return next((family for family in FAMILIES if family.matches(spec)), None)
