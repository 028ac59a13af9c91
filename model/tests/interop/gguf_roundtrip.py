#!/usr/bin/env python3
"""GGUF files of Tersor and of the `gguf` package (llama.cpp's Python code) must mean the same.

    pip install gguf==0.19.0 numpy==2.4.6

    gguf_roundtrip.py read FILE.gguf --packed model.safetensors
        Reads a tq1_0 or tq2_0 file with gguf and compares every tensor with the packed Hugging Face model it was made from:
        dequantized values equal to trit * f16(scale) bit for bit, and bytes equal to what gguf's own quantizer writes.
        (One exception: for a block of 256 zeros gguf stores scale 0. There only the codes are compared.)

    gguf_roundtrip.py write OUT.gguf --type tq2_0 --packed model.safetensors --config config.json
        Has gguf quantize and write the same model. `tersor verify OURS.gguf OUT.gguf` must then find no difference.

`read` on what `write` wrote tests this script alone. Exit status 0: all equal. 1: a difference, listed. 2: bad input.
"""

import argparse
import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

ARCH = "bitnet-b1.58"
TERNARY = {"tq1_0": Type.TQ1_0, "tq2_0": Type.TQ2_0}
FILE_TYPE = {"tq1_0": gguf.LlamaFileType.MOSTLY_TQ1_0, "tq2_0": gguf.LlamaFileType.MOSTLY_TQ2_0}
BLOCK = 256

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


class BadInput(Exception):
    """An input that is not what it should be; the message names it."""


def gguf_name(name):
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`"""
    stem, dot, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.{kind}"


def bf16_to_f32(raw):
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)


def load_packed(path):
    """{gguf name: (trits int8 [out, in], scale f32)} for ternary weights, {gguf name: f32 array} for the others."""
    data = Path(path).read_bytes()
    (n,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + n])
    header.pop("__metadata__", None)

    def tensor(name):
        entry = header[name]
        begin, end = (8 + n + o for o in entry["data_offsets"])
        if entry["dtype"] == "U8":
            return np.frombuffer(data[begin:end], np.uint8).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            return bf16_to_f32(data[begin:end]).reshape(entry["shape"])
        raise BadInput(f"{path}: tensor {name} has dtype {entry['dtype']}, expected U8 or BF16")

    weights, others = {}, {}
    for name in header:
        if name.endswith(".weight_scale"):
            continue
        x = tensor(name)
        if x.dtype == np.uint8:
            codes = np.concatenate([(x >> (2 * i)) & 3 for i in range(4)])
            if codes.max() > 2:
                raise BadInput(f"{path}: tensor {name} holds the invalid code 3")
            weights[gguf_name(name)] = codes.astype(np.int8) - 1, tensor(name + "_scale")[0]
        else:
            others[gguf_name(name)] = x
    return weights, others


def same_bits(a, b):
    return a.shape == b.shape and np.array_equal(a.astype(np.float32).view(np.uint32), b.astype(np.float32).view(np.uint32))


def zero_blocks(trits):
    """Which blocks hold nothing but zeros."""
    return ~trits.reshape(-1, BLOCK).any(axis=1)


def same_bytes(ours, trits, scale, qtype):
    """Whether the bytes are those that gguf's own quantizer writes, whatever the scale of a block of zeros."""
    size = gguf.GGML_QUANT_SIZES[qtype][1]
    a = ours.reshape(-1, size).copy()
    b = gguf.quants.quantize(trits * scale, qtype).reshape(-1, size).copy()
    for x in a, b:
        x[zero_blocks(trits), -2:] = 0  # the f16 scale stands last in either format
    return np.array_equal(a, b)


def read(args):
    weights, others = load_packed(args.packed)
    reader = gguf.GGUFReader(args.file)
    arch = reader.fields["general.architecture"].contents()
    tensors = {t.name: t for t in reader.tensors}
    wrong = [] if arch == ARCH else [f"general.architecture is {arch!r}, expected {ARCH!r}"]
    wrong += [f"{n}: missing" for n in sorted((weights.keys() | others.keys()) - tensors.keys())]
    wrong += [f"{n}: not a tensor of the model" for n in sorted(tensors.keys() - weights.keys() - others.keys())]
    kinds, blocks = set(), 0

    for name, (trits, scale) in weights.items():
        if (t := tensors.get(name)) is None:
            continue
        if t.tensor_type not in TERNARY.values():
            wrong.append(f"{name}: type {t.tensor_type.name}, expected TQ1_0 or TQ2_0")
            continue
        kinds.add(t.tensor_type.name)
        blocks += trits.size // BLOCK
        stored = np.float32(np.float16(scale))
        value = gguf.quants.dequantize(t.data, t.tensor_type)
        if not same_bits(value, trits * stored):
            at = np.argwhere(value != trits * stored) if value.shape == trits.shape else f"shape {value.shape}"
            wrong.append(f"{name}: values differ from trit * {stored}, first at {at[0] if len(at) else '(sign of zero)'}")
        elif not same_bytes(t.data, trits, scale, t.tensor_type):
            wrong.append(f"{name}: equal values, but bytes other than gguf's own quantizer writes")

    for name, x in others.items():
        if (t := tensors.get(name)) is None:
            continue
        expected = x.astype(np.float16) if t.tensor_type == Type.F16 else x
        if t.tensor_type not in (Type.F32, Type.F16, Type.BF16):
            wrong.append(f"{name}: type {t.tensor_type.name}; this comparison wants F32, F16 or BF16")
        elif not same_bits(gguf.quants.dequantize(t.data, t.tensor_type).reshape(x.shape), expected):
            wrong.append(f"{name}: {t.tensor_type.name} values differ")

    print("\n".join(wrong), end="\n" if wrong else "")
    what = f"{len(weights)} {'/'.join(sorted(kinds))} tensors ({blocks} blocks) and {len(others)} others"
    print(f"{args.file}: {what}: {'equal' if not wrong else f'{len(wrong)} differences'}")
    return 1 if wrong or not weights else 0


def write(args):
    weights, others = load_packed(args.packed)
    config = json.loads(Path(args.config).read_text())
    head = config["hidden_size"] // config["num_attention_heads"]
    w = gguf.GGUFWriter(args.file, ARCH)
    w.add_name(args.name)
    w.add_file_type(FILE_TYPE[args.type])
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_vocab_size(config["vocab_size"])
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_block_count(config["num_hidden_layers"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_head_count_kv(config["num_key_value_heads"])
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_rope_dimension_count(head)
    w.add_rope_freq_base(config["rope_theta"])
    w.add_bos_token_id(config["bos_token_id"])
    w.add_eos_token_id(config["eos_token_id"])
    for name, (trits, scale) in weights.items():
        w.add_tensor(name, gguf.quants.quantize(trits * scale, TERNARY[args.type]), raw_dtype=TERNARY[args.type])
    for name, x in others.items():
        # bf16 needs f32 or bf16 to survive; vectors are f32 in every GGUF
        kind = Type.BF16 if x.ndim == 2 else Type.F32
        w.add_tensor(name, gguf.quants.quantize(x, kind) if kind == Type.BF16 else x, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    zeros = sum(int(zero_blocks(trits).sum()) for trits, _ in weights.values())
    print(f"{args.file}: {len(weights)} {args.type} tensors ({zeros} blocks of zeros) and {len(others)} others written by gguf")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(required=True)
    for mode, run in (("read", read), ("write", write)):
        p = modes.add_parser(mode)
        p.set_defaults(run=run)
        p.add_argument("file")
        p.add_argument("--packed", required=True, metavar="model.safetensors")
        if run is write:
            p.add_argument("--type", required=True, choices=TERNARY)
            p.add_argument("--config", required=True, metavar="config.json")
            p.add_argument("--name", default="fable-26m")
    args = parser.parse_args()
    try:
        return args.run(args)
    except (BadInput, OSError, KeyError, ValueError) as e:
        print(f"gguf_roundtrip: {type(e).__name__}: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
