/* The type FreeLists: a pool's free segments, and the fast paths for a tensor or a loan of the same layout as an
 * earlier one. Creates and retires no segment, and writes no header: the slow path in Python does. */
#include "free_lists.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    PyObject *to_retire; /* a list: segments without holds that must not be filled again */
    PyObject *free;      /* a dict: from a capacity to a list of its free segments, the warmest last */
    PyObject *pool_token;
    uint64_t seq;
    Py_ssize_t takes, copied_nbytes;
    unsigned generation;       /* of the process that the segments belong to */
    char is_slow_path_running; /* a thread is in the middle of the slow path, so no other may take the fast path */
} FreeLists;

static int free_lists_init(FreeLists *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "", names)) return -1;
    PyObject *to_retire = PyList_New(0), *free = to_retire == NULL ? NULL : PyDict_New();
    PyObject *pool_token = free == NULL ? NULL : PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
    int has_run = self->to_retire != NULL, is_complete = to_retire != NULL && free != NULL && pool_token != NULL;
    if (is_complete && !has_run) {
        self->generation = fork_generation;
        self->to_retire = to_retire;
        self->free = free;
        self->pool_token = pool_token;
        return 0;
    }
    if (is_complete) PyErr_SetString(PyExc_ValueError, "__init__ runs once only");
    Py_XDECREF(to_retire);
    Py_XDECREF(free);
    Py_XDECREF(pool_token);
    return -1;
}

static int free_lists_traverse(FreeLists *self, visitproc visit, void *arg) {
    Py_VISIT(self->to_retire);
    Py_VISIT(self->free);
    Py_VISIT(self->pool_token);
    return 0;
}

static int free_lists_clear(FreeLists *self) {
    Py_CLEAR(self->to_retire);
    Py_CLEAR(self->free);
    Py_CLEAR(self->pool_token);
    return 0;
}

static void free_lists_dealloc(FreeLists *self) {
    PyObject_GC_UnTrack(self);
    free_lists_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

typedef int (*SegmentPredicate)(const OwnerSegment *segment, void *wanted);

/* The warmest segment of a free list if it matches, and that free list, both borrowed; NULL if there is none. */
static OwnerSegment *find(const FreeLists *self, SegmentPredicate matches, void *wanted, PyObject **free_list) {
    PyObject *capacity;
    Py_ssize_t position = 0;
    while (self->free != NULL && PyDict_Next(self->free, &position, &capacity, free_list)) {
        Py_ssize_t count = PyList_CheckExact(*free_list) ? PyList_GET_SIZE(*free_list) : 0;
        PyObject *last = count == 0 ? NULL : PyList_GET_ITEM(*free_list, count - 1);
        if (last != NULL && PyObject_TypeCheck(last, &OwnerSegmentType) && matches((OwnerSegment *)last, wanted))
            return (OwnerSegment *)last;
    }
    return NULL;
}

/* Take the segment that find() finds off its free list, unless a reader holds its lease. A new reference; NULL if
 * there is none. */
static OwnerSegment *take(FreeLists *self, SegmentPredicate matches, void *wanted) {
    PyObject *free_list;
    OwnerSegment *segment = find(self, matches, wanted, &free_list);
    if (segment == NULL || clear_seq(segment->base.live, 0) != WIRE_LEASE_FREE) return NULL;
    /* The list's reference becomes ours, and the list keeps the place. So no memory is needed to put the segment back,
     * which often is done by a destructor, that cannot raise. */
    Py_SET_SIZE((PyVarObject *)free_list, PyList_GET_SIZE(free_list) - 1);
    segment->last_take = ++self->takes;
    return segment;
}

static int matches_array(const OwnerSegment *segment, void *array) {
    return segment->is_header_current && array_layout_matches(&segment->array_layout, array);
}

/* The shape and the dtype of a wanted loan. */
typedef struct {
    int ndim;
    npy_intp dims[WIRE_MAX_NDIM];
    PyObject *dtype; /* as the borrower wrote it */
} WantedLoan;

static int add_size(WantedLoan *wanted, PyObject *size) {
    if (!PyLong_CheckExact(size) || wanted->ndim == WIRE_MAX_NDIM) return 0;
    npy_intp value = PyLong_AsSsize_t(size);
    if (value == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    wanted->dims[wanted->ndim++] = value;
    return 1;
}

/* Reads an int, or a tuple of ints; 0 for any other shape, for reading it could run code of the caller's. */
static int parse_wanted_loan(WantedLoan *wanted, PyObject *shape, PyObject *dtype) {
    wanted->ndim = 0;
    wanted->dtype = dtype;
    if (!PyTuple_CheckExact(shape)) return add_size(wanted, shape);
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(shape); index++)
        if (!add_size(wanted, PyTuple_GET_ITEM(shape, index))) return 0;
    return 1;
}

static int matches_wanted_loan(const OwnerSegment *segment, void *argument) {
    const WantedLoan *wanted = argument;
    PyObject *dtype = segment->requested_dtype;
    if (segment->layout == NULL || dtype == NULL || segment->array_layout.ndim != wanted->ndim) return 0;
    for (int index = 0; index < wanted->ndim; index++)
        if (segment->array_layout.dims[index] != wanted->dims[index]) return 0;
    if (dtype == wanted->dtype) return 1;
    return PyUnicode_CheckExact(dtype) && PyUnicode_CheckExact(wanted->dtype) &&
           PyUnicode_Compare(dtype, wanted->dtype) == 0;
}

/* Segments that wait to be retired need the slow path; a forked child may not write to its parent's segments. */
static int can_take_fast_path(const FreeLists *self) {
    return self->to_retire != NULL && PyList_GET_SIZE(self->to_retire) == 0 && !self->is_slow_path_running &&
           self->generation == fork_generation;
}

static void publish(FreeLists *self, OwnerSegment *segment) {
    segment->seq = ++self->seq;
    stamp(segment->base.live, segment->seq);
}

/* Whether an array is the whole of a loan of this pool. */
static int is_whole_loan(const FreeLists *self, const OwnerSegment *segment, PyObject *array) {
    return segment->pool_token == self->pool_token && segment->is_header_current &&
           owner_segment_is_whole(segment, array);
}

/* Publish a loan in place and hold its segment once more; 0 if the slow path is needed: other views can still
 * write to it, so the slow path copies it. */
static int publish_loan(FreeLists *self, OwnerSegment *segment, PyObject *array) {
    if (!is_whole_loan(self, segment, array)) return 0;
    if (!segment->is_published) {
        if (freeze_loan(array)) return 0;
        publish(self, segment);
        segment->is_published = 1;
    }
    segment->holds++;
    return 1;
}

PyDoc_STRVAR(next_seq_doc,
             "next_seq()\n--\n\nThe number of the next tensor to be published, which no other will have.");

static PyObject *py_next_seq(FreeLists *self, PyObject *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(++self->seq);
}

int can_quick_publish(PyObject *free_lists, PyObject *array) {
    FreeLists *self = (FreeLists *)free_lists;
    if (!PyArray_CheckExact(array) || !can_take_fast_path(self)) return 0;
    PyObject *free_list;
    OwnerSegment *segment = find_loan_owner(array);
    if (segment == NULL) return find(self, matches_array, array, &free_list) != NULL;
    return is_whole_loan(self, segment, array);
}

/* Undo the hold of a segment that was not published after all; an exception stays set. `held` may have lost it: a
 * signal handler that ran since may have released all that is held. */
static void undo_hold(OwnerSegment *segment, PyObject *held) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    int is_held = held == NULL, code = 0;
    for (Py_ssize_t index = held == NULL ? 0 : PyList_GET_SIZE(held); index-- > 0 && !is_held;)
        if (PyList_GET_ITEM(held, index) == (PyObject *)segment) {
            code = PyList_SetSlice(held, index, index + 1, NULL);
            is_held = 1;
        }
    if (is_held && code == 0) code = owner_segment_release(segment);
    if (code < 0) PyErr_WriteUnraisable((PyObject *)segment);
    PyErr_Restore(type, value, trace);
}

PyObject *quick_publish(PyObject *free_lists, PyObject *array, PyObject *held) {
    FreeLists *self = (FreeLists *)free_lists;
    if (!PyArray_CheckExact(array) || !can_take_fast_path(self)) Py_RETURN_NONE;
    OwnerSegment *segment = find_loan_owner(array);
    if (segment != NULL) {
        if (!publish_loan(self, segment, array)) Py_RETURN_NONE;
        Py_INCREF(segment);
        if (held == NULL || PyList_Append(held, (PyObject *)segment) == 0) return (PyObject *)segment;
        undo_hold(segment, NULL);
        Py_DECREF(segment);
        return NULL;
    }
    segment = take(self, matches_array, array);
    if (segment == NULL) Py_RETURN_NONE;
    segment->holds = 1;
    if (held != NULL && PyList_Append(held, (PyObject *)segment) < 0) {
        undo_hold(segment, NULL);
        Py_DECREF(segment);
        return NULL;
    }
    copy_memory((char *)segment->base.buffer.buf + segment->array_layout.offset, PyArray_DATA((PyArrayObject *)array),
                segment->array_layout.nbytes);
    /* Signal handlers run now, while the hold can be undone: if one raised after this function had returned, a caller
     * without a list would never get the segment. */
    if (PyErr_CheckSignals() < 0) {
        undo_hold(segment, held);
        Py_DECREF(segment);
        return NULL;
    }
    self->copied_nbytes += segment->array_layout.nbytes;
    publish(self, segment);
    return (PyObject *)segment;
}

PyDoc_STRVAR(quick_publish_doc,
             "quick_publish(tensor, held=None)\n--\n\n"
             "Publish an array of the same layout as the last one, or a whole loan.\n\n"
             "Args:\n"
             "    tensor: the array.\n"
             "    held: a list, to which the segment is appended here: a signal handler may raise as soon as this\n"
             "        returns, and then only the list knows of the hold.\n\n"
             "Returns:\n"
             "    Its segment, held once more; None if the slow path is needed, and then nothing was published.");

static PyObject *py_quick_publish(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    PyObject *held = count == 2 && arguments[1] != Py_None ? arguments[1] : NULL;
    if (count >= 1 && count <= 2 && (held == NULL || PyList_Check(held)))
        return quick_publish(self, arguments[0], held);
    PyErr_SetString(PyExc_TypeError, "quick_publish takes a tensor, and perhaps a list");
    return NULL;
}

PyDoc_STRVAR(quick_loan_doc,
             "quick_loan(shape, dtype)\n--\n\nLoan a segment that was loaned for the same request before.\n\n"
             "Returns:\n    The array; None if there is no such segment, or if the slow path is needed.");

static PyObject *py_quick_loan(FreeLists *self, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "quick_loan takes a shape and a dtype");
        return NULL;
    }
    WantedLoan wanted;
    if (!can_take_fast_path(self) || !parse_wanted_loan(&wanted, arguments[0], arguments[1])) Py_RETURN_NONE;
    OwnerSegment *segment = take(self, matches_wanted_loan, &wanted);
    if (segment == NULL) Py_RETURN_NONE;
    PyObject *array = owner_segment_loan(segment);
    Py_DECREF(segment);
    return array;
}

static PyMethodDef free_lists_methods[] = {
    {"next_seq", (PyCFunction)py_next_seq, METH_NOARGS, next_seq_doc},
    {"quick_publish", (PyCFunction)(void (*)(void))py_quick_publish, METH_FASTCALL, quick_publish_doc},
    {"quick_loan", (PyCFunction)(void (*)(void))py_quick_loan, METH_FASTCALL, quick_loan_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef free_lists_members[] = {
    {"to_retire", T_OBJECT, offsetof(FreeLists, to_retire), READONLY, "segments not to be filled again"},
    {"free", T_OBJECT, offsetof(FreeLists, free), READONLY, "free segments by capacity, the warmest last"},
    {"pool_token", T_OBJECT, offsetof(FreeLists, pool_token), READONLY, "what tells its segments from other pools'"},
    {"is_slow_path_running", T_BOOL, offsetof(FreeLists, is_slow_path_running), 0, "whether a thread is in it"},
    {"seq", T_ULONGLONG, offsetof(FreeLists, seq), 0, "the number that was last published"},
    {"takes", T_PYSSIZET, offsetof(FreeLists, takes), 0, "how many segments were taken from a free list"},
    {"copied_nbytes", T_PYSSIZET, offsetof(FreeLists, copied_nbytes), 0, "bytes that were copied into segments"},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject FreeListsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.FreeLists",
    .tp_doc = "FreeLists()\n--\n\nThe free segments of a pool, and its counters.",
    .tp_basicsize = sizeof(FreeLists),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)free_lists_init,
    .tp_traverse = (traverseproc)free_lists_traverse,
    .tp_clear = (inquiry)free_lists_clear,
    .tp_dealloc = (destructor)free_lists_dealloc,
    .tp_free = PyObject_GC_Del,
    .tp_methods = free_lists_methods,
    .tp_members = free_lists_members,
};
