/* The results of responses that the controller has not consumed. */
#ifndef TR_MMAP_SENT_RESULTS_H
#define TR_MMAP_SENT_RESULTS_H

#include "native.h"

extern PyType_Spec sent_results_spec;

/* Keep all segments of a list, and empty it: the response that names them was sent, after so many others. -1 with an
 * exception. */
int sent_results_add(PyObject *results, uint64_t order, PyObject *segments);

/* Release the segments of those of the first `count` responses that were not released yet; -1 with an exception. */
int sent_results_release(PyObject *results, uint64_t count);

#endif
