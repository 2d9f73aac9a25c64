/* The one function of a compiled algorithm: a shared library for the kind "native", or a WebAssembly module for the
 * kind "wasm". Plain C99, no library needed.
 *
 *     #include "tr_algorithm.h"
 *
 *     TR_EXPORT int tr_run(const tr_tensor *in, size_t n, tr_tensor *out, size_t m, char *error, size_t error_nbytes) {
 *         if (n != 1 || in[0].dtype != TR_FLOAT32) return tr_fail(error, error_nbytes, "one float32 tensor, please");
 *         float *y = tr_make(&out[0], TR_FLOAT32, in[0].ndim, in[0].shape);
 *         if (!y) return tr_fail(error, error_nbytes, "no room for the result");
 *         for (uint64_t i = 0; i < in[0].nbytes / 4; i++) y[i] = 2 * ((const float *)in[0].data)[i];
 *         return 0;
 *     }
 */
#ifndef TR_ALGORITHM_H
#define TR_ALGORITHM_H

#include <stddef.h>
#include <stdint.h>

#if defined(__wasm__)
#define TR_EXPORT_NAME(name) __attribute__((visibility("default"), export_name(name)))
#else
#define TR_EXPORT_NAME(name) __attribute__((visibility("default")))
#endif
#ifdef __cplusplus
#define TR_EXPORT extern "C" TR_EXPORT_NAME("tr_run")
#else
#define TR_EXPORT TR_EXPORT_NAME("tr_run")
#endif

enum { TR_MAX_NDIM = 16, TR_SYSTEM_ERROR = 0x10000 };

/* The dtype codes of TSR files. */
enum {
    TR_FLOAT32 = 1, TR_INT8 = 2, TR_INT32 = 3, TR_FLOAT16 = 4, TR_BFLOAT16 = 5, TR_FLOAT64 = 6, TR_INT16 = 7, TR_UINT8 = 8,
};

/* The layout is the same with pointers of 4 bytes and of 8 bytes. */
typedef struct tr_tensor {
    int32_t dtype;
    int32_t ndim;
    int64_t shape[TR_MAX_NDIM]; /* outermost first; the elements lie in C order */
    uint64_t nbytes;            /* of an input: of its elements; of an output: what may be written at most, then of its elements */
    union {
        void *data; /* of an input: read-only */
        uint64_t data_word;
    };
    union {
        const char *name; /* by which the caller knows it */
        uint64_t name_word;
    };
} tr_tensor;

/* Bytes of one element; 0 if there is no such type. All codes of TSR files are known, also those above 8. */
static inline uint64_t tr_itemsize(int32_t dtype) {
    static const unsigned char sizes[] = {0, 4, 1, 4, 2, 2, 8, 2, 1};
    return dtype > 0 && dtype < (int32_t)sizeof sizes ? sizes[dtype] : 0;
}

/* Set an output's type and shape; returns where to write its elements, or a null pointer if there is no room. */
static inline void *tr_make(tr_tensor *out, int32_t dtype, int32_t ndim, const int64_t *shape) {
    uint64_t nbytes = tr_itemsize(dtype);
    if (nbytes == 0 || ndim < 0 || ndim > TR_MAX_NDIM) return 0;
    for (int32_t i = 0; i < ndim; i++) {
        if (shape[i] < 0 || (shape[i] != 0 && nbytes > out->nbytes / (uint64_t)shape[i])) return 0;
        nbytes *= (uint64_t)shape[i];
        out->shape[i] = shape[i];
    }
    out->dtype = dtype;
    out->ndim = ndim;
    out->nbytes = nbytes;
    return out->data;
}

/* Set the error's text; returns 1, for tr_run to return. */
static inline int tr_fail(char *error, size_t error_nbytes, const char *text) {
    size_t i = 0;
    for (; error_nbytes != 0 && i + 1 < error_nbytes && text[i] != 0; i++) error[i] = text[i];
    if (error_nbytes != 0) error[i] = 0;
    return 1;
}

/* As tr_fail, after a system call has failed with an errno: the caller gets the error that fits, for example NotAllowed
 * with the rule that refused it. */
static inline int tr_fail_system(char *error, size_t error_nbytes, const char *text, int code) {
    tr_fail(error, error_nbytes, text);
    return code > 0 ? TR_SYSTEM_ERROR + code : 1;
}

#endif /* TR_ALGORITHM_H */
