/* Makes and recognises arrays over a segment's payload, by numpy's C functions: the buffer protocol costs more than a
 * whole small request. Reads and writes no element. */
#include "arrays.h"

static int parse_shape(PyObject *shape, npy_intp *dims) {
    if (!PyTuple_Check(shape) || PyTuple_GET_SIZE(shape) > WIRE_MAX_NDIM) {
        PyErr_Format(PyExc_ValueError, "a shape is a tuple of at most %d sizes", WIRE_MAX_NDIM);
        return -1;
    }
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(shape); index++) {
        dims[index] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, index));
        if (dims[index] == -1 && PyErr_Occurred()) return -1;
    }
    return (int)PyTuple_GET_SIZE(shape);
}

/* Bytes of a tensor; -1 if a size is negative, or if it is larger than what can be mapped. */
static Py_ssize_t tensor_nbytes(Py_ssize_t itemsize, int ndim, const npy_intp *dims) {
    Py_ssize_t nbytes = itemsize;
    for (int index = 0; index < ndim; index++)
        if (dims[index] < 0 || __builtin_mul_overflow(nbytes, dims[index], &nbytes)) return -1;
    return nbytes;
}

/* Whether a file's bytes can be elements of a dtype; if not, with an exception. They cannot if an element refers to
 * objects: the peer could write any pointer. Nor if numpy changes the layout: a subarray's shape, the size of empty
 * texts. */
static int is_plain(PyObject *dtype) {
    if (!PyArray_DescrCheck(dtype)) {
        PyErr_SetString(PyExc_TypeError, "a numpy dtype is needed");
        return 0;
    }
    PyArray_Descr *descr = (PyArray_Descr *)dtype;
    if (PyDataType_ELSIZE(descr) > 0 && !PyDataType_REFCHK(descr) && !PyDataType_HASSUBARRAY(descr)) return 1;
    PyErr_Format(PyExc_ValueError, "the elements of a segment are plain numbers, not %R", dtype);
    return 0;
}

static int is_aligned(const ArrayLayout *self, const char *file) {
    if ((uintptr_t)(file + self->offset) % (uintptr_t)PyDataType_ALIGNMENT(self->dtype) == 0) return 1;
    PyErr_SetString(PyExc_ValueError, "the tensor is not aligned for its dtype there");
    return 0;
}

int array_layout_parse(ArrayLayout *self, PyObject *dtype, PyObject *shape, PyObject *offset, const char *file,
                       Py_ssize_t file_nbytes) {
    if (!is_plain(dtype)) return -1;
    self->ndim = parse_shape(shape, self->dims);
    if (self->ndim < 0) return -1;
    self->offset = PyLong_AsSsize_t(offset);
    if (self->offset == -1 && PyErr_Occurred()) return -1;
    self->nbytes = tensor_nbytes(PyDataType_ELSIZE((PyArray_Descr *)dtype), self->ndim, self->dims);
    if (self->nbytes < 0 || self->offset < 0 || self->offset > file_nbytes - self->nbytes) {
        PyErr_SetString(PyExc_ValueError, "the tensor does not fit into the file there");
        return -1;
    }
    self->dtype = (PyArray_Descr *)dtype;
    return is_aligned(self, file) ? 0 : -1;
}

PyArray_Descr *array_layout_replace(ArrayLayout *self, const ArrayLayout *parsed) {
    PyArray_Descr *old = self->dtype;
    *self = *parsed;
    Py_XINCREF(self->dtype);
    return old;
}

PyObject *array_layout_view(const ArrayLayout *self, char *file, int is_writable, PyObject *holder) {
    if (!is_aligned(self, file)) { /* a mapping other than the one that the layout was read for */
        Py_DECREF(holder);
        return NULL;
    }
    static npy_intp no_strides[WIRE_MAX_NDIM]; /* numpy gives an array without elements these; it never stores here */
    int flags = is_writable ? NPY_ARRAY_CARRAY : NPY_ARRAY_CARRAY_RO;
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)Py_NewRef(self->dtype), self->ndim,
                                           self->dims, self->nbytes == 0 ? no_strides : NULL,
                                           file + self->offset, flags, NULL);
    if (array == NULL) {
        Py_DECREF(holder);
        return NULL;
    }
    if (PyArray_SetBaseObject((PyArrayObject *)array, holder) < 0) { /* it takes the reference in any case */
        Py_DECREF(array);
        return NULL;
    }
    return array;
}

int array_layout_matches(const ArrayLayout *self, PyObject *array) {
    if (self->dtype == NULL || !PyArray_CheckExact(array)) return 0;
    PyArrayObject *other = (PyArrayObject *)array;
    if (PyArray_DESCR(other) != self->dtype || PyArray_NDIM(other) != self->ndim || !PyArray_IS_C_CONTIGUOUS(other))
        return 0;
    for (int index = 0; index < self->ndim; index++)
        if (PyArray_DIM(other, index) != self->dims[index]) return 0;
    return 1;
}
