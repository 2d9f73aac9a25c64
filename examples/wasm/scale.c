/* y = 2 * x, of float32 tensors of any shape: an algorithm for Sandbox("wasm"). See scale.py. */
#include "tr_algorithm.h"

TR_EXPORT int tr_run(const tr_tensor *in, size_t n, tr_tensor *out, size_t m, char *error, size_t error_nbytes) {
    if (n != 1 || m != 1 || in[0].dtype != TR_FLOAT32) return tr_fail(error, error_nbytes, "one float32 tensor, please");
    const float *x = in[0].data;
    float *y = tr_make(&out[0], TR_FLOAT32, in[0].ndim, in[0].shape);
    if (!y) return tr_fail(error, error_nbytes, "no room for the result");
    for (uint64_t i = 0; i < in[0].nbytes / sizeof *x; i++) y[i] = 2 * x[i];
    return 0;
}
