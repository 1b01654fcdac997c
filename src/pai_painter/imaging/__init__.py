# SPDX-License-Identifier: Apache-2.0
"""Pictures as files: PNG metadata, grids, fonts."""
