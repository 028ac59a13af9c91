"""bitnet.cpp's decode step on a GPU, of the shape of BitNet b1.58 2B-4T: its kernel for products, PyTorch between them.

That project's own glue (`gpu/model.py`) takes norms, rotation and attention from xformers. Here they are PyTorch's, compiled, with
a norm, its quantization and what comes before them in one kernel, and of three attentions the fastest. The step is one CUDA
graph with drawing (argmax) in it; keys and values are bf16, as are embedding and head. Weights are random. Attention goes over
the whole cache, which has room for the prompt and all steps, behind a mask: a third or a ninth more than is there on average.

Needs the project's gpu/bitnet_kernels built as that folder's compile.sh has it, at the path that LIBBITNET names:

  nvcc -std=c++17 -O3 --compiler-options '-fPIC' --shared -gencode=arch=compute_90,code=sm_90 -include iostream \
      -o libbitnet.so bitnet_kernels.cu

Writes peers-bitnet-step.json into the folder that OUT names.
"""

import ctypes
import json
import os
import statistics
import time

import torch
import torch.nn.functional as F

LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, DIM, VOCAB = 30, 2560, 6912, 20, 5, 128, 128256
TOKENS = 128
DEVICE = "cuda"

library = ctypes.CDLL(os.environ["LIBBITNET"])


def random(*shape):
    return torch.randn(*shape, device=DEVICE).to(torch.bfloat16)


class Linear:
    """A weight of two bits an element, whose layout is the kernel's own: random codes need none."""

    def __init__(self, n, k):
        codes = torch.randint(0, 3, (4, n, k // 4), device=DEVICE, dtype=torch.uint8)
        self.codes = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6
        self.scales = torch.full((8,), 0.02, device=DEVICE, dtype=torch.bfloat16)
        self.n, self.k = n, k

    def __call__(self, x, scale):
        y = torch.empty(1, self.n, device=DEVICE, dtype=torch.bfloat16)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, self.codes, y, scale, self.scales)]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        library.bitlinear_int8xint2(*pointers, 1, self.n, self.k, stream)
        return y


def normed(x, weight):
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def quantized(x):
    scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return (x * scale).round().clamp(-128, 127).to(torch.int8), scale.to(torch.bfloat16)


@torch.compile
def norm(x, weight):
    return quantized(normed(x, weight))


@torch.compile
def add_norm(x, y, weight):
    x = x + y
    return x, *quantized(normed(x, weight))


@torch.compile
def add_norm_only(x, y, weight):
    return normed(x + y, weight).to(torch.bfloat16)


@torch.compile
def gate_norm(x, weight):
    gate, up = x.chunk(2, -1)
    return quantized(normed(F.relu(gate).square() * up, weight))


@torch.compile
def rotate(qkv, cos, sin, position, keys, values):
    """Turns q and k, puts k and v into the cache, and gives q."""
    heads = qkv.view(HEADS + 2 * KV_HEADS, DIM)
    turned = heads[: HEADS + KV_HEADS].float()
    low, high = turned.chunk(2, -1)
    c, s = cos[position], sin[position]
    turned = torch.cat([low * c - high * s, high * c + low * s], -1).to(torch.bfloat16)
    keys[:, position] = turned[HEADS:].unsqueeze(1)
    values[:, position] = heads[HEADS + KV_HEADS :].unsqueeze(1)
    return turned[:HEADS].view(KV_HEADS, HEADS // KV_HEADS, DIM)


def mask(position, keys):
    return torch.arange(keys.shape[1], device=DEVICE) <= position


def attend_grouped(q, keys, values, position):
    """Query heads of a key/value head as its rows."""
    seen = mask(position, keys).expand(q.shape[1], -1)
    return F.scaled_dot_product_attention(q[None], keys[None], values[None], attn_mask=seen[None, None])[0]


def attend_expanded(q, keys, values, position):
    """A key/value head for each query head."""
    seen = mask(position, keys)
    q = q.view(1, HEADS, 1, DIM)
    return F.scaled_dot_product_attention(q, keys[None], values[None], attn_mask=seen[None], enable_gqa=True)


@torch.compile
def attend_compiled(q, keys, values, position):
    scores = (q.float().unsqueeze(2) * keys.float().unsqueeze(1)).sum(-1) * DIM**-0.5
    weights = torch.softmax(scores.masked_fill(~mask(position, keys), float("-inf")), -1)
    return (weights.unsqueeze(-1) * values.float().unsqueeze(1)).sum(2).to(torch.bfloat16)


class Layer:
    def __init__(self, capacity):
        self.qkv, self.out = Linear((HEADS + 2 * KV_HEADS) * DIM, HIDDEN), Linear(HIDDEN, HEADS * DIM)
        self.gate_up, self.down = Linear(2 * FFN, HIDDEN), Linear(HIDDEN, FFN)
        ones = [torch.ones(n, device=DEVICE, dtype=torch.bfloat16) for n in (HIDDEN, HIDDEN, HIDDEN, FFN)]
        self.input_norm, self.attention_norm, self.ffn_norm, self.gate_norm = ones
        self.keys, self.values = random(KV_HEADS, capacity, DIM), random(KV_HEADS, capacity, DIM)


class Model:
    def __init__(self, capacity):
        self.layers = [Layer(capacity) for _ in range(LAYERS)]
        self.embedding, self.head = random(VOCAB, HIDDEN), random(VOCAB, HIDDEN)
        self.norm = torch.ones(HIDDEN, device=DEVICE, dtype=torch.bfloat16)
        angles = torch.outer(torch.arange(capacity).float(), 500000.0 ** (-torch.arange(0, DIM, 2).float() / DIM))
        self.cos, self.sin = angles.cos().to(DEVICE), angles.sin().to(DEVICE)
        self.token = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        self.position = torch.zeros(1, dtype=torch.int64, device=DEVICE)

    def step(self, attend):
        x = self.embedding[self.token]
        y = None
        for layer in self.layers:
            if y is None:
                q, scale = norm(x, layer.input_norm)
            else:
                x, q, scale = add_norm(x, y, layer.input_norm)
            query = rotate(layer.qkv(q, scale), self.cos, self.sin, self.position, layer.keys, layer.values)
            attended = attend(query, layer.keys, layer.values, self.position)
            y = layer.out(*norm(attended.reshape(1, HEADS * DIM), layer.attention_norm))
            x, q, scale = add_norm(x, y, layer.ffn_norm)
            y = layer.down(*gate_norm(layer.gate_up(q, scale), layer.gate_norm))
        logits = F.linear(add_norm_only(x, y, self.norm), self.head)
        self.token.copy_(logits.argmax(-1))
        self.position.add_(1)
        return logits


def captured(model, attend):
    model.position.fill_(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            logits = model.step(attend)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    assert torch.isfinite(logits.float()).all()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model.step(attend)
    return graph


def rates(model, graph, prompt, read_each):
    """Tokens per second of `TOKENS` steps after `prompt` positions, in seven runs."""
    found = []
    for _ in range(8):
        model.position.fill_(prompt)
        model.token.fill_(1)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(TOKENS):
            graph.replay()
            if read_each:
                model.token.item()
        torch.cuda.synchronize()
        found.append(TOKENS / (time.perf_counter() - began))
    return found[1:]


def main():
    torch.manual_seed(0)
    out = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    out["results"] = results = []
    for prompt in (128, 512):
        model = Model(prompt + TOKENS)
        for attend in (attend_grouped, attend_expanded, attend_compiled):
            name = getattr(attend, "__name__", "attend_compiled")
            with torch.no_grad():
                graph = captured(model, attend)
                for read_each in (False, True):
                    found = rates(model, graph, prompt, read_each)
                    results.append(
                        {
                            "what": "bitnet.cpp's kernel, compiled PyTorch between, bf16 head and cache, one CUDA graph",
                            "attention": name,
                            "prompt": prompt,
                            "tokens": TOKENS,
                            "each_id_read_by_the_host": read_each,
                            "tokens_per_second": statistics.median(found),
                            "least": min(found),
                            "most": max(found),
                        }
                    )
                    print(results[-1])
            del graph
    with open(os.path.join(os.environ["OUT"], "peers-bitnet-step.json"), "w") as file:
        json.dump(out, file, indent=1)


main()
