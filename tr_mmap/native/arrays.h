/* Arrays over a segment's payload, and the types of segments. Reads and writes no header. */
#ifndef TR_MMAP_ARRAYS_H
#define TR_MMAP_ARRAYS_H

#include "native.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL tr_mmap_numpy
#ifndef TR_MMAP_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

extern PyType_Spec free_lists_spec, loan_spec, owner_segment_spec, reader_segment_spec, view_spec;

extern const char freeze_doc[], loan_of_doc[], view_of_doc[];
PyObject *py_freeze(PyObject *module, PyObject *array);
PyObject *py_loan_of(PyObject *module, PyObject *array);
PyObject *py_view_of(PyObject *module, PyObject *array);

/* How a tensor lies in a file: its type and shape as numpy has them, and where its payload begins. */
typedef struct {
    PyArray_Descr *dtype; /* NULL where no layout is set */
    int ndim;
    npy_intp dims[WIRE_MAX_NDIM];
    Py_ssize_t offset, nbytes;
} ArrayLayout;

/* Read a layout for a file of `file_nbytes` from Python's objects. Their code may run meanwhile, so `self` is a
 * variable of the caller that no other code reaches. Its dtype is borrowed. -1 with an exception. */
int array_layout_parse(ArrayLayout *self, PyObject *dtype, PyObject *shape, PyObject *offset, const char *file,
                       Py_ssize_t file_nbytes);

/* Replace a layout, and take a reference to the new dtype. Returns the old dtype. The caller releases it when all else
 * is done, because its end may run code. */
PyArray_Descr *array_layout_replace(ArrayLayout *self, const ArrayLayout *parsed);

/* An array over a mapping of the file; the array keeps `holder` alive. Takes over the reference to `holder`, also when
 * it fails. */
PyObject *array_layout_view(const ArrayLayout *self, char *file, int is_writable, PyObject *holder);

/* Whether an array has that type and shape, and its elements lie in C order, as in a TSR file. */
int array_layout_matches(const ArrayLayout *self, PyObject *array);

/* An array over the tensor that the peer published under `seq` in a ReaderSegment. NULL with a LookupError if another
 * tensor is there by now; NULL without an exception if its layout is not the one that was set. */
PyObject *reader_segment_view(PyObject *segment, uint64_t seq);

/* The same, writable as if for torch, which has no read-only tensors: a store into it is SIGSEGV. */
PyObject *reader_segment_unguarded_view(PyObject *segment, uint64_t seq);

/* An array of the caller's own: a copy of a small tensor; else copy-on-write, over a mapping that an earlier view has
 * left. NULL also if there is none. */
PyObject *reader_segment_private(PyObject *segment, uint64_t seq);

/* Whether that is a copy. */
int reader_segment_is_small(PyObject *segment);

/* Whether an array is, or is part of, a view of a segment that others may read too, or a loaded file, and large enough to
 * be handed on. */
int is_worth_giving(const ModuleState *state, PyObject *array);

/* The view at the end of an array's bases, borrowed, if the array is all of the tensor there, and a dict of links has a name
 * for its segment (see find_link()); else NULL. */
PyObject *find_linked_view(const ModuleState *state, PyObject *array, PyObject *links);

/* The name by which another process can open the segment of a view, borrowed, and the number of the tensor there; NULL if
 * there is none, or if `view` is no view.
 *
 * `links` is a dict: from a weak reference to a segment to a tuple whose first item is the name, or "" for none. */
PyObject *find_link(const ModuleState *state, PyObject *view, PyObject *links, uint64_t *seq);

#endif
