# SPDX-License-Identifier: Apache-2.0
"""The steps of `predict_file`: captions in, a plan, batches of pictures, shards, one result."""
