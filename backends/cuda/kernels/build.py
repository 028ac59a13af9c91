"""Compiles tersor.cu and warpgroups.cu to cubins and PTX through NVRTC's C interface; see build.sh."""

import ctypes
import pathlib
import sys

import nvidia.cuda_nvrtc

HERE = pathlib.Path(__file__).resolve().parent
# A cubin for each architecture that is tuned for, PTX for the driver to compile for all later ones; and what has instructions that
# compute capability 9.0 alone knows.
TARGETS = {
    "sm_80": ("tersor.cu", "sm_80.cubin"),
    "sm_90": ("tersor.cu", "sm_90.cubin"),
    "sm_90a": ("warpgroups.cu", "sm_90a.cubin"),
    "compute_80": ("tersor.cu", "compute_80.ptx"),
}
# No contraction, and IEEE division, square roots and denormals: the order of operations is the sources'.
OPTIONS = ["--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false", "--std=c++17", "-default-device"]

nvrtc = ctypes.CDLL(next(iter((pathlib.Path(nvidia.cuda_nvrtc.__path__[0]) / "lib").glob("libnvrtc.so.*"))))


def check(code, what):
    if code:
        sys.exit(f"{what}: NVRTC error {code}")


def compile_for(target, root):
    sources = {p.name: p.read_bytes() for p in sorted(HERE.glob("*.cu*")) if p.name != root}
    names = (ctypes.c_char_p * len(sources))(*[n.encode() for n in sources])
    texts = (ctypes.c_char_p * len(sources))(*sources.values())
    program = ctypes.c_void_p()
    main = (HERE / root).read_bytes()
    create = nvrtc.nvrtcCreateProgram(ctypes.byref(program), main, root.encode(), len(sources), texts, names)
    check(create, "create")
    options = [o.encode() for o in [f"--gpu-architecture={target}", *OPTIONS]]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if log.value.strip():
        print(log.value.decode(), file=sys.stderr)
    check(failed, f"compile for {target}")
    kind = "CUBIN" if target.startswith("sm_") else "PTX"
    check(getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)), "size")
    image = ctypes.create_string_buffer(size.value)
    check(getattr(nvrtc, f"nvrtcGet{kind}")(program, image), "get")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return image.raw[: size.value]


def main():
    built = HERE / "built"
    checking = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not checking:
        sys.exit("usage: build.sh [--check]")
    built.mkdir(exist_ok=True)
    stale = []
    for target, (root, name) in TARGETS.items():
        image = compile_for(target, root)
        path = built / name
        if checking:
            if not path.exists() or path.read_bytes() != image:
                stale.append(name)
        else:
            path.write_bytes(image)
            print(f"{name}: {len(image)} bytes")
    if stale:
        sys.exit(f"not what the sources give: {', '.join(stale)}; run backends/cuda/kernels/build.sh")
    if checking:
        print("the embedded kernels are what the sources give")


main()
