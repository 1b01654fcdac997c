# SPDX-License-Identifier: Apache-2.0
"""Models' folders to and from the Hub: nothing but what belongs to the model, whole or not at all."""

from .errors import check_login
from .folder import files_to_push, is_repository_name
from .pull import pull_folder
from .push import push_folder

__all__ = ["check_login", "files_to_push", "is_repository_name", "pull_folder", "push_folder"]
