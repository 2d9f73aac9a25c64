/* A segment as its owner sees it: filled again with one array like the last, or lent out as an array. */
#include "arrays.h"
#include "line.h"

typedef struct {
    Line line; /* over the whole file, mapped for writing */
    Layout layout;
} Owned;

/* What an array that was lent keeps alive: its end is that of the loan. */
typedef struct {
    PyObject_HEAD
    PyObject *segment;
    PyObject *queue; /* a list, which is told of the end */
    PyObject *array; /* a weak reference to what was handed out */
} Loan;

static void loan_dealloc(Loan *self) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (PyList_Append(self->queue, self->segment) < 0) PyErr_WriteUnraisable(self->segment);
    PyErr_Restore(type, value, trace);
    Py_DECREF(self->segment);
    Py_DECREF(self->queue);
    Py_XDECREF(self->array);
    PyObject_Free(self);
}

PyTypeObject LoanType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Loan",
    .tp_doc = "The base of an array that was lent.",
    .tp_basicsize = sizeof(Loan),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)loan_dealloc,
};

static int owned_init(Owned *self, PyObject *arguments, PyObject *keywords) {
    PyObject *file;
    static char *names[] = {"file", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O", names, &file)) return -1;
    return line_init(&self->line, file);
}

static void owned_dealloc(Owned *self) {
    line_clear(&self->line);
    Py_CLEAR(self->layout.dtype);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyDoc_STRVAR(lay_out_doc,
             "lay_out(dtype, shape, offset)\n--\n\nHow an array lies there that refill() may copy, or lend() hands out.\n\n"
             "Raises:\n    ValueError: it does not fit into the file.");

static PyObject *owned_lay_out(Owned *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!line_is_made(&self->line)) return NULL;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "lay_out takes a dtype, a shape and an offset");
        return NULL;
    }
    if (layout_set(&self->layout, arguments[0], arguments[1], arguments[2], self->line.buffer.len) < 0) return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(forget_doc, "forget()\n--\n\nNo array is like the last.");

static PyObject *owned_forget(Owned *self, PyObject *unused) {
    (void)unused;
    Py_CLEAR(self->layout.dtype);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(refill_doc,
             "refill(seq, array)\n--\n\nClaim the segment, copy and stamp, in one.\n\nReturns:\n    False if the array is not like the last, or not "
             "C-contiguous, or if somebody holds the segment; then nothing is copied.");

static PyObject *owned_refill(Owned *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!line_is_made(&self->line)) return NULL;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "refill takes a number and an array");
        return NULL;
    }
    uint64_t seq = PyLong_AsUnsignedLongLong(arguments[0]);
    if (seq == UINT64_MAX && PyErr_Occurred()) return NULL;
    const Layout *layout = &self->layout;
    if (!layout_fits(layout, arguments[1]) || shut(self->line.words, 0) != FREE) Py_RETURN_FALSE;
    copy_memory((char *)self->line.buffer.buf + layout->offset, PyArray_DATA((PyArrayObject *)arguments[1]), layout->nbytes);
    stamp(self->line.words, seq);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(lend_doc,
             "lend(queue)\n--\n\nAn array over the segment, of the layout that was laid out. When it and all views of it are gone, the "
             "segment is appended to the queue, a list.");

static PyObject *owned_lend(Owned *self, PyObject *queue) {
    if (!line_is_made(&self->line)) return NULL;
    if (self->layout.dtype == NULL || !PyList_CheckExact(queue)) {
        PyErr_SetString(PyExc_TypeError, "lend takes a list, and a segment that is laid out");
        return NULL;
    }
    Loan *loan = PyObject_New(Loan, &LoanType);
    if (loan == NULL) return NULL;
    loan->segment = Py_NewRef(self);
    loan->queue = Py_NewRef(queue);
    loan->array = NULL;
    PyObject *root = layout_view(&self->layout, self->line.buffer.buf, 1, (PyObject *)loan);
    if (root == NULL) return NULL;
    /* Always a view, so that whatever refers to the root itself is another view of the loan. */
    PyObject *array = PyArray_View((PyArrayObject *)root, NULL, NULL);
    Py_DECREF(root);
    if (array == NULL) return NULL;
    loan->array = PyWeakref_NewRef(array, NULL);
    if (loan->array == NULL) Py_CLEAR(array);
    return array;
}

PyDoc_STRVAR(is_whole_doc, "is_whole(array)\n--\n\nWhether an array is what lend() handed out, or just like it.");

static PyObject *owned_is_whole(Owned *self, PyObject *array) {
    if (!line_is_made(&self->line)) return NULL;
    return PyBool_FromLong(layout_fits(&self->layout, array) &&
                           PyArray_DATA((PyArrayObject *)array) == (char *)self->line.buffer.buf + self->layout.offset);
}

static PyMethodDef owned_methods[] = {
    {"lay_out", (PyCFunction)(void (*)(void))owned_lay_out, METH_FASTCALL, lay_out_doc},
    {"forget", (PyCFunction)owned_forget, METH_NOARGS, forget_doc},
    {"refill", (PyCFunction)(void (*)(void))owned_refill, METH_FASTCALL, refill_doc},
    {"lend", (PyCFunction)owned_lend, METH_O, lend_doc},
    {"is_whole", (PyCFunction)owned_is_whole, METH_O, is_whole_doc},
    {NULL, NULL, 0, NULL},
};

PyTypeObject OwnedType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Owned",
    .tp_doc = "Owned(file)\n--\n\nA segment as its owner sees it.",
    .tp_basicsize = sizeof(Owned),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_base = &LineType,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)owned_init,
    .tp_dealloc = (destructor)owned_dealloc,
    .tp_methods = owned_methods,
};

/* The array that a chain of views ends at, whose base is no array. */
static PyArrayObject *root_of(PyArrayObject *array) {
    PyObject *base = PyArray_BASE(array);
    while (base != NULL && PyArray_Check(base)) {
        array = (PyArrayObject *)base;
        base = PyArray_BASE(array);
    }
    return array;
}

static Loan *loan_under(PyArrayObject *root) {
    PyObject *base = PyArray_BASE(root);
    return base != NULL && Py_TYPE(base) == &LoanType ? (Loan *)base : NULL;
}

const char loan_of_doc[] =
    "loan_of(array, queue)\n--\n\nThe segment whose loan an array lies in, if it was lent with that queue; else None.";

PyObject *loan_of(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    (void)module;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "loan_of takes an array and a queue");
        return NULL;
    }
    if (!PyArray_Check(arguments[0])) Py_RETURN_NONE;
    Loan *loan = loan_under(root_of((PyArrayObject *)arguments[0]));
    if (loan == NULL || loan->queue != arguments[1]) Py_RETURN_NONE;
    return Py_NewRef(loan->segment);
}

const char seal_doc[] = "seal(array)\n--\n\nMake an array of a loan, what it is a view of, and what was handed out read-only.\n\nReturns:\n"
                        "    Whether there may be other views of the loan, which can still be written to.";

PyObject *seal(PyObject *module, PyObject *argument) {
    (void)module;
    Loan *loan = PyArray_Check(argument) ? loan_under(root_of((PyArrayObject *)argument)) : NULL;
    if (loan == NULL) {
        PyErr_SetString(PyExc_TypeError, "seal takes an array of a loan");
        return NULL;
    }
    PyObject *handed = PyWeakref_GET_OBJECT(loan->array); /* None if it is gone */
    Py_ssize_t known = 1; /* references to the root: the chain of bases that ends there, and what was handed out */
    int is_apart = handed != Py_None;
    PyArrayObject *array = (PyArrayObject *)argument;
    for (;;) {
        if ((PyObject *)array == handed) is_apart = 0;
        PyArray_CLEARFLAGS(array, NPY_ARRAY_WRITEABLE);
        PyObject *base = PyArray_BASE(array);
        if (base == (PyObject *)loan) break;
        array = (PyArrayObject *)base;
    }
    if (is_apart) {
        PyArray_CLEARFLAGS((PyArrayObject *)handed, NPY_ARRAY_WRITEABLE);
        known++;
    }
    return PyBool_FromLong(Py_REFCNT(array) > known);
}
