# SPDX-License-Identifier: Apache-2.0
"""The commands that put models on the Hub and that get them from there."""

from pathlib import Path
from typing import Annotated

import typer

from .common import RevisionOption, VerboseOption, one_sentence_errors, quieten

__all__ = ["pull", "push"]


def push(
    folder: Annotated[
        Path, typer.Argument(help="A model's or an adapter's folder, such as the output of `pai-painter train`.")
    ],
    repo: Annotated[
        str, typer.Argument(help="OWNER/NAME on the Hub; made if there is none. A name alone is under your own.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch, made if there is none; main by default.")] = None,
    tag: Annotated[str | None, typer.Option(help="Name the commit, for example v1.0.")] = None,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Ask the owner to take it, instead of writing to the repository.")
    ] = False,
    message: Annotated[str, typer.Option(help="What the commit is about.")] = "Upload a PAI-Painter model",
    base: Annotated[
        str | None,
        typer.Option(help="For an adapter trained on a local folder: what that model is called on the Hub."),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """
    Put a trained model or a LoRA adapter on the Hub, as one commit, without checkpoints, data and logs.

    The token comes from `hf auth login` or from HF_TOKEN. The same command again changes nothing.

    Examples:

    pai-painter push out me/shop-painter --private --tag v1.0

    pai-painter push out me/line-style --base alibaba-pai/pai-painter-base-zh
    """
    with one_sentence_errors(verbose, "Stopped; the same command goes on from there."):
        quieten(verbose)
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
        typer.echo(address)


def pull(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub.")],
    output: Annotated[
        Path | None, typer.Option(help="A new folder for a copy; by default the model stays in the Hub's cache.")
    ] = None,
    revision: RevisionOption = "main",
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is in the output folder.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """
    Download a model or an adapter from the Hub, complete or not at all, and print its folder.

    Files that have arrived aren't fetched again. HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=1 asks nobody.

    Examples:

    pai-painter pull alibaba-pai/pai-painter-base-zh

    pai-painter pull me/shop-painter --output shop --revision v1.0
    """
    with one_sentence_errors(verbose, "Stopped; the same command fetches the rest."):
        quieten(verbose)
        from ..hub import pull_folder

        typer.echo(pull_folder(repo, output, revision=revision, force=force))
