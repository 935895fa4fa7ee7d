#!/usr/bin/env bash
# Packs onnxruntime for CUDA and a folder of graphs into parts that can be carried to a GPU machine without network.
#
#   benchmarks/pack_gpu.sh build/gpu [PYTHON]      -> build/gpu-parts/part_aa, part_ab, ...
#
# PYTHON is the version there (3.12), on x86-64 Linux. Left out: graphs that are not for CUDA, TensorRT, and the
# tools of onnxruntime.
set -euo pipefail
graphs=${1:?the folder that benchmarks.gpu_graphs has filled}
python=${2:-3.12}
root=$(cd "$(dirname "$0")/.." && pwd)
parts=$root/build/gpu-parts
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

requirements=$(grep -E '^(onnxruntime-gpu|flatbuffers)==' "$root/constraints.txt")
# shellcheck disable=SC2086  # one requirement a word
python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$work" --implementation cp \
    --python-version "$python" --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux2014_x86_64 $requirements
for wheel in "$work"/*.whl; do python3 -m zipfile -e "$wheel" "$work/site"; done
rm -f "$work/site/onnxruntime/capi/libonnxruntime_providers_tensorrt.so"
rm -rf "$work"/site/onnxruntime/{transformers,tools,datasets,quantization}

on_cuda='import json, sys; print(*(g["file"] for g in json.load(sys.stdin)["graphs"] if "cuda" in g["providers"]))'
mkdir "$work/graphs"
for file in manifest.json $(python3 -c "$on_cuda" < "$graphs/manifest.json"); do
    cp "$graphs/$file" "$work/graphs"
done
cp "$graphs"/*.npz "$work/graphs"
rm -rf "$parts"
mkdir -p "$parts"
tar -C "$work" -c site graphs | xz -T0 -4 | split -b 55M - "$parts/part_"
ls -l "$parts"
