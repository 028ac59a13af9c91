#!/usr/bin/env python3
"""Makes gguf/*.safetensors: bytes of tq1_0, tq2_0 and q8_0 written, and with those of q6_k read, by the `gguf` package.

    python3 -m venv venv && venv/bin/pip install gguf==0.19.0 numpy==2.4.6 safetensors==0.8.0
    venv/bin/python core/tests/data/make_gguf_golden.py            # writes the files
    venv/bin/python core/tests/data/make_gguf_golden.py --check    # or fails when one would differ

README.md beside the files says what each tensor is for.
"""

import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file, save_file

DIR = Path(__file__).parent / "gguf"
TYPES = {"tq1_0": Type.TQ1_0, "tq2_0": Type.TQ2_0}
BLOCK = 256  # values in a block of either format
COLS = 512


def ternary(rng, rows, cols):
    """Random trits, about a third each, with no all-zero block: there the block's absmax is the scale."""
    t = rng.integers(-1, 2, (rows, cols)).astype(np.float32)
    assert np.abs(t.reshape(-1, BLOCK)).max(axis=1).all()
    return t


def all_patterns():
    """Six blocks in which the bytes of `qs`, taken one after another, run through all 243 groups of five trits.

    tq1_0 puts values p, p+32, p+64, p+96, p+128 of a block into byte p (p < 32), and values 160 + p, + 16, ... + 64 into
    byte 32 + p (p < 16). The last 16 values, four a byte, run through 24 of the 81 groups of four.
    """
    blocks = np.zeros((6, BLOCK), np.float32)
    for b, block in enumerate(blocks):
        for byte in range(52):
            if byte < 48:
                n, at = (48 * b + byte) % 243, [byte + 32 * i if byte < 32 else 128 + byte + 16 * i for i in range(5)]
            else:
                n, at = (4 * b + byte - 48) % 81, [240 + (byte - 48) + 4 * i for i in range(4)]
            for e in reversed(at):
                block[e] = n % 3 - 1
                n //= 3
    return blocks


def edges():
    """Four blocks: all zero (gguf stores scale 0), all -s, all +s, and one value alone at the very end."""
    s = np.float32(0.0625)
    blocks = np.zeros((4, BLOCK), np.float32)
    blocks[1], blocks[2], blocks[3, -1] = -s, s, s
    return blocks


def inputs():
    rng = np.random.Generator(np.random.PCG64(158))
    scales = rng.uniform(0.01, 0.3, (4, COLS // BLOCK)).astype(np.float32)
    return {
        # one scale, exact in f16
        "ternary": ternary(rng, 4, COLS) * np.float32(0.07421875),
        # one scale that f16 cannot hold: both formats store f16(s) = 0.07434082
        "ternary_f32": ternary(rng, 4, COLS) * np.float32(0.07435626),
        # a scale of its own for each block
        "ternary_blocks": ternary(rng, 4, COLS) * np.repeat(scales, BLOCK, axis=1),
        "patterns": all_patterns(),
        "edges": edges(),
        # ordinary weights: decoding only, for gguf takes the block's absmax as its scale
        "gauss": rng.standard_normal((8, COLS)).astype(np.float32),
    }


def make_tq():
    out = {}
    for name, x in inputs().items():
        out[f"{name}.f32"] = x
        for fmt, qtype in TYPES.items():
            out[f"{name}.{fmt}"] = q = gguf.quants.quantize(x, qtype)
            out[f"{name}.{fmt}.f32"] = gguf.quants.dequantize(q, qtype)
            assert q.dtype == np.uint8 and out[f"{name}.{fmt}.f32"].shape == x.shape
    return out


def q8_0_inputs():
    rng = np.random.Generator(np.random.PCG64(80))
    edges = np.zeros((6, 32), np.float32)
    # all zero; one value; a tie between codes (d = 1, so that x * (1 / d) = x); both extremes; tiny; large
    edges[1, 31] = -0.3
    edges[2, :6] = [127.0, 0.5, 1.5, -0.5, -2.5, 126.5]
    edges[3, :4] = [1.0, -1.0, 0.996, -0.004]
    edges[4] = rng.uniform(-1e-6, 1e-6, 32).astype(np.float32)
    edges[5] = rng.uniform(-8e6, 8e6, 32).astype(np.float32)
    return {"q8_edges": edges, "q8_gauss": rng.standard_normal((5, 96)).astype(np.float32)}


def q6_k_bytes():
    """Random superblocks: any code and any int8 scale is valid; d is a finite f16, among them 0, denormals, the largest."""
    rng = np.random.Generator(np.random.PCG64(66))
    blocks = rng.integers(0, 256, (12, 210), dtype=np.uint8)
    d = np.array([0.0, 6e-8, 1e-5, 0.001, 0.0123, -0.5, 1.0, 3.14159, 100.0, 65504.0, 2e-7, 7e-5], np.float16)
    blocks[:, 208:] = d.view(np.uint8).reshape(12, 2)
    return blocks.reshape(4, 3 * 210)


def make_blocks():
    out = {}
    for name, x in q8_0_inputs().items():
        out[f"{name}.f32"] = x
        out[f"{name}.q8_0"] = q = gguf.quants.quantize(x, Type.Q8_0)
        out[f"{name}.q8_0.f32"] = gguf.quants.dequantize(q, Type.Q8_0)
    out["q6_random.q6_k"] = q = q6_k_bytes()
    out["q6_random.q6_k.f32"] = gguf.quants.dequantize(q, Type.Q6_K)
    return out


def main():
    for name, make in {"tq": make_tq, "blocks": make_blocks}.items():
        made = {k: np.ascontiguousarray(v) for k, v in make().items()}
        file = DIR / f"{name}.safetensors"
        if "--check" in sys.argv[1:]:
            kept = load_file(file)
            wrong = sorted(set(made) ^ set(kept))
            wrong += [k for k in made if k in kept and made[k].tobytes() != kept[k].tobytes()]
            if wrong:
                sys.exit(f"{file.name} differs in {wrong}")
            continue
        DIR.mkdir(exist_ok=True)
        save_file(made, file, metadata={"gguf": "0.19.0", "made_by": "core/tests/data/make_gguf_golden.py"})
        print(f"{file}: {len(made)} tensors, {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
