// bitnet.cpp's GEMV of int8 activations and 2-bit weights, timed as graph replays with weights that take turns. Needs that project's
// gpu/bitnet_kernels/bitnet_kernels.h beside it:
//
//   nvcc -O3 -std=c++17 -gencode=arch=compute_90,code=sm_90 -o bitnet bitnet.cu
//
// Writes peers-bitnet.json into the folder that OUT names.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "bitnet_kernels.h"

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        cudaError_t error = (call);                                                                                    \
        if (error != cudaSuccess) {                                                                                    \
            printf("%s: %s\n", #call, cudaGetErrorString(error));                                                      \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static uint32_t noise() {
    static uint32_t state = 7;
    state = state * 1664525u + 1013904223u;
    return state ^ (state >> 16);
}

template <class T> static T *on_device(const std::vector<T> &host) {
    T *at;
    CHECK(cudaMalloc(&at, sizeof(T) * host.size()));
    CHECK(cudaMemcpy(at, host.data(), sizeof(T) * host.size(), cudaMemcpyHostToDevice));
    return at;
}

// N x K weights of `SCALES` scales.
template <int N, int K, int SCALES> static void measure(FILE *out, bool last) {
    size_t bytes = (size_t)N * K / 4;
    int copies = (int)((200ull << 20) / bytes + 1), launches = std::max(100, copies);
    std::vector<uint32_t *> weights;
    std::vector<uint32_t> codes(bytes / 4);
    for (int i = 0; i < copies; i++) {
        for (auto &word : codes) {
            // Without the code that is none.
            word = noise();
            word &= ~((word & (word >> 1) & 0x55555555u) << 1);
        }
        weights.push_back(on_device(codes));
    }
    std::vector<int8_t> activations(K);
    for (auto &a : activations) a = (int8_t)(noise() >> 25);
    int8_t *x = on_device(activations);
    __nv_bfloat16 *scale = on_device(std::vector<__nv_bfloat16>(8, __float2bfloat16(1.0f)));
    __nv_bfloat16 *y = on_device(std::vector<__nv_bfloat16>(N));
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < launches; i++)
        ladder_int8xint2_kernel<1, N, K, SCALES, 8, 16>
            <<<N / 16, dim3(8, 16, 1), 0, stream>>>(x, (int8_t *)weights[i % copies], y, scale, scale);
    CHECK(cudaGetLastError());
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    std::vector<double> seconds;
    for (int i = 0; i < 25; i++) {
        float ms;
        CHECK(cudaEventRecord(begin, stream));
        CHECK(cudaGraphLaunch(exec, stream));
        CHECK(cudaEventRecord(end, stream));
        CHECK(cudaEventSynchronize(end));
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        if (i > 3) seconds.push_back(ms / launches * 1e-3);
    }
    std::sort(seconds.begin(), seconds.end());
    double median = seconds[seconds.size() / 2], rate = bytes / median / 1e9;
    printf("bitnet.cpp %dx%d: %.2f us, %.0f GB/s\n", N, K, median * 1e6, rate);
    fprintf(out,
            "{\"what\": \"bitnet.cpp int8 x int2 GEMV\", \"m\": 1, \"n\": %d, \"k\": %d, \"median_s\": %.9g, \"least_s\": %.9g, "
            "\"most_s\": %.9g, \"weight_bytes\": %zu, \"weights_gb_per_s\": %.5g, "
            "\"timed\": \"events around a graph of %d launches, %d weights in turn\"}%s\n",
            N, K, median, seconds.front(), seconds.back(), bytes, rate, launches, copies, last ? "" : ",");
    for (auto at : weights) CHECK(cudaFree(at));
}

int main() {
    const char *folder = getenv("OUT");
    FILE *out = fopen((std::string(folder ? folder : ".") + "/peers-bitnet.json").c_str(), "w");
    if (!out) return 1;
    fprintf(out, "[\n");
    measure<2560, 2560, 1>(out, false);
    measure<3840, 2560, 6>(out, false);
    measure<13824, 2560, 2>(out, false);
    measure<2560, 6912, 1>(out, false);
    measure<20480, 3200, 2>(out, false);
    measure<55296, 5120, 1>(out, true);
    fprintf(out, "]\n");
    fclose(out);
}
