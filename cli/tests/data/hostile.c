/* The C example gone wrong in the way that -DCASE names. */
#define tersor_plugin_v1 honest_plugin
#include "i2s_c.c"
#include <stdio.h>
#undef tersor_plugin_v1

#define SEGFAULT 1
#define ILLEGAL 2
#define LOOP 3
#define EXIT 4
#define NULL_TABLE 5
#define SHORT 6
#define STATUS 7
#define WRONG 8
#define LYING 9
#define NULL_FUNCTION 10
#define NOISY 11
#define DEAF 12

TERSOR_EXPORT int32_t tersor_plugin_v1(const TersorHost *host, const TersorPlugin **out);

static TersorBackend changed;
static const TersorBackend *const changed_list[] = {&changed};
static TersorPlugin changed_plugin;

static inline int32_t wrong_submit(void *stream, uint32_t op, const void *args, TersorRan *out, TersorError *err) {
    int32_t status = submit(stream, op, args, out, err);
    const TersorMatMul *p = args;
    if (status == TERSOR_OK && op == TERSOR_OP_MATMUL && p->y.len > 4)
        p->y.data[4] += 1.0f;
    return status;
}

static inline int32_t lying_supports(void *instance, const TersorSpec *s, TersorRan *out, TersorError *err) {
    (void)instance, (void)s, (void)err;
    out->kernel = GEMV;
    return TERSOR_OK;
}

/* Takes no notice when the host's threads fail. */
static inline int32_t deaf_submit(void *stream, uint32_t op, const void *args, TersorRan *out, TersorError *err) {
    int32_t status = submit(stream, op, args, out, err);
    return op == TERSOR_OP_MATMUL && status == TERSOR_INTERNAL ? TERSOR_OK : status;
}

int32_t tersor_plugin_v1(const TersorHost *host, const TersorPlugin **out) {
    int32_t status = honest_plugin(host, out);
    changed = BACKEND;
    changed_plugin = PLUGIN;
    changed_plugin.backends = changed_list;
    *out = &changed_plugin;
#if CASE == SEGFAULT
    *(volatile int *)8 = 0;
#elif CASE == ILLEGAL
    __builtin_trap();
#elif CASE == LOOP
    for (volatile int i = 0;; i++)
        ;
#elif CASE == EXIT
    exit(0);
#elif CASE == NULL_TABLE
    *out = NULL;
#elif CASE == SHORT
    changed.struct_size = 40;
#elif CASE == STATUS
    status = 4711;
#elif CASE == WRONG
    changed.submit = wrong_submit;
#elif CASE == LYING
    changed.supports = lying_supports;
#elif CASE == DEAF
    changed.submit = deaf_submit;
#elif CASE == NULL_FUNCTION
    changed.pack = NULL;
#elif CASE == NOISY
    /* In its probe only: nobody wants to read this in a test's output. */
    char call[4096] = {0};
    FILE *file = fopen("/proc/self/cmdline", "r");
    size_t len = file ? fread(call, 1, sizeof call - 1, file) : 0;
    for (size_t i = 0; i < len; i++)
        call[i] = call[i] ? call[i] : ' ';
    if (strstr(call, "probe-child"))
        for (int i = 0; i < 4 << 20; i += 64)
            fputs("noise noise noise noise noise noise noise noise noise noise 64\n", stderr);
#endif
    return status;
}
