#!/usr/bin/env python3
"""Makes gguf/tq.safetensors: tq1_0 and tq2_0 bytes written, and read back, by the `gguf` package.

    python3 -m venv venv && venv/bin/pip install gguf==0.19.0 numpy==2.4.6 safetensors==0.8.0
    venv/bin/python core/tests/data/make_gguf_golden.py            # writes the file
    venv/bin/python core/tests/data/make_gguf_golden.py --check    # or fails when it would differ

README.md beside the file says what each tensor is for.
"""

import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file, save_file

FILE = Path(__file__).parent / "gguf" / "tq.safetensors"
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


def make():
    out = {}
    for name, x in inputs().items():
        out[f"{name}.f32"] = x
        for fmt, qtype in TYPES.items():
            out[f"{name}.{fmt}"] = q = gguf.quants.quantize(x, qtype)
            out[f"{name}.{fmt}.f32"] = gguf.quants.dequantize(q, qtype)
            assert q.dtype == np.uint8 and out[f"{name}.{fmt}.f32"].shape == x.shape
    return {k: np.ascontiguousarray(v) for k, v in out.items()}


def main():
    made = make()
    if "--check" in sys.argv[1:]:
        kept = load_file(FILE)
        wrong = sorted(set(made) ^ set(kept)) + [k for k in made if k in kept and made[k].tobytes() != kept[k].tobytes()]
        sys.exit(f"{FILE.name} differs in {wrong}" if wrong else 0)
    FILE.parent.mkdir(exist_ok=True)
    save_file(made, FILE, metadata={"gguf": "0.19.0", "made_by": "core/tests/data/make_gguf_golden.py"})
    print(f"{FILE}: {len(made)} tensors, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
