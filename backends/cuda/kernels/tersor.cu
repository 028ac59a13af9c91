// All kernels, as one module.
#include "matmul.cu"
#include "rows.cu"
#include "fused.cu"
#include "attention.cu"
#include "decode_attention.cu"
#include "sample.cu"
#include "weights.cu"
#include "batch.cu"
