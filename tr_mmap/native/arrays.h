/* Arrays over a segment's payload. */
#ifndef TR_MMAP_ARRAYS_H
#define TR_MMAP_ARRAYS_H

#include "native.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL tr_mmap_numpy
#ifndef TR_MMAP_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

extern PyTypeObject OwnedType;
extern PyTypeObject LeasedType;
extern PyTypeObject LoanType;
extern PyTypeObject HoldType;
extern PyTypeObject ShelvesType;

extern const char loan_of_doc[], seal_doc[];
PyObject *loan_of(PyObject *module, PyObject *array);
PyObject *seal(PyObject *module, PyObject *array);

enum { MAX_NDIM = 16 }; /* as tsr/header.py has it */

/* How a tensor lies in a file: its type and shape, and where its payload begins. */
typedef struct {
    PyArray_Descr *dtype; /* NULL where that is not known */
    int ndim;
    npy_intp dims[MAX_NDIM];
    Py_ssize_t offset, nbytes;
} Layout;

/* Take over what Python says of a layout in a file of so many bytes; -1 with an exception, and then it is not known. */
int layout_set(Layout *self, PyObject *dtype, PyObject *shape, PyObject *offset, Py_ssize_t file_nbytes);

/* An array over a mapping of the file, which keeps `holder` alive; takes over that reference, also when it fails. */
PyObject *layout_view(const Layout *self, char *file, int is_writable, PyObject *holder);

/* Whether an array is of that type and shape, and its elements lie as TSR has them. */
int layout_fits(const Layout *self, PyObject *array);

/* An array over the tensor of that number in a segment of the peer's; NULL if it cannot be had, with an exception or not. */
PyObject *leased_look(PyObject *segment, uint64_t wanted);

/* What was made by an earlier generation is the parent's. */
extern unsigned fork_generation;
void forked_in_child(void);

#endif
