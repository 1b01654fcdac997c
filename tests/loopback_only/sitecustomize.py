# SPDX-License-Identifier: Apache-2.0
"""Python imports it when it starts, if this folder is on PYTHONPATH: so the guard holds in the tests' subprocesses."""

from loopback_guard import guard

guard()
