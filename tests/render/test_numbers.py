"""Numbers as people read them."""

import pytest

from hetconv_cli.render.numbers import count, percent, scale_for, size


@pytest.mark.parametrize(
    ("macs", "unit", "name", "shown"),
    [
        (15_470_264_320, "mac", "GMAC", "15.470"),
        (15_470_264_320, "flops", "GFLOPs", "30.941"),
        (999_999, "mac", "kMAC", "999.999"),
        (1_000_000, "mac", "MMAC", "1.000"),
        (600_000_000, "flops", "GFLOPs", "1.200"),
        (999, "mac", "MAC", "999"),
        (499, "flops", "FLOPs", "998"),
        (0, "mac", "MAC", "0"),
        (123_456_789_000_000, "mac", "GMAC", "123,456.789"),
    ],
)
def test_a_scale_fits_its_number_and_is_named(macs, unit, name, shown):
    scale = scale_for(macs, unit)
    assert (scale.name, scale.show(macs)) == (name, shown)


def test_one_scale_serves_a_whole_column():
    scale = scale_for(15_470_264_320)
    assert (scale.show(1_000_000), scale.show(0)) == ("0.001", "0.000")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999_999, "999,999"),
        (1_000_000, "1.000 M"),
        (693_633_024, "693.633 M"),
        (3_663_761_408, "3.664 G"),
        (2_500_000_000_000, "2.500 T"),
        (2_500_000_000_000_000, "2,500.000 T"),
    ],
)
def test_a_count_has_its_magnitude(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    ("new", "old", "text"),
    [(1, 3, "-66.67 %"), (3, 1, "+200.00 %"), (5, 5, "+0.00 %"), (0, 4, "-100.00 %"), (1, 0, "-")],
)
def test_a_change_is_signed(new, old, text):
    assert percent(new, old) == text


def test_a_files_size_is_in_megabytes():
    assert size(31_148_792) == "31.1 MB"
