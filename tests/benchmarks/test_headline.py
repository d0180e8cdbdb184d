"""The headline table contains bytes, share and error of each way to ship an update."""

from benchmarks.headline import format_markdown


def test_each_way_is_a_row() -> None:
    ways = [
        {"way": "fp32, full download", "bytes": 9000, "relative_rms": 0.0},
        {"way": "fp32, bsdiff4", "bytes": 8000, "relative_rms": 0.0},
        {"way": "int8, typed patch", "bytes": 90, "relative_rms": 0.081},
    ]
    table = format_markdown({"ways": ways, "unchanged_base_relative_rms": 0.3}).splitlines()
    assert table[2:] == [
        "| fp32, full download | 9,000 | 1.00 | 0.000 |",
        "| fp32, bsdiff4 | 8,000 | 0.89 | 0.000 |",
        "| int8, typed patch | 90 | 1 / 100 | 0.081 |",
        "| no update: the old model stays | 0 | | 0.300 |",
    ]
