"""Peers on a GPU: cuBLAS (bf16, through PyTorch) on the linear layers of BitNet b1.58 2B-4T, and PyTorch's own quantization.

Each figure is the median of graph replays between two events. The weights of 30 layers take turns, so that none is in a cache.
Writes peers-torch.json into the folder that OUT names.
"""

import json
import os
import statistics

import torch

LAYERS = 30
SEPARATE = [
    ("q", 2560, 2560),
    ("k", 640, 2560),
    ("v", 640, 2560),
    ("o", 2560, 2560),
    ("gate", 6912, 2560),
    ("up", 6912, 2560),
    ("down", 2560, 6912),
]
FUSED = [("qkv", 3840, 2560), ("o", 2560, 2560), ("gate_up", 13824, 2560), ("down", 2560, 6912)]
ELEMENTS = 1 << 28


def captured(work):
    """A graph of what `work` launches, warm."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
        work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def timed(work, times, rounds=21):
    """Median, least and most seconds of one of the `times` things that `work` does."""
    seconds = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3 / times)
    seconds = seconds[3:]
    return {"median_s": statistics.median(seconds), "least_s": min(seconds), "most_s": max(seconds)}


def random(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device="cuda", dtype=dtype)


def copy_rate():
    x = random(ELEMENTS, dtype=torch.float32)
    y = torch.empty_like(x)
    graph = captured(lambda: [y.copy_(x) for _ in range(5)])
    return 8 * ELEMENTS / timed(graph.replay, 5)["median_s"] / 1e9


def linear_layers(m, name, shapes, results):
    layers = [[random(n, k) for _, n, k in shapes] for _ in range(LAYERS)]
    xs = {k: random(m, k) for k in (2560, 6912)}
    ys = {n: torch.empty(m, n, device="cuda", dtype=torch.bfloat16) for _, n, _ in shapes}

    def multiply(which):
        for layer in layers:
            for i in which:
                _, n, k = shapes[i]
                torch.mm(xs[k], layer[i].t(), out=ys[n])

    graph = captured(lambda: multiply(range(len(shapes))))
    what = f"cuBLAS bf16, the linear layers of {LAYERS} layers of 2B-4T, {name}"
    results.append({"what": what, "m": m, **timed(graph.replay, 1)})
    print(results[-1])
    for i, (part, n, k) in enumerate(shapes):
        graph = captured(lambda: multiply([i]))
        times = timed(graph.replay, LAYERS, 12)
        results.append({"what": "cuBLAS bf16", "name": part, "m": m, "n": n, "k": k, **times})


def large_product(n, k):
    copies = max(2, (200 << 20) // (2 * n * k) + 1)
    weights = [random(n, k) for _ in range(copies)]
    x, y = random(1, k), torch.empty(1, n, device="cuda", dtype=torch.bfloat16)
    graph = captured(lambda: [torch.mm(x, w.t(), out=y) for w in weights])
    return {"what": "cuBLAS bf16", "m": 1, "n": n, "k": k, **timed(graph.replay, copies, 12)}


def packed(w, scale):
    codes = ((w / scale).round().clamp(-1, 1).to(torch.int8) + 1).view(-1, 4)
    return codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]


def per_tensor(w):
    return packed(w, w.abs().mean().clamp(min=1e-5))


def per_group(w):
    groups = w.view(-1, 128)
    return packed(groups, groups.abs().mean(1, keepdim=True).clamp(min=1e-5))


def quantization(what, quantize):
    w = random(ELEMENTS, dtype=torch.float32)
    times = timed(lambda: quantize(w), 1, 12)
    result = {"what": what, "elements": ELEMENTS, "gelem_per_s": ELEMENTS / times["median_s"] / 1e9, **times}
    print(result)
    return result


def main():
    torch.manual_seed(0)
    out = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    out["copy_gb_per_s"] = copy_rate()
    out["results"] = results = []
    for m in (512, 128, 1):
        for name, shapes in (("separate", SEPARATE), ("fused", FUSED)):
            linear_layers(m, name, shapes, results)
            torch.cuda.empty_cache()
    results += [large_product(20480, 3200), large_product(55296, 5120)]
    for how, compiled in (("eager", lambda f: f), ("torch.compile", torch.compile)):
        results.append(quantization(f"PyTorch {how}, quantize f32 per tensor and pack", compiled(per_tensor)))
        results.append(quantization(f"PyTorch {how}, quantize f32 in groups of 128 and pack", compiled(per_group)))
    with open(os.path.join(os.environ["OUT"], "peers-torch.json"), "w") as file:
        json.dump(out, file, indent=1)


main()
