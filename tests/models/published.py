"""Numbers of parameters that others have published of the zoo's networks."""

# Name -> options, image size or tokens, classes, parameters. Sources: thin ResNets, He et al.
# 2016, Table 6 (0.27, 0.46, 0.66, 0.85 and 1.7 M), exact as akamaster/pytorch_resnet_cifar10 counts
# them; resnet18, 34, 50, mobilenet and ConvNeXt-Tiny with 1000 classes, torchvision's documented
# num_params; CIFAR stems, kuangliu/pytorch-cifar (11.17 M); DenseNet-BC-40-12 and -100-12, Huang et
# al. Table 2 (0.8 M) and bamos/densenet.pytorch (769,162); DeiT-tiny, timm (5,717,416); the
# smallest GPT-2 and Llama 3.2 1B, as Hugging Face's transformers counts them.
PUBLISHED = {
    "resnet20": [({}, 32, 10, 269_722), ({"shortcut": "projection"}, 32, 10, 272_474)],
    "resnet32": [({}, 32, 10, 464_154)],
    "resnet44": [({}, 32, 10, 658_586)],
    "resnet56": [({}, 32, 10, 853_018)],
    "resnet110": [({}, 32, 10, 1_727_962)],
    "resnet18": [({}, 32, 10, 11_173_962), ({"stem": "imagenet"}, 224, 1000, 11_689_512)],
    "resnet34": [({"stem": "imagenet"}, 224, 1000, 21_797_672)],
    "resnet50": [({}, 32, 10, 23_520_842), ({"stem": "imagenet"}, 224, 1000, 25_557_032)],
    "preact_resnet18": [],
    "wide_resnet28x8": [],
    "mobilenet": [({"stem": "imagenet"}, 224, 1000, 3_504_872)],
    "densenet": [({}, 32, 10, 176_122), ({"depth": 100}, 32, 10, 769_162)],
    "convnext_tiny": [({}, 224, 1000, 28_589_128)],
    "gpt": [
        ({"context": 1024, "depth": 12, "heads": 12, "head_width": 64}, 1024, 50_257, 124_439_808)
    ],
    "llama": [
        (
            {"depth": 16, "heads": 32, "kv_heads": 8, "head_width": 64, "mlp_ratio": 4},
            *(64, 128_256, 1_235_814_400),
        )
    ],
    "vit_tiny": [({"patch": 16}, 224, 1000, 5_717_416)],
}
