/* The type ReaderSegment: a segment as its reader sees it. Makes views, and holds the lease while one of them lives.
 * Parses no header: Python does, and sets the layout. */
#include "arrays.h"
#include "lease_words.h"

#include <sys/mman.h>
#include <unistd.h>

typedef struct {
    LeaseWords base; /* over the segment's first page, mapped for writing */
    Py_buffer file;  /* the whole file, mapped for reading */
    ArrayLayout layout;
    uint64_t layout_seq; /* the number of that layout; 0 for none */
    Py_ssize_t views;
    PyObject *spare;     /* a copy-on-write mapping of the file that no view uses any more; NULL or None for none */
    unsigned generation; /* of the process that the lease belongs to */
    char is_pinned;      /* a forked child may use a view for ever */
    char is_recent;      /* a view was made since Python cleared this */
    char is_givable;     /* other processes may read it too, each with a lease line */
    char is_orphan;      /* its owner has ended */
    PyObject *links;     /* a dict: names of its file that go with it, as the bytes of paths; NULL or None for none */
} ReaderSegment;

/* A copy-on-write mapping. The buffer is held: a bytearray would move, and a memoryview could be released. */
typedef struct {
    PyObject *object;
    Py_buffer buffer;
} PrivateMapping;

/* The base of a view: numpy destroys it with the last array that uses the view's memory. */
typedef struct {
    PyObject_HEAD
    ReaderSegment *segment;
    PrivateMapping *mapping; /* over which the view lies; NULL for the shared one */
} View;

/* A forked child shares the lease's word, but only its parent may release the lease. */
static void release_lease_if_unused(ReaderSegment *self) {
    if (self->views == 0 && self->generation == fork_generation)
        /* release: the loads through the views must be over when the owner sees the lease free */
        store_release(self->base.lease, self->is_pinned ? WIRE_LEASE_PINNED : WIRE_LEASE_FREE);
}

/* NULL with an exception if it is not writable, or not of `nbytes`. */
static PrivateMapping *hold_mapping(PyObject *object, Py_ssize_t nbytes) {
    PrivateMapping *held = PyMem_Malloc(sizeof *held);
    if (held == NULL) return (PrivateMapping *)PyErr_NoMemory();
    if (PyObject_GetBuffer(object, &held->buffer, PyBUF_WRITABLE) < 0) {
        PyMem_Free(held);
        return NULL;
    }
    if (held->buffer.len != nbytes) {
        PyBuffer_Release(&held->buffer);
        PyMem_Free(held);
        PyErr_SetString(PyExc_ValueError, "the mapping is not of the whole file");
        return NULL;
    }
    held->object = Py_NewRef(object);
    return held;
}

/* Returns the reference to the mapping. */
static PyObject *let_go_of_mapping(PrivateMapping *held) {
    PyObject *object = held->object;
    PyBuffer_Release(&held->buffer);
    PyMem_Free(held);
    return object;
}

static void view_dealloc(View *self) {
    ReaderSegment *segment = self->segment;
    segment->views--;
    release_lease_if_unused(segment);
    if (self->mapping != NULL) {
        PyObject *error = PyErr_GetRaisedException(); /* the end of a mapping may run code */
        PyObject *mapping = let_go_of_mapping(self->mapping);
        if (segment->spare == NULL || segment->spare == Py_None) Py_XSETREF(segment->spare, mapping);
        else Py_DECREF(mapping);
        PyErr_SetRaisedException(error);
    }
    Py_DECREF(segment);
    free_object((PyObject *)self);
}

PyDoc_STRVAR(view_release_doc,
             "release()\n--\n\nDoes nothing, for a list of what a request holds: the lease goes with the last reference.");

static PyObject *view_release(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    Py_RETURN_NONE;
}

static PyMethodDef view_methods[] = {
    {"release", view_release, METH_NOARGS, view_release_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot view_slots[] = {
    {Py_tp_doc, "The base of an array over a segment of the peer's; the segment is not filled again while it lives."},
    {Py_tp_dealloc, view_dealloc},
    {Py_tp_methods, view_methods},
    {0, NULL},
};

PyType_Spec view_spec = {
    .name = "tr_mmap.native.View",
    .basicsize = sizeof(View),
    .flags = TYPE_FLAGS | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = view_slots,
};

static int reader_segment_init(ReaderSegment *self, PyObject *arguments, PyObject *keywords) {
    PyObject *head, *file, *line = NULL;
    Py_buffer file_buffer;
    static char *names[] = {"head", "file", "line", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO|O", names, &head, &file, &line)) return -1;
    Py_ssize_t number = parse_line(line);
    if (number < NO_LINE) return -1;
    if (PyObject_GetBuffer(file, &file_buffer, PyBUF_SIMPLE) < 0) return -1;
    if (lease_words_init(&self->base, head, NULL, number) < 0) {
        PyBuffer_Release(&file_buffer);
        return -1;
    }
    self->file = file_buffer;
    self->generation = fork_generation;
    return 0;
}

static int reader_segment_traverse(ReaderSegment *self, visitproc visit, void *arg) {
    VISIT_TYPE_AND_MODULE(self);
    Py_VISIT(self->layout.dtype);
    Py_VISIT(self->spare);
    Py_VISIT(self->links);
    return 0;
}

/* Remove the names that go with the segment. If its owner has ended, nobody else will tell the readers that they may unmap
 * it. System calls only, so that no other code runs in a destructor. */
static void remove_links(const ReaderSegment *self) {
    if (self->base.live == NULL || self->generation != fork_generation || self->links == NULL ||
        !PyDict_CheckExact(self->links) || PyDict_GET_SIZE(self->links) == 0)
        return;
    if (self->is_orphan) stamp(self->base.live, WIRE_SEQ_RETIRED);
    PyObject *key, *path;
    Py_ssize_t position = 0;
    while (PyDict_Next(self->links, &position, &key, &path))
        if (PyBytes_CheckExact(path)) (void)unlink(PyBytes_AS_STRING(path));
}

static int reader_segment_clear(ReaderSegment *self) {
    self->layout_seq = 0;
    Py_CLEAR(self->layout.dtype);
    Py_CLEAR(self->spare);
    return 0;
}

static void reader_segment_dealloc(ReaderSegment *self) {
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, reader_segment_dealloc)
    remove_links(self);
    Py_CLEAR(self->links);
    if (self->base.live != NULL) PyBuffer_Release(&self->file);
    lease_words_clear(&self->base);
    reader_segment_clear(self);
    stateful_free((PyObject *)self);
    Py_TRASHCAN_END
}

PyDoc_STRVAR(set_layout_doc,
             "set_layout(layout_seq, dtype, shape, offset)\n--\n\n"
             "Take over what the header says, under the number of its layout.\n\n"
             "Raises:\n    ValueError: the tensor does not fit into the file, or its elements are not plain numbers; then\n"
             "        there is no layout.");

static PyObject *py_set_layout(ReaderSegment *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!lease_words_is_initialised(&self->base)) return NULL;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "set_layout takes a number, a dtype, a shape and an offset");
        return NULL;
    }
    self->layout_seq = 0;
    uint64_t layout_seq = PyLong_AsUnsignedLongLong(arguments[0]);
    if (layout_seq == UINT64_MAX && PyErr_Occurred()) return NULL;
    ArrayLayout parsed;
    if (array_layout_parse(&parsed, arguments[1], arguments[2], arguments[3], self->file.buf, self->file.len) < 0) {
        self->layout_seq = 0; /* code that ran meanwhile may have set another layout */
        return NULL;
    }
    PyArray_Descr *old = array_layout_replace(&self->layout, &parsed);
    self->layout_seq = layout_seq;
    Py_XDECREF(old); /* last, for its end may run code */
    Py_RETURN_NONE;
}

/* An array over the tensor, in a mapping, or in the shared one if that is NULL; takes over the mapping, also when it
 * fails. The array says that it may be written if `is_writable`. NULL with a LookupError if another tensor is there by now; NULL without an exception if its layout is not the
 * one that was set. */
static PyObject *view_under_lease(ReaderSegment *self, uint64_t seq, PrivateMapping *mapping, int is_writable) {
    int is_foreign = self->generation != fork_generation; /* a child could not release the lease */
    uint64_t layout_seq = is_foreign ? 0 : acquire_lease(&self->base, seq);
    View *view = NULL;
    self->is_recent = 1;
    if (is_foreign)
        PyErr_SetString(PyExc_LookupError, "the lease is that of the process that this one was forked from");
    else if (layout_seq == 0)
        PyErr_SetString(PyExc_LookupError, "another tensor is there by now");
    else if (layout_seq == self->layout_seq)
        view = PyObject_New(View, self->base.state->view);
    if (view == NULL) {
        release_lease_if_unused(self);
        if (mapping != NULL) Py_DECREF(let_go_of_mapping(mapping));
        return NULL;
    }
    view->segment = (ReaderSegment *)Py_NewRef(self);
    view->mapping = mapping;
    self->views++;
    char *file = mapping == NULL ? self->file.buf : mapping->buffer.buf;
    return array_layout_view(&self->layout, file, is_writable, (PyObject *)view);
}

PyObject *reader_segment_view(PyObject *segment, uint64_t seq) {
    ReaderSegment *self = (ReaderSegment *)segment;
    return self->base.live == NULL ? NULL : view_under_lease(self, seq, NULL, 0);
}

PyObject *reader_segment_unguarded_view(PyObject *segment, uint64_t seq) {
    ReaderSegment *self = (ReaderSegment *)segment;
    return self->base.live == NULL ? NULL : view_under_lease(self, seq, NULL, 1);
}

/* Let a mapping show the file again, whatever was stored into it; 0 if that cannot be. Pages into which nothing was stored
 * are the file's own: if all are, they stay, for to fault them in again takes longer than a copy of them. */
static int forget_stores(const Py_buffer *buffer) {
    int is_done;
    Py_BEGIN_ALLOW_THREADS /* it may have many pages */
    is_done = has_file_pages_only(buffer->buf, (size_t)buffer->len) ||
              madvise(buffer->buf, (size_t)buffer->len, MADV_DONTNEED) == 0;
    Py_END_ALLOW_THREADS
    return is_done;
}

int reader_segment_is_small(PyObject *segment) {
    return ((ReaderSegment *)segment)->layout.nbytes <= WIRE_PRIVATE_COPY_NBYTES;
}

PyObject *reader_segment_private(PyObject *segment, uint64_t seq) {
    ReaderSegment *self = (ReaderSegment *)segment;
    if (self->base.live == NULL) return NULL;
    if (reader_segment_is_small(segment)) {
        PyObject *array = view_under_lease(self, seq, NULL, 0);
        PyObject *copied = array == NULL ? NULL : PyArray_NewCopy((PyArrayObject *)array, NPY_CORDER);
        Py_XDECREF(array);
        return copied;
    }
    PyObject *spare = self->spare;
    if (spare == NULL || spare == Py_None) return NULL;
    self->spare = NULL; /* nobody else gets it */
    PrivateMapping *mapping = hold_mapping(spare, self->file.len);
    Py_DECREF(spare);
    if (mapping == NULL) return NULL;
    if (!forget_stores(&mapping->buffer)) {
        Py_DECREF(let_go_of_mapping(mapping));
        return NULL;
    }
    return view_under_lease(self, seq, mapping, 1);
}

PyDoc_STRVAR(view_doc,
             "view(seq, mapping=None)\n--\n\n"
             "An array over the tensor; the lease is held while it lives, or a view of it.\n\n"
             "Args:\n"
             "    seq: the number that the tensor was published under.\n"
             "    mapping: a copy-on-write mapping of the file, which the array is to be over; it becomes the spare\n"
             "        one when the array is gone.\n\n"
             "Returns:\n    None if its layout is not the one that was set.\n\n"
             "Raises:\n    LookupError: another tensor is there by now.");

static PyObject *py_view(ReaderSegment *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!lease_words_is_initialised(&self->base)) return NULL;
    if (count != 1 && count != 2) {
        PyErr_SetString(PyExc_TypeError, "view takes a number, and perhaps a mapping");
        return NULL;
    }
    uint64_t seq = parse_seq(arguments[0]);
    if (seq == UINT64_MAX && PyErr_Occurred()) return NULL;
    PrivateMapping *mapping = NULL;
    if (count == 2 && arguments[1] != Py_None) {
        mapping = hold_mapping(arguments[1], self->file.len);
        if (mapping == NULL) return NULL;
    }
    PyObject *array = view_under_lease(self, seq, mapping, mapping != NULL);
    return array == NULL && !PyErr_Occurred() ? Py_NewRef(Py_None) : array;
}

/* The view at the end of an array's bases, borrowed; NULL if there is none, or if it lies over a copy-on-write mapping. */
static View *find_view(const ModuleState *state, PyObject *array) {
    while (array != NULL && PyArray_Check(array)) array = PyArray_BASE((PyArrayObject *)array);
    View *view = array != NULL && Py_IS_TYPE(array, state->view) ? (View *)array : NULL;
    return view == NULL || view->mapping != NULL ? NULL : view;
}

int is_worth_giving(const ModuleState *state, PyObject *array) {
    if (PyArray_NBYTES((PyArrayObject *)array) < WIRE_GIVEN_NBYTES) return 0;
    View *view = find_view(state, array);
    if (view != NULL) return view->segment->is_givable;
    while (array != NULL && PyArray_Check(array)) array = PyArray_BASE((PyArrayObject *)array);
    return array != NULL && is_mapping_with_kept(state, array); /* of a loaded file */
}

PyObject *find_link(const ModuleState *state, PyObject *view, PyObject *links, uint64_t *seq) {
    if (!Py_IS_TYPE(view, state->view)) return NULL;
    ReaderSegment *segment = ((View *)view)->segment;
    *seq = load_acquire(&segment->base.live->seq);
    if (*seq == 0 || *seq == WIRE_SEQ_RETIRED || load_acquire(&segment->base.live->seq_copy) != *seq) return NULL;
    PyObject *reference = PyWeakref_NewRef((PyObject *)segment, NULL); /* often one that is there already */
    PyObject *link = reference == NULL ? NULL : PyDict_GetItemWithError(links, reference);
    Py_XDECREF(reference);
    if (link == NULL) PyErr_Clear();
    if (link == NULL || !PyTuple_Check(link) || PyTuple_GET_SIZE(link) == 0) return NULL;
    PyObject *name = PyTuple_GET_ITEM(link, 0);
    return PyUnicode_CheckExact(name) && PyUnicode_GET_LENGTH(name) != 0 ? name : NULL;
}

PyObject *find_linked_view(const ModuleState *state, PyObject *array, PyObject *links) {
    if (PyArray_NBYTES((PyArrayObject *)array) < WIRE_GIVEN_NBYTES || PyArray_ISWRITEABLE((PyArrayObject *)array))
        return NULL;
    View *view = find_view(state, array);
    if (view == NULL || !view->segment->is_givable) return NULL;
    /* The lease keeps the owner from changing the layout; Python may have found that it cannot read it. */
    const ReaderSegment *segment = view->segment;
    const char *payload = (const char *)segment->file.buf + segment->layout.offset;
    uint64_t seq;
    int is_whole = segment->layout_seq != 0 && array_layout_matches(&segment->layout, array) &&
                   PyArray_BYTES((PyArrayObject *)array) == payload;
    return is_whole && find_link(state, (PyObject *)view, links, &seq) != NULL ? (PyObject *)view : NULL;
}

const char view_of_doc[] =
    "view_of(array)\n--\n\nThe peer's segment that an array is a view of; None if it is no view, or a copy-on-write one.";

PyObject *py_view_of(PyObject *module, PyObject *array) {
    View *view = find_view(state_of(module), array);
    return Py_NewRef(view == NULL ? Py_None : (PyObject *)view->segment);
}

static PyMethodDef reader_segment_methods[] = {
    {"set_layout", (PyCFunction)(void (*)(void))py_set_layout, METH_FASTCALL, set_layout_doc},
    {"view", (PyCFunction)(void (*)(void))py_view, METH_FASTCALL, view_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef reader_segment_members[] = {
    {"views", T_PYSSIZET, offsetof(ReaderSegment, views), READONLY, "how many arrays there are"},
    {"spare", T_OBJECT, offsetof(ReaderSegment, spare), 0, "a copy-on-write mapping that no view uses any more"},
    {"is_pinned", T_BOOL, offsetof(ReaderSegment, is_pinned), 0, "whether the lease is never to be released"},
    {"is_recent", T_BOOL, offsetof(ReaderSegment, is_recent), 0, "whether a view was made since this was cleared"},
    {"is_orphan", T_BOOL, offsetof(ReaderSegment, is_orphan), 0, "whether its owner has ended"},
    {"links", T_OBJECT, offsetof(ReaderSegment, links), 0, "a dict of names of its file, which go with it"},
    {"is_givable", T_BOOL, offsetof(ReaderSegment, is_givable), 0, "whether other processes may read it too"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot reader_segment_slots[] = {
    {Py_tp_doc, "ReaderSegment(head, file, line=None)\n--\n\nA segment as its reader sees it.\n\n"
                "Args:\n    head: its first page, mapped for writing.\n    file: the whole of it, mapped for reading.\n"
                "    line: the number of this reader's lease line; None for the session's own reader."},
    {Py_tp_new, stateful_new},
    {Py_tp_init, reader_segment_init},
    {Py_tp_traverse, reader_segment_traverse},
    {Py_tp_clear, reader_segment_clear},
    {Py_tp_dealloc, reader_segment_dealloc},
    {Py_tp_methods, reader_segment_methods},
    {Py_tp_members, reader_segment_members},
    {0, NULL},
};

PyType_Spec reader_segment_spec = {
    .name = "tr_mmap.native.ReaderSegment",
    .basicsize = sizeof(ReaderSegment),
    .flags = TYPE_FLAGS | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = reader_segment_slots,
};
