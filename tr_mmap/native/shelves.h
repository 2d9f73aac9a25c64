/* The short cuts of a pool. */
#ifndef TR_MMAP_SHELVES_H
#define TR_MMAP_SHELVES_H

#include "owned.h"

/* Publish an array that is like the last one, or a loan as it was handed out: its segment, held once more; None if that
 * needs more thought; NULL with an exception. */
PyObject *publish_again(PyObject *shelves, PyObject *array);

/* Whether that is to be expected, without doing it. */
int may_publish_again(PyObject *shelves, PyObject *array);

#endif
