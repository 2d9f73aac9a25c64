/* The type OwnerSegment: a segment as its owner sees it. Counts its holds, keeps its layout, and loans it as an array.
 * Writes no header and copies no tensor. */
#include "owner_segment.h"

/* The base of a loaned array: numpy destroys it with the last array that uses the loan's memory. */
typedef struct {
    PyObject_HEAD
    OwnerSegment *segment;
    PyObject *array;  /* a weak reference to what was handed out */
    PyObject *layout; /* that was loaned */
} Loan;

static void loan_dealloc(Loan *self) {
    PyObject *error = PyErr_GetRaisedException();
    /* a later loan has another layout, which is still loaned */
    if (self->segment->loaned_layout == self->layout) Py_CLEAR(self->segment->loaned_layout);
    if (owner_segment_release(self->segment) < 0) PyErr_WriteUnraisable((PyObject *)self->segment);
    PyErr_SetRaisedException(error);
    Py_DECREF(self->segment);
    Py_XDECREF(self->array);
    Py_XDECREF(self->layout);
    free_object((PyObject *)self);
}

static PyType_Slot loan_slots[] = {
    {Py_tp_doc, "The base of an array that was loaned."},
    {Py_tp_dealloc, loan_dealloc},
    {0, NULL},
};

PyType_Spec loan_spec = {
    .name = "tr_mmap.native.Loan",
    .basicsize = sizeof(Loan),
    .flags = TYPE_FLAGS | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = loan_slots,
};

static int owner_segment_init(OwnerSegment *self, PyObject *arguments, PyObject *keywords) {
    PyObject *file, *members = NULL;
    static char *names[] = {"file", "members", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|O", names, &file, &members)) return -1;
    return lease_words_init(&self->base, file, members, NO_LINE);
}

static int owner_segment_traverse(OwnerSegment *self, visitproc visit, void *arg) {
    VISIT_TYPE_AND_MODULE(self);
    Py_VISIT(self->free_list);
    Py_VISIT(self->pool_token);
    Py_VISIT(self->requested_dtype);
    Py_VISIT(self->name);
    Py_VISIT(self->layout);
    Py_VISIT(self->loaned_layout);
    Py_VISIT(self->array_layout.dtype);
    Py_VISIT(self->twin);
    return 0;
}

static int owner_segment_clear(OwnerSegment *self) {
    Py_CLEAR(self->free_list);
    Py_CLEAR(self->pool_token);
    Py_CLEAR(self->requested_dtype);
    Py_CLEAR(self->name);
    Py_CLEAR(self->layout);
    Py_CLEAR(self->loaned_layout);
    Py_CLEAR(self->array_layout.dtype);
    Py_CLEAR(self->twin);
    return 0;
}

static void owner_segment_dealloc(OwnerSegment *self) {
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, owner_segment_dealloc)
    lease_words_clear(&self->base);
    owner_segment_clear(self);
    stateful_free((PyObject *)self);
    Py_TRASHCAN_END
}

/* Set the layout, or none where both are NULL. What was there is released last, for its end may run code. */
static void replace_layout(OwnerSegment *self, const ArrayLayout *parsed, PyObject *layout) {
    static const ArrayLayout none = {.dtype = NULL};
    PyObject *old[] = {(PyObject *)array_layout_replace(&self->array_layout, parsed == NULL ? &none : parsed),
                       self->layout, self->requested_dtype};
    self->is_header_current = 0;
    self->layout = Py_XNewRef(layout);
    self->requested_dtype = NULL;
    for (size_t index = 0; index < sizeof old / sizeof *old; index++) Py_XDECREF(old[index]);
}

PyDoc_STRVAR(set_layout_doc,
             "set_layout(layout, dtype)\n--\n\nSet how the next tensor lies there.\n\n"
             "Args:\n    layout: a type of ours, its shape and its offset.\n    dtype: the type as numpy's.\n\n"
             "Raises:\n    ValueError: it does not fit into the file, or its elements are not plain numbers; then there\n"
             "        is no layout.");

static PyObject *py_set_layout(OwnerSegment *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!lease_words_is_initialised(&self->base)) return NULL;
    if (count != 2 || !PyTuple_Check(arguments[0]) || PyTuple_GET_SIZE(arguments[0]) != 3) {
        PyErr_SetString(PyExc_TypeError, "set_layout takes a type, a shape and an offset in a tuple, and a dtype");
        return NULL;
    }
    ArrayLayout parsed;
    PyObject *shape = PyTuple_GET_ITEM(arguments[0], 1), *offset = PyTuple_GET_ITEM(arguments[0], 2);
    if (array_layout_parse(&parsed, arguments[1], shape, offset, self->base.buffer.buf, self->base.buffer.len) < 0) {
        PyObject *error = PyErr_GetRaisedException();
        replace_layout(self, NULL, NULL);
        PyErr_SetRaisedException(error);
        return NULL;
    }
    replace_layout(self, &parsed, arguments[0]);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(clear_layout_doc, "clear_layout()\n--\n\nForget the layout.");

static PyObject *py_clear_layout(OwnerSegment *self, PyObject *unused) {
    (void)unused;
    replace_layout(self, NULL, NULL);
    Py_RETURN_NONE;
}

int owner_segment_release(OwnerSegment *self) {
    self->holds--;
    if (self->holds != 0 || self->free_list == NULL || !PyList_CheckExact(self->free_list)) return 0;
    if (PyList_Append(self->free_list, (PyObject *)self) == 0) return 0;
    self->holds++;
    return -1;
}

PyDoc_STRVAR(release_doc,
             "release()\n--\n\nUndo one hold; with the last one gone, append the segment to its free list.");

static PyObject *py_release(OwnerSegment *self, PyObject *unused) {
    (void)unused;
    if (owner_segment_release(self) < 0) return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(restore_doc,
             "restore(holds, free_list)\n--\n\nSet the holds, with one more for a loan, and the free list, to which the\n"
             "segment is appended if there are none. In one step, because a loan may end at any time.");

static PyObject *py_restore(OwnerSegment *self, PyObject *const *arguments, Py_ssize_t count) {
    Py_ssize_t holds = count == 2 ? PyLong_AsSsize_t(arguments[0]) : -1;
    if (holds < 0 || !PyList_CheckExact(arguments[1])) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "restore takes a count and a list");
        return NULL;
    }
    self->holds = (size_t)holds + (self->loaned_layout != NULL);
    if (self->holds == 0 && PyList_Append(arguments[1], (PyObject *)self) < 0) return NULL;
    Py_XSETREF(self->free_list, Py_NewRef(arguments[1]));
    Py_RETURN_NONE;
}

PyObject *owner_segment_loan(OwnerSegment *self) {
    self->holds++;
    Loan *loan = PyObject_New(Loan, self->base.state->loan);
    if (loan == NULL) {
        PyErr_Clear();
        if (owner_segment_release(self) < 0) PyErr_WriteUnraisable((PyObject *)self);
        return PyErr_NoMemory();
    }
    loan->segment = (OwnerSegment *)Py_NewRef(self);
    loan->array = NULL;
    loan->layout = Py_NewRef(self->layout);
    PyObject *root = array_layout_view(&self->array_layout, self->base.buffer.buf, 1, (PyObject *)loan);
    if (root == NULL) return NULL;
    /* Hand out a view, never the root: then whatever else refers to the root is another view of the loan.
     * freeze_loan() counts these references. */
    PyObject *array = PyArray_View((PyArrayObject *)root, NULL, NULL);
    Py_DECREF(root);
    if (array == NULL) return NULL;
    loan->array = PyWeakref_NewRef(array, NULL);
    if (loan->array == NULL) {
        Py_DECREF(array);
        return NULL;
    }
    self->is_published = 0;
    self->is_torch_loan = 0;
    Py_XSETREF(self->loaned_layout, Py_NewRef(loan->layout)); /* last, for the end of the old one may run code */
    return array;
}

PyDoc_STRVAR(loan_doc,
             "loan()\n--\n\n"
             "An array over the segment, of the layout that was set. It and all views of it are one hold.");

static PyObject *py_loan(OwnerSegment *self, PyObject *unused) {
    (void)unused;
    if (self->layout != NULL) return owner_segment_loan(self);
    PyErr_SetString(PyExc_ValueError, "the segment has no layout");
    return NULL;
}

int owner_segment_make_private(OwnerSegment *self) {
    if (self->is_private || !is_twin(self->base.state, self->twin) || !twin_come(self->twin)) return 0;
    self->is_private = 1;
    return 1;
}

int owner_segment_make_shared(OwnerSegment *self) {
    if (!self->is_private) return 1;
    if (!is_twin(self->base.state, self->twin) || !twin_is_there(self->twin) || !twin_go(self->twin)) return 0;
    self->is_private = 0;
    return 1;
}

PyDoc_STRVAR(let_twin_come_doc,
             "let_twin_come()\n--\n\nMake the borrower's memory its own, under all views of it, by the twin.\n\n"
             "Returns:\n    Whether that was done; False if there is no twin, if the kernel cannot do it, or a limit forbids it.");

static PyObject *py_let_twin_come(OwnerSegment *self, PyObject *unused) {
    (void)unused;
    return PyBool_FromLong(owner_segment_make_private(self));
}

PyDoc_STRVAR(let_twin_go_doc,
             "let_twin_go()\n--\n\nUndo let_twin_come(). There must be no array over the payload any more.\n\n"
             "Returns:\n    Whether the place is shared by now; False if something else made it private, or the twin cannot go.");

static PyObject *py_let_twin_go(OwnerSegment *self, PyObject *unused) {
    (void)unused;
    return PyBool_FromLong(owner_segment_make_shared(self));
}

int owner_segment_is_whole(const OwnerSegment *self, PyObject *array) {
    return array_layout_matches(&self->array_layout, array) &&
           PyArray_DATA((PyArrayObject *)array) == (char *)self->base.buffer.buf + self->array_layout.offset;
}

static PyMethodDef owner_segment_methods[] = {
    {"set_layout", (PyCFunction)(void (*)(void))py_set_layout, METH_FASTCALL, set_layout_doc},
    {"clear_layout", (PyCFunction)py_clear_layout, METH_NOARGS, clear_layout_doc},
    {"release", (PyCFunction)py_release, METH_NOARGS, release_doc},
    {"restore", (PyCFunction)(void (*)(void))py_restore, METH_FASTCALL, restore_doc},
    {"let_twin_come", (PyCFunction)py_let_twin_come, METH_NOARGS, let_twin_come_doc},
    {"let_twin_go", (PyCFunction)py_let_twin_go, METH_NOARGS, let_twin_go_doc},
    {"loan", (PyCFunction)py_loan, METH_NOARGS, loan_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef owner_segment_members[] = {
    {"name", T_OBJECT, offsetof(OwnerSegment, name), 0, "of its file; whatever its pool calls it"},
    {"layout", T_OBJECT, offsetof(OwnerSegment, layout), READONLY, "how the next tensor lies there"},
    {"requested_dtype", T_OBJECT, offsetof(OwnerSegment, requested_dtype), 0, "the dtype as the borrower wrote it"},
    {"loaned_layout", T_OBJECT, offsetof(OwnerSegment, loaned_layout), READONLY, "the layout that was loaned"},
    {"free_list", T_OBJECT, offsetof(OwnerSegment, free_list), 0, "where it goes when the last hold is released"},
    {"pool_token", T_OBJECT, offsetof(OwnerSegment, pool_token), 0, "what tells its pool from others"},
    {"holds", T_PYSSIZET, offsetof(OwnerSegment, holds), 0, "how many tags, messages and loans need its content"},
    {"last_take", T_PYSSIZET, offsetof(OwnerSegment, last_take), 0, "when it was last taken, by its pool's count"},
    {"is_published", T_BOOL, offsetof(OwnerSegment, is_published), 0, "whether the loan was published"},
    {"twin", T_OBJECT, offsetof(OwnerSegment, twin), 0, "of the mapping of its payload; None for none"},
    {"is_torch_loan", T_BOOL, offsetof(OwnerSegment, is_torch_loan), 0, "whether the loan is a torch tensor"},
    {"is_private", T_BOOL, offsetof(OwnerSegment, is_private), 0, "whether the place of its payload is the borrower's own"},
    {"is_slot", T_BOOL, offsetof(OwnerSegment, is_slot), 0, "whether its file is not its own"},
    {"is_header_current", T_BOOL, offsetof(OwnerSegment, is_header_current), 0, "whether the header has the layout"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef owner_segment_attributes[] = {
    {"seq", get_unsigned, set_unsigned, "the number that it was last published under", (void *)offsetof(OwnerSegment, seq)},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot owner_segment_slots[] = {
    {Py_tp_doc, "OwnerSegment(file)\n--\n\nA segment as its owner sees it.\n\n"
                "Args:\n    file: the whole of it, mapped for writing."},
    {Py_tp_new, stateful_new},
    {Py_tp_init, owner_segment_init},
    {Py_tp_traverse, owner_segment_traverse},
    {Py_tp_clear, owner_segment_clear},
    {Py_tp_dealloc, owner_segment_dealloc},
    {Py_tp_methods, owner_segment_methods},
    {Py_tp_members, owner_segment_members},
    {Py_tp_getset, owner_segment_attributes},
    {0, NULL},
};

PyType_Spec owner_segment_spec = {
    .name = "tr_mmap.native.OwnerSegment",
    .basicsize = sizeof(OwnerSegment),
    .flags = TYPE_FLAGS | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = owner_segment_slots,
};

/* The loan at the end of an array's bases, borrowed; NULL if it lies in none. */
static Loan *find_loan(const ModuleState *state, PyObject *array) {
    while (array != NULL && PyArray_Check(array)) array = PyArray_BASE((PyArrayObject *)array);
    return array != NULL && Py_IS_TYPE(array, state->loan) ? (Loan *)array : NULL;
}

OwnerSegment *find_loan_owner(const ModuleState *state, PyObject *array) {
    Loan *loan = find_loan(state, array);
    return loan == NULL ? NULL : loan->segment;
}

const char loan_of_doc[] = "loan_of(array)\n--\n\nThe segment whose loan an array lies in; None if it lies in none.";

PyObject *py_loan_of(PyObject *module, PyObject *array) {
    PyObject *segment = (PyObject *)find_loan_owner(state_of(module), array);
    return Py_NewRef(segment == NULL ? Py_None : segment);
}

int freeze_loan(const ModuleState *state, PyObject *argument) {
    Loan *loan = find_loan(state, argument);
    PyObject *handed_out;
    int is_apart = PyWeakref_GetRef(loan->array, &handed_out) > 0; /* it lives, and is not on the way from array to root */
    PyArrayObject *array = (PyArrayObject *)argument;
    for (;;) {
        if ((PyObject *)array == handed_out) is_apart = 0;
        PyArray_CLEARFLAGS(array, NPY_ARRAY_WRITEABLE);
        PyObject *base = PyArray_BASE(array);
        if (base == (PyObject *)loan) break;
        array = (PyArrayObject *)base;
    }
    if (is_apart) PyArray_CLEARFLAGS((PyArrayObject *)handed_out, NPY_ARRAY_WRITEABLE);
    /* `array` is the root now. It is referred to by the chain of bases that ends there, by what was handed out, and by
     * views that we do not know and cannot make read-only. */
    int has_others = Py_REFCNT(array) > ((PyObject *)array != argument) + is_apart;
    Py_XDECREF(handed_out); /* not its last: no other code has run since */
    return has_others;
}

const char freeze_doc[] =
    "freeze(array)\n--\n\nMake an array of a loan, what it is a view of, and what was handed out read-only.\n\n"
    "Returns:\n    Whether there may be other views of the loan, which can still be written to.";

PyObject *py_freeze(PyObject *module, PyObject *array) {
    const ModuleState *state = state_of(module);
    if (find_loan_owner(state, array) != NULL) return PyBool_FromLong(freeze_loan(state, array));
    PyErr_SetString(PyExc_TypeError, "freeze takes an array of a loan");
    return NULL;
}
