// All kernels, as one module.
#include "matmul.cu"
#include "rows.cu"
#include "attention.cu"
#include "sample.cu"
#include "weights.cu"
