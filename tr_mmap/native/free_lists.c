/* The type FreeLists: a pool's free segments, and the fast paths for a tensor or a loan of the same layout as an
 * earlier one. Creates and retires no segment, and writes no header: the slow path in Python does. */
#include "free_lists.h"
#include "torch_tensors.h"

typedef struct {
    STATEFUL_HEAD
    PyObject *to_retire; /* a list: segments without holds that must not be filled again */
    PyObject *free;      /* a dict: from a capacity to a list of its free segments, the warmest last */
    PyObject *viewed;    /* a list: segments taken off their free list because the reader has a view of them */
    PyObject *torch_loans; /* a dict, by the address of what was loaned as a torch tensor */
    PyObject *pool_token;
    uint64_t seq;
    size_t takes, copied_nbytes; /* Python may set any count: as unsigned ones they wrap around */
    unsigned generation;       /* of the process that the segments belong to */
    char hands_on;             /* the slow path may name a tensor of another pool instead of copying it */
    char is_slow_path_running; /* a thread is in the middle of the slow path, so no other may take the fast path */
} FreeLists;

static int free_lists_init(FreeLists *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "", names)) return -1;
    PyObject *to_retire = PyList_New(0), *free = to_retire == NULL ? NULL : PyDict_New();
    PyObject *viewed = free == NULL ? NULL : PyList_New(0), *torch_loans = viewed == NULL ? NULL : PyDict_New();
    PyObject *pool_token = torch_loans == NULL ? NULL : PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
    int has_run = self->to_retire != NULL, is_complete = pool_token != NULL;
    if (is_complete && !has_run) {
        self->generation = fork_generation;
        self->to_retire = to_retire;
        self->free = free;
        self->viewed = viewed;
        self->torch_loans = torch_loans;
        self->pool_token = pool_token;
        return 0;
    }
    if (is_complete) PyErr_SetString(PyExc_ValueError, "__init__ runs once only");
    Py_XDECREF(to_retire);
    Py_XDECREF(free);
    Py_XDECREF(viewed);
    Py_XDECREF(torch_loans);
    Py_XDECREF(pool_token);
    return -1;
}

static int free_lists_traverse(FreeLists *self, visitproc visit, void *arg) {
    VISIT_TYPE_AND_MODULE(self);
    Py_VISIT(self->to_retire);
    Py_VISIT(self->free);
    Py_VISIT(self->viewed);
    Py_VISIT(self->torch_loans);
    Py_VISIT(self->pool_token);
    return 0;
}

static int free_lists_clear(FreeLists *self) {
    Py_CLEAR(self->to_retire);
    Py_CLEAR(self->free);
    Py_CLEAR(self->viewed);
    Py_CLEAR(self->torch_loans);
    Py_CLEAR(self->pool_token);
    return 0;
}

static void free_lists_dealloc(FreeLists *self) {
    PyObject_GC_UnTrack(self);
    free_lists_clear(self);
    stateful_free((PyObject *)self);
}

int free_lists_is_initialised(PyObject *free_lists) {
    if (((FreeLists *)free_lists)->viewed != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "__init__ of a FreeLists has not run: there are no lists");
    return 0;
}

typedef int (*SegmentPredicate)(const OwnerSegment *segment, void *wanted);

/* The warmest segment of a free list if it matches, and that free list, both borrowed; NULL if there is none. */
static OwnerSegment *find(const FreeLists *self, SegmentPredicate matches, void *wanted, PyObject **free_list) {
    PyObject *capacity;
    Py_ssize_t position = 0;
    while (self->free != NULL && PyDict_Next(self->free, &position, &capacity, free_list)) {
        Py_ssize_t count = PyList_CheckExact(*free_list) ? PyList_GET_SIZE(*free_list) : 0;
        PyObject *last = count == 0 ? NULL : PyList_GET_ITEM(*free_list, count - 1);
        if (last != NULL && PyObject_TypeCheck(last, self->state->owner_segment) && matches((OwnerSegment *)last, wanted))
            return (OwnerSegment *)last;
    }
    return NULL;
}

/* Take the last segment off a free list. The list's reference becomes ours, and the list keeps the place. So no memory
 * is needed to put the segment back: a destructor often does that, and it cannot raise. */
static void remove_last(PyObject *free_list) {
    Py_SET_SIZE((PyVarObject *)free_list, PyList_GET_SIZE(free_list) - 1);
}

enum { MAX_VIEWED = 8 }; /* when the reader has a view of more segments than these, the slow path goes on */

/* Take the segment that find() finds off its free list. One whose lease the reader holds is set aside, and the next
 * one is tried. A new reference; NULL if there is none, or with an exception. */
static OwnerSegment *take(FreeLists *self, SegmentPredicate matches, void *wanted) {
    for (int tries = 0; tries <= MAX_VIEWED; tries++) {
        PyObject *free_list;
        OwnerSegment *segment = find(self, matches, wanted, &free_list);
        if (segment == NULL) return NULL;
        /* Looked at first: what a reader views keeps its number, so that the view can be handed on. */
        uint64_t lease = strongest_lease(&segment->base);
        if (lease != WIRE_LEASE_HELD) lease = clear_seq(&segment->base, 0);
        if (lease != WIRE_LEASE_FREE && lease != WIRE_LEASE_HELD) return NULL; /* the slow path retires it */
        if (lease == WIRE_LEASE_FREE && !owner_segment_make_shared(segment)) return NULL;
        if (lease == WIRE_LEASE_HELD && PyList_Append(self->viewed, (PyObject *)segment) < 0) return NULL;
        remove_last(free_list);
        if (lease == WIRE_LEASE_FREE) {
            segment->last_take = ++self->takes;
            return segment;
        }
        Py_DECREF(segment);
    }
    return NULL;
}

/* An array that a segment is wanted for. */
typedef struct {
    PyObject *array;
    int may_share; /* whether the segment may be a slot of a file that other segments share */
} WantedCopy;

static int matches_array(const OwnerSegment *segment, void *argument) {
    const WantedCopy *wanted = argument;
    return segment->is_header_current && (wanted->may_share || !segment->is_slot) &&
           array_layout_matches(&segment->array_layout, wanted->array);
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

/* Reads an int, or a tuple of ints, as torch's shapes are, too; 0 for any other shape, for reading it could run code of the
 * caller's. */
static int parse_wanted_loan(const ModuleState *state, WantedLoan *wanted, PyObject *shape, PyObject *dtype) {
    wanted->ndim = 0;
    wanted->dtype = dtype;
    if (!PyTuple_CheckExact(shape) && (PyObject *)Py_TYPE(shape) != state->torch.size_type) return add_size(wanted, shape);
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
    return self->viewed != NULL && PyList_GET_SIZE(self->to_retire) == 0 && !self->is_slow_path_running &&
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

/* Publish a loan in place and hold its segment once more; 0 if the slow path is needed. Where other views can still write
 * to it, they get memory of their own. */
static int publish_loan(FreeLists *self, OwnerSegment *segment, PyObject *array) {
    if (!is_whole_loan(self, segment, array)) return 0;
    if (segment->is_private) return 0; /* the borrower may have changed its own copy since */
    if (!segment->is_published) {
        int is_open = segment->is_torch_loan || freeze_loan(self->state, array);
        if (is_open && !owner_segment_make_private(segment)) return 0;
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

/* Take a segment of the array's layout, held once; NULL if the slow path is needed, or with an exception. */
static OwnerSegment *claim(FreeLists *self, PyObject *array, int may_share) {
    if (self->hands_on && is_worth_giving(self->state, array)) return NULL;
    WantedCopy wanted = {array, may_share};
    OwnerSegment *segment = take(self, matches_array, &wanted);
    if (segment != NULL) segment->holds = 1;
    return segment;
}

/* Fill a segment that claim() took, and publish it; -1 with an exception, and then it is not published. */
static int fill(FreeLists *self, OwnerSegment *segment, PyObject *array) {
    copy_memory((char *)segment->base.buffer.buf + segment->array_layout.offset, PyArray_DATA((PyArrayObject *)array),
                segment->array_layout.nbytes);
    /* Signal handlers run now, while the segment can be released: if one raised after this function had returned, the
     * caller would never get the segment, and its hold would never be undone. */
    if (PyErr_CheckSignals() < 0) return -1;
    self->copied_nbytes += (size_t)segment->array_layout.nbytes;
    if (self->generation == fork_generation) publish(self, segment); /* a handler may have forked */
    return 0;
}

/* Release a segment, whether or not an exception is set. The view of another pool's is only let go. */
static void give_back(const FreeLists *self, PyObject *segment) {
    if (!PyObject_TypeCheck(segment, self->state->owner_segment)) return;
    PyObject *error = PyErr_GetRaisedException();
    if (owner_segment_release((OwnerSegment *)segment) < 0) PyErr_WriteUnraisable(segment);
    PyErr_SetRaisedException(error);
}

/* Undo the hold of a segment that was not published after all; an exception stays set. `held` may have lost it: a
 * signal handler that ran since may have released all that is held. */
static void undo_hold(const FreeLists *self, PyObject *segment, PyObject *held) {
    int is_held = held == NULL;
    PyObject *error = PyErr_GetRaisedException();
    for (Py_ssize_t index = held == NULL ? 0 : PyList_GET_SIZE(held); index-- > 0 && !is_held;)
        if (PyList_GET_ITEM(held, index) == segment) {
            if (PyList_SetSlice(held, index, index + 1, NULL) < 0) PyErr_WriteUnraisable(segment);
            is_held = 1;
        }
    PyErr_SetRaisedException(error);
    if (is_held) give_back(self, segment);
}

/* The view of a tensor of another pool that needs no copy, borrowed; NULL if it has to be published. */
static PyObject *find_given(const FreeLists *self, PyObject *array, PyObject *links) {
    return links == NULL || !self->hands_on ? NULL : find_linked_view(self->state, array, links);
}

/* Whether what claim_all() has for an array is a segment that claim() took, to be filled. */
static int is_claimed(const FreeLists *self, PyObject *segment, PyObject *array) {
    return PyObject_TypeCheck(segment, self->state->owner_segment) && find_loan_owner(self->state, array) == NULL;
}

/* A list of segments, held once each, one for each array: those of whole loans, not published yet and not held; the
 * views of tensors of other pools; and for the other arrays those that claim() took. NULL if the slow path is needed, or
 * with an exception; then nothing has changed. */
static PyObject *claim_all(FreeLists *self, PyObject *arrays, PyObject *links) {
    Py_ssize_t count = PyTuple_GET_SIZE(arrays), claimed = 0;
    PyObject *segments = PyList_New(count);
    for (; segments != NULL && claimed < count; claimed++) {
        PyObject *array = PyTuple_GET_ITEM(arrays, claimed);
        OwnerSegment *loaned = find_loan_owner(self->state, array);
        PyObject *segment = loaned == NULL ? Py_XNewRef(find_given(self, array, links)) : NULL;
        if (loaned != NULL) segment = is_whole_loan(self, loaned, array) ? Py_NewRef(loaned) : NULL;
        else if (segment == NULL) segment = (PyObject *)claim(self, array, 1);
        if (segment == NULL) break;
        PyList_SET_ITEM(segments, claimed, segment);
    }
    if (segments == NULL || claimed == count) return segments;
    while (claimed-- > 0) {
        PyObject *segment = PyList_GET_ITEM(segments, claimed);
        if (is_claimed(self, segment, PyTuple_GET_ITEM(arrays, claimed))) give_back(self, segment);
    }
    Py_DECREF(segments);
    return NULL;
}

/* Publish one array, as quick_publish() says: its segment, a new reference; NULL if the slow path is needed, or with an
 * exception. */
static OwnerSegment *publish_one(FreeLists *self, PyObject *array, PyObject *held, int may_share) {
    OwnerSegment *segment = find_loan_owner(self->state, array);
    int is_loan = segment != NULL;
    if (is_loan && !publish_loan(self, segment, array)) return NULL;
    segment = is_loan ? (OwnerSegment *)Py_NewRef(segment) : claim(self, array, may_share);
    if (segment == NULL) return NULL;
    /* Appended before the copy, which lets other threads run: one that repairs the pool releases every segment that no
     * list holds. */
    int is_held = held != NULL && PyList_Append(held, (PyObject *)segment) == 0;
    if ((held == NULL || is_held) && (is_loan || fill(self, segment, array) == 0)) return segment;
    undo_hold(self, (PyObject *)segment, is_held ? held : NULL);
    Py_DECREF(segment);
    return NULL;
}

/* quick_publish_all(), where there is something to publish. */
static int publish_arrays(FreeLists *self, PyObject *arrays, PyObject *held, PyObject *links) {
    Py_ssize_t count = PyTuple_GET_SIZE(arrays), loans = 0;
    if (count == 1) { /* the usual number, for which no list is needed */
        PyObject *array = PyTuple_GET_ITEM(arrays, 0), *view = find_given(self, array, links);
        if (view != NULL) return PyList_Append(held, view) < 0 ? -1 : 1;
        OwnerSegment *segment = publish_one(self, array, held, 1);
        if (segment == NULL) return PyErr_Occurred() ? -1 : 0;
        Py_DECREF(segment);
        return 1;
    }
    PyObject *segments = claim_all(self, arrays, links);
    if (segments == NULL) return PyErr_Occurred() ? -1 : 0;
    int code = 1;
    /* The loans first, because one may need the slow path: so nothing is copied for nothing. */
    for (; code > 0 && loans < count; loans++) {
        PyObject *array = PyTuple_GET_ITEM(arrays, loans);
        if (find_loan_owner(self->state, array) == NULL) continue;
        if (!publish_loan(self, (OwnerSegment *)PyList_GET_ITEM(segments, loans), array)) {
            code = 0;
            break;
        }
    }
    /* In one step, so that whoever releases what is held finds all of them or none. Before the copies, which let other
     * threads run: one that repairs the pool releases every segment that no list holds. */
    int is_held = code > 0 && PyList_SetSlice(held, PyList_GET_SIZE(held), PyList_GET_SIZE(held), segments) == 0;
    if (code > 0 && !is_held) code = -1;
    for (Py_ssize_t index = 0; code > 0 && index < count; index++) {
        PyObject *array = PyTuple_GET_ITEM(arrays, index);
        OwnerSegment *segment = (OwnerSegment *)PyList_GET_ITEM(segments, index);
        if (!is_claimed(self, (PyObject *)segment, array)) continue;
        /* A signal handler or a thread that ran during the copy before this one may have resized the array. */
        if (index > 0 && !array_layout_matches(&segment->array_layout, array)) code = 0;
        else if (fill(self, segment, array) < 0) code = -1;
    }
    for (Py_ssize_t index = 0; code <= 0 && index < count; index++)
        if (index < loans || find_loan_owner(self->state, PyTuple_GET_ITEM(arrays, index)) == NULL)
            undo_hold(self, PyList_GET_ITEM(segments, index), is_held ? held : NULL);
    Py_DECREF(segments);
    return code;
}

int quick_publish_all(PyObject *free_lists, PyObject *arrays, PyObject *held, PyObject *links) {
    FreeLists *self = (FreeLists *)free_lists;
    if (PyTuple_GET_SIZE(arrays) == 0) return 1;
    return can_take_fast_path(self) ? publish_arrays(self, arrays, held, links) : 0;
}

PyObject *arrays_to_publish(PyObject *free_lists, PyObject *tensors) {
    const FreeLists *self = (FreeLists *)free_lists;
    return arrays_of_tensors(self->state, tensors, self->torch_loans);
}

PyDoc_STRVAR(quick_publish_doc,
             "quick_publish(tensor, held=None, may_share=True, /)\n--\n\n"
             "Publish an array of the same layout as the last one, or a whole loan.\n\n"
             "Args:\n"
             "    tensor: to publish.\n"
             "    held: a list, to which the segment is appended here: a signal handler may raise as soon as this\n"
             "        returns, and then only the list knows of the hold.\n"
             "    may_share: whether the segment's file may be that of others too.\n\n"
             "Returns:\n"
             "    Its segment, held once more; None if the slow path is needed, and then nothing was published.");

static PyObject *py_quick_publish(FreeLists *self, PyObject *const *arguments, Py_ssize_t count) {
    PyObject *held = count >= 2 && arguments[1] != Py_None ? arguments[1] : NULL;
    int may_share = count == 3 ? PyObject_IsTrue(arguments[2]) : 1;
    if (may_share < 0) return NULL;
    if (count < 1 || count > 3 || (held != NULL && !PyList_Check(held))) {
        PyErr_SetString(PyExc_TypeError,
                        "quick_publish takes a tensor, perhaps a list, and perhaps whether its file may be shared");
        return NULL;
    }
    if (!can_take_fast_path(self)) Py_RETURN_NONE;
    PyObject *array = array_of_tensor(self->state, arguments[0], self->torch_loans);
    OwnerSegment *segment = array != NULL && can_take_fast_path(self) ? publish_one(self, array, held, may_share) : NULL;
    Py_XDECREF(array); /* torch's deleter may run code */
    if (segment != NULL) return (PyObject *)segment;
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* A loaned array as a torch tensor; takes over the reference to the array. NULL with an exception, or if the slow path is
 * needed. */
static PyObject *loan_to_torch(FreeLists *self, OwnerSegment *segment, PyObject *array) {
    /* A small one is copied as any other tensor when it is sent. */
    if (segment->array_layout.nbytes <= WIRE_PRIVATE_COPY_NBYTES) return torch_tensor_of(self->state, array);
    segment->is_torch_loan = 1;
    const char *address = (char *)segment->base.buffer.buf + segment->array_layout.offset;
    PyObject *root = Py_NewRef(PyArray_BASE((PyArrayObject *)array)), *tensor = torch_tensor_of(self->state, array);
    if (tensor != NULL && note_torch_loan(self->state, self->torch_loans, address, tensor, root) < 0) Py_CLEAR(tensor);
    Py_DECREF(root);
    return tensor;
}

PyDoc_STRVAR(quick_loan_doc,
             "quick_loan(shape, dtype, framework)\n--\n\nLoan a segment that was loaned for the same request before.\n\n"
             "Returns:\n    The array or tensor; None if there is no such segment, or if the slow path is needed.");

static PyObject *py_quick_loan(FreeLists *self, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "quick_loan takes a shape, a dtype and a framework");
        return NULL;
    }
    WantedLoan wanted;
    Framework framework = framework_of(self->state, arguments[2]);
    int is_torch = framework == FRAMEWORK_TORCH && self->state->torch.tensor_type != NULL;
    if (!can_take_fast_path(self) || (framework != FRAMEWORK_NUMPY && !is_torch) ||
        !parse_wanted_loan(self->state, &wanted, arguments[0], arguments[1]))
        Py_RETURN_NONE;
    OwnerSegment *segment = take(self, matches_wanted_loan, &wanted);
    if (segment == NULL) return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    PyObject *loaned = owner_segment_loan(segment);
    if (is_torch && loaned != NULL) loaned = loan_to_torch(self, segment, loaned);
    Py_DECREF(segment);
    return loaned == NULL && !PyErr_Occurred() ? Py_NewRef(Py_None) : loaned;
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
    {"viewed", T_OBJECT, offsetof(FreeLists, viewed), READONLY, "segments taken off because the reader has a view"},
    {"torch_loans", T_OBJECT, offsetof(FreeLists, torch_loans), READONLY, "of its torch loans, by address"},
    {"pool_token", T_OBJECT, offsetof(FreeLists, pool_token), READONLY, "what tells its segments from other pools'"},
    {"is_slow_path_running", T_BOOL, offsetof(FreeLists, is_slow_path_running), 0, "whether a thread is in it"},
    {"hands_on", T_BOOL, offsetof(FreeLists, hands_on), 0, "whether tensors of other pools are named, not copied"},
    {"takes", T_PYSSIZET, offsetof(FreeLists, takes), 0, "how many segments were taken from a free list"},
    {"copied_nbytes", T_PYSSIZET, offsetof(FreeLists, copied_nbytes), 0, "bytes that were copied into segments"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef free_lists_attributes[] = {
    {"seq", get_unsigned, set_unsigned, "the number that was last published", (void *)offsetof(FreeLists, seq)},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot free_lists_slots[] = {
    {Py_tp_doc, "FreeLists()\n--\n\nThe free segments of a pool, and its counters."},
    {Py_tp_new, stateful_new},
    {Py_tp_init, free_lists_init},
    {Py_tp_traverse, free_lists_traverse},
    {Py_tp_clear, free_lists_clear},
    {Py_tp_dealloc, free_lists_dealloc},
    {Py_tp_methods, free_lists_methods},
    {Py_tp_members, free_lists_members},
    {Py_tp_getset, free_lists_attributes},
    {0, NULL},
};

PyType_Spec free_lists_spec = {
    .name = "tr_mmap.native.FreeLists",
    .basicsize = sizeof(FreeLists),
    .flags = TYPE_FLAGS | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = free_lists_slots,
};
