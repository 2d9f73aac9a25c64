/* Torch's tensors over the memory of arrays, and back. Knows torch only as Python does: what it calls, Python has handed
 * over (see learn_torch). Copies nothing. */
#ifndef TR_MMAP_TORCH_TENSORS_H
#define TR_MMAP_TORCH_TENSORS_H

#include "arrays.h"

typedef enum { FRAMEWORK_NUMPY, FRAMEWORK_TORCH, FRAMEWORKS } Framework; /* FRAMEWORKS stands for any other, too */

/* The framework that a name means; NULL means none. */
Framework framework_of(const ModuleState *state, PyObject *name);

extern const char learn_torch_doc[];
PyObject *py_learn_torch(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

/* Whether an object is a tensor, of no subclass. */
int is_torch_tensor(const ModuleState *state, PyObject *object);

/* A tensor over an array's memory, which keeps the array alive; takes over the reference to the array, also when it
 * fails. NULL if the slow path is needed, or with an exception. */
PyObject *torch_tensor_of(const ModuleState *state, PyObject *array);

/* The same for a received one, or a copy of it. It is no inference tensor, whatever mode this thread is in: it may be
 * another thread's. */
PyObject *torch_tensor_received(const ModuleState *state, PyObject *array, int is_copy);

/* An array itself, or one of the numpy dtype of ours over the memory of a torch tensor, which it keeps alive; a new
 * reference. NULL if the slow path is needed, or with an exception. `torch_loans` has the large loans of torch's; a small
 * one is copied as any other tensor: that takes less time than to make its memory copy-on-write. */
PyObject *array_of_tensor(const ModuleState *state, PyObject *tensor, PyObject *torch_loans);

/* The same of all in a tuple. */
PyObject *arrays_of_tensors(const ModuleState *state, PyObject *tensors, PyObject *torch_loans);

/* Note a loan, as TorchLoans of shm/loans.py does; `root` is the array that its storage keeps. -1 with an exception. */
int note_torch_loan(const ModuleState *state, PyObject *torch_loans, const void *address, PyObject *tensor, PyObject *root);

/* The module's state: Python has told nothing before learn_torch() was called. */
int torch_facts_traverse(const TorchFacts *facts, visitproc visit, void *arg);
void torch_facts_clear(TorchFacts *facts);

#endif
