# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are written whole or not at all."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

# What --force may delete of a model's folder. Anything else in it is somebody's own.
_MODEL_FILES = re.compile(
    r"(generation_|processor_|preprocessor_|tokenizer_)?config\.json|tokenizer\.json|special_tokens_map\.json"
    r"|vocab\.txt|README\.md|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|pytorch_model\.bin"
)
_EXISTS = "{} exists already: please give another name, or --force to overwrite it."

FilesOf = Callable[[Path], Collection[str]]


def check_new_files(paths: Iterable[Path], force: bool) -> None:
    """
    Finds out before the work whether its results can be written. Creates missing folders.

    Raises:
        FileExistsError: if one of the files exists, unless `force`.
        OSError: if one of them is a folder, or if its folder can't be created or written to.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, so no file can be written there.")
        if not force and os.path.lexists(path):
            raise FileExistsError(_EXISTS.format(path))
        folders[path.parent] = None
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OSError(error.errno, f"Nothing can be written to the folder {folder} ({error.strerror})") from error


def write_whole(path: Path, write: Callable[[Path], object], force: bool = True, partial: Path | None = None) -> None:
    """
    Lets `write` write under another name (`partial`, by default beside `path`), and renames it when it is on the disk.

    Raises:
        FileExistsError: if the file exists, unless `force`.
        OSError: if it can't be written; nothing is left behind then.
    """
    partial = partial or path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        sync(partial)
        if not force:  # takes a free name, which `os.replace` alone would also take from a file that came meanwhile
            path.touch(exist_ok=False)
        os.replace(partial, path)
    except FileExistsError as error:
        raise FileExistsError(_EXISTS.format(path)) from error
    except OSError as error:
        if error.errno is None:  # not the system's, but a killed worker
            raise
        raise OSError(error.errno, f"{path} can't be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    if os.name != "posix":  # elsewhere, folders can't be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files_of_model(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if _MODEL_FILES.fullmatch(path.name)]


@contextmanager
def new_folder(
    output: Path, inputs: Sequence[Path] = (), force: bool | None = None, files_of: FilesOf = _files_of_model
) -> Iterator[tuple[Path, Path]]:
    """
    Gives a folder that becomes `output` if all goes well and vanishes if not, and another one for scraps. What a killed
    process left of them is removed, and a second process at once is a `TimeoutError`.

    Refuses what can't be replaced: inputs, files, links, mount points, and folders that hold anything, unless `force`
    is set and all in it are its `files_of`; `None` is for commands without that option.
    """
    _check_output(output, inputs, force, files_of)
    output = Path(os.path.abspath(output))  # `.` has no name
    scratch = output.with_name(f".{output.name}.partial")
    whole, scraps, old, lock = (scratch / name for name in ("whole", "scraps", "old", "lock"))
    scratch.mkdir(parents=True, exist_ok=True)
    if not {*scratch.iterdir()} <= {whole, scraps, old, lock}:
        raise FileExistsError(f"{scratch} holds files that aren't of this command: please move it.")
    with FileLock(lock, timeout=0):
        try:
            if old.exists() and not output.exists():  # a process was killed between the two renames
                old.rename(output)
                _check_output(output, inputs, force, files_of)
            for folder in (whole, scraps, old):
                shutil.rmtree(folder, ignore_errors=True)
            whole.mkdir()
            scraps.mkdir()
            yield whole, scraps
            _check_output(output, inputs, force, files_of)  # it was a while ago
            if output.exists():
                output.rename(old)
            whole.rename(output)
        finally:
            if old.exists() and not output.exists():
                old.rename(output)
            shutil.rmtree(scratch, ignore_errors=True)


def _check_output(output: Path, inputs: Sequence[Path], force: bool | None, files_of: FilesOf) -> None:
    if output.is_symlink() or os.path.ismount(output):
        raise FileExistsError(f"{output} is a link or a mount point, which can't be replaced: please name a folder.")
    ours = output.resolve()
    for path in inputs:
        theirs = path.resolve()
        if ours == theirs or ours in theirs.parents or (theirs.is_dir() and theirs in ours.parents):
            raise ValueError(f"The output {output} and {path} must be different folders, neither inside the other.")
    if not output.exists():
        return
    held = sorted(output.iterdir()) if output.is_dir() else []
    if force is None and (held or not output.is_dir()):
        raise FileExistsError(f"{output} exists already: please name a new folder, or an empty one.")
    if not output.is_dir():
        raise FileExistsError(f"{output} is a file: please name a new folder.")
    if held and not force:
        raise FileExistsError(f"{output} isn't empty: please name a new folder, or --force to replace what is in it.")
    replaced = files_of(output)
    strangers = [path.name for path in held if not path.is_file() or path.name not in replaced]
    if strangers:
        names = ", ".join(strangers[:3])
        raise FileExistsError(f"{output} holds what --force doesn't replace ({names}): please name a new folder.")
