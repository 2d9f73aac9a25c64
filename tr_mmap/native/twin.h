/* A mapping's copy-on-write twin: another mapping of the same part of the file, which can come to the mapping's place. What
 * refers to the place finds its own copy there then, and the mapping waits elsewhere with its pages. */
#ifndef TR_MMAP_TWIN_H
#define TR_MMAP_TWIN_H

#include "native.h"

extern PyType_Spec twin_spec;
extern const char make_twin_doc[];
PyObject *py_make_twin(PyObject *module, PyObject *arguments);

/* Whether an object is one; NULL is none. */
int is_twin(const ModuleState *state, PyObject *object);

/* Whether it is at the place. */
int twin_is_there(PyObject *twin);

/* Let the twin come to the place: 1 if it is there by now; 0 if the kernel cannot do that, or a limit forbids it, and then
 * the place is as it was. No code of Python's runs, in neither. */
int twin_come(PyObject *twin);

/* Let it go, with what was stored into it: 1 if it is not there by now; 0 if that cannot be. */
int twin_go(PyObject *twin);

#endif
