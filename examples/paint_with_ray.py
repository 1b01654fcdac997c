# SPDX-License-Identifier: Apache-2.0
"""
Paints a Parquet file of captions (`idx`, `text`) on all machines of a Ray cluster:

    pip install "ray[data]"
    python examples/paint_with_ray.py captions.parquet pictures --model MODEL
"""

import argparse

import ray

from pai_painter import DEMO_MODEL
from pai_painter.batch.paint_captions import PaintCaptions, PredictOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", help="a Parquet file or a folder of them")
    parser.add_argument("output", help="a new folder for Parquet files")
    parser.add_argument("--model", default=DEMO_MODEL, help="a folder that all machines see, or a name on the Hub")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures painted at once")
    parser.add_argument("--workers", type=int, default=1, help="copies of the model")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each worker")
    given = parser.parse_args()

    ray.init()
    rows = ray.data.read_parquet(given.captions)
    painted = rows.map_batches(
        PaintCaptions,  # a class: each worker makes one, which loads the model once
        fn_constructor_args=(given.model, PredictOptions(batch_size=given.batch_size)),
        batch_size=given.batch_size,
        concurrency=given.workers,
        num_gpus=given.gpus,
    )
    painted.write_parquet(given.output)
    for row in ray.data.read_parquet(given.output).filter(lambda row: row["error"] is not None).iter_rows():
        print(f"{row['idx']!r} can't be painted: {row['error']}")


if __name__ == "__main__":
    main()
