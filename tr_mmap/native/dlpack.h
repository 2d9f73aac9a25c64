/* What DLPack 1.x says of the memory that frameworks hand to each other: the part that torch's tensors need here.
 * https://dmlc.github.io/dlpack/latest/c_api.html has it all. Its structures are not ours to change. */
#ifndef TR_MMAP_DLPACK_H
#define TR_MMAP_DLPACK_H

#include <stdint.h>

enum { DLPACK_MAJOR = 1, DLPACK_CPU = 1, DLPACK_COMPLEX = 5 };

typedef struct {
    uint8_t code, bits;
    uint16_t lanes;
} DLDataType;

typedef struct {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape, *strides; /* in elements */
    uint64_t byte_offset;
} DLTensor;

typedef struct {
    uint32_t major, minor;
} DLPackVersion;

typedef struct DLManagedTensorVersioned {
    DLPackVersion version;
    void *manager_ctx;
    void (*deleter)(struct DLManagedTensorVersioned *self); /* called by any thread, when the tensor has gone */
    uint64_t flags;
    DLTensor dl_tensor;
} DLManagedTensorVersioned;

/* What a framework's type gives in a capsule, as its attribute __dlpack_c_exchange_api__. */
typedef struct {
    DLPackVersion version;
    void *earlier;
    void *allocate;
    void *managed_from_object;
    /* 0, and a new object, which owns the managed tensor; else an exception */
    int (*managed_to_object)(DLManagedTensorVersioned *managed, void **object);
    /* 0, and what an object shows at this moment; else an exception */
    int (*look_at_object)(void *object, DLTensor *seen);
} DLPackExchange;

#endif
