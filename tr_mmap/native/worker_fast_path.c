/* The type WorkerFastPath: a request is taken, handled and answered in one call, and its tensors are fetched by
 * tag. Whatever is new, rare or wrong takes the slow path: then the request waits to be taken, or the reply to be
 * finished. Never ends the worker. */
#include "endpoint.h"
#include "mirror.h"
#include "sent_results.h"
#include "torch_tensors.h"

#include <math.h>
#include <string.h>

typedef struct {
    Endpoint base;
    Py_buffer status;        /* the status page, as in channel/mapped.py */
    PyObject *status_mirror; /* shows the status to people */
    PyObject *by_hand;       /* a list: the requests that somebody wrote into the mirror of the requests */
    PyObject *tags;          /* a dict: from a tag to the ref of its tensor; NULL until __init__ has run */
    PyObject *argument_tags; /* a list: the tags that are valid for the request at hand only */
    PyObject *deaths;        /* a list: gets an element when the controller has ended */
    PyObject *request_type, *ref_type, *reply_type;
    PyObject *sent; /* SentResults: of responses that the controller has not consumed */
    HeartbeatWord heartbeat; /* of the status page */
    char is_foreign; /* this process is a forked child, and the request is its parent's to answer */
} WorkerFastPath;

static int fast_path_init(WorkerFastPath *self, PyObject *arguments, PyObject *keywords) {
    static char *keys[] = {"out",    "own",    "peer_doorbell", "own_doorbell", "slice_s",
                           "pool",   "mapped", "held",          "is_private",   "status", "status_mirror",
                           "by_hand", "tags", "deaths", "request_type", "ref_type", "reply_type", "sent", NULL};
    PyObject *parts[ENDPOINT_ARGUMENTS], *status, *mirror, *by_hand, *tags, *deaths, *request_type, *ref_type, *reply_type;
    PyObject *sent;
    double slice_s;
    Py_buffer status_buffer;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOOOOOOOOOO!O!O!O!OOOO!", keys, parts, parts + 1, parts + 2,
                                     parts + 3, parts + 4, parts + 5, parts + 6, parts + 7, parts + 8, &status,
                                     self->base.state->mirror, &mirror, &PyList_Type, &by_hand, &PyDict_Type, &tags, &PyList_Type, &deaths,
                                     &request_type, &ref_type, &reply_type, self->base.state->sent_results, &sent) ||
        !mirror_is_initialised(mirror) || endpoint_parse(&self->base, parts, &slice_s) < 0 ||
        get_word_buffer(status, &status_buffer, WIRE_STATUS_NBYTES) < 0)
        return -1;
    PyObject *argument_tags = PyList_New(0);
    if (argument_tags == NULL || endpoint_has_run_init(&self->base)) {
        PyBuffer_Release(&status_buffer);
        Py_XDECREF(argument_tags);
        return -1;
    }
    endpoint_set(&self->base, parts, slice_s);
    self->argument_tags = argument_tags;
    self->status = status_buffer;
    self->heartbeat.address = (uint64_t *)((char *)self->status.buf + WIRE_HEARTBEAT_OFFSET);
    self->status_mirror = Py_NewRef(mirror);
    self->by_hand = Py_NewRef(by_hand);
    self->deaths = Py_NewRef(deaths);
    self->request_type = Py_NewRef(request_type);
    self->ref_type = Py_NewRef(ref_type);
    self->reply_type = Py_NewRef(reply_type);
    self->sent = Py_NewRef(sent);
    self->tags = Py_NewRef(tags);
    return 0;
}

static int fast_path_traverse(WorkerFastPath *self, visitproc visit, void *arg) {
    Py_VISIT(self->tags);
    Py_VISIT(self->argument_tags);
    Py_VISIT(self->by_hand);
    Py_VISIT(self->deaths);
    Py_VISIT(self->request_type);
    Py_VISIT(self->ref_type);
    Py_VISIT(self->reply_type);
    Py_VISIT(self->sent);
    Py_VISIT(self->status.obj);
    return endpoint_traverse(&self->base, visit, arg);
}

static int fast_path_clear(WorkerFastPath *self) {
    PyObject *tags = self->tags;
    self->tags = NULL; /* so that whatever runs from here on finds it closed */
    if (tags != NULL) PyBuffer_Release(&self->status);
    Py_XDECREF(tags);
    Py_CLEAR(self->argument_tags);
    Py_CLEAR(self->status_mirror);
    Py_CLEAR(self->by_hand);
    Py_CLEAR(self->deaths);
    Py_CLEAR(self->request_type);
    Py_CLEAR(self->ref_type);
    Py_CLEAR(self->reply_type);
    Py_CLEAR(self->sent);
    return endpoint_clear(&self->base);
}

static int is_initialised(const WorkerFastPath *self) {
    if (self->tags != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "__init__ has not run: there is no channel");
    return 0;
}

/* -- the status. Only its first 8 bytes are used here, as one word: so no reader sees it half stored. ------------- */

/* Note that the worker works now; the controller reads when that was. */
static void touch(WorkerFastPath *self) { heartbeat_touch(&self->heartbeat); }

#define STATUS_LINE(word) (word "\n       ") /* the first 8 bytes of a status without a detail, and more */
#define BUSY STATUS_LINE(WIRE_STATUS_BUSY)
#define OK STATUS_LINE(WIRE_STATUS_OK)
#define READY STATUS_LINE(WIRE_STATUS_READY)
#define ERROR STATUS_LINE(WIRE_STATUS_ERROR)

/* sizeof counts the zero byte, which stands for the newline */
_Static_assert(sizeof WIRE_STATUS_BUSY <= sizeof(uint64_t) && sizeof WIRE_STATUS_OK <= sizeof(uint64_t) &&
                   sizeof WIRE_STATUS_READY <= sizeof(uint64_t) && sizeof WIRE_STATUS_ERROR <= sizeof(uint64_t),
               "a status that is one word here has its newline in that word");
_Static_assert(sizeof WIRE_STATUS_EXIT - 1 <= sizeof(uint64_t) && sizeof WIRE_STATUS_TERMINATED > sizeof(uint64_t),
               "should_exit() compares the beginning of the one, and 8 bytes of the other");

static inline uint64_t word_of(const char *text) {
    uint64_t word;
    memcpy(&word, text, sizeof word);
    return word;
}

static uint64_t status_of(const WorkerFastPath *self) {
    return __atomic_load_n((uint64_t *)self->status.buf, __ATOMIC_RELAXED);
}

/* Replace the status if it is still `seen`. A plain store could overwrite the controller's request to exit. */
static int replace_status(WorkerFastPath *self, uint64_t seen, uint64_t word) {
    return __atomic_compare_exchange_n((uint64_t *)self->status.buf, &seen, word, 0, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
}

/* Whether the status is that of a worker that waits for a request, without a detail: one store can replace it. */
static int is_waiting(uint64_t word) {
    return word == word_of(OK) || word == word_of(READY) || word == word_of(ERROR);
}

/* Whether to end the wait: the worker should exit, or a request by hand is for the slow path. */
static int should_exit(void *context) {
    WorkerFastPath *self = context;
    return memcmp(self->status.buf, WIRE_STATUS_EXIT, sizeof WIRE_STATUS_EXIT - 1) == 0 || /* or "exiting" */
           memcmp(self->status.buf, WIRE_STATUS_TERMINATED, sizeof(uint64_t)) == 0 ||
           PyList_GET_SIZE(self->deaths) != 0 || PyList_GET_SIZE(self->by_hand) != 0;
}

/* -- the request -------------------------------------------------------------------------------------------------- */

static int is_equal(Span text, const char *other, size_t nbytes) {
    return (size_t)text.nbytes == nbytes && memcmp(text.text, other, nbytes) == 0;
}

/* Whether the command is one of the library's own, which no handler may see. */
static int is_for_server(Span command) {
    return is_equal(command, WIRE_EXIT_COMMAND, sizeof WIRE_EXIT_COMMAND - 1) ||
           is_equal(command, WIRE_RELEASE_COMMAND, sizeof WIRE_RELEASE_COMMAND - 1);
}

static int is_argument_tag(Span tag) {
    return tag.nbytes >= (Py_ssize_t)sizeof WIRE_ARGUMENT_TAG_PREFIX - 1 &&
           memcmp(tag.text, WIRE_ARGUMENT_TAG_PREFIX, sizeof WIRE_ARGUMENT_TAG_PREFIX - 1) == 0;
}

static PyObject *make_refs(WorkerFastPath *self, const Message *message) {
    PyObject *refs = PyList_New(message->count);
    for (int index = 0; refs != NULL && index < message->count; index++) {
        const Ref *ref = &message->tensors[index];
        PyObject *fields[] = {text_of(&self->base, ref->tag), text_of(&self->base, ref->segment),
                              PyLong_FromUnsignedLongLong(ref->seq)};
        PyObject *made = construct(self->ref_type, fields, sizeof fields / sizeof *fields);
        if (made == NULL) Py_CLEAR(refs);
        else PyList_SET_ITEM(refs, index, made);
    }
    return refs;
}

static PyObject *make_drops(WorkerFastPath *self, const Message *message) {
    PyObject *drops = PyList_New(message->dropped);
    for (int index = 0; drops != NULL && index < message->dropped; index++) {
        PyObject *tag = text_of(&self->base, message->drops[index]);
        if (tag == NULL) Py_CLEAR(drops);
        else PyList_SET_ITEM(drops, index, tag);
    }
    return drops;
}

/* Take over the tags that a request brings, and forget those that it drops; -1 with an exception. */
static int set_tags(WorkerFastPath *self, const Message *message, PyObject *refs) {
    if (PyList_SetSlice(self->argument_tags, 0, PyList_GET_SIZE(self->argument_tags), NULL) < 0) return -1;
    for (int index = 0; index < message->count && index < PyList_GET_SIZE(refs); index++) {
        Span tag = message->tensors[index].tag;
        PyObject *name = text_of(&self->base, tag);
        int code = name == NULL ? -1 : PyDict_SetItem(self->tags, name, PyList_GET_ITEM(refs, index));
        if (code == 0 && is_argument_tag(tag)) code = PyList_Append(self->argument_tags, name);
        Py_XDECREF(name);
        if (code < 0) return -1;
    }
    for (int index = 0; index < message->dropped; index++) {
        PyObject *name = text_of(&self->base, message->drops[index]);
        int code = name == NULL ? -1 : PyDict_DelItem(self->tags, name); /* the end of a ref may run code */
        Py_XDECREF(name);
        if (code < 0 && !PyErr_ExceptionMatches(PyExc_KeyError)) return -1;
        if (code < 0) PyErr_Clear();
    }
    return 0;
}

/* The request as a Python object, after what begin() of transfer/segments.py does; NULL with an exception. */
static PyObject *begin(WorkerFastPath *self, const Message *message) {
    PyObject *refs = make_refs(self, message);
    if (refs == NULL) return NULL;
    PyObject *fields[7] = {PyLong_FromUnsignedLongLong(message->seq), text_of(&self->base, message->command),
                           text_of(&self->base, message->text),
                           PyLong_FromUnsignedLongLong(message->timestamp), Py_NewRef(refs)};
    size_t count = 5;
    if (message->dropped != 0 || message->is_named) fields[count++] = make_drops(self, message);
    if (message->is_named) fields[count++] = Py_NewRef(self->base.state->names[NAMED]);
    PyObject *request = construct(self->request_type, fields, count);
    if (request != NULL && (sent_results_release(self->sent, ring_done_by_peer(self->base.out)) < 0 ||
                            set_tags(self, message, refs) < 0))
        Py_CLEAR(request);
    Py_DECREF(refs);
    return request;
}

/* Wait for the next message: 1 if one is there, 0 if the worker should exit or is another process, -1 with an exception. */
static int wait_for_message(WorkerFastPath *self, RingLine *next) {
    Endpoint *endpoint = &self->base;
    for (int is_over = 0;;) {
        if (endpoint_is_foreign(endpoint)) return 0;
        int is_there = ring_next(endpoint->own, next);
        if (is_there < 0) return -1;
        if (is_there) { /* a signal handler may raise, which leaves the message there; or take it, or fork */
            int code = PyErr_CheckSignals();
            if (code == 0 && ring_is_next(endpoint->own, next) && !endpoint_is_foreign(endpoint)) return 1;
            Py_DECREF(next->line);
            if (code < 0) return -1;
            continue;
        }
        if (is_over) return 0; /* it may have come just before the reason to exit */
        if (ring_sleep(endpoint->own, endpoint->own_doorbell, INFINITY, endpoint->slice_s, should_exit, self) < 0)
            return -1;
        is_over = should_exit(self);
    }
}

/* Wait for a request, release what the last response named, take over the request's tags, set the status to busy, and
 * take the request. Returns it, and the line into which the message's spans point. None if the worker should exit, or if
 * the slow path is needed: then the request waits to be taken. NULL with an exception. */
static PyObject *take_request(WorkerFastPath *self, Message *message, PyObject **line) {
    PyObject *own = self->base.own;
    RingLine next;
    int is_there = wait_for_message(self, &next);
    if (is_there <= 0) return is_there < 0 ? NULL : Py_NewRef(Py_None);
    *line = next.line;
    uint64_t status = status_of(self);
    int is_plain = next.is_terminated && message_read(PyBytes_AS_STRING(*line), PyBytes_GET_SIZE(*line), 0, message) &&
                   message->command.nbytes != 0 && !is_for_server(message->command) && is_waiting(status) &&
                   ring_begin(own, &next);
    PyObject *request = is_plain ? begin(self, message) : NULL; /* the end of a tag's ref may run code */
    if (request != NULL && ring_is_next(own, &next) && replace_status(self, status, word_of(BUSY))) {
        ring_advance(own, &next);
        touch(self);
        /* At the first request after a pause, the controller shows that we are busy, when it has waited for a while:
         * this costs the request nothing. In a burst of requests the second one shows it, and the others need not. */
        if (mirror_is_forgotten(self->status_mirror)) ring_show(own);
        else if (mirror_is_stale(self->status_mirror)) mirror_forget(self->status_mirror);
        return request;
    }
    Py_XDECREF(request); /* the slow path begins it once more, which changes nothing */
    Py_DECREF(*line);
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) return NULL;
    PyErr_Clear();
    Py_RETURN_NONE;
}

/* -- the request's tensors ---------------------------------------------------------------------------------------- */

/* The tensor of a tag; NULL if the slow path is needed, with an exception or without. */
static PyObject *fetch(const WorkerFastPath *self, PyObject *tag, Framework framework) {
    PyObject *ref = Py_XNewRef(PyDict_GetItemWithError(self->tags, tag));
    if (ref == NULL) return NULL;
    PyObject *const *names = self->base.state->names;
    PyObject *name = PyObject_GetAttr(ref, names[SEGMENT]);
    PyObject *number = name == NULL ? NULL : PyObject_GetAttr(ref, names[SEQ]);
    Py_DECREF(ref);
    PyObject *array = NULL;
    if (name != NULL && number != NULL && PyUnicode_CheckExact(name) && PyLong_CheckExact(number)) {
        uint64_t seq = PyLong_AsUnsignedLongLong(number);
        if (seq == UINT64_MAX && PyErr_Occurred()) PyErr_Clear();
        else array = endpoint_receive(&self->base, name, seq, framework);
    }
    Py_XDECREF(name);
    Py_XDECREF(number);
    return array;
}

PyDoc_STRVAR(quick_fetch_doc,
             "quick_fetch(parameters, framework)\n--\n\nThe tensors whose tags are the words of a text.\n\nReturns:\n"
             "    A list; None if the slow path is needed: for an unknown tag, a comma, a tensor not mapped yet.");

static PyObject *py_quick_fetch(WorkerFastPath *self, PyObject *const *arguments, Py_ssize_t count) {
    Span words;
    if (!is_initialised(self)) return NULL;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "quick_fetch takes a text and a framework");
        return NULL;
    }
    touch(self);
    Framework framework = framework_of(self->base.state, arguments[1]);
    if (!span_of(arguments[0], &words)) Py_RETURN_NONE;
    const char *at = words.text, *end = at + words.nbytes;
    PyObject *arrays = PyList_New(0);
    while (arrays != NULL) {
        while (at < end && *at == ' ') at++;
        if (at == end) return arrays;
        const char *first = at;
        while (at < end && *at != ' ' && *at != ',' && (unsigned char)*at < 0x80) at++;
        PyObject *array = NULL;
        if (at == end || *at == ' ') { /* else the slow path splits the text in another way */
            PyObject *tag = text_of(&self->base, (Span){first, at - first, AS_IT_IS});
            array = tag == NULL ? NULL : fetch(self, tag, framework);
            Py_XDECREF(tag);
        }
        if (array == NULL || PyList_Append(arrays, array) < 0) Py_CLEAR(arrays);
        Py_XDECREF(array);
    }
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* -- the reply ---------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(quick_send_doc,
             "quick_send(result, /)\n--\n\nAdd a tensor, or a tuple of tensors, to the response to the request at hand.\n\n"
             "Returns:\n"
             "    True; None if the slow path is needed, and then nothing was added: each tensor must be a whole loan, or\n"
             "    of the layout of one before.");

static PyObject *py_quick_send(WorkerFastPath *self, PyObject *result) {
    if (!is_initialised(self)) return NULL;
    int is_one = PyArray_CheckExact(result) || is_torch_tensor(self->base.state, result);
    if (self->is_foreign || !(is_one || PyTuple_CheckExact(result))) Py_RETURN_NONE;
    touch(self);
    PyObject *tensors = is_one ? PyTuple_Pack(1, result) : Py_NewRef(result);
    PyObject *arrays = tensors == NULL ? NULL : arrays_to_publish(self->base.pool, tensors);
    /* torch may have forked */
    int is_sent = arrays != NULL && !self->is_foreign ? quick_publish_all(self->base.pool, arrays, self->base.held, NULL) : 0;
    Py_XDECREF(arrays);
    Py_XDECREF(tensors);
    if (PyErr_Occurred()) return NULL;
    return Py_NewRef(is_sent > 0 ? Py_True : Py_None);
}

static int drop_argument_tags(WorkerFastPath *self) {
    for (Py_ssize_t count; (count = PyList_GET_SIZE(self->argument_tags)) > 0;) {
        PyObject *tag = Py_NewRef(PyList_GET_ITEM(self->argument_tags, count - 1));
        int code = PyList_SetSlice(self->argument_tags, count - 1, count, NULL);
        if (code == 0 && PyDict_DelItem(self->tags, tag) < 0) { /* the end of a ref may run code */
            if (PyErr_ExceptionMatches(PyExc_KeyError)) PyErr_Clear();
            else code = -1;
        }
        Py_DECREF(tag);
        if (code < 0) return -1;
    }
    return 0;
}

/* Send a response that names what is held: 1 if that is done; 0 if the slow path is needed, and nothing was sent;
 * -1 with an exception. */
static int send_response(WorkerFastPath *self, uint64_t seq, Span command, Span result, Span remark, int is_named) {
    Endpoint *endpoint = &self->base;
    Draft draft;
    Message message = {.timestamp = now_ms(), .command = command, .text = result, .remark = remark, .is_named = is_named};
    if (endpoint_is_foreign(endpoint)) return 0; /* the handler forked: only its parent answers */
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(endpoint->held); index++)
        if (!message_add_segment(endpoint, &message, PyList_GET_ITEM(endpoint->held, index))) return 0;
    if (!message_write(&draft, &message, 1)) return 0;
    if (!replace_status(self, word_of(BUSY), word_of(OK))) return 0; /* the handler wrote one, or we should exit */
    if (drop_argument_tags(self) < 0) return -1;
    uint64_t order = ring_stored(endpoint->out);
    if (ring_store(endpoint->out, (long)seq, draft.text, draft.nbytes) <= 0) return 0;
    semaphore_post(endpoint->peer_doorbell);
    ring_bell(endpoint->out);
    touch(self);
    return sent_results_add(self->sent, order, endpoint->held) < 0 ? -1 : 1;
}

/* The span of what the handler said, or `fallback` if that is empty; 0 if the slow path is needed. */
static int span_or(PyObject *said, Span fallback, Span *span) {
    if (!span_of(said, span)) return 0;
    if (span->nbytes == 0) *span = fallback;
    return 1;
}

/* Send what a reply says; returns as send_response() does. */
static int send_reply(WorkerFastPath *self, const Message *request, PyObject *reply) {
    PyObject *said[REPLY_ATTRIBUTES] = {NULL};
    Span command, result = {WIRE_DEFAULT_RESULT, sizeof WIRE_DEFAULT_RESULT - 1, AS_IT_IS}, remark, form;
    int is_sent = 1;
    for (int index = 0; index < REPLY_ATTRIBUTES && is_sent > 0; index++)
        if ((said[index] = PyObject_GetAttr(reply, self->base.state->names[index])) == NULL) is_sent = -1;
    if (is_sent > 0)
        is_sent = (said[RESULT] == Py_None || span_of(said[RESULT], &result)) &&
                  span_or(said[COMMAND], request->command, &command) &&
                  span_or(said[COMPLAINT], EMPTY_SPAN, &remark) && span_or(said[MESSAGE], remark, &remark) &&
                  span_of(said[FORM], &form) && (form.nbytes == 0 || is_equal(form, WIRE_FORM_NAMED, sizeof WIRE_FORM_NAMED - 1));
    if (is_sent > 0) is_sent = send_response(self, request->seq, command, result, remark, form.nbytes != 0);
    for (int index = 0; index < REPLY_ATTRIBUTES; index++) Py_XDECREF(said[index]);
    return is_sent;
}

PyDoc_STRVAR(serve_doc,
             "serve(context)\n--\n\n"
             "Wait for a request, have the context's main_logic() handle it, and send the reply.\n\nReturns:\n"
             "    True if that is done. None if the worker should exit, or if the request needs the slow path: then\n"
             "    it waits to be taken. Else a tuple of what is left for the slow path to finish: the request, the\n"
             "    reply, what main_logic() returned, and what it raised or None. So it is in a forked child too.");

static PyObject *py_serve(WorkerFastPath *self, PyObject *context) {
    if (!is_initialised(self)) return NULL;
    Message message;
    PyObject *line, *request = take_request(self, &message, &line);
    if (request == NULL || request == Py_None) return request;
    PyObject *const *names = self->base.state->names;
    PyObject *result = NULL, *is_known = NULL, *error = NULL;
    PyObject *reply = PyObject_CallNoArgs(self->reply_type);
    PyObject *call[] = {context, NULL, NULL};
    if (reply != NULL && (call[1] = PyObject_GetAttr(request, names[COMMAND])) != NULL &&
        (call[2] = PyObject_GetAttr(request, names[PARAMETERS])) != NULL &&
        PyObject_SetAttr(context, names[REPLY], reply) == 0 && PyObject_SetAttr(context, names[REQUEST], request) == 0) {
        is_known = PyObject_VectorcallMethod(names[message.is_named ? NAMED_LOGIC : MAIN_LOGIC], call, 3, NULL);
        if (is_known == NULL) error = PyErr_GetRaisedException(); /* worker/service.py says which ones end the worker */
        if (PyObject_SetAttr(context, names[REPLY], Py_None) < 0) PyErr_WriteUnraisable(context);
        if (PyObject_SetAttr(context, names[REQUEST], Py_None) < 0) PyErr_WriteUnraisable(context);
    }
    if (is_known != NULL || error != NULL) {
        int is_sent = is_known == Py_True && !self->is_foreign ? send_reply(self, &message, reply) : 0;
        if (is_sent > 0) result = Py_NewRef(Py_True);
        else if (is_sent == 0)
            result = PyTuple_Pack(4, request, reply, is_known == NULL ? Py_None : is_known,
                                  error == NULL ? Py_None : error);
    }
    Py_XDECREF(call[1]);
    Py_XDECREF(call[2]);
    Py_XDECREF(is_known);
    Py_XDECREF(error);
    Py_XDECREF(reply);
    Py_DECREF(request);
    Py_DECREF(line);
    return result;
}

static PyMethodDef fast_path_methods[] = {
    {"serve", (PyCFunction)py_serve, METH_O, serve_doc},
    {"quick_fetch", (PyCFunction)(void (*)(void))py_quick_fetch, METH_FASTCALL, quick_fetch_doc},
    {"quick_send", (PyCFunction)py_quick_send, METH_O, quick_send_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef fast_path_members[] = {
    {"is_foreign", T_BOOL, offsetof(WorkerFastPath, is_foreign), 0,
     "This process is a forked child, and the request is its parent's to answer."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot worker_fast_path_slots[] = {
    {Py_tp_doc, "WorkerFastPath(out, own, peer_doorbell, own_doorbell, slice_s, pool, mapped, held, is_private, status, "
                "status_mirror, by_hand, tags, deaths, request_type, ref_type, reply_type)\n--\n\nThe worker's fast path."},
    {Py_tp_new, stateful_new},
    {Py_tp_init, fast_path_init},
    {Py_tp_traverse, fast_path_traverse},
    {Py_tp_clear, fast_path_clear},
    {Py_tp_dealloc, endpoint_dealloc},
    {Py_tp_methods, fast_path_methods},
    {Py_tp_members, fast_path_members},
    {0, NULL},
};

PyType_Spec worker_fast_path_spec = {
    .name = "tr_mmap.native.WorkerFastPath",
    .basicsize = sizeof(WorkerFastPath),
    .flags = TYPE_FLAGS | Py_TPFLAGS_HAVE_GC,
    .slots = worker_fast_path_slots,
};
