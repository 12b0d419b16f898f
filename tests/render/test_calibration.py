"""The report of a calibration as JSON that every reader takes, and as a table."""

import json
import math
from dataclasses import replace

from hetconv_cli.conversion.calibration.report import Agreement, CalibrationReport, LayerCalibration
from hetconv_cli.render.calibration import calibration_json, calibration_table
from hetconv_cli.render.table import to_text

LAYER = LayerCalibration("conv1", 4, 193, 20_048, 0.9, 0.25, 1.5)
REPORT = CalibrationReport(
    16, 2, (LAYER,), 3, Agreement(0.8, 0.5, 12.0), Agreement(math.nan, 0.99, math.inf), 5, 0, 2.5, ("a warning",)
)


def test_numbers_that_json_does_not_know_are_null():
    data = json.loads(json.dumps(calibration_json(REPORT), allow_nan=False))
    assert data["calibrated"] == {"relative_error": None, "cosine": 0.99, "psnr": None, "top1": None}
    assert data["layers"][0]["error_calibrated"] == 0.25
    assert data["warnings"] == ["a warning"]


def test_the_table_says_what_was_measured_on_what():
    text = to_text(calibration_table(REPORT))
    for said in ("16 images", "2 held out", "0.2500", "PSNR 12.0 dB", "5 of 16 images ran anew", "note: a warning"):
        assert said in text


def test_the_table_says_where_no_image_was_held_out():
    text = to_text(calibration_table(replace(REPORT, images=3, held_out=0, rerun_images=0)))
    assert "a quarter of each map, fitted on only afterwards; the whole network's on all images" in text
    assert "ran anew" not in text
