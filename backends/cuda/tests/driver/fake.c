/* A driver whose device is host memory and whose kernels do nothing. It fails where FAKE_FAIL says so:
 *
 *   FAKE_FAIL=NAME:CODE:FIRST   calls of NAME fail with CODE from the FIRST one on (from 1); `*` is every function
 *   FAKE_VERSION, FAKE_CAPABILITIES ("9,7": the major compute capability of each device), FAKE_MEMORY (bytes of a device)
 *   FAKE_CLUSTERS (of sixteen blocks, that run at a time)
 *   FAKE_COUNT=FILE             the number of calls is written there at the end
 *   FAKE_LOG=FILE               every call is written there at once, a line each, some with what they were about
 *
 * Of some kernels it does a part: `publish`, which brings bytes and the fault word to the host; `quantize_rows` and `sample`, of
 * which it sees whether the first element is NaN; and `sample` publishes too where it is told to, though it draws nothing. They
 * run when they are launched.
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long calls, named;

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("FAKE_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file) { fprintf(file, "%ld", calls); fclose(file); }
}

/* Adds to the line of the call that runs. */
static void say(const char *format, ...) {
    static FILE *log;
    const char *path = getenv("FAKE_LOG");
    if (!log && path) log = fopen(path, "a");
    if (!log) return;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(log, format, arguments);
    va_end(arguments);
    fflush(log);
}

static int fails(const char *name) {
    const char *spec = getenv("FAKE_FAIL");
    calls++;
    say("\n%s", name);
    if (!spec) return 0;
    size_t len = strcspn(spec, ":");
    int all = len == 1 && *spec == '*';
    if (!all && (strlen(name) != len || strncmp(spec, name, len))) return 0;
    int code = 0;
    long first = 1;
    sscanf(spec + len, ":%d:%ld", &code, &first);
    return (all ? calls : ++named) >= first ? code : 0;
}

#define FN(name, ...) int name(__VA_ARGS__) { int failed = fails(#name); if (failed) return failed;
#define END return 0; }

static long number(const char *variable, long otherwise) {
    const char *text = getenv(variable);
    return text ? atol(text) : otherwise;
}

static int capability(int device) {
    const char *text = getenv("FAKE_CAPABILITIES");
    for (text = text ? text : "9"; device > 0 && text; device--) { text = strchr(text, ','); text = text ? text + 1 : NULL; }
    return text ? atoi(text) : 0;
}

static long used;
static long memory(void) { return number("FAKE_MEMORY", 1l << 30); }
/* A handle that is not null. */
static char handle;

int cuGetErrorString(int code, const char **text) { *text = code == 2 ? "out of memory" : "made to fail"; return 0; }

FN(cuDriverGetVersion, int *version) *version = (int)number("FAKE_VERSION", 12090); END
#ifndef STUB
FN(cuInit, unsigned flags) END
FN(cuDeviceGetCount, int *count) for (*count = 0; capability(*count); ++*count) {} END
FN(cuDeviceGet, int *device, int ordinal) if (!capability(ordinal)) return 101; *device = ordinal; END
FN(cuDeviceGetName, char *name, int len, int device) snprintf(name, len, "Fake %d", device); END
FN(cuDeviceTotalMem_v2, size_t *bytes, int device) *bytes = memory(); END
FN(cuDeviceGetAttribute, int *value, int attribute, int device)
    *value = attribute == 75 ? capability(device) : attribute == 76 ? 0 : attribute == 16 ? 132 : 232448;
END
FN(cuDevicePrimaryCtxRetain, void **context, int device) *context = &handle; END
FN(cuDevicePrimaryCtxRelease_v2, int device) END
FN(cuCtxSetCurrent, void *context) END
FN(cuStreamCreate, void **stream, unsigned flags) *stream = &handle; END
FN(cuStreamDestroy_v2, void *stream) END
FN(cuStreamSynchronize, void *stream) END
FN(cuStreamWaitEvent, void *stream, void *event, unsigned flags) END
FN(cuEventCreate, void **event, unsigned flags) *event = &handle; END
FN(cuEventDestroy_v2, void *event) END
FN(cuEventRecord, void *event, void *stream) END
FN(cuEventSynchronize, void *event) END
FN(cuModuleLoadData, void **module, const void *image)
    say(" %s", memcmp(image, "\177ELF", 4) ? "PTX" : "cubin");
    *module = &handle;
END
FN(cuModuleUnload, void *module) END
/* The handle of a kernel is its name. */
FN(cuModuleGetFunction, void **function, void *module, const char *name)
    say(" %s", name);
    *function = strdup(name);
END
FN(cuFuncSetAttribute, void *function, int attribute, int value) END
FN(cuOccupancyMaxActiveClusters, int *clusters, void *function, const void *config) *clusters = (int)number("FAKE_CLUSTERS", 8); END
struct node { const char *name; uint64_t arguments[13]; };
/* Room for the longest sequence that the backend makes a graph of. */
struct graph { long count; struct node nodes[256]; };
static struct graph *captured;

/* Every argument lies in eight bytes of its own. */
static struct node node(void *function, void **arguments) {
    struct node n = { function };
    int count = !strcmp(n.name, "publish") ? 5 : !strcmp(n.name, "quantize_rows") ? 7 : !strcmp(n.name, "sample") ? 13 : 0;
    for (int i = 0; i < count; i++) n.arguments[i] = *(uint64_t *)arguments[i];
    return n;
}

/* The word, its flag and the number of the op begin at `fault`. */
static void raise_nan(const float *first, const uint64_t *fault) {
    uint64_t *word = (uint64_t *)fault[0];
    if (*first == *first) return;
    if (fault[2] << 44 < *word) *word = fault[2] << 44;
    *(uint32_t *)fault[1] = 1;
}

static void bring(const char *kernel, uint64_t from, uint32_t bytes, uint64_t to, uint64_t key, uint64_t word) {
    memcpy((void *)to, (void *)from, bytes);
    *(uint64_t *)key = *(uint64_t *)word;
    *(uint64_t *)word = ~0ull;
    say("\npublished %u by %s", bytes, kernel);
}

static void work(struct node *n) {
    uint64_t *a = n->arguments;
    if (!strcmp(n->name, "publish")) bring(n->name, a[0], (uint32_t)a[1], a[2], a[3], a[4]);
    else if (!strcmp(n->name, "quantize_rows")) raise_nan((float *)a[0], a + 4);
    else if (!strcmp(n->name, "sample")) {
        raise_nan((float *)a[0], a + 8);
        if (a[11]) bring(n->name, a[7], 4, a[11], a[12], a[8]);
    }
}

FN(cuLaunchKernelEx, const void *config, void *function, void **arguments, void **extra)
    say(" %s%s", (char *)function, captured ? ", captured" : "");
    struct node n = node(function, arguments);
    if (!captured) work(&n);
    else if (captured->count < 256) captured->nodes[captured->count++] = n;
    else return 1;
END
FN(cuStreamBeginCapture_v2, void *stream, int mode) captured = calloc(1, sizeof *captured); END
FN(cuStreamEndCapture, void *stream, void **graph) *graph = captured; captured = NULL; END
FN(cuStreamGetCaptureInfo_v2, void *stream, int *status, uint64_t *id, void **graph, const void ***nodes, size_t *count)
    static const void *last;
    last = captured ? &captured->nodes[captured->count - 1] : NULL;
    *nodes = &last;
    *count = 1;
END
FN(cuGraphInstantiateWithFlags, void **exec, void *graph, unsigned long long flags) *exec = graph; END
/* The function comes first, the arguments after it and seven numbers. */
FN(cuGraphExecKernelNodeSetParams_v2, void *exec, struct node *of, const char *parameters)
    say(" %s", of->name);
    *of = node(*(void **)parameters, *(void ***)(parameters + 40));
END
FN(cuGraphLaunch, struct graph *exec, void *stream)
    say(" %ld", exec->count);
    for (long i = 0; i < exec->count; i++) work(&exec->nodes[i]);
END
FN(cuGraphExecDestroy, void *exec) END
FN(cuGraphDestroy, void *graph) free(graph); END

/* The size lies before the memory. */
FN(cuMemAlloc_v2, uint64_t *at, size_t bytes)
    if (bytes > (size_t)(memory() - used)) return 2;
    size_t *block = calloc(1, bytes + 64);
    if (!block) return 2;
    *block = bytes;
    used += bytes;
    *at = (uint64_t)block + 64;
END
FN(cuMemFree_v2, uint64_t at) size_t *block = (size_t *)(at - 64); used -= *block; free(block); END
FN(cuMemGetInfo_v2, size_t *free, size_t *total) *total = memory(); *free = memory() - used; END
FN(cuMemHostAlloc, void **at, size_t bytes, unsigned flags) *at = aligned_alloc(64, (bytes + 63) / 64 * 64); if (!*at) return 2; END
FN(cuMemFreeHost, void *at) free(at); END
FN(cuMemHostGetDevicePointer_v2, uint64_t *address, void *at, unsigned flags) *address = (uint64_t)at; END
FN(cuPointerGetAttributes, unsigned count, int *attributes, void **values, uint64_t at) END
FN(cuMemcpyHtoDAsync_v2, uint64_t to, const void *from, size_t bytes, void *stream) say(" %zu", bytes); memcpy((void *)to, from, bytes); END
FN(cuMemcpyDtoHAsync_v2, void *to, uint64_t from, size_t bytes, void *stream) say(" %zu", bytes); memcpy(to, (void *)from, bytes); END
FN(cuMemcpyDtoDAsync_v2, uint64_t to, uint64_t from, size_t bytes, void *stream) say(" %zu", bytes); memcpy((void *)to, (void *)from, bytes); END
FN(cuMemsetD8Async, uint64_t at, unsigned char byte, size_t bytes, void *stream) memset((void *)at, byte, bytes); END
#endif
