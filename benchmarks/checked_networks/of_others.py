"""Smaller packages: flaxmodels, mamba2-jax, nanodl, jax-resnet, PaLM-jax, attnax, flaxdiff."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from checked_networks.case import BATCH, Built, Case, equinox, images, linen, rows, tokens, weights
from checked_networks.case import nnx as built_nnx
from rlprune_jax.types import PyTree


class _Packages:
    """Collect cases of several packages."""

    def __init__(self) -> None:
        self.all: list[Case] = []

    def add(self, name: str, family: str, build: Callable[[], Built]) -> None:
        package = name.split("/")[0]
        self.all.append(Case(name=name, family=family, package=package, build=build))


CASES = _Packages()


def _flaxmodels_resnet() -> Built:
    import flaxmodels

    return linen(flaxmodels.ResNet18("logits", pretrained=None, num_classes=10), images(32))


def _first(built: Built, name: str) -> Built:
    """Take one entry of the dictionary that a network returns."""
    apply, apply_train = built.apply, built.apply_train

    def one(variables: PyTree, *inputs: PyTree) -> PyTree:
        return apply(variables, *inputs)[name]

    def one_train(variables: PyTree, *inputs: PyTree, key: PyTree = None) -> PyTree:
        assert apply_train is not None
        outputs, updates = apply_train(variables, *inputs, key=key)
        return outputs[name], updates

    return built._replace(apply=one, apply_train=None if apply_train is None else one_train)


CASES.add("flaxmodels/ResNet18", "cnn", _flaxmodels_resnet)


def _mamba2(forecaster: bool) -> Built:
    from flax import nnx
    from mamba2_jax import Mamba2Config, Mamba2ForCausalLM, create_random_forecaster

    if forecaster:
        model = create_random_forecaster(
            6,
            d_model=16,
            n_layers=2,
            output_dim=2,
            forecast_horizon=3,
            d_state=8,
            headdim=8,
            chunk_size=4,
        )
        return built_nnx(model, rows(8, 6), train=False)
    config = Mamba2Config(
        vocab_size=29, hidden_size=16, state_size=8, head_dim=8, chunk_size=4, num_hidden_layers=2
    )
    built = built_nnx(Mamba2ForCausalLM(config, rngs=nnx.Rngs(0)), tokens(8), train=False)
    return _first(built, "logits")


CASES.add("mamba2-jax/Mamba2ForCausalLM", "ssm", partial(_mamba2, False))
CASES.add("mamba2-jax/Mamba2Forecaster", "ssm", partial(_mamba2, True))


SCRAMBLED = "transformer, scrambled"
"""nanodl reshapes [batch, positions, heads * width] to [batch, heads, positions, width] without a
transpose, so that each of its heads reads all features: none can be removed."""

NANODL = {
    "num_layers": 2,
    "hidden_dim": 16,
    "num_heads": 4,
    "feedforward_dim": 40,
    "dropout": 0.1,
}
NANODL_TEXT = NANODL | {
    "vocab_size": 29,
    "embed_dim": 16,
    "max_length": 7,
    "start_token": 0,
    "end_token": 1,
}


def _nanodl(name: str, options: dict, *inputs: PyTree) -> Built:
    import nanodl

    built = linen(getattr(nanodl, name)(**options), *inputs, train=name == "GPT3")
    return _numbers(built)


def _numbers(built: Built) -> Built:
    """Take the first array of the tuple that a network returns."""
    apply, apply_train = built.apply, built.apply_train

    def first(found: PyTree) -> PyTree:
        return found[0] if isinstance(found, tuple | list) else found

    def one(variables: PyTree, *inputs: PyTree) -> PyTree:
        return first(apply(variables, *inputs))

    def one_train(variables: PyTree, *inputs: PyTree, key: PyTree = None) -> PyTree:
        assert apply_train is not None
        outputs, updates = apply_train(variables, *inputs, key=key)
        return first(outputs), updates

    return built._replace(apply=one, apply_train=None if apply_train is None else one_train)


_NANODL_DECODERS: tuple[tuple[str, dict], ...] = (
    ("GPT3", {}),
    ("GPT4", {"num_experts": 4, "top_k": 2}),
    ("LaMDA", {}),
    ("Gemma", {"num_groups": 2, "feedforward_dim": 16}),  # adds what both widths give
    ("Llama3", {"num_groups": 2}),
    ("Mistral", {"num_groups": 2, "window_size": 3, "shift_size": 1}),
    ("Mixtral", {"num_groups": 2, "window_size": 3, "shift_size": 1}),
)
for _name, _options in _NANODL_DECODERS:
    CASES.add(
        f"nanodl/{_name}",
        SCRAMBLED,
        partial(_nanodl, _name, NANODL_TEXT | _options, tokens(6)),
    )
for _name in ("T5", "Transformer"):
    CASES.add(
        f"nanodl/{_name}",
        SCRAMBLED,
        partial(_nanodl, _name, NANODL_TEXT, tokens(), tokens()[::-1]),
    )
NANODL_VISION = NANODL | {"patch_size": (4, 4), "n_outputs": 10}
for _name, _family, _options in (
    ("ViT", SCRAMBLED, {"feedforward_dim": 16}),
    ("Mixer", "mlp", {}),
):
    CASES.add(
        f"nanodl/{_name}", _family, partial(_nanodl, _name, NANODL_VISION | _options, images())
    )


def _jax_resnet(block: str, stem: str) -> Built:
    import jax_resnet

    module = jax_resnet.ResNet(
        getattr(jax_resnet, block),
        stage_sizes=[1, 1],
        n_classes=10,
        hidden_sizes=(8, 12),
        stem_cls=getattr(jax_resnet, stem),
    )
    return linen(module, images(32), train=False)


for _name, _block, _stem in (
    ("ResNet", "ResNetBlock", "ResNetStem"),
    ("ResNet_bottleneck", "ResNetBottleneckBlock", "ResNetStem"),
    ("ResNetD", "ResNetDBottleneckBlock", "ResNetDStem"),
    ("ResNeSt", "ResNeStBottleneckBlock", "ResNetDStem"),
):
    CASES.add(f"jax-resnet/{_name}", "cnn", partial(_jax_resnet, _block, _stem))


def _palm() -> Built:
    from palm_jax import PaLM

    model = PaLM(num_tokens=29, dim=16, dim_head=8, depth=2, heads=4, key=jax.random.key(0))
    return equinox(model, tokens(), train=False)


CASES.add("PaLM-jax/PaLM", "transformer", _palm)


def _attnax(**options: object) -> Built:
    import attnax
    from flax import nnx

    config = attnax.TransformerConfig(
        vocab_size=29, d_model=16, num_heads=4, num_layers=2, d_ff=40, max_len=12, **options
    )
    built = built_nnx(attnax.TransformerDecoder(nnx.Rngs(0), config), tokens(), train=False)
    return _with_head(built, 16)


def _with_head(built: Built, width: int) -> Built:
    """Add a head, as all axes of an output are frozen."""
    apply = built.apply

    def headed(variables: PyTree, *inputs: PyTree) -> PyTree:
        params = {**variables["params"]}
        head = params.pop("our_head")
        return apply({**variables, "params": params}, *inputs) @ head

    params = {**built.variables["params"], "our_head": weights(width, 29)}
    return built._replace(apply=headed, variables={**built.variables, "params": params})


def _attnax_vit(**options: object) -> Built:
    import attnax
    from flax import nnx

    config = attnax.VisionTransformerConfig(
        image_size=16,
        patch_size=4,
        num_classes=10,
        d_model=16,
        num_heads=4,
        num_layers=2,
        d_ff=40,
        **options,
    )
    return built_nnx(attnax.VisionTransformer(nnx.Rngs(0), config), images(), train=False)


CASES.add("attnax/decoder", "transformer", _attnax)
CASES.add(
    "attnax/decoder_rope_gqa_swiglu_rms",
    "transformer",
    partial(_attnax, pos_emb_type="rope", num_kv_heads=2, ff_activation="swiglu", norm_type="rms"),
)
CASES.add(
    "attnax/decoder_linear_attention",
    "transformer",
    partial(_attnax, attention_type="linear", linear_attention_chunk_size=7),
)
CASES.add(
    "attnax/decoder_memory_efficient",
    "transformer",
    partial(_attnax, attention_type="memory_efficient", attention_block_size=4),
)
CASES.add("attnax/VisionTransformer", "transformer", _attnax_vit)


def _flaxdiff(name: str, **options: object) -> Built:
    from flaxdiff.models import simple_dit, simple_vit

    homes = {"UViT": simple_vit, "SimpleUDiT": simple_vit, "SimpleDiT": simple_dit}
    module = getattr(homes[name], name)(
        patch_size=4, emb_features=16, num_layers=2, num_heads=4, **options
    )
    return linen(module, images(), jnp.linspace(0.1, 0.9, BATCH), rows(5, 16), train=False)


for _name in ("UViT", "SimpleDiT", "SimpleUDiT"):
    CASES.add(
        f"flaxdiff/{_name}",
        "diffusion transformer",
        partial(_flaxdiff, _name, **({"norm_groups": 0} if _name == "UViT" else {})),
    )
