"""Writes small data sets the way TFDS prepares them, without TensorFlow."""

import io
import json
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2


def write_prepared(
    root: Path, name: str, splits: dict[str, tuple[np.ndarray, np.ndarray]], version: str = "3.0.1"
) -> Path:
    """Write images uint8[n, H, W, C] and labels of each split; return the version's folder."""
    folder = root / name / version
    folder.mkdir(parents=True)
    shape = next(iter(splits.values()))[0].shape[1:]
    features = "tensorflow_datasets.core.features."
    image = {
        "pythonClassName": features + "image_feature.Image",
        "image": {"dtype": "uint8", "shape": {"dimensions": [str(size) for size in shape]}},
    }
    label = {
        "pythonClassName": features + "class_label_feature.ClassLabel",
        "classLabel": {"numClasses": "10"},
    }
    (folder / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": features + "features_dict.FeaturesDict",
                "featuresDict": {"features": {"image": image, "label": label}},
            }
        )
    )
    info = {"fileFormat": "array_record", "name": name, "version": version, "splits": []}
    for split, (images, labels) in splits.items():
        info["splits"].append(
            {
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(len(images))],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
        file = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for image_array, label_number in zip(images, labels, strict=True):
            encoded = io.BytesIO()
            Image.fromarray(image_array.squeeze()).save(encoded, "PNG")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(encoded.getvalue())
            example.features.feature["label"].int64_list.value.append(int(label_number))
            writer.write(example.SerializeToString())
        writer.close()
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder
