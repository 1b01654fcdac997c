# SPDX-License-Identifier: Apache-2.0
"""The same rows of captions and pictures, written as every kind of source."""

import base64
import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image

SCHEMA = "idx:str:1,text:str:1,imgbase64:str:1"

# idx, caption, picture file
Sample = tuple[str, str, bytes]


def picture(shade: int, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade % 256, 0, 255 - shade % 256)).save(buffer, format=file_format)
    return buffer.getvalue()


def samples(count: int, bad: Sequence[int] = (), first: int = 0) -> list[Sample]:
    """Rows `r0`, `r1`, …; those whose number is in `bad` have a picture that is none."""
    return [
        (f"r{number}", f"红{number}", b"no picture" if number in bad else picture(number))
        for number in range(first, first + count)
    ]


def line(idx: str, text: str, data: bytes) -> str:
    return f"{idx}\t{text}\t{base64.b64encode(data).decode()}\n"


def write_tsv(folder: Path, rows: list[Sample], name: str = "table.tsv") -> Path:
    (folder / name).write_text("".join(line(*row) for row in rows), encoding="utf-8")
    return folder / name


def write_parquet(folder: Path, rows: list[Sample], name: str = "table.parquet") -> Path:
    columns = {
        "idx": [idx for idx, _, _ in rows],
        "text": [text for _, text, _ in rows],
        "image": [{"bytes": data, "path": None} for _, _, data in rows],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / name, row_group_size=5)
    return folder / name


def write_csv_folder(folder: Path, rows: list[Sample], name: str = "pictures") -> Path:
    (folder / name / "sub").mkdir(parents=True)
    with open(folder / name / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["idx", "file_name", "text"])
        for idx, text, data in rows:
            (folder / name / "sub" / f"{idx}.png").write_bytes(data)
            table.writerow([idx, f"sub/{idx}.png", text])
    return folder / name


def write_jsonl_folder(folder: Path, rows: list[Sample], name: str = "pictures") -> Path:
    (folder / name).mkdir(parents=True)
    lines = []
    for idx, text, data in rows:
        (folder / name / f"{idx}.png").write_bytes(data)
        lines.append(json.dumps({"file_name": f"{idx}.png", "text": text, "idx": idx}, ensure_ascii=False) + "\n")
    (folder / name / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / name


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_shard(folder: Path, rows: list[Sample], name: str = "shard.tar") -> Path:
    files = []
    for idx, text, data in rows:
        files += [(f"{idx}.png", data), (f"{idx}.txt", text.encode())]
    return write_tar(folder / name, files)


WRITERS: dict[str, Callable[..., Path]] = {
    "tsv": write_tsv,
    "parquet": write_parquet,
    "csv folder": write_csv_folder,
    "jsonl folder": write_jsonl_folder,
    "webdataset": write_shard,
}
