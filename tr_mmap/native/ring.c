/* A mapped ring of messages: how they are stored, looked at, taken and cancelled, and how a peer is told. Knows no
 * message's meaning. tr_mmap/channel/mapped.py describes the bytes of a ring. */
#include "ring_fields.h"

#include <errno.h>
#include <unistd.h>

_Static_assert(WIRE_NUMBER_DIGITS == sizeof(uint64_t), "the number is stored as one word");
_Static_assert(sizeof WIRE_BLANK_NUMBER - 1 == WIRE_NUMBER_DIGITS, "the blank number replaces a number");
_Static_assert(WIRE_MESSAGE_NUMBER_OFFSET % sizeof(uint64_t) == 0, "the number's word is aligned");
_Static_assert(WIRE_MESSAGE_REST_OFFSET == WIRE_MESSAGE_NUMBER_OFFSET + WIRE_NUMBER_DIGITS, "the rest follows it");
_Static_assert(WIRE_RING_CANCEL_OFFSET + WIRE_RING_SLOTS * sizeof(uint64_t) <= WIRE_RING_WORDS_NBYTES, "words have room");
_Static_assert((WIRE_RING_SLOTS & (WIRE_RING_SLOTS - 1)) == 0, "a position modulo the slots is a mask");

uint64_t ring_number_word(long seq) {
    char digits[WIRE_NUMBER_DIGITS];
    memset(digits, ' ', sizeof digits);
    for (int place = WIRE_NUMBER_DIGITS - 1; seq != 0; place--, seq /= 10) digits[place] = (char)('0' + seq % 10);
    uint64_t word;
    memcpy(&word, digits, sizeof word);
    return word;
}

long ring_number_of(uint64_t word) {
    char digits[WIRE_NUMBER_DIGITS];
    memcpy(digits, &word, sizeof digits);
    long seq = 0;
    int place = 0;
    while (place < WIRE_NUMBER_DIGITS && digits[place] == ' ') place++;
    for (; place < WIRE_NUMBER_DIGITS && Py_ISDIGIT(digits[place]); place++) seq = seq * 10 + (digits[place] - '0');
    return place == WIRE_NUMBER_DIGITS ? seq : 0;
}

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
    store_release(number_in(slot), ring_number_word(seq));
    self->stored++;
    self->stored_seq = seq;
    self->latest = slot;
    return 1;
}

/* Whether the line in a slot is the one that is not the peer's. */
static int is_rejected(const Ring *self, const char *slot) {
    if (self->rejected == NULL) return 0;
    Py_ssize_t nbytes = PyBytes_GET_SIZE(self->rejected);
    return memcmp(slot, PyBytes_AS_STRING(self->rejected), (size_t)nbytes) == 0 &&
           (nbytes == WIRE_RING_SLOT_NBYTES || slot[nbytes] == '\n');
}

int ring_is_next_there(const Ring *self) {
    return number_at(self, self->taken) != 0 && !is_rejected(self, slot_of(self, self->taken));
}

int ring_next(PyObject *ring, RingLine *next) {
    Ring *self = (Ring *)ring;
    char *slot = slot_of(self, self->taken);
    next->position = self->taken;
    next->number = number_at(self, self->taken);
    if (next->number == 0) return 0;
    const char *end = memchr(slot, '\n', WIRE_RING_SLOT_NBYTES);
    next->is_terminated = end != NULL;
    next->line = PyBytes_FromStringAndSize(slot, end == NULL ? WIRE_RING_SLOT_NBYTES : end - slot);
    if (next->line == NULL) return -1;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    /* A changed number means that somebody else has stored a message there during the copy. */
    if (__atomic_load_n(number_in(slot), __ATOMIC_RELAXED) != next->number || is_rejected(self, slot)) {
        Py_CLEAR(next->line);
        return 0;
    }
    Py_XSETREF(self->last_line, Py_NewRef(next->line));
    return 1;
}

int ring_take(Ring *self, uint64_t position, uint64_t number) {
    if (self->taken != position) return 0;
    self->latest = slot_of(self, position);
    self->seen[position % WIRE_RING_SLOTS] = number;
    self->taken++;
    return 1;
}

void ring_advance(PyObject *ring, const RingLine *next) {
    Ring *self = (Ring *)ring;
    ring_take(self, next->position, next->number);
    store_release(done_word(self), self->taken);
}

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

int ring_arm(Ring *self) {
    __atomic_store_n(word_at(self, WIRE_RING_BELL_OFFSET), 1, __ATOMIC_SEQ_CST);
    fence_before_look();
    return ring_is_next_there(self);
}

int ring_cancel(Ring *self, uint64_t position, int is_withdrawal) {
    uint64_t *word = cancel_word(self, position), said = load_acquire(word);
    /* A later message may have come round to the slot of one that the peer is not done with, and may be cancelled. */
    if (self->generation != fork_generation || (said & ~WIRE_RING_WITHDRAWN) > position + 1) return 0;
    if (!is_withdrawal || said != position + 1)
        __atomic_store_n(word, position + 1 + (is_withdrawal ? WIRE_RING_WITHDRAWN : 0), __ATOMIC_SEQ_CST);
    fence_before_look();
    return load_acquire(done_word(self)) <= position;
}

int ring_is_cancelled(PyObject *ring, uint64_t position) {
    const Ring *self = (const Ring *)ring;
    fence_before_look();
    return load_acquire(cancel_word(self, position)) == position + 1;
}

int ring_is_withdrawn(PyObject *ring, uint64_t position) {
    const Ring *self = (const Ring *)ring;
    fence_before_look();
    return load_acquire(cancel_word(self, position)) == position + 1 + WIRE_RING_WITHDRAWN;
}

int ring_is_next(PyObject *ring, const RingLine *next) { return ((const Ring *)ring)->taken == next->position; }

int ring_begin(PyObject *ring, const RingLine *next) {
    store_release(done_word((Ring *)ring), next->position + 1);
    return !ring_is_cancelled(ring, next->position) && !ring_is_withdrawn(ring, next->position);
}

uint64_t ring_stored(PyObject *ring) { return ((Ring *)ring)->stored; }

uint64_t ring_done_by_peer(PyObject *ring) { return load_acquire(done_word((Ring *)ring)); }

char *ring_newest_slot(const Ring *self) {
    uint64_t position = self->taken;
    while (position - self->taken < WIRE_RING_SLOTS && number_at(self, position) != 0) position++;
    return position == self->taken ? self->latest : slot_of(self, position - 1);
}

const char *ring_latest(PyObject *ring) { return ((Ring *)ring)->latest; }
