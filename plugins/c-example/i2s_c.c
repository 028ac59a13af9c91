/* A backend for i2_s in one C file: quantize, dequantize, quantize_rows and matrix products on the calling host's threads.
 *
 * It is written to be read beside docs/plugin-abi.md and docs/numerics.md. The product keeps codes packed: for a block of 128
 * weights, byte j holds the codes of weights j, j + 32, j + 64 and j + 96, so that four shifts of the same bytes meet four runs
 * of 32 activations, in a loop that compilers vectorise. Codes are stored as 0, 1, 2; the sum of activations is taken off once
 * a row. Floats must not be contracted: compile with -ffp-contract=off.
 */
#include "tersor_plugin.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define TEXT(s) {(s), sizeof(s) - 1}
#define BLOCK 128
#define BLOCK_BYTES 32
#define TAIL 32

static const TersorStr GEMV = TEXT("gemv.i2_s-i8.c.4x32");
static const TersorStr GEMM = TEXT("gemm.i2_s-i8.c.4x32");
static const TersorStr ROWS = TEXT("quantize_rows.f32.c");
static const TersorStr QUANTIZE = TEXT("quantize.i2_s-f32.c");
static const TersorStr DEQUANTIZE = TEXT("dequantize.i2_s-f32.c");

typedef struct {
    TersorHost host;
} Instance;

typedef struct {
    uint64_t n, k;
    float scale;
    const uint8_t *codes; /* the host's, in place */
} Pack;

/* ---- errors ---- */

/* The fields that this file uses, not sizeof: built with a later header, it still tells an older host. */
static int has_message(const TersorError *err) {
    return err && err->struct_size >= offsetof(TersorError, message) + sizeof err->message;
}

static int32_t fail(TersorError *err, int32_t status, const char *message) {
    if (has_message(err)) {
        uint64_t len = strlen(message);
        err->message.len = len;
        if (err->message.data)
            memcpy(err->message.data, message, len < err->message.capacity ? len : err->message.capacity);
    }
    return status;
}

static int32_t not_finite(TersorError *err, uint64_t index, float value, const char *operand) {
    if (has_message(err)) {
        err->index = index;
        err->value = value;
    }
    return fail(err, TERSOR_NOT_FINITE, operand);
}

static uint32_t bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float of_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static int finite(float f) { return (bits(f) & 0x7f800000u) != 0x7f800000u; }

/* ---- work on the host's threads ---- */

static int32_t in_parallel(const Instance *self, uint64_t tasks, void (*task)(void *, uint64_t), void *data) {
    if (tasks > 1 && self->host.parallel_for)
        return self->host.parallel_for(self->host.ctx, tasks, task, data);
    for (uint64_t i = 0; i < tasks; i++)
        task(data, i);
    return TERSOR_OK;
}

/* ---- quantize: the order of the sum is that of docs/numerics.md ---- */

static float fold(float *lanes) {
    for (int half = 32; half; half /= 2)
        for (int j = 0; j < half; j++)
            lanes[j] += lanes[j + half];
    return lanes[0];
}

/* Chunks of 4,096 elements in f32 lanes, then a binary tree over chunks in f64. */
static double tree(const float *w, uint64_t len, uint64_t height) {
    uint64_t span = 4096ull << height;
    if (height == 0) {
        float lanes[64] = {0};
        for (uint64_t i = 0; i < len; i++)
            lanes[i % 64] += of_bits(bits(w[i]) & 0x7fffffffu);
        return (double)fold(lanes);
    }
    if (len <= span / 2)
        return tree(w, len, height - 1);
    return tree(w, span / 2, height - 1) + tree(w + span / 2, len - span / 2, height - 1);
}

static int32_t quantize(const TersorQuantize *a, TersorError *err) {
    const float *w = a->w.data;
    uint64_t len = a->w.len, height = 0;
    uint32_t max = 0, min = UINT32_MAX;
    for (uint64_t i = 0; i < len; i++) {
        uint32_t b = bits(w[i]) & 0x7fffffffu;
        if (b >= 0x7f800000u)
            return not_finite(err, i, w[i], "weights");
        if (b > max)
            max = b;
        if (b && b < min)
            min = b;
    }
    while ((4096ull << height) < len)
        height++;
    float scale;
    if (max && max == min) {
        scale = of_bits(max); /* ternary already: it keeps its scale */
    } else {
        scale = (float)(tree(w, len, height) / (double)len);
        if (!finite(scale))
            return not_finite(err, 0, scale, "weights");
        if (!(scale > 1e-5f))
            scale = 1e-5f;
    }
    float half = scale / 2;
    memset(a->codes.data, 0, a->codes.len);
    for (uint64_t i = 0; i < len; i++) {
        uint8_t code = w[i] > half ? 2 : w[i] < -half ? 0 : 1;
        uint64_t at = i % BLOCK;
        a->codes.data[i / BLOCK * BLOCK_BYTES + at % 32] |= (uint8_t)(code << (6 - 2 * (at / 32)));
    }
    memcpy(a->codes.data + len / 4, &scale, 4);
    return TERSOR_OK;
}

static int32_t dequantize(const TersorDequantize *a) {
    float *y = a->y.data, scale;
    uint64_t len = a->y.len;
    memcpy(&scale, a->w->codes.data + len / 4, 4);
    for (uint64_t i = 0; i < len; i++) {
        uint64_t at = i % BLOCK;
        int code = (a->w->codes.data[i / BLOCK * BLOCK_BYTES + at % 32] >> (6 - 2 * (at / 32)) & 3) - 1;
        y[i] = (float)code * scale;
    }
    return TERSOR_OK;
}

static int32_t quantize_rows(const TersorQuantizeRows *a, TersorError *err) {
    for (uint64_t r = 0; r < a->scales.len; r++) {
        const float *x = a->x.data + r * a->cols;
        uint32_t max = 0;
        for (uint64_t i = 0; i < a->cols; i++) {
            uint32_t b = bits(x[i]) & 0x7fffffffu;
            if (b >= 0x7f800000u)
                return not_finite(err, r * a->cols + i, x[i], "activations");
            if (b > max)
                max = b;
        }
        float m = of_bits(max), scale = 127.0f / (m > 1e-5f ? m : 1e-5f);
        for (uint64_t i = 0; i < a->cols; i++) {
            float rounded = x[i] * scale + 12582912.0f; /* 1.5 * 2^23: to nearest, ties to even */
            a->q.data[r * a->cols + i] = (int8_t)(int32_t)(bits(rounded) - bits(12582912.0f));
        }
        a->scales.data[r] = scale;
    }
    return TERSOR_OK;
}

/* ---- products ---- */

static int32_t dot(const uint8_t *codes, const int8_t *x, uint64_t k) {
    int32_t sum = 0;
    for (uint64_t b = 0; b < k / BLOCK; b++, codes += BLOCK_BYTES, x += BLOCK)
        for (int j = 0; j < 32; j++)
            sum += (codes[j] >> 6) * x[j] + (codes[j] >> 4 & 3) * x[j + 32] + (codes[j] >> 2 & 3) * x[j + 64] +
                   (codes[j] & 3) * x[j + 96];
    return sum;
}

typedef struct {
    const TersorMatMul *a;
    const Pack *w;
    const int32_t *x_sums;
    uint64_t m, rows;
} Product;

static void product_task(void *data, uint64_t task) {
    const Product *p = data;
    uint64_t first = task * p->rows, end = first + p->rows < p->w->n ? first + p->rows : p->w->n;
    for (uint64_t r = 0; r < p->m; r++)
        for (uint64_t c = first; c < end; c++) {
            uint64_t k = p->w->k, at = r * p->w->n + c;
            int32_t sum = dot(p->w->codes + c * (k / 4), p->a->xq.data + r * k, k) - p->x_sums[r];
            if (p->a->sums.len) {
                p->a->sums.data[at] = sum + (p->a->epilogue == TERSOR_ADD ? p->a->sums.data[at] : 0);
            } else {
                float y = (float)sum * p->w->scale / p->a->x_scales.data[r];
                p->a->y.data[at] = p->a->epilogue == TERSOR_ADD ? p->a->y.data[at] + y : y;
            }
        }
}

static int32_t matmul(const Instance *self, const TersorMatMul *a, TersorError *err) {
    const Pack *w = a->w;
    uint64_t m = a->x_scales.len, most = 1;
    int32_t *x_sums = malloc(m * sizeof *x_sums);
    if (!x_sums)
        return fail(err, TERSOR_OUT_OF_MEMORY, "no memory for the sums of activations");
    for (uint64_t r = 0; r < m; r++) {
        x_sums[r] = 0;
        for (uint64_t i = 0; i < w->k; i++)
            x_sums[r] += a->xq.data[r * w->k + i];
    }
    if (self->host.threads)
        most = self->host.threads(self->host.ctx);
    /* A task is worth its start at some 100,000 products. */
    uint64_t worth = m * w->n * w->k / 131072 + 1, tasks = worth < 4 * most ? worth : 4 * most;
    Product p = {a, w, x_sums, m, (w->n + tasks - 1) / tasks};
    int32_t status = in_parallel(self, (w->n + p.rows - 1) / p.rows, product_task, &p);
    free(x_sums);
    return status;
}

/* ---- the table ---- */

static const char CPU[] = "any processor, compiled C";

static int32_t probe(const TersorBackend *self, TersorProbe *out, TersorError *err) {
    (void)self, (void)err;
    out->devices = 1;
    return TERSOR_OK;
}

static int32_t device(const TersorBackend *self, uint32_t index, TersorDevice *out, TersorError *err) {
    (void)self;
    if (index)
        return fail(err, TERSOR_INVALID, "there is one device");
    out->kind = TERSOR_CPU;
    out->name.len = sizeof CPU - 1;
    memcpy(out->name.data, CPU, out->name.len < out->name.capacity ? out->name.len : out->name.capacity);
    return TERSOR_OK;
}

static int32_t open_(const TersorBackend *self, const TersorHost *host, const TersorOptions *options, void **out,
                     TersorError *err) {
    (void)self;
    /* Up to the last field that version 1.0 has: an older host's table may end there. */
    if (host->struct_size < offsetof(TersorHost, extension) + sizeof host->extension)
        return fail(err, TERSOR_ABI_MISMATCH, "the host's table is too short");
    if (options->isa)
        return fail(err, TERSOR_UNUSABLE, "it has no instruction set tiers; it is portable C");
    Instance *made = malloc(sizeof *made);
    if (!made)
        return fail(err, TERSOR_OUT_OF_MEMORY, "no memory for an instance");
    memset(&made->host, 0, sizeof made->host);
    memcpy(&made->host, host, host->struct_size < sizeof *host ? host->struct_size : sizeof *host);
    *out = made;
    return TERSOR_OK;
}

static void close_(void *instance) { free(instance); }

static int32_t info(void *instance, TersorInfo *out, TersorError *err) {
    (void)instance, (void)err;
    out->device = 0;
    out->isa = 0;
    return TERSOR_OK;
}

static int32_t supports(void *instance, const TersorSpec *s, TersorRan *out, TersorError *err) {
    (void)instance;
    if (s->op == TERSOR_OP_QUANTIZE_ROWS)
        return out->kernel = ROWS, TERSOR_OK;
    if (s->op != TERSOR_OP_QUANTIZE && s->op != TERSOR_OP_DEQUANTIZE && s->op != TERSOR_OP_MATMUL)
        return fail(err, TERSOR_UNSUPPORTED, "only quantize, dequantize, quantize_rows and matmul");
    if (s->format != TERSOR_I2_S)
        return fail(err, TERSOR_UNSUPPORTED, "only i2_s");
    if (s->k % BLOCK)
        return fail(err, TERSOR_UNSUPPORTED, "i2_s has rows of a multiple of 128");
    if (s->op == TERSOR_OP_QUANTIZE && s->input == TERSOR_F32)
        return out->kernel = QUANTIZE, TERSOR_OK;
    if (s->op == TERSOR_OP_DEQUANTIZE && s->output == TERSOR_F32)
        return out->kernel = DEQUANTIZE, TERSOR_OK;
    if (s->op == TERSOR_OP_MATMUL && s->input == TERSOR_I8 && (s->output == TERSOR_F32 || s->output == TERSOR_I32) &&
        !s->scale_block && s->epilogue <= TERSOR_ADD)
        return out->kernel = s->m > 1 ? GEMM : GEMV, TERSOR_OK;
    return fail(err, TERSOR_UNSUPPORTED, "not with these element types");
}

static int32_t packed_size(void *instance, uint32_t format, uint64_t rows, uint64_t cols, uint64_t *out,
                           TersorError *err) {
    (void)instance;
    if (format != TERSOR_I2_S || cols % BLOCK)
        return fail(err, TERSOR_UNSUPPORTED, "only i2_s, in rows of a multiple of 128");
    *out = rows * (cols / 4) + sizeof(Pack);
    return TERSOR_OK;
}

static int32_t pack(void *instance, const TersorWeight *w, TersorPack *out, TersorError *err) {
    int32_t status = packed_size(instance, w->format, w->rows, w->cols, &out->bytes, err);
    if (status != TERSOR_OK)
        return status;
    Pack *made = malloc(sizeof *made);
    if (!made)
        return fail(err, TERSOR_OUT_OF_MEMORY, "no memory for a pack");
    made->n = w->rows;
    made->k = w->cols;
    made->codes = w->codes.data;
    memcpy(&made->scale, w->codes.data + w->rows * (w->cols / 4), 4);
    out->handle = made;
    out->flags = TERSOR_KEEPS_CODES;
    out->packing = (TersorStr)TEXT("i2_s-in-place");
    return TERSOR_OK;
}

static uint32_t free_pack(void *instance, void *pack) {
    (void)instance;
    free(pack);
    return 0;
}

/* A stream has nothing of its own: it is the instance. */
static int32_t open_stream(void *instance, void **out, TersorError *err) {
    (void)err;
    *out = instance;
    return TERSOR_OK;
}

static void close_stream(void *stream) { (void)stream; }

static int32_t submit(void *stream, uint32_t op, const void *args, TersorRan *out, TersorError *err) {
    const Instance *self = stream;
    const TersorQuantize *q = args;
    const TersorDequantize *d = args;
    const TersorMatMul *p = args;
    switch (op) {
    case TERSOR_OP_QUANTIZE:
        if (q->format != TERSOR_I2_S || q->w.dtype != TERSOR_F32)
            break;
        out->kernel = QUANTIZE;
        return quantize(q, err);
    case TERSOR_OP_DEQUANTIZE:
        if (d->w->format != TERSOR_I2_S || d->y.dtype != TERSOR_F32)
            break;
        out->kernel = DEQUANTIZE;
        return dequantize(d);
    case TERSOR_OP_QUANTIZE_ROWS:
        out->kernel = ROWS;
        return quantize_rows(args, err);
    case TERSOR_OP_MATMUL:
        if (!p->xq.len || p->epilogue > TERSOR_ADD)
            break;
        out->kernel = p->x_scales.len > 1 ? GEMM : GEMV;
        return matmul(self, p, err);
    default:
        break;
    }
    return fail(err, TERSOR_UNSUPPORTED, "only i2_s with f32 weights and int8 activations");
}

static int32_t synchronize(void *stream, TersorError *err) {
    (void)stream, (void)err;
    return TERSOR_OK;
}

static const TersorBackend BACKEND = {
    .struct_size = sizeof(TersorBackend),
    .kernel_revision = 1,
    .id = TEXT("i2s-c"),
    .version = TEXT("0.1.0"),
    .priority = -10,
    .probe = probe,
    .device = device,
    .open = open_,
    .close = close_,
    .info = info,
    .supports = supports,
    .packed_size = packed_size,
    .pack = pack,
    .free_pack = free_pack,
    .open_stream = open_stream,
    .close_stream = close_stream,
    .submit = submit,
    .synchronize = synchronize,
};
static const TersorBackend *const BACKENDS[] = {&BACKEND};
static const TersorPlugin PLUGIN = {
    .struct_size = sizeof(TersorPlugin),
    .abi_minor = TERSOR_ABI_MINOR,
    .name = TEXT("i2s-c"),
    .version = TEXT("0.1.0"),
    .backends = BACKENDS,
    .backend_count = 1,
};

int32_t tersor_plugin_v1(const TersorHost *host, const TersorPlugin **out) {
    if (!host || !out)
        return TERSOR_ABI_MISMATCH;
    *out = &PLUGIN;
    return TERSOR_OK;
}
