/* How a thread waits for the next message of a ring: polls, sleeps, and meanwhile shows the mirrors. */
#include "ring_fields.h"

#include "mirror.h"

#include <time.h>

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
    while (code == 0 && !ring_is_next_there(self) && left_s > 0) {
        int is_over = should_stop(context);
        if (is_over) {
            code = is_over < 0 ? -1 : 1;
            break;
        }
        if (self->spin_us > 0 && self->should_spin) spin(self, left_s * 1e6 < self->spin_us ? left_s * 1e6 : self->spin_us);
        if (ring_is_next_there(self)) break;
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
