/* The types Pending, TurnWords and Counters: plain fields, which the fast path reads and writes without Python. */
#include "traffic.h"

/* -- Pending ------------------------------------------------------------------------------------------------------ */

Pending *pending_new(const ModuleState *state, PyObject *message, PyObject *framework) {
    Pending *self = (Pending *)state->pending->tp_alloc(state->pending, 0);
    if (self == NULL) return NULL;
    self->message = Py_NewRef(message);
    self->framework = Py_XNewRef(framework);
    return self;
}

static int pending_init(Pending *self, PyObject *arguments, PyObject *keywords) {
    PyObject *message, *framework = Py_None;
    static char *names[] = {"message", "framework", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|O", names, &message, &framework)) return -1;
    if (self->message != NULL) { /* a fast path may be in the middle of sending it */
        PyErr_SetString(PyExc_ValueError, "__init__ runs once only");
        return -1;
    }
    self->message = Py_NewRef(message);
    self->framework = framework == Py_None ? NULL : Py_NewRef(framework);
    return 0;
}

static int pending_traverse(Pending *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->message);
    Py_VISIT(self->framework);
    Py_VISIT(self->outcome);
    Py_VISIT(self->asker);
    Py_VISIT(self->on_done);
    Py_VISIT(self->held);
    return 0;
}

static int pending_clear(Pending *self) {
    Py_CLEAR(self->message);
    Py_CLEAR(self->framework);
    Py_CLEAR(self->outcome);
    Py_CLEAR(self->asker);
    Py_CLEAR(self->on_done);
    Py_CLEAR(self->held);
    return 0;
}

static void pending_dealloc(Pending *self) {
    PyObject_GC_UnTrack(self);
    pending_clear(self);
    free_object((PyObject *)self);
}

static PyMemberDef pending_members[] = {
    {"message", T_OBJECT, offsetof(Pending, message), READONLY, "what the user has sent"},
    {"framework", T_OBJECT, offsetof(Pending, framework), READONLY, "of its result's tensors; None to receive none"},
    {"outcome", T_OBJECT, offsetof(Pending, outcome), 0, "its result, or its error; None while there is neither"},
    {"asker", T_OBJECT, offsetof(Pending, asker), 0, "marks the thread that made it"},
    {"on_done", T_OBJECT, offsetof(Pending, on_done), 0, "called once when there is an outcome"},
    {"held", T_OBJECT, offsetof(Pending, held), 0, "the segments that it names"},
    {"deadline_s", T_DOUBLE, offsetof(Pending, deadline_s), 0, "when the time of a call is over"},
    {"seq", T_LONG, offsetof(Pending, seq), 0, "its number; 0 until it is about to be sent"},
    {"is_abandoned", T_BOOL, offsetof(Pending, is_abandoned), 0, "no caller waits for the answer"},
    {"is_sent", T_BOOL, offsetof(Pending, is_sent), 0, "its message was stored"},
    {"is_lost", T_BOOL, offsetof(Pending, is_lost), 0, "it was lost with its worker"},
    {"is_given_up", T_BOOL, offsetof(Pending, is_given_up), 0, "and its asker has started the next worker since"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef pending_attributes[] = {
    {"order", get_unsigned, set_unsigned, "how many requests were sent before it", (void *)offsetof(Pending, order)},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pending_slots[] = {
    {Py_tp_doc, "Pending(message, framework=None)\n--\n\nOne request of a session."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, pending_init},
    {Py_tp_traverse, pending_traverse},
    {Py_tp_clear, pending_clear},
    {Py_tp_dealloc, pending_dealloc},
    {Py_tp_members, pending_members},
    {Py_tp_getset, pending_attributes},
    {0, NULL},
};

PyType_Spec pending_spec = {
    .name = "tr_mmap.native.Pending",
    .basicsize = sizeof(Pending),
    .flags = TYPE_FLAGS | Py_TPFLAGS_HAVE_GC,
    .slots = pending_slots,
};

/* -- TurnWords ---------------------------------------------------------------------------------------------------- */

static Py_ssize_t count_of_waiters(const TurnWords *self) {
    Py_ssize_t count = self->queue == NULL ? 0 : PyObject_Size(self->queue);
    if (count < 0) PyErr_Clear();
    return count;
}

int turn_is_free(PyObject *turn) {
    const TurnWords *self = (const TurnWords *)turn;
    return self->owner == 0 && count_of_waiters(self) == 0;
}

int turn_wake(PyObject *turn) {
    const TurnWords *self = (const TurnWords *)turn;
    if (count_of_waiters(self) == 0 && (self->on_free == NULL || self->on_free == Py_None)) return 0;
    PyObject *returned = PyObject_CallMethod(turn, "wake", NULL);
    Py_XDECREF(returned);
    return returned == NULL ? -1 : 0;
}

static int turn_traverse(TurnWords *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->queue);
    Py_VISIT(self->on_free);
    return 0;
}

static int turn_clear(TurnWords *self) {
    Py_CLEAR(self->queue);
    Py_CLEAR(self->on_free);
    return 0;
}

static void turn_dealloc(TurnWords *self) {
    PyObject_GC_UnTrack(self);
    turn_clear(self);
    free_object((PyObject *)self);
}

static PyMemberDef turn_members[] = {
    {"owner", T_ULONG, offsetof(TurnWords, owner), 0, "identifies the thread that has the turn; 0 if none has it"},
    {"queue", T_OBJECT, offsetof(TurnWords, queue), 0, "those that wait for it"},
    {"on_free", T_OBJECT, offsetof(TurnWords, on_free), 0, "called once when it is given back; None for nothing"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot turn_slots[] = {
    {Py_tp_doc, "TurnWords()\n--\n\nWhich thread has a turn."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_traverse, turn_traverse},
    {Py_tp_clear, turn_clear},
    {Py_tp_dealloc, turn_dealloc},
    {Py_tp_members, turn_members},
    {0, NULL},
};

PyType_Spec turn_spec = {
    .name = "tr_mmap.native.TurnWords",
    .basicsize = sizeof(TurnWords),
    .flags = TYPE_FLAGS | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = turn_slots,
};

/* -- Counters ----------------------------------------------------------------------------------------------------- */

static void counters_dealloc(PyObject *self) { free_object(self); }

static PyMemberDef counters_members[] = {
    {"seq", T_LONG, offsetof(Counters, seq), 0, "the number of the last request"},
    {"limit", T_INT, offsetof(Counters, limit), 0, "most requests in flight"},
    {"is_watched", T_BOOL, offsetof(Counters, is_watched), 0, "whether Python looks how far requests are"},
    {"blocked", T_INT, offsetof(Counters, blocked), 0, "how many reasons there are to send none"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef counters_attributes[] = {
    {"sent", get_unsigned, set_unsigned, "how many requests were sent", (void *)offsetof(Counters, sent)},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot counters_slots[] = {
    {Py_tp_doc, "Counters()\n--\n\nCounts of a session's requests."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, counters_dealloc},
    {Py_tp_members, counters_members},
    {Py_tp_getset, counters_attributes},
    {0, NULL},
};

PyType_Spec counters_spec = {
    .name = "tr_mmap.native.Counters",
    .basicsize = sizeof(Counters),
    .flags = TYPE_FLAGS,
    .slots = counters_slots,
};
