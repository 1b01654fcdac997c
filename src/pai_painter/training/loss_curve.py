# SPDX-License-Identifier: Apache-2.0
"""The picture of a run: its losses and its learning rate over the steps."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..imaging.png_files import write_atomically
from .summary import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_loss_curve"]

_TRAINING, _VALIDATION, _RATE = "#2f6fb5", "#d1495b", "#6b7280"
_FEW = 20  # so many points or fewer need no smoothing and are shown one by one


def draw_loss_curve(metrics_file: str | Path, path: str | Path) -> Path | None:
    """
    Draws metrics.jsonl: the training loss (pale) with a smoothed line, the validation losses, and the learning rate.

    Args:
        metrics_file: figures of a run, as the trainer writes them; see [`read_metrics`] for what is left out.
        path: the PNG; one that is there is overwritten.

    Returns:
        `path`, or `None` if the file has no loss yet.

    Raises:
        OSError: if the file can't be read or the picture can't be written.
    """
    # Neither is needed before the end of a run, and pyplot's state, which isn't ours, is not touched.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    metrics = read_metrics(metrics_file)
    losses = _points(metrics, "loss")
    validations = _points(metrics, "validation_loss")
    rates = _points(metrics, "learning_rate")
    if not losses and not validations:
        return None
    figure = Figure(figsize=(9, 6 if rates else 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 if rates else 1, 1, sharex=True, squeeze=False, height_ratios=[4, 1] if rates else [1])
    top, bottom = panels[0][0], panels[-1][0]
    _draw_losses(top, losses, validations)
    if rates:
        _draw_rates(bottom, rates)
    bottom.set_xlabel("step (updates of the weights)")
    bottom.set_xlim(0, 1.02 * metrics[-1]["step"])
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.xaxis.set_major_formatter("{x:,.0f}")
    for panel in (top, bottom):
        panel.grid(color="#e5e7eb", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    write_atomically(Path(path), lambda file: figure.savefig(file, format="png"), force=True)
    return Path(path)


def _draw_losses(axes: "Axes", losses: list[tuple[float, float]], validations: list[tuple[float, float]]) -> None:
    axes.set_title("Loss", loc="left", fontweight="bold")
    axes.set_ylabel("cross-entropy (nats per code)")
    if losses:
        few = len(losses) <= _FEW
        steps, values = zip(*losses, strict=True)
        # A few points are a line of their own; of many, the smoothed line is what the eye should follow.
        axes.plot(
            steps,
            values,
            color=_TRAINING,
            marker="o" if few else None,
            markersize=4,
            linewidth=1.8 if few else 0.8,
            alpha=1.0 if few else 0.45,
            label="training",
        )
        if not few:
            axes.plot(steps, _smoothed(values), color=_TRAINING, linewidth=2, label="training, smoothed")
    if validations:
        steps, values = zip(*validations, strict=True)
        axes.plot(
            steps, values, color=_VALIDATION, marker="o", markersize=5, linewidth=1.2, label="validation", zorder=3
        )
        best, step = min((value, step) for step, value in validations)
        # Its value stands in the legend, where no line crosses it.
        label = f"best: {best:.3f} at step {step:,.0f}"
        axes.plot(step, best, color=_VALIDATION, linestyle="none", marker="*", markersize=15, zorder=4, label=label)
    axes.margins(y=0.12)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=4)  # above, where no curve can be


def _draw_rates(axes: "Axes", rates: list[tuple[float, float]]) -> None:
    steps, values = zip(*rates, strict=True)
    axes.plot(steps, values, color=_RATE, linewidth=1.5, marker="o" if len(rates) <= _FEW else None, markersize=3)
    axes.set_ylabel("learning\nrate")
    axes.set_ylim(0, max(values) * 1.15 or 1)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _points(metrics: list[dict[str, float]], name: str) -> list[tuple[float, float]]:
    return [(line["step"], line[name]) for line in metrics if name in line]


def _smoothed(values: tuple[float, ...]) -> list[float]:
    """
    Means over a window of a thirtieth of the run on either side. At the steep beginning it is narrower on both, so that
    the line doesn't lag; at the end only what is missing is left out, so that one noisy point doesn't bend it.
    """
    reach, smoothed = max(1, len(values) // 30), []
    for place in range(len(values)):
        side = min(reach, place)
        window = values[place - side : place + side + 1]
        smoothed.append(sum(window) / len(window))
    return smoothed
