#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The demo model from scratch: data, VQGAN, painter, evaluation. Every step is skipped or taken up again where it
# stopped, so the script may be started again after any interruption. `make demo-model` calls it.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=examples/emoji

# Two processes of one thread each hold their speed beside other work; one of two threads doesn't.
export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1
train() { torchrun --standalone --nproc_per_node 2 "$@" --resume_from_checkpoint latest; }

[ -f $here/data/evaluation.json ] || python $here/build_dataset.py --output $here/data
[ -f $here/runs/vqgan/model.safetensors ] || train train_vqgan.py $here/vqgan.yaml
[ -f $here/runs/painter/model.safetensors ] || train train.py $here/painter.yaml
grep -E '^(noto|twemoji|fluent-emoji-flat)/' $here/data/train.tsv > $here/data/complete_sets.tsv
[ -f $here/runs/painter_by_heart/model.safetensors ] || train train.py $here/painter_by_heart.yaml
python $here/pack.py --painter $here/runs/painter_by_heart --output $here/runs/demo_model
python $here/evaluate.py --model $here/runs/demo_model --output $here/runs/images
