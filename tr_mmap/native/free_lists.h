/* The fast paths of a pool, which those of the controller and the worker use. Creates and retires no segment. */
#ifndef TR_MMAP_FREE_LISTS_H
#define TR_MMAP_FREE_LISTS_H

#include "owner_segment.h"

/* Whether __init__ has run; if not, with an exception. */
int free_lists_is_initialised(PyObject *free_lists);

/* Publish all arrays of a tuple, each of the layout that some free segment had last, or a whole loan, and append their
 * segments, held once more each, to a list in one step: 1 if that is done; 0 if the slow path is needed, -1 with an
 * exception. Then nothing was appended, and nothing was copied unless there is an exception, or an array was changed
 * while another was copied.
 *
 * For a tensor of another pool that `links` has a name for, the list gets its view; see find_link(). `links` may be NULL. */
int quick_publish_all(PyObject *free_lists, PyObject *arrays, PyObject *held, PyObject *links);

/* The arrays of a tuple of tensors, for quick_publish_all(); NULL if the slow path is needed, or with an exception. Torch
 * may run code of Python's and let other threads run, so whatever must not change until all is published is looked at
 * after this. */
PyObject *arrays_to_publish(PyObject *free_lists, PyObject *tensors);

#endif
