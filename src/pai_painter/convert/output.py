# SPDX-License-Identifier: Apache-2.0
"""The folder that a conversion writes: whole or not at all."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["new_folder"]

# What --force may delete: the files of a model. Whatever else is in the folder was put there by somebody.
_MODEL_FILES = re.compile(
    r"(generation_|processor_|preprocessor_|tokenizer_)?config\.json|tokenizer\.json|special_tokens_map\.json"
    r"|vocab\.txt|README\.md|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|pytorch_model\.bin"
)


def check_output(output: Path, source: Path, force: bool) -> None:
    """
    Finds out before the work whether the folder can be written.

    Raises:
        FileExistsError: if it holds something, unless that is a model and `force` is given.
        ValueError: if it is the source, or one of the two is in the other.
        OSError: if it is a file.
    """
    if output.is_symlink():
        raise FileExistsError(f"{output} is a link: please name the folder itself.")
    ours, theirs = output.resolve(), source.resolve()
    if ours == theirs or ours in theirs.parents or (theirs.is_dir() and theirs in ours.parents):
        raise ValueError(
            f"The output {output} and the source {source} must be different folders, neither in the other."
        )
    if not output.exists():
        return
    if not output.is_dir():
        raise FileExistsError(f"{output} is a file: please name a new folder.")
    held = sorted(path for path in output.iterdir())
    if held and not force:
        raise FileExistsError(f"{output} isn't empty: please name a new folder, or --force to replace the model in it.")
    strangers = [path.name for path in held if not path.is_file() or not _MODEL_FILES.fullmatch(path.name)]
    if strangers:
        raise FileExistsError(
            f"{output} holds more than a model ({', '.join(strangers[:3])}), which --force doesn't delete: please name "
            f"a new folder."
        )


@contextmanager
def new_folder(output: Path, source: Path, force: bool = False) -> Iterator[tuple[Path, Path]]:
    """
    A folder beside `output` that becomes `output` if all goes well and vanishes if not, and another for scraps.

    Raises:
        OSError, ValueError: see [`check_output`].
    """
    check_output(output, source, force)
    output = Path(os.path.abspath(output))  # `.` has no name
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        whole, scraps, old = (Path(scratch) / name for name in ("whole", "scraps", "old"))
        whole.mkdir()
        scraps.mkdir()
        yield whole, scraps
        check_output(output, source, force)  # it was a while ago
        if output.exists():
            output.rename(old)
        try:
            whole.rename(output)
        except OSError:
            if old.exists():
                old.rename(output)
            raise
        shutil.rmtree(old, ignore_errors=True)
