"""Flax models of Hugging Face's transformers (version 4, the last that has them)."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from checked_networks.case import Built, Cases, images, randomise, rows, tokens
from rlprune_jax.types import PyTree, Variables

CASES = Cases("transformers")
TEXT = {"vocab_size": 29, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = TEXT | {"intermediate_size": 40, "max_position_embeddings": 12}
LLAMA = TEXT | {"intermediate_size": 40, "max_position_embeddings": 12, "num_key_value_heads": 2}
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
}
BART = {
    "vocab_size": 29,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
}


def _text() -> tuple[PyTree, ...]:
    return (tokens(),)


def _both_texts() -> tuple[PyTree, ...]:
    return tokens(), jnp.ones((3, 7), jnp.int32), tokens(5)


def _pictures() -> tuple[PyTree, ...]:
    return (images().transpose(0, 3, 1, 2),)


def _model(name: str, config: dict, inputs: Callable[[], tuple[PyTree, ...]]) -> Built:
    import transformers

    model_class = getattr(transformers, f"Flax{name}")
    settings = model_class.config_class(**config)
    given: dict[str, PyTree] = {}
    if "image_size" in config:
        size = config["image_size"]
        given["input_shape"] = (1, size, size, 3)
    model = model_class(settings, seed=0, **given)
    found = dict(model.params)
    whole = found if "batch_stats" in found else {"params": found}

    def call(variables: Variables, inputs: tuple[PyTree, ...], **options: PyTree) -> PyTree:
        given = variables if "batch_stats" in variables else variables["params"]
        known = inspect.signature(model_class.__call__).parameters
        return model(*inputs, params=given, **{k: v for k, v in options.items() if k in known})

    def apply(variables: Variables, *inputs: PyTree) -> PyTree:
        return call(variables, inputs, train=False)[0]

    def apply_train(variables: Variables, *inputs: PyTree, key: PyTree = None) -> PyTree:
        if "batch_stats" in variables:
            outputs, state = call(variables, inputs, train=True)
            return outputs[0], {"batch_stats": state["batch_stats"]}
        return call(variables, inputs, train=True, dropout_rng=key)[0], {}

    return Built(
        apply=apply,
        variables=randomise(jax.tree.map(jnp.asarray, whole)),
        inputs=inputs(),
        # Dropout alone is the same for all; one network of it is enough.
        apply_train=apply_train if "batch_stats" in whole or name.startswith("Bert") else None,
    )


def _add(name: str, config: dict, inputs: Callable, family: str = "transformer") -> None:
    CASES.add(name, family, lambda: _model(name, config, inputs))


_add("BertForSequenceClassification", BERT, _text)
_add("RobertaForMaskedLM", BERT | {"pad_token_id": 1}, _text)
_add("ElectraForPreTraining", BERT | {"embedding_size": 12}, _text)
_add("AlbertForMaskedLM", BERT | {"embedding_size": 12}, _text)
_add("RoFormerForMaskedLM", BERT | {"embedding_size": 16}, _text)
_add(
    "DistilBertForMaskedLM",
    {"vocab_size": 29, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 40}
    | {"max_position_embeddings": 12},
    _text,
)
_add(
    "GPT2LMHeadModel",
    {"vocab_size": 29, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 12},
    _text,
)
_add(
    "GPTNeoForCausalLM",
    {"vocab_size": 29, "hidden_size": 16, "num_layers": 2, "num_heads": 4}
    | {
        "max_position_embeddings": 12,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
    },
    _text,
)
_add(
    "GPTJForCausalLM",
    {"vocab_size": 29, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 12, "rotary_dim": 4},
    _text,
)
_add("LlamaForCausalLM", LLAMA, _text)
_add("MistralForCausalLM", LLAMA | {"sliding_window": 4}, _text)
_add("GemmaForCausalLM", LLAMA | {"head_dim": 4, "num_key_value_heads": 1}, _text)
_add(
    "OPTForCausalLM",
    TEXT | {"ffn_dim": 40, "max_position_embeddings": 12, "word_embed_proj_dim": 16},
    _text,
)
_add("BloomForCausalLM", {"vocab_size": 29, "hidden_size": 16, "n_layer": 2, "n_head": 4}, _text)
_add(
    "XGLMForCausalLM",
    {"vocab_size": 29, "d_model": 16, "num_layers": 2, "attention_heads": 4, "ffn_dim": 40}
    | {"max_position_embeddings": 12},
    _text,
)
_add("BartForConditionalGeneration", BART, _both_texts)
_add("MarianMTModel", BART, _both_texts)
_add("ViTForImageClassification", VISION, _pictures)
_add("BeitForImageClassification", VISION | {"use_relative_position_bias": True}, _pictures)
_add("Dinov2ForImageClassification", VISION | {"mlp_ratio": 2}, _pictures)
_add(
    "ResNetForImageClassification",
    {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 1], "image_size": 32},
    lambda: (images(32).transpose(0, 3, 1, 2),),
    "cnn",
)
_add(
    "RegNetForImageClassification",
    {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 1], "groups_width": 8}
    | {"layer_type": "y", "image_size": 32},
    lambda: (images(32).transpose(0, 3, 1, 2),),
    "cnn",
)
_add(
    "WhisperForConditionalGeneration",
    BART
    | {"num_mel_bins": 6, "max_source_positions": 8, "max_target_positions": 12}
    | {
        "eos_token_id": 2,
        "bos_token_id": 2,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    },
    lambda: (rows(6, 16), tokens(5)),
)
