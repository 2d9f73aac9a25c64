/* The fast paths of a pool, which those of the controller and the worker use. Creates and retires no segment. */
#ifndef TR_MMAP_FREE_LISTS_H
#define TR_MMAP_FREE_LISTS_H

#include "owner_segment.h"

/* Publish an array of the same layout as the last one, or a whole loan, and append its segment to the list `held`, if
 * that is not NULL. A new reference to the segment, held once more; None if the slow path is needed, and then nothing
 * was published; NULL with an exception. */
PyObject *quick_publish(PyObject *free_lists, PyObject *array, PyObject *held);

/* Whether quick_publish() would probably publish the array; publishes nothing. */
int can_quick_publish(PyObject *free_lists, PyObject *array);

#endif
