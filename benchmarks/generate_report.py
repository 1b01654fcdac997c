# SPDX-License-Identifier: Apache-2.0
"""The figures of benchmarks/generate.py as tables, as a plot and as a block of a document."""

import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from batch_painters import GPT2, PUBLISHED
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter
from reporting import Sheet, replace_block

__all__ = ["BLOCK", "draw_curves", "markdown", "sheets", "write_markdown"]

BLOCK = "generate.py: figures"
_OTHERS = (PUBLISHED, GPT2)
_MARKERS = "osD^v"


def sheets(figures: dict[str, Any]) -> list[Sheet]:
    """All tables for what was measured."""
    found = []
    if "table" in figures["parts"]:
        found += [_speed_sheet(figures), _hardware_sheet(figures)]
    if "curves" in figures["parts"]:
        found += [_rows_sheet(figures), _length_sheet(figures)]
    if figures["cold"]:
        found.append(_cold_sheet(figures))
    return found


def _name(way: str) -> str:
    return way if way in _OTHERS else f"ours, {way}"


def _shape(cell: dict[str, Any]) -> str:
    if cell["rows"] == 1:
        return "1 picture"
    return f"{cell['captions']} captions" if cell["copies"] == 1 else f"{cell['copies']} of one caption"


def _table_cells(figures: dict[str, Any]) -> list[dict[str, Any]]:
    rows = {bar["rows"] for bar in figures["bars"]}
    return [cell for cell in figures["cells"] if cell["size"] == figures["size"] and cell["rows"] in rows]


def _ratio(spread: dict[str, float] | None, bar: float | None) -> tuple[str, str]:
    """The ratio with its spread, and the bar."""
    if spread is None:
        return "", ""
    words = f"{spread['median']:.3g} ({spread['lowest']:.3g} … {spread['highest']:.3g})"
    return words, "" if bar is None else f"≥ {bar:g}"


def _speed_sheet(figures: dict[str, Any]) -> Sheet:
    bars = {(bar["rows"], bar["speed"]): bar for bar in figures["bars"]}
    rows = []
    for cell in _table_cells(figures):
        for way, row in cell["ways"].items():
            bar = bars.get((cell["rows"], way), {})
            ours = way not in _OTHERS
            rows.append(
                [
                    _shape(cell),
                    _name(way),
                    f"{row['seconds_a_picture']['median']:.2f}",
                    *_ratio(row["against_published"] if way != PUBLISHED else None, bar.get("published")),
                    *_ratio(row["against_gpt2"] if ours else None, bar.get("gpt2")),
                    f"{row['peak_gb']:.2f} GB",
                ]
            )
    headings = ("at once", "way", "s per picture", "times published", "bar", "times GPT-2", "bar", "memory")
    prefixes = ", ".join(map(str, figures["timed_prefixes"]))
    tokens, top_k = figures["tokens"], figures["top_k"]
    return Sheet(
        f"Captions to PNG, {figures['size']} size, {tokens} image tokens with top-k {top_k}, warm",
        headings,
        rows,
        f"Medians of {figures['rounds']} rounds; times as fast, with the lowest … highest ratio within a round. The "
        f"published loop is extrapolated from its steps with prefixes of {prefixes} and the decoding for one row. "
        f"Memory: the peak above what the libraries take.",
        names=2,
    )


def _hardware_sheet(figures: dict[str, Any]) -> Sheet:
    cells = _table_cells(figures)
    rows = []
    for cell in cells:
        for way, row in cell["ways"].items():
            if way == PUBLISHED:
                continue
            rows.append(
                [
                    _shape(cell),
                    _name(way),
                    f"{row['tokens_per_step']:.2f}",
                    f"{1000 * row['step_seconds']:.1f} ms",
                    f"{row['step_bytes'] / 1e6:,.0f} MB",
                    f"{row['read_share']:.0%}",
                    f"{row['decoding_seconds_a_picture']:.2f} s",
                    row["decoding_dtype"],
                    f"{row['product_share']:.0%}",
                ]
            )
    names = cells[0]["hardware"]
    rates = {name: statistics.median(cell["hardware"][name] for cell in cells) for name in names}
    products = ", ".join(f"{rates[name] / 1e9:,.0f} GFLOP/s in {name[6:]}" for name in rates if name != "read")
    flops = cells[0]["vqgan_flops"] / 1e9
    return Sheet(
        "What the hardware alone would need",
        ("at once", "way", "tokens per step", "per step", "must read", "share", "decoding per picture", "in", "share"),
        rows,
        f"Shares: of a step, the time that its bytes (weights, keys and values) need at the measured "
        f"{rates['read'] / 1e9:.1f} GB/s; of decoding, the time that its {flops:.1f} GFLOP need at the rate of matrix "
        f"products, measured as {products}.",
        names=2,
    )


def _curve_cells(figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (cell for cell in figures["cells"] if cell["copies"] == 1)


def _rows_sheet(figures: dict[str, Any]) -> Sheet:
    cells = list(_curve_cells(figures))
    rows = []
    for cell in cells:
        seconds = [f"{row['seconds_a_picture']['median']:.2f}" for row in cell["ways"].values()]
        peaks = [f"{row['peak_gb']:.1f}" for row in cell["ways"].values()]
        pairs = (" · ".join(pair) for pair in zip(seconds, peaks, strict=True))
        rows.append([cell["size"], str(cell["rows"]), *pairs])
    return Sheet(
        "By size and batch: seconds per picture · peak memory in GB",
        ("size", "at once", *map(_name, cells[0]["ways"])),
        rows,
        names=2,
    )


def _length_sheet(figures: dict[str, Any]) -> Sheet:
    cells = [cell for cell in _curve_cells(figures) if cell["rows"] in (1, 8)]
    rows = []
    for cell in cells:
        for length in cell["ways"][PUBLISHED]["seconds_until"]:
            seconds = [f"{row['seconds_until'][length]:.2f}" for row in cell["ways"].values()]
            rows.append([cell["size"], str(cell["rows"]), length, *seconds])
    return Sheet(
        "By length: seconds until this many image tokens are generated",
        ("size", "at once", "tokens", *map(_name, cells[0]["ways"])),
        rows,
        names=3,
    )


def _cold_sheet(figures: dict[str, Any]) -> Sheet:
    phases = [name for name in figures["cold"][0] if name != "speed"]
    rows = []
    for speed in dict.fromkeys(each["speed"] for each in figures["cold"]):
        runs = [each for each in figures["cold"] if each["speed"] == speed]
        medians = [statistics.median(run[phase] for run in runs) for phase in phases]
        whole = statistics.median(sum(run[phase] for phase in phases) for run in runs)
        rows.append([_name(speed), *(f"{seconds:.2f}" for seconds in (*medians, whole))])
    return Sheet(
        "The first picture of a fresh process, seconds",
        ("", *phases, "total"),
        rows,
        f"Medians of {figures['rounds']} rounds. The weight file is in the system's cache. “prepare” is how much "
        "longer the first picture takes than the second in the same process, “paint” the second.",
    )


def draw_curves(figures: dict[str, Any], path: Path) -> None:
    """Draws what the curves' sheets say."""
    cells = list(_curve_cells(figures))
    ways = list(cells[0]["ways"])
    mine = [cell for cell in cells if cell["size"] == figures["size"]]
    figure, (by_length, by_rows, by_size) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for way, marker in zip(ways, _MARKERS, strict=False):
        row = mine[0]["ways"][way]
        until = row["seconds_until"]
        by_length.plot([int(length) for length in until], list(until.values()), marker=marker, label=_name(way))
        pairs = [(cell["rows"], cell["ways"][way]["seconds_a_picture"]["median"]) for cell in mine]
        by_rows.plot(*zip(*pairs, strict=True), marker=marker)
        pairs = [
            (f"{cell['size']}, {cell['rows']}", cell["ways"][way]["seconds_a_picture"]["median"])
            for cell in cells
            if cell["rows"] in (1, 8)
        ]
        by_size.plot(*zip(*pairs, strict=True), marker=marker, linestyle="none")
    _label(
        by_length,
        f"{figures['size']} size, {mine[0]['rows']} at once",
        "image tokens",
        "seconds until they are generated",
    )
    _label(by_rows, f"{figures['size']} size", "pictures at once", "seconds per picture")
    by_length.set_xticks([int(length) for length in mine[0]["ways"][PUBLISHED]["seconds_until"]])
    by_rows.set_xscale("log", base=2)
    by_rows.set_xticks([cell["rows"] for cell in mine], [str(cell["rows"]) for cell in mine])
    _label(by_size, "by size of the model", "size, pictures at once", "seconds per picture")
    figure.legend(loc="outside lower center", ncols=len(ways))
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


class _PlainLogFormatter(LogFormatter):
    """0.6 rather than 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y, yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(2, 0.5)))
    axes.grid(alpha=0.3, which="both")


def markdown(figures: dict[str, Any], plot: Path | None, folder: Path) -> str:
    """
    Machine, tables and plot, as they stand in a document.

    Args:
        figures: a run's.
        plot: The picture, if there is one.
        folder: where the document is.
    """
    machine = figures["machine"]
    parts = [
        f"{machine['date']}: {machine['processor']}, {machine['cores']} cores, threads: {figures['threads']}, "
        f"{machine['memory_gb']:g} GB; Python {machine['python']}, torch {machine['torch']}, transformers "
        f"{machine['transformers']}. One run of {figures['minutes']:.0f} minutes; load before it "
        f"{figures['load_average_before']:.2f}.",
        *(sheet.markdown() for sheet in sheets(figures)),
    ]
    if plot is not None:
        address = Path(os.path.relpath(plot.resolve(), folder.resolve())).as_posix()
        parts.append(f"![Seconds by length, by batch and by size of the model]({address})")
    return "\n\n".join(parts)


def write_markdown(figures: dict[str, Any], plot: Path | None, document: Path) -> None:
    """
    Writes a run's block into a document.

    Raises:
        ValueError: if it has no marks for it.
    """
    replace_block(document, BLOCK, markdown(figures, plot, document.parent))
