"""Convolutional networks as people write them, in Linen, NNX, Equinox and plain JAX."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from checked_networks.case import Built, Cases, equinox, images, linen, parameters, weights
from checked_networks.case import nnx as built_nnx
from checked_networks.own_transformers import layer_norm

CASES = Cases("own")


def conv(
    x: jax.Array, kernel: jax.Array, stride: int = 1, groups: int = 1, padding: str = "SAME"
) -> jax.Array:
    """Convolve NHWC with HWIO."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


class ConvNeXt(nn.Module):
    """Patches, depthwise convolutions, layer norms over channels, layer scales."""

    widths: tuple[int, ...] = (24, 40)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for stage, width in enumerate(self.widths):
            size = 2
            if stage:
                x = nn.LayerNorm()(x)
            x = nn.Conv(width, (size, size), strides=size, padding="VALID")(x)
            if not stage:
                x = nn.LayerNorm()(x)
            for _ in range(2):
                y = nn.Conv(width, (7, 7), feature_group_count=width)(x)
                y = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm(epsilon=1e-6)(y)))
                y = nn.Dense(width)(y)
                scale = self.param(f"scale{stage}{_}", nn.initializers.constant(1e-6), (width,))
                x = x + scale * y
        return nn.Dense(10)(nn.LayerNorm()(x.mean((1, 2))))


@CASES("convnext")
def convnext_linen() -> Built:
    """ConvNeXt of Flax Linen."""
    return linen(ConvNeXt(), images(8), train=False)


@CASES("convnext")
def convnext_v2_plain() -> Built:
    """ConvNeXt V2: a global response norm over space, divided by its mean over channels."""
    width = 24
    variables = {
        "stem": weights(2, 2, 3, width),
        "blocks": [
            parameters(
                20 * (1 + i),
                depth=(5, 5, 1, width),
                scale=(width,),
                bias=(width,),
                up=(width, 4 * width),
                gamma=(4 * width,),
                beta=(4 * width,),
                down=(4 * width, width),
            )
            for i in range(2)
        ],
        **parameters(9, scale=(width,), bias=(width,), head=(width, 10)),
    }

    def apply(v, x):
        x = conv(x, v["stem"], 2, padding="VALID")
        for b in v["blocks"]:
            y = conv(x, b["depth"], groups=x.shape[-1])
            y = jax.nn.gelu(layer_norm(y, b["scale"], b["bias"]) @ b["up"])
            response = jnp.sqrt((y**2).sum((1, 2), keepdims=True))
            y = (
                b["gamma"] * y * response / (response.mean(-1, keepdims=True) + 1e-6)
                + b["beta"]
                + y
            )
            x = x + y @ b["down"]
        return layer_norm(x.mean((1, 2)), v["scale"], v["bias"]) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(images(),))


class ResNet(nn.Module):
    """Basic or bottleneck blocks with batch norm or a norm given."""

    bottleneck: bool = False
    groups: int = 1
    norm: str = "batch"
    standardised: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norms: dict[str, Callable[[], nn.Module]] = {
            "batch": partial(nn.BatchNorm, use_running_average=not train, momentum=0.9),
            "group": partial(nn.GroupNorm, num_groups=4),
            "group size": partial(nn.GroupNorm, num_groups=None, group_size=4),
            "instance": nn.InstanceNorm,
            "layer": nn.LayerNorm,
            "rms": nn.RMSNorm,
        }
        norm = norms[self.norm]
        layer: Callable[..., nn.Module] = partial(nn.Conv, use_bias=False)
        if self.standardised:
            layer = StandardisedConv
        x = nn.relu(norm()(layer(16, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        for width, stride in ((16, 1), (24, 2)):
            if self.bottleneck:
                y = nn.relu(norm()(layer(8, (1, 1))(x)))
                y = nn.Conv(8, (3, 3), strides=stride, feature_group_count=self.groups)(y)
                y = norm()(layer(width, (1, 1))(nn.relu(norm()(y))))
            else:
                y = nn.relu(norm()(layer(width, (3, 3), strides=stride)(x)))
                y = norm()(layer(width, (3, 3))(y))
            if x.shape != y.shape:
                x = norm()(layer(width, (1, 1), strides=stride)(x))
            x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


class StandardisedConv(nn.Module):
    """Convolution whose weights have mean 0 and variance 1 for each output."""

    features: int
    size: tuple[int, int]
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        kernel = kernel - kernel.mean((0, 1, 2))
        kernel = kernel / jnp.sqrt(kernel.var((0, 1, 2)) * 9 * x.shape[-1] + 1e-5)
        return conv(x, kernel, self.strides)


for _name, _module in {
    "resnet_basic": ResNet(),
    "resnet_bottleneck": ResNet(bottleneck=True),
    "resnext": ResNet(bottleneck=True, groups=4),
    "resnet_group_norm": ResNet(norm="group"),
    "resnet_group_size_norm": ResNet(norm="group size"),
    "resnet_instance_norm": ResNet(norm="instance"),
    "resnet_layer_norm": ResNet(norm="layer"),
    "resnet_rms_norm": ResNet(norm="rms"),
    "resnet_weight_standardised": ResNet(norm="group", standardised=True),
}.items():
    CASES.add(_name, "cnn", partial(linen, _module, images(), train=_module.norm == "batch"))


class ResNetD(nn.Module):
    """A shortcut that pools, and one that pads its channels with zeros."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(nn.Conv(12, (3, 3))(x)))
        y = norm()(nn.Conv(20, (3, 3), strides=2)(x))
        x = norm()(nn.Conv(20, (1, 1))(nn.avg_pool(x, (2, 2), (2, 2))))
        x = nn.relu(x + y)
        y = norm()(nn.Conv(28, (3, 3), strides=2)(x))
        x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (4, 4)))
        return nn.Dense(10)(nn.relu(x + y).mean((1, 2)))


@CASES("cnn")
def resnet_pooled_and_padded() -> Built:
    """Shortcuts of ResNet-D and of CIFAR's ResNet."""
    return linen(ResNetD(), images())


class DenseNet(nn.Module):
    """Each layer reads all before it; a transition halves."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.Conv(8, (3, 3))(x)
        for block in range(2):
            for _ in range(3):
                y = nn.Conv(12, (1, 1))(nn.relu(norm()(x)))
                y = nn.Conv(6, (3, 3))(nn.relu(norm()(y)))
                x = jnp.concatenate([x, y], axis=-1)
            if not block:
                x = nn.Conv(x.shape[-1] // 2, (1, 1))(nn.relu(norm()(x)))
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(nn.relu(norm()(x)).mean((1, 2)))


@CASES("cnn")
def densenet_linen() -> Built:
    """DenseNet of Flax Linen."""
    return linen(DenseNet(), images())


class UNet(nn.Module):
    """Down, up by a transposed convolution or by resizing, with skips concatenated."""

    resize: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train)

        def block(x: jax.Array, width: int) -> jax.Array:
            for _ in range(2):
                x = nn.relu(norm()(nn.Conv(width, (3, 3))(x)))
            return x

        skips = []
        for width in (8, 12):
            x = block(x, width)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = block(x, 16)
        for width, skip in zip((12, 8), reversed(skips), strict=True):
            if self.resize:
                shape = (*skip.shape[:3], x.shape[-1])
                x = nn.Conv(width, (3, 3))(jax.image.resize(x, shape, "bilinear"))
            else:
                x = nn.ConvTranspose(width, (2, 2), strides=(2, 2))(x)
            x = block(jnp.concatenate([skip, x], axis=-1), width)
        return nn.Conv(4, (1, 1))(x)


@CASES("cnn")
def unet_transposed() -> Built:
    """U-Net with transposed convolutions."""
    return linen(UNet(), images())


@CASES("cnn")
def unet_resized() -> Built:
    """U-Net with bilinear upsampling."""
    return linen(UNet(resize=True), images())


class DiffusionUNet(nn.Module):
    """Group norm, time embedding that shifts and scales, attention in the middle."""

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        frequency = jnp.exp(-jnp.arange(8) / 4)
        angle = time * frequency
        time = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        time = nn.Dense(32)(nn.silu(nn.Dense(32)(time)))

        def block(x: jax.Array, width: int) -> jax.Array:
            y = nn.Conv(width, (3, 3))(nn.silu(nn.GroupNorm(num_groups=4)(x)))
            shift, scale = jnp.split(nn.Dense(2 * width)(nn.silu(time))[:, None, None], 2, axis=-1)
            y = nn.GroupNorm(num_groups=4)(y) * (1 + scale) + shift
            y = nn.Conv(width, (3, 3))(nn.silu(y))
            return y + (x if x.shape == y.shape else nn.Conv(width, (1, 1))(x))

        first = nn.Conv(16, (3, 3))(x)
        x = block(nn.Conv(16, (3, 3), strides=2)(first), 24)
        batch, height, width, channels = x.shape
        y = nn.GroupNorm(num_groups=4)(x).reshape(batch, height * width, channels)
        x = x + nn.SelfAttention(num_heads=4)(y).reshape(x.shape)
        x = jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "nearest")
        x = block(jnp.concatenate([nn.Conv(16, (3, 3))(x), first], axis=-1), 16)
        return nn.Conv(3, (3, 3))(nn.silu(nn.GroupNorm(num_groups=4)(x)))


@CASES("cnn")
def unet_diffusion() -> Built:
    """U-Net of a diffusion model."""
    time = images(1, 1).reshape(-1, 1)
    return linen(DiffusionUNet(), images(8), time, train=False)


class ShuffleNet(nn.Module):
    """Grouped convolutions, channel shuffle, channels split in halves."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train)

        def shuffle(x: jax.Array, groups: int) -> jax.Array:
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height, width, groups, channels // groups)
            return x.swapaxes(3, 4).reshape(batch, height, width, channels)

        x = nn.relu(norm()(nn.Conv(24, (3, 3), strides=2)(x)))
        y = nn.relu(norm()(nn.Conv(12, (1, 1), feature_group_count=3)(x)))
        y = norm()(nn.Conv(12, (3, 3), feature_group_count=12)(shuffle(y, 3)))
        x = nn.relu(x + norm()(nn.Conv(24, (1, 1), feature_group_count=3)(y)))
        for _ in range(2):
            left, right = jnp.split(x, 2, axis=-1)
            right = nn.relu(norm()(nn.Conv(12, (1, 1))(right)))
            right = norm()(nn.Conv(12, (3, 3), feature_group_count=12)(right))
            right = nn.relu(norm()(nn.Conv(12, (1, 1))(right)))
            x = shuffle(jnp.concatenate([left, right], axis=-1), 2)
        return nn.Dense(10)(x.mean((1, 2)))


@CASES("cnn")
def shufflenet() -> Built:
    """ShuffleNet, first and second version."""
    return linen(ShuffleNet(), images())


class ResNeSt(nn.Module):
    """Split attention: a softmax over radix that weighs groups of channels."""

    radix: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(nn.Conv(12, (3, 3), strides=2)(x)))
        for _ in range(2):
            y = nn.relu(norm()(nn.Conv(8, (1, 1))(x)))
            y = nn.relu(norm()(nn.Conv(8 * self.radix, (3, 3), feature_group_count=self.radix)(y)))
            batch, height, width, channels = y.shape
            parts = y.reshape(batch, height, width, self.radix, channels // self.radix)
            pooled = parts.sum(3).mean((1, 2))
            weight = nn.Dense(channels)(nn.relu(nn.Dense(6)(pooled)))
            weight = nn.softmax(weight.reshape(batch, self.radix, -1), axis=1)
            y = (parts * weight[:, None, None]).sum(3)
            x = nn.relu(x + norm()(nn.Conv(12, (1, 1))(y)))
        return nn.Dense(10)(x.mean((1, 2)))


@CASES("cnn")
def resnest() -> Built:
    """ResNeSt's split attention."""
    return linen(ResNeSt(), images())


class EfficientNet(nn.Module):
    """Inverted bottlenecks with squeeze and excitation."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.silu(norm()(nn.Conv(8, (3, 3), strides=2)(x)))
        for width, stride in ((8, 1), (12, 2), (12, 1)):
            y = nn.silu(norm()(nn.Conv(4 * x.shape[-1], (1, 1))(x)))
            channels = y.shape[-1]
            y = nn.Conv(channels, (3, 3), strides=stride, feature_group_count=channels)(y)
            y = nn.silu(norm()(y))
            gate = nn.silu(nn.Conv(4, (1, 1))(y.mean((1, 2), keepdims=True)))
            y = y * nn.sigmoid(nn.Conv(channels, (1, 1))(gate))
            y = norm()(nn.Conv(width, (1, 1))(y))
            if y.shape == x.shape:
                y = x + nn.Dropout(0.2, broadcast_dims=(1, 2, 3), deterministic=not train)(y)
            x = y
        return nn.Dense(10)(nn.silu(norm()(nn.Conv(24, (1, 1))(x))).mean((1, 2)))


@CASES("cnn")
def efficientnet() -> Built:
    """EfficientNet with stochastic depth."""
    return linen(EfficientNet(), images())


@CASES("cnn")
def cbam_and_eca() -> Built:
    """Attention over channels by pooled MLPs, over space by the mean and maximum of channels."""
    variables = parameters(
        4,
        stem=(3, 3, 3, 12),
        squeeze=(12, 6),
        excite=(6, 12),
        spatial=(3, 3, 2, 1),
        after=(3, 3, 12, 16),
        head=(16, 10),
    )

    def apply(v, x):
        x = jax.nn.relu(conv(x, v["stem"]))
        pooled = [x.mean((1, 2)), x.max((1, 2))]
        gate = sum(jax.nn.relu(each @ v["squeeze"]) @ v["excite"] for each in pooled)
        x = x * jax.nn.sigmoid(gate)[:, None, None]
        both = jnp.stack([x.mean(-1), x.max(-1)], axis=-1)
        x = x * jax.nn.sigmoid(conv(both, v["spatial"]))
        return jax.nn.relu(conv(x, v["after"], 2)).mean((1, 2)) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(images(),))


def _shuffled(order: str) -> Built:
    variables = parameters(
        4,
        stem=(3, 3, 3, 8),
        mid=(3, 3, 8, 12),
        up=(3, 3, 12, 24),
        after=(3, 3, 6, 8),
        last=(3, 3, 8, 3),
    )

    def depth_to_space(x):
        batch, height, width, channels = x.shape
        if order == "tensorflow":
            x = x.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
        else:
            x = x.reshape(batch, height, width, channels // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        return x.reshape(batch, 2 * height, 2 * width, channels // 4)

    def apply(v, x):
        x = jax.nn.relu(conv(x, v["stem"]))
        x = jax.nn.relu(conv(x, v["mid"]))
        x = depth_to_space(conv(x, v["up"]))
        return conv(jax.nn.relu(conv(x, v["after"])), v["last"])

    return Built(apply=apply, variables=variables, inputs=(images(6),))


CASES.add("pixel_shuffle_pytorch", "cnn", partial(_shuffled, "pytorch"))
CASES.add("pixel_shuffle_tensorflow", "cnn", partial(_shuffled, "tensorflow"))


@CASES("cnn")
def space_to_depth() -> Built:
    """Space to depth, Focus of YOLO, before a convolution; pyramid of three heads."""
    variables = parameters(
        4,
        stem=(3, 3, 3, 6),
        mid=(3, 3, 24, 12),
        out=(1, 1, 12, 5),
        next=(3, 3, 12, 16),
        last=(1, 1, 16, 5),
    )

    def apply(v, x):
        x = jax.nn.silu(conv(x, v["stem"]))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        x = jax.nn.silu(conv(x, v["mid"]))
        y = jax.nn.silu(conv(x, v["next"], 2))
        heads = (conv(x, v["out"]), conv(y, v["last"]))
        return jnp.concatenate([each.reshape(batch, -1, 5) for each in heads], axis=1)

    return Built(apply=apply, variables=variables, inputs=(images(8),))


class NnxResNet(nnx.Module):
    """Two convolutions with batch norm around a shortcut."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 12, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.inner = nnx.Conv(12, 20, (3, 3), rngs=rngs)
        self.inner_norm = nnx.BatchNorm(20, rngs=rngs)
        self.outer = nnx.Conv(20, 12, (3, 3), rngs=rngs)
        self.group_norm = nnx.GroupNorm(12, num_groups=3, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(12, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.stem(x)))
        y = nnx.relu(self.inner_norm(self.inner(x)))
        x = nnx.relu(x + self.group_norm(self.outer(y)))
        return self.head(self.dropout(x.mean((1, 2))))


@CASES("cnn")
def resnet_nnx() -> Built:
    """Batch norm, group norm and dropout of Flax NNX."""
    return built_nnx(NnxResNet(nnx.Rngs(0)), images(8))


class EquinoxCnn(eqx.Module):
    """Channels first, batch norm with a state, group norm, pooling."""

    stem: eqx.nn.Conv2d
    batch_norm: eqx.nn.BatchNorm
    inner: eqx.nn.Conv2d
    group_norm: eqx.nn.GroupNorm
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.stem = eqx.nn.Conv2d(3, 12, 3, padding=1, key=keys[0])
        self.batch_norm = eqx.nn.BatchNorm(12, "batch", mode="batch")
        self.inner = eqx.nn.Conv2d(12, 20, 3, stride=2, padding=1, key=keys[1])
        self.group_norm = eqx.nn.GroupNorm(5, 20)
        self.head = eqx.nn.Linear(20, 10, key=keys[2])

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        x, state = self.batch_norm(self.stem(x), state)
        x = jax.nn.relu(self.group_norm(self.inner(jax.nn.relu(x))))
        return self.head(x.mean((1, 2))), state


@CASES("cnn")
def cnn_equinox() -> Built:
    """Batch norm over a vmapped axis, by Equinox."""
    model, state = eqx.nn.make_with_state(EquinoxCnn)(jax.random.key(0))
    return equinox(model, images(8).transpose(0, 3, 1, 2), state=state)


class Vgg(nn.Module):
    """Convolutions, pooling, flatten, two wide layers."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width in (8, 12):
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(24)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(10)(nn.relu(nn.Dense(16)(x)))


@CASES("cnn")
def vgg_flattened() -> Built:
    """VGG, whose maps are flattened."""
    return linen(Vgg(), images(8))


class Inception(nn.Module):
    """Branches of several sizes, concatenated, local responses normalised."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(nn.Conv(12, (3, 3))(x)))
        for _ in range(2):
            parts = [
                nn.Conv(6, (1, 1))(x),
                nn.Conv(8, (3, 3))(nn.relu(nn.Conv(6, (1, 1))(x))),
                nn.Conv(4, (5, 1))(nn.Conv(5, (1, 5))(x)),
                nn.Conv(6, (1, 1))(nn.max_pool(x, (3, 3), (1, 1), "SAME")),
            ]
            x = nn.relu(norm()(jnp.concatenate(parts, axis=-1)))
        return nn.Dense(10)(x.mean((1, 2)))


@CASES("cnn")
def inception() -> Built:
    """Inception's branches."""
    return linen(Inception(), images(8))


class GhostNet(nn.Module):
    """Cheap maps from a depthwise convolution beside the maps they are made of; maxout."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            y = nn.relu(nn.Conv(10, (1, 1))(x))
            z = nn.relu(nn.Conv(10, (3, 3), feature_group_count=10)(y))
            x = jnp.concatenate([y, z], axis=-1)
        x = nn.Conv(24, (3, 3))(x)
        x = jnp.maximum(x[..., :12], x[..., 12:])
        value, gate = jnp.split(nn.Conv(16, (1, 1))(x), 2, axis=-1)
        return nn.Dense(10)((value * nn.sigmoid(gate)).mean((1, 2)))


@CASES("cnn")
def ghostnet_and_maxout() -> Built:
    """GhostNet's cheap maps, maxout of halves, a gated linear unit."""
    return linen(GhostNet(), images(8), train=False)


@CASES("cnn")
def siamese_cosine() -> Built:
    """Two images by one tower, compared by the cosine of their embeddings; prototypes as well."""
    variables = parameters(
        4, stem=(3, 3, 3, 12), mid=(3, 3, 12, 16), embed=(16, 20), prototypes=(20, 10)
    )

    def tower(v, x):
        x = jax.nn.relu(conv(jax.nn.relu(conv(x, v["stem"], 2)), v["mid"], 2)).mean((1, 2))
        x = x @ v["embed"]
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def apply(v, first, second):
        one, other = tower(v, first), tower(v, second)
        prototypes = v["prototypes"] / jnp.sqrt((v["prototypes"] ** 2).sum(0) + 1e-6)
        return jnp.concatenate([one @ prototypes, (one * other).sum(-1, keepdims=True)], axis=-1)

    return Built(apply=apply, variables=variables, inputs=(images(8), images(8)[::-1]))


@CASES("cnn")
def conv1d_wavenet() -> Built:
    """Dilated causal convolutions over time, gated, with skips summed."""
    variables = {
        "stem": weights(1, 5, 12),
        "layers": [
            parameters(
                20 * (1 + i), filter=(2, 12, 16), gate=(2, 12, 16), residual=(16, 12), skip=(16, 14)
            )
            for i in range(3)
        ],
        **parameters(3, mid=(14, 14), head=(14, 10)),
    }

    def causal(x, kernel, dilation):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1,),
            [(dilation * (kernel.shape[0] - 1), 0)],
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )

    def apply(v, x):
        x, skips = causal(x, v["stem"], 1), 0
        for depth, layer in enumerate(v["layers"]):
            y = jnp.tanh(causal(x, layer["filter"], 2**depth))
            y = y * jax.nn.sigmoid(causal(x, layer["gate"], 2**depth))
            x, skips = x + y @ layer["residual"], skips + y @ layer["skip"]
        return jax.nn.relu(jax.nn.relu(skips) @ v["mid"]) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(images(4, 5).reshape(3, -1, 5),))
