# SPDX-License-Identifier: Apache-2.0
"""The command that takes EasyNLP's words."""

import os

import typer

from .common import echo, load_package, one_sentence_errors


def easynlp(context: typer.Context) -> None:
    """
    Run a command of EasyNLP's text2image_generation unchanged (--help lists its flags), and show the native one.

    Example: pai-painter easynlp --mode=predict --tables=test.tsv --outputs=out.tsv --checkpoint_dir=model …
    """
    with one_sentence_errors(verbose=False):
        from ..easynlp.flags import parse_flags
        from ..signals import words_at_home

        words = words_at_home(context.args)
        parse_flags(words)  # --help and usage errors, before anything is loaded
        load_package()
        from ..easynlp.translation import translate

        command = translate(words)
        if os.environ.get("RANK", "0") == "0":
            for note in command.notes:
                echo(f"Note: {note}", err=True)
            typer.echo("The native command:")
            echo(command)
    from . import app

    app(command.words, prog_name="pai-painter")
