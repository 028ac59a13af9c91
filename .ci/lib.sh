# Shared by the scripts of this folder; sourced, not run.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

say() { printf '%s\n' "$*" >&2; }

as_root() {
    if [[ $(id -u) == 0 ]]; then "$@"; else sudo "$@"; fi
}

apt_install() {
    say "installing $*"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# apt_need COMMAND=PACKAGE...: installs the packages whose commands are missing.
apt_need() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [[ ${#missing[@]} == 0 ]] || apt_install "${missing[@]}"
}

# ISAs whose kernels are in the tree. A test of one of these must not be skipped on a CPU that has it.
BUILT_ISAS="avx2 avx-vnni avx512 avx512-vnni avx512-vbmi neon neon-dotprod neon-i8mm"

# require ISA...: those of the given ISAs whose kernels exist, comma-separated, for TERSOR_REQUIRE.
require() {
    local isa out=""
    for isa in "$@"; do
        [[ " $BUILT_ISAS " == *" $isa "* ]] && out+="${out:+,}$isa"
    done
    printf '%s' "$out"
}

# The ISA ids that this machine's CPU has.
machine_isas() {
    local flags
    flags=" $(sed -n -E 's/^(flags|Features)[[:space:]]*: //p' /proc/cpuinfo | head -n 1) "
    has() { local f; for f in "$@"; do [[ $flags == *" $f "* ]] || return 1; done; }
    has avx2 && echo avx2
    has avx2 avx_vnni && echo avx-vnni
    has avx512f avx512bw avx512dq avx512vl && {
        echo avx512
        has avx512_vnni && echo avx512-vnni
        has avx512_vnni avx512vbmi && echo avx512-vbmi
    }
    has amx_tile amx_int8 && echo amx-int8
    has asimd && echo neon
    has asimd asimddp && echo neon-dotprod
    has asimd asimddp i8mm && echo neon-i8mm
    return 0
}
