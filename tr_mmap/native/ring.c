/* The type Ring: a mapped ring of messages. One side appends them, the other takes them in that order. Knows no message's
 * meaning. tr_mmap/channel/mapped.py describes the bytes of a ring. */
#include "ring.h"

#include "mirror.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

_Static_assert(WIRE_NUMBER_DIGITS == sizeof(uint64_t), "the number is stored as one word");
_Static_assert(sizeof WIRE_BLANK_NUMBER - 1 == WIRE_NUMBER_DIGITS, "the blank number replaces a number");
_Static_assert(WIRE_MESSAGE_NUMBER_OFFSET % sizeof(uint64_t) == 0, "the number's word is aligned");
_Static_assert(WIRE_MESSAGE_REST_OFFSET == WIRE_MESSAGE_NUMBER_OFFSET + WIRE_NUMBER_DIGITS, "the rest follows it");
_Static_assert(WIRE_RING_CANCEL_OFFSET + WIRE_RING_SLOTS * sizeof(uint64_t) <= WIRE_RING_WORDS_NBYTES, "words have room");
_Static_assert((WIRE_RING_SLOTS & (WIRE_RING_SLOTS - 1)) == 0, "a position modulo the slots is a mask");

typedef struct {
    STATEFUL_HEAD
    Py_buffer buffer;
    char *slots;                    /* NULL until __init__ has run */
    uint64_t stored, taken;         /* how many messages this side has stored, and taken */
    uint64_t seen[WIRE_RING_SLOTS]; /* the number of the last message that was taken from each slot */
    char *latest;                   /* the slot of the last message that was stored or taken */
    long stored_seq;                /* the number of the last store; 0 before */
    char is_ordered;                /* no number may be below that of the last store */
    double spin_us;                 /* most that sleep() polls for a message before it sleeps */
    int should_spin;                /* the last message came within spin_us, so sleep() polls for the next one */
    PyObject *last_line;            /* bytes: the last line that was looked at */
    int is_unterminated;            /* that line had no end */
    PyObject *rejected;             /* bytes or NULL: a line in the next slot that is not the peer's */
    PyObject *mirrors;              /* a tuple of Mirrors, or NULL: those that this side keeps up to date */
    int bell;                       /* a descriptor that wakes a reader which sleeps on it; -1 for none */
    dev_t bell_device;              /* of its file: the program may have closed it, and opened another one */
    ino_t bell_inode;
    int waiters;                    /* how many threads are in sleep() */
    unsigned generation;            /* of the process that stores here; a forked child stores nothing */
} Ring;

static char *slot_of(const Ring *self, uint64_t position) {
    return self->slots + position % WIRE_RING_SLOTS * WIRE_RING_SLOT_NBYTES;
}

/* WIRE_NUMBER_DIGITS characters, stored last. */
static uint64_t *number_in(char *slot) { return (uint64_t *)(void *)(slot + WIRE_MESSAGE_NUMBER_OFFSET); }

static uint64_t blank(void) {
    uint64_t word;
    memcpy(&word, WIRE_BLANK_NUMBER, sizeof word);
    return word;
}

static uint64_t number_word(long seq) {
    char digits[WIRE_NUMBER_DIGITS];
    memset(digits, ' ', sizeof digits);
    for (int place = WIRE_NUMBER_DIGITS - 1; seq != 0; place--, seq /= 10) digits[place] = (char)('0' + seq % 10);
    uint64_t word;
    memcpy(&word, digits, sizeof word);
    return word;
}

static int ring_init(Ring *self, PyObject *arguments, PyObject *keywords) {
    PyObject *source;
    static char *names[] = {"buffer", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O", names, &source)) return -1;
    Py_buffer buffer;
    if (get_word_buffer(source, &buffer, WIRE_RING_NBYTES) < 0) return -1;
    if (self->slots != NULL) { /* looked for now, because the source's code could call __init__ too */
        PyBuffer_Release(&buffer);
        PyErr_SetString(PyExc_ValueError, "__init__ runs once only");
        return -1;
    }
    self->buffer = buffer;
    self->slots = (char *)self->buffer.buf + WIRE_RING_WORDS_NBYTES;
    self->latest = self->slots;
    for (int slot = 0; slot < WIRE_RING_SLOTS; slot++) self->seen[slot] = blank();
    self->generation = fork_generation;
    self->bell = -1;
    return 0;
}

/* A mirror of a ring keeps the ring, and the ring keeps the mirrors that it is to show. */
static int ring_traverse(Ring *self, visitproc visit, void *arg) {
    VISIT_TYPE_AND_MODULE(self);
    Py_VISIT(self->mirrors);
    return 0;
}

static int ring_clear(Ring *self) {
    Py_CLEAR(self->mirrors);
    return 0;
}

static void ring_dealloc(Ring *self) {
    PyObject_GC_UnTrack(self);
    if (self->slots != NULL) PyBuffer_Release(&self->buffer);
    Py_CLEAR(self->last_line);
    Py_CLEAR(self->rejected);
    ring_clear(self);
    stateful_free((PyObject *)self);
}

int ring_is_initialised(PyObject *ring) {
    if (((Ring *)ring)->slots != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "__init__ has not run: the ring has no buffer");
    return 0;
}

static int is_initialised(Ring *self) { return ring_is_initialised((PyObject *)self); }

int ring_store(PyObject *ring, long seq, const char *rest, Py_ssize_t nbytes) {
    Ring *self = (Ring *)ring;
    if (self->generation != fork_generation) return -1; /* a signal handler has forked while a message was prepared */
    if (self->is_ordered && self->stored_seq != 0) { /* a signal handler may have sent a later request while this one was prepared */
        long ahead = (self->stored_seq - seq + WIRE_MAX_MESSAGE_SEQ) % WIRE_MAX_MESSAGE_SEQ;
        if (ahead > 0 && ahead < WIRE_MAX_MESSAGE_SEQ / 2) return -1;
    }
    if (seq < 1 || seq > WIRE_MAX_MESSAGE_SEQ || nbytes + 1 > WIRE_RING_SLOT_NBYTES - WIRE_MESSAGE_REST_OFFSET) return 0;
    char *slot = slot_of(self, self->stored);
    __atomic_store_n(number_in(slot), blank(), __ATOMIC_RELAXED);
    /* release: a reader that copied any of the new rest finds the number changed afterwards */
    __atomic_thread_fence(__ATOMIC_RELEASE);
    char *to = slot + WIRE_MESSAGE_REST_OFFSET;
    memcpy(to, rest, (size_t)nbytes);
    to[nbytes] = '\n';
    store_release(number_in(slot), number_word(seq));
    self->stored++;
    self->stored_seq = seq;
    self->latest = slot;
    return 1;
}

PyDoc_STRVAR(store_doc,
             "store(seq, text)\n--\n\nAppend a message: a JSON object, whose first member is its number.\n\n"
             "Returns:\n    False, and nothing was stored, if is_ordered and the number is below the last one's, or if this is a\n"
             "    forked child of the process that made the ring.\n\n"
             "Raises:\n    ValueError: the number has more than 8 digits, or the text is longer than a slot.");

static PyObject *py_store(Ring *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_initialised(self)) return NULL;
    if (count != 2 || !PyBytes_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "store takes a number and bytes");
        return NULL;
    }
    long seq = PyLong_AsLong(arguments[0]);
    if (seq == -1 && PyErr_Occurred()) return NULL;
    const char *text = PyBytes_AS_STRING(arguments[1]);
    Py_ssize_t nbytes = PyBytes_GET_SIZE(arguments[1]);
    const char *rest = memchr(text, ',', (size_t)nbytes); /* the members after the number */
    int is_stored = rest == NULL ? ring_store((PyObject *)self, seq, "}", 1)
                                 : ring_store((PyObject *)self, seq, rest, nbytes - (rest - text));
    if (is_stored != 0) return PyBool_FromLong(is_stored > 0);
    return PyErr_Format(PyExc_ValueError,
                        "the number has more than %d digits, or the message is longer than a slot",
                        WIRE_NUMBER_DIGITS);
}

PyDoc_STRVAR(has_message_doc, "has_message()\n--\n\nWhether a message waits to be taken.");

/* The number of a message that was not taken; 0 if there is none, or if it is being stored. */
static uint64_t number_at(const Ring *self, uint64_t position) {
    uint64_t word = load_acquire(number_in(slot_of(self, position)));
    return word == self->seen[position % WIRE_RING_SLOTS] || word == blank() ? 0 : word;
}

static PyObject *py_has_message(Ring *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    return PyBool_FromLong(number_at(self, self->taken) != 0);
}

/* Whether the line in a slot is the one that is not the peer's. */
static int is_rejected(const Ring *self, const char *slot) {
    if (self->rejected == NULL) return 0;
    Py_ssize_t nbytes = PyBytes_GET_SIZE(self->rejected);
    return memcmp(slot, PyBytes_AS_STRING(self->rejected), (size_t)nbytes) == 0 &&
           (nbytes == WIRE_RING_SLOT_NBYTES || slot[nbytes] == '\n');
}

/* Whether there is a message that next_line() would give. */
static int is_next_there(const Ring *self) {
    return number_at(self, self->taken) != 0 && !is_rejected(self, slot_of(self, self->taken));
}

/* A copy of the next message's line, and its number; NULL without an exception if there is none, or while it is being
 * stored. */
static PyObject *next_line(Ring *self, uint64_t *number) {
    char *slot = slot_of(self, self->taken);
    *number = number_at(self, self->taken);
    if (*number == 0) return NULL;
    const char *end = memchr(slot, '\n', WIRE_RING_SLOT_NBYTES);
    PyObject *line = PyBytes_FromStringAndSize(slot, end == NULL ? WIRE_RING_SLOT_NBYTES : end - slot);
    if (line == NULL) return NULL;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    /* A changed number means that somebody else has stored a message there during the copy. */
    if (__atomic_load_n(number_in(slot), __ATOMIC_RELAXED) != *number || is_rejected(self, slot)) {
        Py_DECREF(line);
        return NULL;
    }
    self->is_unterminated = end == NULL;
    Py_XSETREF(self->last_line, Py_NewRef(line));
    return line;
}

static void advance(Ring *self, uint64_t number) {
    self->latest = slot_of(self, self->taken);
    self->seen[self->taken % WIRE_RING_SLOTS] = number;
    self->taken++;
}

/* The line, or an exception if it has no end. */
static PyObject *if_terminated(const Ring *self, PyObject *line) {
    if (!self->is_unterminated) return line;
    Py_DECREF(line);
    PyErr_SetString(PyExc_ValueError, "the message has no end");
    return NULL;
}

static uint64_t *word_at(const Ring *self, size_t offset) {
    return (uint64_t *)(void *)((char *)self->buffer.buf + offset);
}

static uint64_t *done_word(const Ring *self) { return word_at(self, WIRE_RING_DONE_OFFSET); }

/* Each side stores one word and then looks at the other's: without the fence, neither might see what the other did. */
static void fence_before_look(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

PyDoc_STRVAR(ring_bell_doc,
             "ring_bell()\n--\n\nWake the peer if it sleeps on the bell. To be called after a message was stored.");

void ring_bell(PyObject *ring) {
    Ring *self = (Ring *)ring;
    if (self->bell < 0 || self->generation != fork_generation) return;
    uint64_t *word = word_at(self, WIRE_RING_BELL_OFFSET);
    fence_before_look();
    if (__atomic_load_n(word, __ATOMIC_RELAXED) == 0 || __atomic_exchange_n(word, 0, __ATOMIC_SEQ_CST) == 0) return;
    int saved = errno;
    struct stat file;
    if (fstat(self->bell, &file) < 0 || file.st_dev != self->bell_device || file.st_ino != self->bell_inode ||
        write(self->bell, "!", 1) < 0)
        errno = saved; /* it is full: then it was rung already. Or the program has closed it */
}

PyDoc_STRVAR(set_bell_doc, "set_bell(fd)\n--\n\nName the descriptor by which ring_bell() wakes the peer; -1 for none.");

static PyObject *py_set_bell(Ring *self, PyObject *argument) {
    long fd = PyLong_AsLong(argument);
    if (fd == -1 && PyErr_Occurred()) return NULL;
    struct stat file;
    int is_open = fd >= 0 && fd <= INT_MAX && fstat((int)fd, &file) == 0;
    self->bell = is_open ? (int)fd : -1;
    if (is_open) {
        self->bell_device = file.st_dev;
        self->bell_inode = file.st_ino;
    }
    Py_RETURN_NONE;
}

static PyObject *py_ring_bell(Ring *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    ring_bell((PyObject *)self);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(arm_doc,
             "arm()\n--\n\nLet the peer ring the bell after its next message.\n\n"
             "Returns:\n    Whether a message is there already, for which it may not ring.");

static PyObject *py_arm(Ring *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    __atomic_store_n(word_at(self, WIRE_RING_BELL_OFFSET), 1, __ATOMIC_SEQ_CST);
    fence_before_look();
    return PyBool_FromLong(is_next_there(self));
}

PyDoc_STRVAR(disarm_doc, "disarm()\n--\n\nLet the peer ring the bell no more.");

static PyObject *py_disarm(Ring *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    __atomic_store_n(word_at(self, WIRE_RING_BELL_OFFSET), 0, __ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

static uint64_t *cancel_word(const Ring *self, uint64_t position) {
    return word_at(self, WIRE_RING_CANCEL_OFFSET + position % WIRE_RING_SLOTS * sizeof(uint64_t));
}

PyDoc_STRVAR(cancel_doc,
             "cancel(position)\n--\n\nSay that nobody wants the answer to the message of a position.\n\n"
             "Returns:\n    Whether the peer had not begun with it, and now will not.");

static PyObject *py_cancel(Ring *self, PyObject *argument) {
    if (!is_initialised(self)) return NULL;
    uint64_t position = PyLong_AsUnsignedLongLong(argument);
    if (position == UINT64_MAX && PyErr_Occurred()) return NULL;
    uint64_t *word = cancel_word(self, position);
    /* A later message may have come round to the slot of one that the peer is not done with, and may be cancelled. */
    if (self->generation != fork_generation || load_acquire(word) > position + 1) Py_RETURN_FALSE;
    __atomic_store_n(word, position + 1, __ATOMIC_SEQ_CST);
    fence_before_look();
    return PyBool_FromLong(load_acquire(done_word(self)) <= position);
}

int ring_is_cancelled(PyObject *ring, uint64_t position) {
    const Ring *self = (const Ring *)ring;
    fence_before_look();
    return load_acquire(cancel_word(self, position)) == position + 1;
}

int ring_is_next(PyObject *ring, const RingLine *next) { return ((const Ring *)ring)->taken == next->position; }

int ring_begin(PyObject *ring, const RingLine *next) {
    store_release(done_word((Ring *)ring), next->position + 1);
    return !ring_is_cancelled(ring, next->position);
}

PyDoc_STRVAR(is_cancelled_doc,
             "is_cancelled(position)\n--\n\nWhether the peer has cancelled the message of a position, which was taken.");

static PyObject *py_is_cancelled(Ring *self, PyObject *argument) {
    if (!is_initialised(self)) return NULL;
    uint64_t position = PyLong_AsUnsignedLongLong(argument);
    if (position == UINT64_MAX && PyErr_Occurred()) return NULL;
    return PyBool_FromLong(ring_is_cancelled((PyObject *)self, position));
}

PyDoc_STRVAR(peek_doc,
             "peek()\n--\n\nThe next message's line without its newline; None if there is none, or while it is being\n"
             "stored. The same until advance().\n\nRaises:\n    ValueError: it has no end.");

static PyObject *py_peek(Ring *self, PyObject *unused) {
    (void)unused;
    uint64_t number;
    if (!is_initialised(self)) return NULL;
    self->is_unterminated = 0;
    PyObject *line = next_line(self, &number);
    if (line == NULL) return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    return if_terminated(self, line);
}

PyDoc_STRVAR(all_done_doc, "all_done()\n--\n\nTell the peer that this side is done with all messages that it has taken.");

static PyObject *py_all_done(Ring *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    store_release(done_word(self), self->taken);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(advance_doc,
             "advance(position, is_done)\n--\n\nTake the message at a position, unless it was taken meanwhile.\n\n"
             "Args:\n    position: `taken` at the time of peek().\n"
             "    is_done: whether this side is done with it, and with all before it.\n\n"
             "Returns:\n    Whether this call has taken it.");

static PyObject *py_advance(Ring *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_initialised(self)) return NULL;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "advance takes a position and whether it is done");
        return NULL;
    }
    uint64_t position = PyLong_AsUnsignedLongLong(arguments[0]);
    if (position == UINT64_MAX && PyErr_Occurred()) return NULL;
    int is_done = PyObject_IsTrue(arguments[1]);
    if (is_done < 0) return NULL;
    int is_taken = self->taken == position;
    if (is_taken) advance(self, load_acquire(number_in(slot_of(self, position))));
    if (is_done) store_release(done_word(self), self->taken);
    return PyBool_FromLong(is_taken);
}

uint64_t ring_stored(PyObject *ring) { return ((Ring *)ring)->stored; }

uint64_t ring_done_by_peer(PyObject *ring) { return load_acquire(done_word((Ring *)ring)); }

int ring_next(PyObject *ring, RingLine *next) {
    Ring *self = (Ring *)ring;
    next->position = self->taken;
    next->line = next_line(self, &next->number);
    next->is_terminated = !self->is_unterminated;
    return next->line != NULL ? 1 : PyErr_Occurred() ? -1 : 0;
}

void ring_advance(PyObject *ring, const RingLine *next) {
    Ring *self = (Ring *)ring;
    if (self->taken == next->position) advance(self, next->number);
    store_release(done_word(self), self->taken);
}

PyDoc_STRVAR(has_stored_doc, "has_stored(seq)\n--\n\nWhether one of the last messages that this side has stored has a number.");

static PyObject *py_has_stored(Ring *self, PyObject *number) {
    if (!is_initialised(self)) return NULL;
    long seq = PyLong_AsLong(number);
    if (seq == -1 && PyErr_Occurred()) return NULL;
    if (seq < 1 || seq > WIRE_MAX_MESSAGE_SEQ) Py_RETURN_FALSE;
    uint64_t word = number_word(seq);
    for (uint64_t slot = 0; slot < WIRE_RING_SLOTS; slot++)
        if (load_acquire(number_in(slot_of(self, slot))) == word) Py_RETURN_TRUE;
    Py_RETURN_FALSE;
}

PyDoc_STRVAR(set_spin_doc,
             "set_spin(us)\n--\n\nLet sleep() poll for a message for so long, and for a millisecond at most, before\n"
             "it sleeps; but not after a message that took longer.");

static PyObject *py_set_spin(Ring *self, PyObject *argument) {
    double us;
    if (parse_time(argument, &us) < 0) return NULL;
    self->spin_us = us > WIRE_MAX_SPIN_US ? WIRE_MAX_SPIN_US : us > 0 ? us : 0;
    self->should_spin = 1;
    Py_RETURN_NONE;
}

double now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Poll for a message without sleeping. Checks neither signals nor the peer's death, which the caller does next: it
 * takes WIRE_MAX_SPIN_US at most. */
static void spin(Ring *self, double us) {
    enum { POLLS_PER_CLOCK_READ = 16 }; /* about a microsecond; to read the clock after each poll slows the polls */
    double until_us = now_us() + us;
    const uint64_t *number = number_in(slot_of(self, self->taken));
    uint64_t seen = self->seen[self->taken % WIRE_RING_SLOTS];
    int has_come = 0;
    Py_BEGIN_ALLOW_THREADS
    do {
        for (int poll = 0; poll < POLLS_PER_CLOCK_READ && !has_come; poll++) {
            pause_briefly();
            uint64_t word = load_acquire(number);
            has_come = word != seen && word != blank();
        }
    } while (!has_come && now_us() < until_us);
    Py_END_ALLOW_THREADS
}

static int has_stale_mirror(const Ring *self) {
    Py_ssize_t count = self->mirrors == NULL ? 0 : PyTuple_GET_SIZE(self->mirrors);
    for (Py_ssize_t index = 0; index < count; index++)
        if (mirror_is_stale(PyTuple_GET_ITEM(self->mirrors, index))) return 1;
    return 0;
}

void ring_show(PyObject *ring) {
    const Ring *self = (const Ring *)ring;
    Py_ssize_t count = self->mirrors == NULL ? 0 : PyTuple_GET_SIZE(self->mirrors);
    for (Py_ssize_t index = 0; index < count; index++) mirror_update(PyTuple_GET_ITEM(self->mirrors, index));
}

/* Sleep until the semaphore is posted. A sleep that lasts shows first what the mirrors lack; a burst of messages writes
 * none of them. -1 with an exception. */
static int sleep_and_show(Ring *self, PyObject *semaphore, double sleep_s) {
    if (sleep_s > WIRE_MIRROR_DELAY_S && has_stale_mirror(self)) {
        int code = semaphore_wait(semaphore, WIRE_MIRROR_DELAY_S);
        if (code != 0) return code;
        ring_show((PyObject *)self);
        sleep_s -= WIRE_MIRROR_DELAY_S;
    }
    return semaphore_wait(semaphore, sleep_s);
}

int ring_sleep(PyObject *ring, PyObject *semaphore, double timeout_s, double slice_s, StopCheck should_stop,
               void *context) {
    Ring *self = (Ring *)ring;
    double began_us = now_us(), waited_s = 0, left_s = timeout_s;
    int vain_rings = 0, code = 0; /* in a row */
    self->waiters++;
    while (code == 0 && !is_next_there(self) && left_s > 0) {
        int is_over = should_stop(context);
        if (is_over) {
            code = is_over < 0 ? -1 : 1;
            break;
        }
        if (self->spin_us > 0 && self->should_spin) spin(self, left_s * 1e6 < self->spin_us ? left_s * 1e6 : self->spin_us);
        if (is_next_there(self)) break;
        double sleep_s = longest_sleep_s(slice_s, waited_s);
        int is_woken = sleep_and_show(self, semaphore, left_s < sleep_s ? left_s : sleep_s);
        if (is_woken < 0) code = -1;
        vain_rings = is_woken ? vain_rings + 1 : 0;
        if (vain_rings > 1) { /* one is usual; where more come without pause, we never sleep: let other threads run */
            Py_BEGIN_ALLOW_THREADS
            Py_END_ALLOW_THREADS
        }
        waited_s = (now_us() - began_us) / 1e6;
        left_s = timeout_s - waited_s;
        if (self->spin_us > 0) self->should_spin = waited_s * 1e6 <= self->spin_us;
    }
    self->waiters--;
    return code < 0 ? -1 : 0;
}

static int should_stop_by_call(void *function) {
    PyObject *returned = PyObject_CallNoArgs(function);
    int should_stop = returned == NULL ? -1 : PyObject_IsTrue(returned);
    Py_XDECREF(returned);
    return should_stop;
}

PyDoc_STRVAR(sleep_doc,
             "sleep(semaphore, timeout_s, slice_s, stop)\n--\n\n"
             "Sleep until a message is there, the time is over, or stop() says so.\n\n"
             "Args:\n"
             "    semaphore: posted after each message.\n"
             "    timeout_s: how long to sleep.\n"
             "    slice_s: the longest single sleep, for a post may be lost.\n"
             "    stop: called before each sleep; True ends it all.\n\n"
             "Returns:\n    Whether a message is there.\n\n"
             "Raises:\n    ValueError: a time is NaN, or slice_s is no positive number.");

static PyObject *py_sleep(Ring *self, PyObject *const *arguments, Py_ssize_t count) {
    double timeout_s, slice_s;
    if (!is_initialised(self)) return NULL;
    if (count != 4 || !PyObject_TypeCheck(arguments[0], self->state->semaphore)) {
        PyErr_SetString(PyExc_TypeError, "sleep takes a Semaphore, two times and a function");
        return NULL;
    }
    if (parse_time(arguments[1], &timeout_s) < 0 || parse_slice(arguments[2], &slice_s) < 0) return NULL;
    if (ring_sleep((PyObject *)self, arguments[0], timeout_s, slice_s, should_stop_by_call, arguments[3]) < 0) return NULL;
    return PyBool_FromLong(is_next_there(self));
}

/* The slot of the newest message that is there or was taken. */
static char *newest_slot(const Ring *self) {
    uint64_t position = self->taken;
    while (position - self->taken < WIRE_RING_SLOTS && number_at(self, position) != 0) position++;
    return position == self->taken ? self->latest : slot_of(self, position - 1);
}

/* Its number, as the slot has it. */
static uint64_t newest_number(const Ring *self) { return load_acquire(number_in(newest_slot(self))); }

const char *ring_latest(PyObject *ring) { return ((Ring *)ring)->latest; }

PyDoc_STRVAR(reject_doc,
             "reject()\n--\n\n"
             "Ignore the line that peek() has given; any other can be taken, even one of the same number as that line.");

static PyObject *py_reject(Ring *self, PyObject *unused) {
    (void)unused;
    Py_XSETREF(self->rejected, Py_XNewRef(self->last_line));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(newest_doc,
             "newest()\n--\n\nThe line of the newest message, which may have been taken or not; whole or not.");

static PyObject *py_newest(Ring *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    const char *slot = newest_slot(self);
    const char *end = memchr(slot, '\n', WIRE_RING_SLOT_NBYTES);
    return PyBytes_FromStringAndSize(slot, end == NULL ? WIRE_RING_SLOT_NBYTES : end - slot);
}

PyDoc_STRVAR(newest_seq_doc,
             "newest_seq()\n--\n\nThe number of that message; 0 if there is none, or if it is no number.");

/* 0 if it is no number. */
static long seq_of(uint64_t word) {
    char digits[WIRE_NUMBER_DIGITS];
    memcpy(digits, &word, sizeof digits);
    long seq = 0;
    int place = 0;
    while (place < WIRE_NUMBER_DIGITS && digits[place] == ' ') place++;
    for (; place < WIRE_NUMBER_DIGITS && Py_ISDIGIT(digits[place]); place++) seq = seq * 10 + (digits[place] - '0');
    return place == WIRE_NUMBER_DIGITS ? seq : 0;
}

static PyObject *py_newest_seq(Ring *self, PyObject *unused) {
    (void)unused;
    return is_initialised(self) ? PyLong_FromLong(seq_of(newest_number(self))) : NULL;
}

PyDoc_STRVAR(next_seq_doc, "next_seq()\n--\n\nThe number of the next message; 0 if there is none, or if it is no number.");

static PyObject *py_next_seq(Ring *self, PyObject *unused) {
    (void)unused;
    return is_initialised(self) ? PyLong_FromLong(seq_of(number_at(self, self->taken))) : NULL;
}

PyDoc_STRVAR(set_mirrors_doc,
             "set_mirrors(mirrors)\n--\n\nLet sleep() keep a tuple of mirrors up to date while no message comes.");

static PyObject *py_set_mirrors(Ring *self, PyObject *mirrors) {
    int is_right = PyTuple_Check(mirrors);
    for (Py_ssize_t index = 0; is_right && index < PyTuple_GET_SIZE(mirrors); index++)
        is_right = PyObject_TypeCheck(PyTuple_GET_ITEM(mirrors, index), self->state->mirror);
    if (!is_right) {
        PyErr_SetString(PyExc_TypeError, "set_mirrors takes a tuple of Mirrors");
        return NULL;
    }
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(mirrors); index++)
        if (!mirror_is_initialised(PyTuple_GET_ITEM(mirrors, index))) return NULL;
    Py_XSETREF(self->mirrors, Py_NewRef(mirrors));
    Py_RETURN_NONE;
}

static PyObject *get_waiters(Ring *self, void *unused) {
    (void)unused;
    return PyLong_FromLong(self->waiters);
}

static PyObject *get_stored_seq(Ring *self, void *unused) {
    (void)unused;
    return PyLong_FromLong(self->stored_seq);
}

static PyObject *get_done_by_peer(Ring *self, void *unused) {
    (void)unused;
    return is_initialised(self) ? PyLong_FromUnsignedLongLong(load_acquire(done_word(self))) : NULL;
}

static PyGetSetDef ring_properties[] = {
    {"stored", (getter)get_unsigned, NULL, "How many messages this side has stored.", (void *)offsetof(Ring, stored)},
    {"taken", (getter)get_unsigned, NULL, "How many messages this side has taken.", (void *)offsetof(Ring, taken)},
    {"stored_seq", (getter)get_stored_seq, NULL, "The number of the last message that was stored; 0 before.", NULL},
    {"done_by_peer", (getter)get_done_by_peer, NULL, "How many messages the peer is done with.", NULL},
    {"waiters", (getter)get_waiters, NULL, "How many threads are in sleep().", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef ring_methods[] = {
    {"store", (PyCFunction)(void (*)(void))py_store, METH_FASTCALL, store_doc},
    {"has_message", (PyCFunction)py_has_message, METH_NOARGS, has_message_doc},
    {"set_spin", (PyCFunction)py_set_spin, METH_O, set_spin_doc},
    {"newest", (PyCFunction)py_newest, METH_NOARGS, newest_doc},
    {"newest_seq", (PyCFunction)py_newest_seq, METH_NOARGS, newest_seq_doc},
    {"next_seq", (PyCFunction)py_next_seq, METH_NOARGS, next_seq_doc},
    {"peek", (PyCFunction)py_peek, METH_NOARGS, peek_doc},
    {"advance", (PyCFunction)(void (*)(void))py_advance, METH_FASTCALL, advance_doc},
    {"all_done", (PyCFunction)py_all_done, METH_NOARGS, all_done_doc},
    {"set_bell", (PyCFunction)py_set_bell, METH_O, set_bell_doc},
    {"ring_bell", (PyCFunction)py_ring_bell, METH_NOARGS, ring_bell_doc},
    {"arm", (PyCFunction)py_arm, METH_NOARGS, arm_doc},
    {"disarm", (PyCFunction)py_disarm, METH_NOARGS, disarm_doc},
    {"cancel", (PyCFunction)py_cancel, METH_O, cancel_doc},
    {"is_cancelled", (PyCFunction)py_is_cancelled, METH_O, is_cancelled_doc},
    {"has_stored", (PyCFunction)py_has_stored, METH_O, has_stored_doc},
    {"sleep", (PyCFunction)(void (*)(void))py_sleep, METH_FASTCALL, sleep_doc},
    {"reject", (PyCFunction)py_reject, METH_NOARGS, reject_doc},
    {"set_mirrors", (PyCFunction)py_set_mirrors, METH_O, set_mirrors_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef ring_members[] = {
    {"is_ordered", T_BOOL, offsetof(Ring, is_ordered), 0, "whether no number may be below that of the last store"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_doc, "Ring(buffer)\n--\n\nA ring of messages that is mapped as a writable buffer."},
    {Py_tp_new, stateful_new},
    {Py_tp_init, ring_init},
    {Py_tp_traverse, ring_traverse},
    {Py_tp_clear, ring_clear},
    {Py_tp_dealloc, ring_dealloc},
    {Py_tp_methods, ring_methods},
    {Py_tp_members, ring_members},
    {Py_tp_getset, ring_properties},
    {0, NULL},
};

PyType_Spec ring_spec = {
    .name = "tr_mmap.native.Ring",
    .basicsize = sizeof(Ring),
    .flags = TYPE_FLAGS | Py_TPFLAGS_HAVE_GC,
    .slots = ring_slots,
};

const char has_as_many_colons_doc[] =
    "has_as_many_colons(line, values)\n--\n\nWhether a line of bytes has as many colons as a tuple has true values.";

PyObject *py_has_as_many_colons(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !PyBytes_Check(arguments[0]) || !PyTuple_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "has_as_many_colons takes bytes and a tuple");
        return NULL;
    }
    Py_ssize_t surplus = 0;
    const char *text = PyBytes_AS_STRING(arguments[0]);
    for (Py_ssize_t index = 0; index < PyBytes_GET_SIZE(arguments[0]); index++) surplus += text[index] == ':';
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(arguments[1]); index++) {
        int is_true = PyObject_IsTrue(PyTuple_GET_ITEM(arguments[1], index));
        if (is_true < 0) return NULL;
        surplus -= is_true;
    }
    return PyBool_FromLong(surplus == 0);
}
