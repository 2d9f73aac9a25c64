/* A mapping's copy-on-write twin: another mapping of the same part of the file. The two change places, so that what refers
 * to the place finds its own copy there, and the first mapping keeps its pages meanwhile. */
#ifndef TR_MMAP_TWIN_H
#define TR_MMAP_TWIN_H

#include "native.h"

extern PyType_Spec twin_spec;
extern const char make_twin_doc[];
PyObject *py_make_twin(PyObject *module, PyObject *arguments);

/* Whether an object is one; NULL is none. */
int is_twin(const ModuleState *state, PyObject *object);

/* Let the twin come to the place, or go, and forget what was stored into it. 1 if it is there, or not, by now; 0 if the
 * kernel cannot do that, and then nothing has changed. No code of Python's runs. */
int twin_come(PyObject *twin);
int twin_go(PyObject *twin);

#endif
