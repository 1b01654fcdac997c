# SPDX-License-Identifier: Apache-2.0
"""
Writes docs/api.md, the reference of the public classes and functions, from their docstrings.

    python tools/make_api_reference.py [--check]

Links in docstrings, [`name`] and [`~module.name`], must lead to something that exists: what is in the reference gets a
link to its place there. `--check` writes nothing and exits with 1 if docs/api.md isn't current.
"""

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pai_painter

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
# Beside what `pai_painter` itself exports: the public functions of these modules, in the order of the data's way.
MODULES = (
    *("lora", "hub", "batch.prediction", "batch.paint_captions", "evaluation.likelihood", "convert", "easynlp"),
    *("imaging.grids", "cpu.speed"),
)
_LINK = re.compile(r"\[`(~?)([\w.]+)`\]")
_HEAD = """# API reference

<!-- Written by tools/make_api_reference.py from the docstrings: change those instead. -->

Everything here is imported from the module in its heading. For the command line see `pai-painter COMMAND --help`.
"""


def public() -> Iterator[tuple[str, Any]]:
    """Full names and objects in the reference."""
    for name in pai_painter.__all__:
        if callable(getattr(pai_painter, name)):
            yield f"pai_painter.{name}", getattr(pai_painter, name)
    for module in MODULES:
        loaded = importlib.import_module(f"pai_painter.{module}")
        for name in getattr(loaded, "__all__", None) or sorted(filter(partial(is_public, loaded), vars(loaded))):
            if callable(getattr(loaded, name)):
                yield f"pai_painter.{module}.{name}", getattr(loaded, name)


def is_public(module: Any, name: str) -> bool:
    """Whether this is a class or function that the module itself defines, for others to use."""
    return name[0] != "_" and getattr(getattr(module, name), "__module__", None) == module.__name__


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class that are ours, inherited ones included."""
    seen: set[str] = set()
    for owner in cls.__mro__:
        if owner.__module__.startswith("pai_painter"):
            for name, member in vars(owner).items():
                function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                wanted = inspect.isfunction(inspect.unwrap(function)) if callable(function) else False
                if (
                    name not in seen
                    and (wanted or isinstance(member, property))
                    and (name[0] != "_" or name == "__call__")
                ):
                    seen.add(name)
                    yield name, member


def signature(name: str, thing: Any) -> str:
    thing = thing.__func__ if isinstance(thing, classmethod | staticmethod) else thing
    if isinstance(thing, property) or (inspect.isclass(thing) and issubclass(thing, Exception)):
        return name
    text = str(inspect.signature(thing)).replace("pai_painter.", "")
    return f"{name}{re.sub(r'[a-z_]+(?:[.][a-z_]+)*[.](?=[A-Z])', '', text)}"


def document(thing: Any) -> str:
    """The docstring as Markdown: sections such as `Args:` in bold, what is indented below them as a list."""
    lines, section = [], False
    for line in (inspect.getdoc(thing) or "").splitlines():
        if line in ("Args:", "Returns:", "Raises:", "Attributes:", "Example:", "Examples:", "Yields:"):
            section = True
            lines.append(f"**{line[:-1]}**\n")
        elif section and re.match(r"    \S", line):
            name, colon, rest = line.strip().partition(": ")
            lines.append(f"- {name}{colon}{rest}" if colon else f"- {line.strip()}")
        else:
            section &= not line or line.startswith(" ")
            lines.append(line.removeprefix("    ") if section else line)
    return "\n".join(lines)


def reference() -> str:
    """
    Raises:
        ValueError: if a docstring names something that doesn't exist.
    """
    everything = dict(public())
    anchors = {name.rpartition(".")[2]: name for name in everything}
    parts = [_HEAD]
    for name, thing in everything.items():
        parts.append(
            f'<a id="{name.lower()}"></a>\n\n## {name}\n\n```py\n{signature(name.rpartition(".")[2], thing)}\n```\n'
        )
        parts.append(document(thing))
        for member_name, member in members(thing) if inspect.isclass(thing) else ():
            shown = f"{name.rpartition('.')[2]}.{member_name}"
            parts.append(f"### {shown}\n\n```py\n{signature(member_name, member)}\n```\n")
            parts.append(document(member))
    text = re.sub(r"\n{3,}", "\n\n", "\n\n".join(parts).rstrip()) + "\n"
    missing: set[str] = set()

    def linked(match: re.Match[str]) -> str:
        path = match[2].removeprefix("pai_painter.").split(".")
        shown = f"`{match[2] if not match[1] else path[-1]}`"
        owner = next((part for part in path if part in anchors), None)
        if owner is not None:
            return f"[{shown}](#{anchors[owner].lower()})"
        if not exists(path):
            missing.add(match[2])
        return shown

    text = _LINK.sub(linked, text)
    if missing:
        raise ValueError(f"Docstrings name what doesn't exist: {', '.join(sorted(missing))}.")
    return text


def exists(path: list[str]) -> bool:
    """Whether a name is one of our modules' or of the libraries', by whichever of its modules it is called."""
    if path[0] in ("transformers", "diffusers", "torch"):
        return hasattr(importlib.import_module(path[0]), path[1])
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("pai_painter")]
    modules += [thing for _, thing in public() if inspect.isclass(thing)]  # whose methods name each other
    return any(hasattr(module, path[-1]) or (len(path) > 1 and hasattr(module, path[-2])) for module in modules)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes docs/api.md from the docstrings.")
    parser.add_argument("--check", action="store_true", help="Only check that docs/api.md is current.")
    text = reference()
    if not parser.parse_args().check:
        REFERENCE.write_text(text, encoding="utf-8")
    elif REFERENCE.read_text(encoding="utf-8") != text:
        sys.exit("docs/api.md is not current: please run `make docs`.")


if __name__ == "__main__":
    main()
