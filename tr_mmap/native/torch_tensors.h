/* Torch's tensors over the memory of arrays, and back. Knows torch only as Python does: what it calls, Python has handed
 * over (see learn_torch). Copies nothing. */
#ifndef TR_MMAP_TORCH_TENSORS_H
#define TR_MMAP_TORCH_TENSORS_H

#include "arrays.h"

extern const char learn_torch_doc[];
PyObject *py_learn_torch(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

/* Whether an object is a tensor, of no subclass. */
int is_torch_tensor(const ModuleState *state, PyObject *object);

/* A tensor over an array's memory, which keeps the array alive; takes over the reference to the array, also when it
 * fails. NULL if the slow path is needed, or with an exception. */
PyObject *torch_tensor_of(const ModuleState *state, PyObject *array);

/* An array of the numpy dtype of ours over a tensor's memory, which keeps the tensor alive; NULL if the slow path is
 * needed, or with an exception. `address`, which may be NULL, gets that of the storage. */
PyObject *array_of_torch_tensor(const ModuleState *state, PyObject *tensor, uint64_t *address);

/* What tells a tensor's storage from all others that live; NULL with an exception. */
PyObject *torch_storage_identity(const ModuleState *state, PyObject *tensor);

/* The module's state: Python has told nothing before learn_torch() was called. */
int torch_facts_traverse(const TorchFacts *facts, visitproc visit, void *arg);
void torch_facts_clear(TorchFacts *facts);

#endif
