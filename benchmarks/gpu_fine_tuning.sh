#!/usr/bin/env bash
# Fine-tuning on one GPU within 10 minutes: EfficientNet-Lite0 (ImageNet weights, 5 epochs at 64 pixels) and ResNet-18 (from scratch,
# 15 epochs at 32 pixels) on 20,000 CIFAR-10 images, clean, mislabelled and poisoned, by the plain Trainer and by robust methods.
#
#   bash benchmarks/gpu_fine_tuning.sh --pack_only --data_dir DATA --pack DIR   # DATA/cifar10/*.parquet to DIR, under 60 MB
#   bash benchmarks/gpu_fine_tuning.sh --pack DIR                               # where the GPU is: no network, no other data
#   bash benchmarks/gpu_fine_tuning.sh --data_dir DATA                          # both, on one machine
#   bash benchmarks/gpu_fine_tuning.sh --dry_run                                # a tiny run on the CPU, with digits as the images
#
# All other options are those of benchmarks/fine_tuning.py (--methods, --seeds, --minutes, ...), finished runs are not repeated.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
pack=runs/gpu_pack out=runs/gpu_fine_tuning.jsonl data_dir='' dry_run='' pack_only=''
rest=()
while [ $# -gt 0 ]; do
    case $1 in
        --pack | --out | --data_dir)
            [ $# -gt 1 ] || { echo "$1 needs a value: see the head of $0." >&2; exit 2; }
            declare "${1#--}=$2"
            shift
            ;;
        --dry_run | --pack_only) declare "${1#--}=1" ;;
        *) rest+=("$1") ;;
    esac
    shift
done

tasks=(gpu-lite0 gpu-resnet18)
if [ -n "$dry_run" ]; then
    pack=$(mktemp -d)
    trap 'rm -rf "$pack"' EXIT
    "$python" "$here/gpu_fine_tuning_pack.py" --dry_run --out "$pack"
    [ -e "$pack/efficientnet-lite0.safetensors" ] || tasks=(gpu-resnet18)
    settings=(--corruptions patch10 --methods plain prl --seeds 0 --train_rows 20 --test_rows 10 --epochs 1 --batch_size 10)
else
    [ -z "$data_dir" ] || "$python" "$here/gpu_fine_tuning_pack.py" --data_dir "$data_dir" --out "$pack"
    [ -z "$pack_only" ] || exit 0
    [ -e "$pack/train.parquet" ] || { echo "$pack holds no train.parquet: give --data_dir to pack it." >&2; exit 2; }
    "$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no GPU is found: give --dry_run for the CPU.")'
    settings=(--corruptions clean symmetric40 patch10 --methods plain prl auto --seeds 0 --bf16 --workers 4 --minutes 9)
fi
export PYTHONPATH="$here/..:$pack/packages${PYTHONPATH:+:$PYTHONPATH}"
"$python" "$here/fine_tuning.py" --data_dir "$pack" --out "$out" --tasks "${tasks[@]}" "${settings[@]}" ${rest[@]+"${rest[@]}"}
"$python" "$here/fine_tuning.py" --report --out "$out"
