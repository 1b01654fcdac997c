# SPDX-License-Identifier: Apache-2.0
"""What rounding costs: the losses, image tokens and pictures of `balanced` and `fastest` against those of `exact`."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measuring import MeasuringFailed
from PIL import Image
from reporting import run_script, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers.utils import logging

from pai_painter import DEMO_MODEL, PaiPainterForImageGeneration, PaiPainterPipeline
from pai_painter.cpu.decoding import DecodingLoop
from pai_painter.cpu.speed import PaintingSpeed, find_speed
from pai_painter.data.open_picture import open_picture
from pai_painter.data.sources import find_source
from pai_painter.imaging.grids import draw_grid
from pai_painter.model.sampling_pai_painter import GumbelSampler

_EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
_HELD_OUT, _LINES = _EXAMPLES / "emoji" / "data" / "heldout.tsv", _EXAMPLES / "line_style" / "heldout.tsv"
# As they are named, but `fastest` with int8 for any number of pictures, so that rows can be taken in batches.
SPEEDS = {
    "exact": PaintingSpeed(),
    "balanced": PaintingSpeed(dtype=torch.bfloat16),
    "fastest": PaintingSpeed(dtype=torch.bfloat16, int8_rows=2**31),
}
_CELL = 80  # pixels of a picture in the grid


def main(
    model: Annotated[str, typer.Option(help="Folder or name of a painter.")] = DEMO_MODEL,
    data: Annotated[Path, typer.Option(help="Captions and pictures, such as a TSV, that it was not trained on.")] = (
        _HELD_OUT
    ),
    caption_separator: Annotated[str, typer.Option(help="Separates captions of a picture; the first is used.")] = "|",
    rows: Annotated[int, typer.Option(min=1, help="At most this many rows, from the start.")] = 120,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once; hardly changes the results.")] = 8,
    grid: Annotated[Path | None, typer.Option(help="PNG of pictures painted at each speed.")] = None,
    pictures: Annotated[
        int, typer.Option(min=1, help="Captions in the grid: this many from all rows, and as many that change most.")
    ] = 6,
    tiny: Annotated[bool, typer.Option(help="Try the script out: two line drawings, results mean nothing.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
) -> None:
    """
    Compares what the speeds paint. Nothing is timed.

    The class that paints generates image tokens in three ways: teacher-forced (with the tokens of the rows' pictures,
    and of the pictures painted at `exact`), greedily, and sampled with seed 0 and the model's recommended settings.
    """
    if tiny:
        data, rows, pictures = _LINES, 2, 2
    if data == _HELD_OUT and not data.exists():
        raise typer.BadParameter(
            f"{data} isn't there: examples/emoji/README.md says how it is made; or give other rows with `--data`, "
            f"such as examples/line_style/heldout.tsv."
        )
    logging.disable_progress_bar()
    try:
        for speed in SPEEDS.values():
            find_speed(speed, torch.device("cpu"))
    except ValueError as error:
        raise MeasuringFailed(str(error)) from error
    pipe, captions, tokens = _load(model, data, caption_separator, rows)
    input_ids = pipe.processor(text=captions, return_tensors="pt")["input_ids"]
    exact, drawn, figures = None, {}, {}
    for name, speed in track(SPEEDS.items(), description="Speeds", transient=True):
        work = paint(pipe.model, input_ids, tokens, speed, batch_size, exact)
        exact = exact or work
        drawn[name], figures[name] = work.drawn, compare(work, exact)
    _show(figures, len(captions), data, model)
    write_json(json_file, {"model": model, "data": str(data), "rows": len(captions), "speeds": figures})
    if grid is not None:
        _draw(pipe, captions, drawn, pictures).save(grid, optimize=True)


def _load(
    model: str, data: Path, caption_separator: str, rows: int
) -> tuple[PaiPainterPipeline, list[str], torch.Tensor]:
    """The painter, each row's first caption, and the tokens (rows, num_image_tokens) of its picture."""
    try:
        pipe = PaiPainterPipeline.from_pretrained(model)
        source = find_source([data], caption_separator=caption_separator)
        found = list(islice(source.rows(), rows))
        for row in found:
            if row["reason"] is not None:
                raise ValueError("{file}, line {line}: {reason}".format(**source.bad_row(row)))
        opened = [open_picture(row["picture"]) for row in found]
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    pixels = pipe.processor(images=opened, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = torch.cat([pipe.model.vqgan.encode(chunk).image_tokens for chunk in pixels.split(8)])
    return pipe, [row["captions"][0] for row in found], tokens


class Dictation(GumbelSampler):
    """
    In place of what draws tokens: says what is written, and notes what the painter thought before each token.

    Attributes:
        losses (`list[torch.FloatTensor]`): For each position, minus the log-probability of its token, (rows,).
        most_likely (`list[torch.LongTensor]`): For each position, the token that was most likely, (rows,).

    Args:
        image_tokens (`torch.LongTensor` of shape `(rows, num_image_tokens)`): What is dictated.
    """

    def __init__(self, image_tokens: torch.Tensor):
        super().__init__(seeds=[0] * len(image_tokens), text_length=0)
        self.image_tokens = image_tokens
        self.losses: list[torch.Tensor] = []
        self.most_likely: list[torch.Tensor] = []

    def draw(self, scores: torch.Tensor, position: int) -> torch.Tensor:
        tokens = self.image_tokens[:, position]
        self.losses.append(torch.nn.functional.cross_entropy(scores, tokens, reduction="none"))
        self.most_likely.append(scores.argmax(-1))
        return tokens


def dictate(
    model: PaiPainterForImageGeneration,
    input_ids: torch.Tensor,
    image_tokens: torch.Tensor,
    speed: PaintingSpeed,
    batch_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The loss of each token and the most likely token in its place, both (rows, num_image_tokens), in the arithmetic of
    painting: position after position, over the kept keys and values.
    """
    writer = DecodingLoop(model, batch_size, speed)
    losses, most_likely = [], []
    for ids, tokens in zip(input_ids.split(batch_size), image_tokens.split(batch_size), strict=True):
        dictation = Dictation(tokens)
        writer.write(ids, 1, dictation)
        losses.append(torch.stack(dictation.losses, 1))
        most_likely.append(torch.stack(dictation.most_likely, 1))
    return torch.cat(losses), torch.cat(most_likely)


@dataclass(frozen=True)
class Work:
    """
    What one speed makes of all rows; tokens are (rows, num_image_tokens).

    Args:
        losses: of the tokens of the rows' pictures.
        most_likely: tokens in their places.
        greedy: tokens, each the most likely after those before it.
        drawn: tokens, drawn by seed 0 with the model's recommended settings.
        most_likely_along: tokens in the places of what `exact` has drawn.
        pixels: pictures (rows, 3, resolution, resolution) of what `exact` has drawn.
    """

    losses: torch.Tensor
    most_likely: torch.Tensor
    greedy: torch.Tensor
    drawn: torch.Tensor
    most_likely_along: torch.Tensor
    pixels: torch.Tensor


def paint(
    model: PaiPainterForImageGeneration,
    input_ids: torch.Tensor,
    image_tokens: torch.Tensor,
    speed: PaintingSpeed,
    batch_size: int,
    exact: Work | None,
) -> Work:
    """Everything that is compared, at one speed; `exact` is the work of that speed, if this is another."""

    def tokens_of(**options: Any) -> torch.Tensor:
        options |= {"speed": speed, "decode": False}
        starts = range(0, len(input_ids), batch_size)  # the seeds are those of one call for all
        painted = [model.generate_images(input_ids[i : i + batch_size], seed=i, **options) for i in starts]
        return torch.cat([each.image_tokens for each in painted])

    losses, most_likely = dictate(model, input_ids, image_tokens, speed, batch_size)
    greedy, drawn = tokens_of(top_k=1, best_of=1), tokens_of()
    along = drawn if exact is None else exact.drawn
    most_likely_along = dictate(model, input_ids, along, speed, batch_size)[1]
    return Work(losses, most_likely, greedy, drawn, most_likely_along, model.decode_images(along, speed))


def compare(work: Work, exact: Work) -> dict[str, float | None]:
    """Figures of one speed, most of them against `exact`; shares lie in [0, 1]."""

    def same(name: str) -> torch.Tensor:
        return (getattr(work, name) == getattr(exact, name)).double()

    errors = (work.pixels.clamp(-1, 1) - exact.pixels.clamp(-1, 1)).div(2).pow(2).mean((1, 2, 3))
    rounded = bool((errors > 0).any())
    return {
        "loss": work.losses.mean().item(),
        "loss_change": (work.losses - exact.losses).mean().item(),
        "same_most_likely": same("most_likely").mean().item(),
        "same_most_likely_along_painted": same("most_likely_along").mean().item(),
        "same_greedy_codes": same("greedy").mean().item(),
        "same_greedy_pictures": same("greedy").amin(1).mean().item(),
        "same_drawn_codes": same("drawn").mean().item(),
        "same_drawn_pictures": same("drawn").amin(1).mean().item(),
        "psnr": errors.clamp_min(1e-10).log10().mul(-10).mean().item() if rounded else None,
    }


def _show(figures: dict[str, dict[str, float | None]], rows: int, data: Path, model: str) -> None:
    table = Table(
        title=f"What rounding changes: {Path(model).name}, {rows} rows of {data.name}",
        caption="Shares of all tokens, or all pictures, that are the same as at `exact`. PSNR is between pictures "
        "decoded from the same tokens, in dB, averaged over pictures.",
    )
    table.add_column("")
    for name in figures:
        table.add_column(name, justify="right")
    lines: dict[str, tuple[str, str]] = {
        "loss on the rows' tokens, nats per token": ("loss", "{:.4f}"),
        "  its change": ("loss_change", "{:+.4f}"),
        "most likely next token, after the rows' tokens": ("same_most_likely", "{:.2%}"),
        "most likely next token, after painted tokens": ("same_most_likely_along_painted", "{:.2%}"),
        "greedy: tokens": ("same_greedy_codes", "{:.1%}"),
        "greedy: whole pictures": ("same_greedy_pictures", "{:.1%}"),
        "sampled: tokens": ("same_drawn_codes", "{:.1%}"),
        "sampled: whole pictures": ("same_drawn_pictures", "{:.1%}"),
        "VQGAN: PSNR": ("psnr", "{:.1f}"),
    }
    for label, (key, form) in lines.items():
        values = [row[key] for row in figures.values()]
        shown = ["same" if value is None else form.format(value) for value in values]
        table.add_row(label, *(["", *shown[1:]] if key != "loss" else shown))
    Console().print(table)


def _draw(pipe: PaiPainterPipeline, captions: list[str], drawn: dict[str, torch.Tensor], pictures: int) -> Image.Image:
    """What each speed drew, a line for each: of rows spread over all, and below of those that rounding changed most."""
    count = min(pictures, len(captions))
    changed = torch.stack([(tokens != drawn["exact"]).sum(1) for tokens in drawn.values()]).sum(0)  # tokens of a row
    most = changed.argsort(descending=True, stable=True)[:count].tolist()
    blocks = [[number * len(captions) // count for number in range(count)], [row for row in most if changed[row]]]
    images, words, labels = [], [], []
    for rows in filter(None, blocks):
        spare = count - len(rows)
        for name, tokens in drawn.items():
            pixels = pipe.model.decode_images(tokens[rows], SPEEDS[name])
            images += pipe.processor.image_processor.postprocess(pixels, output_type="pil")
            images += [Image.new("RGB", images[0].size, "white")] * spare
            words += [captions[row] for row in rows] + [""] * spare
            labels.append(name)
    return draw_grid(images, captions=words, columns=count, cell_size=_CELL, row_labels=labels)


if __name__ == "__main__":
    run_script(main)
