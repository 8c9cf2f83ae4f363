"""Equimo's vision networks, in Equinox, of one image each."""

from functools import partial

import jax

from checked_networks.case import Built, Cases, equinox, images

CASES = Cases("equimo")


def _model(name: str, **options: object) -> Built:
    from equimo import models

    model = getattr(models, name)(key=jax.random.key(0), **options)
    return equinox(model, images(32).transpose(0, 3, 1, 2), train=False)


VIT = {
    "img_size": 32,
    "in_channels": 3,
    "dim": 24,
    "patch_size": 4,
    "num_heads": 4,
    "depths": [2],
    "num_classes": 10,
}

for _name, _family, _options in (
    ("VisionTransformer", "transformer", VIT),
    ("ConvNeXt", "convnext", {"depths": [1, 1], "dims": [24, 40], "num_classes": 10}),
    (
        "Mlla",
        "ssm",
        {"img_size": 32, "in_channels": 3, "dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
        | {"num_classes": 10},
    ),
    (
        "Vssd",
        "ssm",
        {"img_size": 32, "in_channels": 3, "dim": 16, "depths": [1, 1, 1, 1]}
        | {"num_heads": [2, 4, 8, 8], "num_classes": 10, "d_state": 8},
    ),
):
    CASES.add(_name, _family, partial(_model, _name, **_options))
