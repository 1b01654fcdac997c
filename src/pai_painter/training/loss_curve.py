# SPDX-License-Identifier: Apache-2.0
"""The picture of a run: its losses over the steps."""

from pathlib import Path

from .metrics import read_metrics

__all__ = ["draw_loss_curve"]


def draw_loss_curve(metrics_file: Path, path: Path) -> None:
    """Draws the training and validation losses of a metrics.jsonl as a PNG, if there are any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # not needed before the end of a run
    from matplotlib.figure import Figure

    metrics = read_metrics(metrics_file)
    if not any("loss" in line or "validation_loss" in line for line in metrics):
        return
    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(line["step"], line[name]) for line in metrics if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o" if len(points) <= 20 else None, markersize=4, label=label)
    axes.set(xlabel="step", ylabel="cross-entropy (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png")
