#!/usr/bin/env bash
# Runs x86-64 tests under qemu on CPUs that lack AVX2 (Nehalem) and AVX-512 (Haswell).
#
#   .ci/old-cpus.sh [PACKAGE | TEST-BINARY]...        default: tersor-conformance tersor-core
#
#   OLD_CPUS    qemu CPU models to run on (default "Nehalem Haswell-noTSX")
#
# Packages are built and run by cargo; a path to an executable is run as it is. A kernel that is run on a CPU that lacks its
# instructions ends in SIGILL (exit 132), so these tests can fail. qemu does not emulate AVX-512 or AVX-VNNI: those are tested
# on machines that have them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

isas_of() {
    case $1 in
        Nehalem) ;;
        Haswell*) require avx2 ;;
        *) say "which ISAs has $1? Add it to isas_of."; return 1 ;;
    esac
}

# What qemu cannot emulate of these models, and user code cannot see: left out to keep its warnings away.
model_of() {
    case $1 in
        Haswell*) echo "$1,-pcid,-x2apic,-tsc-deadline,-invpcid" ;;
        *) echo "$1" ;;
    esac
}

main() {
    if [[ $(uname -m) != x86_64 ]]; then
        say "this machine is not x86-64: nothing to run"
        return
    fi
    apt_need qemu-x86_64-static=qemu-user-static
    [[ $# != 0 ]] || set -- tersor-conformance tersor-core
    local packages=() binaries=() arg cpu isas runner
    for arg in "$@"; do
        if [[ -f $arg && -x $arg ]]; then binaries+=("$arg"); else packages+=(-p "$arg"); fi
    done
    for cpu in ${OLD_CPUS:-Nehalem Haswell-noTSX}; do
        isas=$(isas_of "$cpu")
        runner="qemu-x86_64-static -cpu $(model_of "$cpu")"
        say "-- $cpu, required: ${isas:-nothing}"
        for arg in ${binaries[@]+"${binaries[@]}"}; do
            TERSOR_REQUIRE=$isas $runner "$arg"
        done
        if [[ ${#packages[@]} != 0 ]]; then
            TERSOR_REQUIRE=$isas TERSOR_CONFORMANCE_THREADS=1 CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$runner cargo test "${packages[@]}" --tests
        fi
    done
}

main "$@"
