#!/usr/bin/env bash
# Builds tests for 64-bit ARM and runs them under qemu, on a CPU with plain NEON, one with DotProd, one with I8MM.
#
#   .ci/neon.sh [PACKAGE...]        default: tersor-conformance tersor-kernels tersor-core
#
#   NEON_CPUS   qemu CPU models to run on (default "cortex-a53 cortex-a76 max")
#   NEON_STD    where the ARM standard library comes from: rustup, debian, or empty for rustup with debian as its stand-in
#
# On Debian 12 or later, as root or with sudo. Forcing a kernel that the CPU model lacks ends in SIGILL (exit 132), so
# these tests can fail.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

TARGET=aarch64-unknown-linux-gnu

install_std() {
    if [[ ${NEON_STD:-rustup} == rustup ]] && timeout 300 rustup target add "$TARGET"; then
        return
    fi
    [[ ${NEON_STD:-debian} == debian ]]
    # Debian's own, newer compiler together with its ARM standard library.
    if [[ ! -d /usr/lib/rustlib/$TARGET ]]; then
        as_root dpkg --add-architecture arm64
        apt_install rustc-web cargo-web libstd-rust-web-dev:arm64
    fi
    export PATH=/usr/bin:$PATH
    unset RUSTC RUSTDOC RUSTUP_TOOLCHAIN
}

install() {
    apt_need aarch64-linux-gnu-gcc="gcc-aarch64-linux-gnu" qemu-aarch64-static=qemu-user-static
    [[ -e /usr/aarch64-linux-gnu/lib/crt1.o ]] || apt_install libc6-dev-arm64-cross
    install_std
}

isas_of() {
    case $1 in
        cortex-a53 | cortex-a72) require neon ;;
        cortex-a76 | neoverse-n1) require neon neon-dotprod ;;
        max) require neon neon-dotprod neon-i8mm ;;
        *) say "which ISAs has $1? Add it to isas_of."; return 1 ;;
    esac
}

main() {
    [[ $# != 0 ]] || set -- tersor-conformance tersor-kernels tersor-core
    local packages=() package cpu isas
    for package in "$@"; do packages+=(-p "$package"); done
    if [[ $(uname -m) == aarch64 ]]; then
        say "this machine is 64-bit ARM itself: plain cargo test covers it"
        return
    fi
    install
    # Its own target directory: the compiler may be another one than that of the other steps.
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/aarch64
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
    # Without LD_LIBRARY_PATH a threaded binary can mix two libcs, and spin, where libc6:arm64 is installed as well.
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib"
    # --tests: unit and integration tests; doc tests are the same on every target.
    cargo test "${packages[@]}" --tests --target "$TARGET" --no-run
    for cpu in ${NEON_CPUS:-cortex-a53 cortex-a76 max}; do
        isas=$(isas_of "$cpu")
        say "-- $cpu, required: ${isas:-nothing}"
        QEMU_CPU=$cpu TERSOR_REQUIRE=$isas TERSOR_CONFORMANCE_THREADS=1 cargo test "${packages[@]}" --tests --target "$TARGET"
    done
}

main "$@"
