/* A segment as its owner sees it: who holds it, how a tensor lies in it, and lending it out as an array. */
#include "owned.h"

#include <structmember.h>

/* What an array that was lent keeps alive: its end is that of the loan. */
typedef struct {
    PyObject_HEAD
    Owned *segment;
    PyObject *array; /* a weak reference to what was handed out */
} Loan;

static void loan_dealloc(Loan *self) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    Py_CLEAR(self->segment->lent);
    if (owned_release(self->segment) < 0) PyErr_WriteUnraisable((PyObject *)self->segment);
    PyErr_Restore(type, value, trace);
    Py_DECREF(self->segment);
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

static int owned_traverse(Owned *self, visitproc visit, void *arg) {
    Py_VISIT(self->shelf);
    Py_VISIT(self->mark);
    Py_VISIT(self->asked);
    return 0;
}

static int owned_clear(Owned *self) {
    Py_CLEAR(self->shelf);
    Py_CLEAR(self->mark);
    Py_CLEAR(self->asked);
    return 0;
}

static void owned_dealloc(Owned *self) {
    PyObject_GC_UnTrack(self);
    line_clear(&self->line);
    owned_clear(self);
    Py_CLEAR(self->layout.dtype);
    Py_CLEAR(self->name);
    Py_CLEAR(self->laid_out);
    Py_CLEAR(self->lent);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyDoc_STRVAR(lay_out_doc,
             "lay_out(layout, dtype)\n--\n\nSay how the next tensor lies there: a type of ours, its shape and its offset; and the type as "
             "numpy's.\n\nRaises:\n    ValueError: it does not fit into the file.");

static PyObject *owned_lay_out(Owned *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!line_is_made(&self->line)) return NULL;
    if (count != 2 || !PyTuple_Check(arguments[0]) || PyTuple_GET_SIZE(arguments[0]) != 3) {
        PyErr_SetString(PyExc_TypeError, "lay_out takes a type, a shape and an offset in a tuple, and a dtype");
        return NULL;
    }
    self->is_current = 0;
    Py_CLEAR(self->asked);
    Py_CLEAR(self->laid_out);
    PyObject *shape = PyTuple_GET_ITEM(arguments[0], 1), *offset = PyTuple_GET_ITEM(arguments[0], 2);
    if (layout_set(&self->layout, arguments[1], shape, offset, self->line.buffer.len) < 0) return NULL;
    self->laid_out = Py_NewRef(arguments[0]);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(forget_doc, "forget()\n--\n\nNo layout is known any more.");

static PyObject *owned_forget(Owned *self, PyObject *unused) {
    (void)unused;
    self->is_current = 0;
    Py_CLEAR(self->asked);
    Py_CLEAR(self->laid_out);
    Py_CLEAR(self->layout.dtype);
    Py_RETURN_NONE;
}

int owned_release(Owned *self) {
    self->holds--;
    if (self->holds != 0 || self->shelf == NULL || !PyList_CheckExact(self->shelf)) return 0;
    return PyList_Append(self->shelf, (PyObject *)self);
}

PyDoc_STRVAR(release_doc, "release()\n--\n\nUndo one hold; with the last one gone, append the segment to its shelf.");

static PyObject *release(Owned *self, PyObject *unused) {
    (void)unused;
    if (owned_release(self) < 0) return NULL;
    Py_RETURN_NONE;
}

PyObject *owned_lend(Owned *self) {
    self->holds++;
    Loan *loan = PyObject_New(Loan, &LoanType);
    if (loan == NULL) {
        PyErr_Clear();
        if (owned_release(self) < 0) PyErr_WriteUnraisable((PyObject *)self);
        return PyErr_NoMemory();
    }
    loan->segment = (Owned *)Py_NewRef(self);
    loan->array = NULL;
    self->is_sent = 0;
    Py_XSETREF(self->lent, Py_NewRef(self->laid_out));
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

PyDoc_STRVAR(lend_doc, "lend()\n--\n\nAn array over the segment, of the layout that was laid out. It and all views of it are one hold.");

static PyObject *lend(Owned *self, PyObject *unused) {
    (void)unused;
    if (self->laid_out != NULL) return owned_lend(self);
    PyErr_SetString(PyExc_ValueError, "the segment is not laid out");
    return NULL;
}

int owned_is_whole(const Owned *self, PyObject *array) {
    return layout_fits(&self->layout, array) &&
           PyArray_DATA((PyArrayObject *)array) == (char *)self->line.buffer.buf + self->layout.offset;
}

static PyMethodDef owned_methods[] = {
    {"lay_out", (PyCFunction)(void (*)(void))owned_lay_out, METH_FASTCALL, lay_out_doc},
    {"forget", (PyCFunction)owned_forget, METH_NOARGS, forget_doc},
    {"release", (PyCFunction)release, METH_NOARGS, release_doc},
    {"lend", (PyCFunction)lend, METH_NOARGS, lend_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef owned_members[] = {
    {"name", T_OBJECT, offsetof(Owned, name), 0, NULL},
    {"laid_out", T_OBJECT, offsetof(Owned, laid_out), READONLY, NULL},
    {"asked", T_OBJECT, offsetof(Owned, asked), 0, NULL},
    {"lent", T_OBJECT, offsetof(Owned, lent), READONLY, NULL},
    {"shelf", T_OBJECT, offsetof(Owned, shelf), 0, NULL},
    {"mark", T_OBJECT, offsetof(Owned, mark), 0, NULL},
    {"seq", T_ULONGLONG, offsetof(Owned, seq), 0, NULL},
    {"holds", T_PYSSIZET, offsetof(Owned, holds), 0, NULL},
    {"last_take", T_PYSSIZET, offsetof(Owned, last_take), 0, NULL},
    {"is_sent", T_BOOL, offsetof(Owned, is_sent), 0, NULL},
    {"is_current", T_BOOL, offsetof(Owned, is_current), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject OwnedType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Owned",
    .tp_doc = "Owned(file)\n--\n\nA segment as its owner sees it.",
    .tp_basicsize = sizeof(Owned),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_base = &LineType,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)owned_init,
    .tp_traverse = (traverseproc)owned_traverse,
    .tp_clear = (inquiry)owned_clear,
    .tp_dealloc = (destructor)owned_dealloc,
    .tp_free = PyObject_GC_Del,
    .tp_methods = owned_methods,
    .tp_members = owned_members,
};

/* The loan at the end of an array's bases; NULL if it lies in none. */
static Loan *loan_under(PyObject *array) {
    while (array != NULL && PyArray_Check(array)) array = PyArray_BASE((PyArrayObject *)array);
    return array != NULL && Py_TYPE(array) == &LoanType ? (Loan *)array : NULL;
}

Owned *owner_of(PyObject *array) {
    Loan *loan = loan_under(array);
    return loan == NULL ? NULL : loan->segment;
}

const char loan_of_doc[] = "loan_of(array)\n--\n\nThe segment whose loan an array lies in; None if it lies in none.";

PyObject *loan_of(PyObject *module, PyObject *array) {
    (void)module;
    PyObject *segment = (PyObject *)owner_of(array);
    return Py_NewRef(segment == NULL ? Py_None : segment);
}

int seal_loan(PyObject *argument) {
    Loan *loan = loan_under(argument);
    PyObject *handed = PyWeakref_GET_OBJECT(loan->array); /* None if it is gone */
    int is_apart = handed != Py_None;
    PyArrayObject *array = (PyArrayObject *)argument;
    for (;;) {
        if ((PyObject *)array == handed) is_apart = 0;
        PyArray_CLEARFLAGS(array, NPY_ARRAY_WRITEABLE);
        PyObject *base = PyArray_BASE(array);
        if (base == (PyObject *)loan) break;
        array = (PyArrayObject *)base;
    }
    if (is_apart) PyArray_CLEARFLAGS((PyArrayObject *)handed, NPY_ARRAY_WRITEABLE);
    /* What refers to the root: the chain of bases that ends there, what was handed out, and what we do not know. */
    return Py_REFCNT(array) > ((PyObject *)array != argument) + is_apart;
}

const char seal_doc[] = "seal(array)\n--\n\nMake an array of a loan, what it is a view of, and what was handed out read-only.\n\nReturns:\n"
                        "    Whether there may be other views of the loan, which can still be written to.";

PyObject *seal(PyObject *module, PyObject *array) {
    (void)module;
    if (owner_of(array) != NULL) return PyBool_FromLong(seal_loan(array));
    PyErr_SetString(PyExc_TypeError, "seal takes an array of a loan");
    return NULL;
}
