#!/usr/bin/env bash
# Plugins as outsiders build them: the template as `cargo generate` expands it, the Rust example by a compiler that is not the
# host's, the C example by gcc and by clang; both sides of the boundary under AddressSanitizer; and hosts and plugins of an older
# version of the ABI with those of this one.
#
#   .ci/plugins.sh [template|compilers|sanitizer|versions]...      default: all four
#
#   PLUGIN_RUST   the other Rust compiler, a rustup toolchain (default 1.96.0)
#
# Where rustup has none, Debian's own compiler takes its place.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
# A plugin that others may write to is refused.
umask 022

# conforms MANIFEST [HOST]: loads it out of process, and judges it; the host is this tree's if none is named.
conforms() {
    local tersor=${2:-target/release/tersor}
    "$tersor" plugins check "$1"
    "$tersor" conform "$1" >"$WORK/report" || { cat "$WORK/report"; return 1; }
    tail -n 3 "$WORK/report"
}

# The placeholders that plugins/template uses, and against the crates of this tree.
template() {
    local to=$WORK/acme-npu file
    cp -r plugins/template "$to"
    rm "$to/cargo-generate.toml"
    find "$to" -type f -print0 | while IFS= read -r -d '' file; do
        sed -i -e 's/{{project-name}}/acme-npu/g; s/{{crate_name}}/acme_npu/g; s/{{publisher}}/Acme/g' \
            -e "s|^tersor-core = .*|tersor-core = { path = \"$PWD/core\" }|" \
            -e "s|^tersor-abi = .*|tersor-abi = { path = \"$PWD/abi\" }|" "$file"
    done
    if grep -rn '{{' "$to"; then
        say "a placeholder is left"
        return 1
    fi
    cp plugins/rust-example/Cargo.lock "$to/"
    sed -i 's/^name = "bitplanes"/name = "acme-npu"/' "$to/Cargo.lock"
    make -s -C "$to" OUT="$WORK/template"
    conforms "$WORK/template/acme-npu.toml"
}

# other_rust COMMAND...: with a Rust compiler that is not the one that built the host.
other_rust() {
    local toolchain=${PLUGIN_RUST:-1.96.0}
    if command -v rustup >/dev/null && timeout 300 rustup toolchain install "$toolchain" --profile minimal --no-self-update >&2; then
        RUSTUP_TOOLCHAIN=$toolchain "$@"
    else
        apt_need /usr/bin/cargo=cargo-web /usr/bin/rustc=rustc-web >&2
        PATH=/usr/bin:$PATH RUSTUP_TOOLCHAIN='' "$@"
    fi
}

compilers() {
    local host theirs
    host=$(rustc --version)
    theirs=$(other_rust rustc --version)
    say "host: $host; plugin: $theirs"
    [[ $host != "$theirs" ]] || { say "the plugin's compiler has to be another one"; return 1; }
    CARGO_TARGET_DIR='' other_rust env -u CARGO_TARGET_DIR make -s -C plugins/rust-example OUT="$WORK/rust" \
        CARGO_FLAGS="--target-dir $WORK/target" BUILT="$WORK/target/release/libbitplanes.so"
    # The library itself names its compiler.
    grep -aq "rustc version $(cut -d' ' -f2 <<<"$theirs")" "$WORK/rust/libbitplanes.so"
    conforms "$WORK/rust/bitplanes.toml"
    apt_need gcc=gcc clang=clang
    local cc
    for cc in gcc clang; do
        make -s -C plugins/c-example CC=$cc OUT="$WORK/$cc"
        conforms "$WORK/$cc/i2s-c.toml"
    done
}

# The adapter, the macro's entries and the loader with every access to memory checked. The compiler's own, unstable flag; the
# runtime comes with the standard library.
sanitizer() {
    local target
    target=$(rustc -vV | sed -n 's/^host: //p')
    RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address ASAN_OPTIONS=detect_leaks=0 CARGO_PROFILE_DEV_DEBUG=0 \
        cargo test -p tersor-abi --target "$target" --target-dir target/sanitizer --lib --test boundary --test conformance
}

# The last tree whose ABI is 1.0: its plugins in this host, this tree's plugins in its host. Needs the history.
versions() {
    local header=abi/include/tersor_plugin.h raised old=$WORK/old
    raised=$(git log -1 --format=%H -S'TERSOR_ABI_MINOR 0' -- "$header" 2>/dev/null || true)
    if [[ -z $raised ]] || ! git cat-file -e "$raised^" 2>/dev/null; then
        say "NOT TRIED: this clone does not have the commit that raised the ABI from 1.0"
        return
    fi
    git worktree add --quiet --detach "$old" "$raised^"
    grep 'define TERSOR_ABI_M' "$old/$header" "$header"
    (cd "$old" && CARGO_TARGET_DIR=$WORK/old-target cargo build --release --quiet -p tersor-cli --no-default-features --features cpu)
    env -u CARGO_TARGET_DIR make -s -C "$old/plugins/rust-example" OUT="$WORK/old-rust"
    make -s -C "$old/plugins/c-example" OUT="$WORK/old-c"
    env -u CARGO_TARGET_DIR make -s -C plugins/rust-example OUT="$WORK/new-rust"
    make -s -C plugins/c-example OUT="$WORK/new-c"
    git worktree remove --force "$old"
    conforms "$WORK/old-c/i2s-c.toml"
    conforms "$WORK/old-rust/bitplanes.toml"
    conforms "$WORK/new-c/i2s-c.toml" "$WORK/old-target/release/tersor"
    conforms "$WORK/new-rust/bitplanes.toml" "$WORK/old-target/release/tersor"
}

[[ $# != 0 ]] || set -- template compilers sanitizer versions
# What is there may be older than the tree.
cargo build --release --quiet
for part in "$@"; do
    say "-- $part"
    "$part"
done
