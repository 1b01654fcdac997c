# SPDX-License-Identifier: Apache-2.0
"""The commands that upload models to the Hub and download them from there."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .common import command, echo


@command("Stopped; rerun to resume.")
def push(
    folder: Annotated[Path, typer.Argument(help="A model's or an adapter's folder, such as the output of `train`.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub, or NAME in your account; created if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch, created if missing; main by default.")] = None,
    tag: Annotated[str | None, typer.Option(help="A tag for the commit, such as v1.0.")] = None,
    pull_request: Annotated[bool, typer.Option("--pull-request", help="Open a pull request.")] = False,
    message: Annotated[str, typer.Option(help="The commit's message.")] = "Upload a PAI-Painter model",
    base: Annotated[str | None, typer.Option(help="What the local base of an adapter is called on the Hub.")] = None,
) -> None:
    """
    Upload a trained model or a LoRA adapter to the Hub in one commit, without checkpoints, data or logs.

    The token comes from `hf auth login` or HF_TOKEN. Pushing the same folder again changes nothing.

    Examples:

    pai-painter push out me/shop-painter --private --tag v1.0

    pai-painter push out me/line-style --base alibaba-pai/pai-painter-base-zh
    """
    from ..hub import push_folder

    address = push_folder(
        folder,
        repo,
        private=private,
        revision=revision,
        tag=tag,
        pull_request=pull_request,
        commit_message=message,
        base=base,
    )
    echo(address)


@command("Stopped; rerun to resume.")
def pull(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub.")],
    output: Annotated[Path | None, typer.Option(help="A new folder; by default only the Hub's cache.")] = None,
    revision: options.Revision = "main",
) -> None:
    """
    Download a model or an adapter from the Hub, complete or not at all, and print its folder.

    Cached files aren't downloaded again. HF_ENDPOINT sets a mirror; HF_HUB_OFFLINE=1 uses only the cache.

    Example: pai-painter pull me/shop-painter --output shop --revision v1.0
    """
    from ..hub import pull_folder

    echo(pull_folder(repo, output, revision=revision))
