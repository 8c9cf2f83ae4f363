"""The script for accelerators: parts in their time, its references, and its made images."""

import json

import jax
import numpy as np
from accelerator import Evidence, conv, convolved, made_images, rounded, selection


class Clock:
    """Seconds that only move when told."""

    now = 0.0

    def __call__(self):
        return self.now


def test_parts_are_skipped_when_time_is_short_and_go_on_after_errors(tmp_path, capsys):
    clock = Clock()
    evidence = Evidence(100, str(tmp_path / "new" / "folder"), clock)

    def long():
        clock.now += 70
        return {"rate": np.float32(1 / 3), "nested": {0.5: [1, None]}}

    def broken():
        raise RuntimeError("no such unit")

    evidence.part("first", 50, long)
    evidence.part("second", 50, long)
    evidence.part("third", 10, broken)
    evidence.part("fourth", 30, lambda: {"is_there": True})
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == evidence.lines
    stored = (tmp_path / "new" / "folder" / "lines.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in stored] == printed
    assert printed[0]["rate"] == 0.3333 and printed[0]["nested"] == {"0.5": [1, None]}
    assert printed[0]["seconds"] == 70
    assert printed[1] == {"part": "second", "skipped": "needs 50 s, 30 s are left"}
    assert printed[2]["error"] == "RuntimeError: no such unit"
    assert printed[3]["is_there"] is True


def test_the_reference_is_a_convolution():
    rng = np.random.default_rng(0)
    for size, taps, stride, groups in ((7, 3, 1, 1), (8, 3, 2, 2), (5, 1, 2, 4)):
        x = rng.normal(size=(2, size, size, 4)).astype(np.float32)
        kernel = rng.normal(size=(taps, taps, 4 // groups, 8)).astype(np.float32)
        expected = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        np.testing.assert_allclose(convolved(x, kernel, stride, groups), expected, atol=1e-4)


def test_a_convolution_and_its_gradients_are_near_float64():
    for row in conv(1, 5).values():
        assert row["highest"]["value"] < 1e-5 and max(row["highest"]["gradients"]) < 1e-4


def test_every_part_of_selection_is_timed():
    found = selection(4_000)
    assert {"read", "argsort", "select", "sap_update", "refreshing_adam"} <= set(
        found["milliseconds"]
    )
    assert all(each > 0 for each in found["milliseconds"].values())


def test_made_images_can_be_told_apart_by_their_patterns():
    made = made_images(300, 0)
    assert made.train.images.shape == (270, 32, 32, 3) and len(made.held_out.labels) == 30
    assert made.train.images.dtype == np.uint8 and len(made.mean) == 3
    # Power spectra do not see the shifts.
    spectra = np.abs(np.fft.fft2(made.train.images.astype(float), axes=(1, 2)))[:, :8, :8]
    labels = made.train.labels
    means = np.stack([spectra[:200][labels[:200] == k].mean(0) for k in range(10)])
    distances = ((spectra[200:, None] - means) ** 2).sum((2, 3, 4))
    assert (distances.argmin(1) == labels[200:]).mean() > 0.3


def test_floats_keep_four_digits():
    assert rounded({"a": (1234567.0, 1), "b": "x"}) == {"a": [1235000.0, 1], "b": "x"}
    assert rounded([float("nan"), np.float32(2.5), np.int64(3)]) == [None, 2.5, 3.0]
