#!/usr/bin/env bash
# plugins/ggml: built from the sources that a published crate ships, cross-checked, judged, and chosen when it is named.
# Under two minutes beside a built tersor; downloads that crate (some 6 MB) once.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

apt_need cc=build-essential make=make
# A plugin that others may write to is refused, whatever this shell's umask is.
umask 022
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
chmod 755 "$WORK"

(cd plugins/ggml && cargo fmt --check && cargo clippy --release --locked --all-targets -- -D warnings &&
    cargo test --release --locked -- --nocapture)
make -C plugins/ggml OUT="$WORK"

cargo build --release --quiet -p tersor-cli
TERSOR=${CARGO_TARGET_DIR:-target}/release/tersor
export XDG_STATE_HOME=$WORK/state XDG_CACHE_HOME=$WORK/cache
"$TERSOR" conform "$WORK/ggml.toml" --full

printf '[plugins]\nenabled = true\npaths = ["%s/ggml.toml"]\n' "$WORK" >"$WORK/tersor.toml"
explained=$("$TERSOR" --config "$WORK/tersor.toml" explain matmul tq2_0 1024x2560)
printf '%s\n' "$explained"
# Measured beside the others, whoever wins.
grep -q 'ggml' <<<"$explained"
named=$("$TERSOR" --config "$WORK/tersor.toml" explain matmul tq1_0 1024x2560 --backend ggml)
printf '%s\n' "$named"
grep -q "^ggml runs " <<<"$named"
