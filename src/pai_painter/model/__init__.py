# SPDX-License-Identifier: Apache-2.0
"""The painter and its VQGAN: what travels to the Hub beside weights."""
