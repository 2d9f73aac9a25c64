#!/bin/sh
# Builds the modules again, where the compilers are there; Debian: clang, lld, rustc, libstd-rust-dev-wasm32.
# Others by CLANG, RUSTC, WASM_LD (wasm-ld's path) and WASI_TARGET.
set -eu
cd "$(dirname "$0")"
include=../../tr_mmap/cpp/include
"${CLANG:-clang}" --target=wasm32 -O3 -msimd128 -mbulk-memory -ffreestanding -nostdlib -Wall -Wextra -I"$include" \
    ${WASM_LD:+-fuse-ld="$WASM_LD"} -Wl,--no-entry -Wl,--strip-debug -o scale.wasm scale.c
"${RUSTC:-rustc}" --target "${WASI_TARGET:-wasm32-wasi}" --edition 2021 -O -C opt-level=z -C lto -C panic=abort \
    -C strip=symbols ${WASM_LD:+-C linker="$WASM_LD"} -o words.wasm words.rs
ls -l scale.wasm words.wasm
