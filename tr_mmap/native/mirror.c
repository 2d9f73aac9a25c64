/* The type Mirror: a file for people that shows the first line of a mapped page. It is written through a descriptor,
 * never through a mapping, so no process that truncates, replaces or removes it can hurt us. Never fails: a mirror that
 * cannot be written stays as it is, and is tried again. */
#include "mirror.h"

#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_WORDS = 2, NO_FILE = -1 };
static const double CHECK_US = WIRE_MIRROR_CHECK_S * 1e6;
static const double GRACE_S = WIRE_HAND_GRACE_S;
static const double EMPTY_GRACE_S = WIRE_EMPTY_GRACE_S;

typedef struct {
    STATEFUL_HEAD
    Py_buffer page;
    PyObject *ring;             /* a Ring, whose latest slot is the page; NULL for a page that stays the same */
    PyObject *path;             /* bytes; NULL until __init__ has run */
    int fd;                     /* NO_FILE if there is no file, or it is closed */
    dev_t device;               /* which file the descriptor is of: the process may have closed it, and opened another */
    ino_t inode;
    off_t nbytes;               /* the file's size when we last wrote it; another size shows that somebody else did */
    uint64_t head[HEAD_WORDS];  /* the beginning of that line */
    double held_until_us;       /* until then the file stays as it is */
    double checked_us;          /* when we last looked where the name leads, or failed to open it */
    double missed_us;           /* when we first found no file of the name; 0 while there is one */
    PyObject *kept;             /* bytes: a line of that beginning stays for a while, if the page has another */
    int64_t directory[4];       /* which directory the path was in at first: see key_of_directory */
    int is_closed;
} Mirror;

/* Which directory a path is in: device, inode, and when it was made, because ext4 gives the inode of a removed directory
 * to the next one. All zeros if there is none. */
static void key_of_directory(PyObject *path, int64_t key[4]) {
    const char *name = PyBytes_AS_STRING(path);
    const char *slash = strrchr(name, '/');
    char *directory = slash == NULL ? strdup(".") : strndup(name, slash == name ? 1 : (size_t)(slash - name));
    memset(key, 0, 4 * sizeof *key);
    if (directory == NULL) return;
#ifdef STATX_BTIME
    struct statx info;
    if (statx(AT_FDCWD, directory, AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &info) == 0) {
        key[0] = (int64_t)info.stx_dev_major << 32 | info.stx_dev_minor;
        key[1] = (int64_t)info.stx_ino;
        if (info.stx_mask & STATX_BTIME) {
            key[2] = info.stx_btime.tv_sec;
            key[3] = info.stx_btime.tv_nsec;
        }
    }
#else
    struct stat info;
    if (lstat(directory, &info) == 0) {
        key[0] = (int64_t)info.st_dev;
        key[1] = (int64_t)info.st_ino;
    }
#endif
    free(directory);
}

static int mirror_init(Mirror *self, PyObject *arguments, PyObject *keywords) {
    PyObject *source, *path, *kept;
    Py_buffer page;
    static char *names[] = {"page", "path", "kept", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO&S", names, &source, PyUnicode_FSConverter, &path, &kept))
        return -1;
    int is_ring = PyObject_TypeCheck(source, self->state->ring);
    if (is_ring ? !ring_is_initialised(source) : get_word_buffer(source, &page, sizeof self->head) < 0) {
        Py_DECREF(path);
        return -1;
    }
    if (self->path != NULL) { /* looked for now, because the source's code could call __init__ too */
        if (!is_ring) PyBuffer_Release(&page);
        Py_DECREF(path);
        PyErr_SetString(PyExc_ValueError, "__init__ runs once only");
        return -1;
    }
    if (is_ring) self->ring = Py_NewRef(source);
    else self->page = page;
    self->fd = NO_FILE;
    self->checked_us = -CHECK_US;
    self->path = path;
    key_of_directory(path, self->directory);
    self->kept = Py_NewRef(kept);
    return 0;
}

static const char *page_of(const Mirror *self) { return self->ring != NULL ? ring_latest(self->ring) : self->page.buf; }

static void close_file(Mirror *self) {
    if (self->fd != NO_FILE) close(self->fd);
    self->fd = NO_FILE;
}

/* Whether a file is the mirror that we have opened; with a second name it may be a file of somebody's own. */
static int is_same(const Mirror *self, const struct stat *info) {
    return info->st_dev == self->device && info->st_ino == self->inode && info->st_nlink == 1;
}

static int is_fit(const struct stat *info) {
    return S_ISREG(info->st_mode) && info->st_uid == geteuid() && info->st_nlink == 1;
}

/* Whether there has been no file for so long that a new one may be made. Not at once: whoever removes the session's
 * directory by hand has removed this file first, and would find another one in it. */
static int is_long_missed(Mirror *self, double now) {
    if (self->missed_us == 0) self->missed_us = now;
    return now - self->missed_us >= CHECK_US;
}

/* Open the file that the name leads to, or make a new one; anything else in its place but a directory is removed. */
static void open_again(Mirror *self, struct stat *info, double now, int may_create) {
    const char *path = PyBytes_AS_STRING(self->path);
    int64_t directory[4];
    key_of_directory(self->path, directory);
    /* Not the same: the directory was removed, and another session may have one of that name. */
    if (memcmp(directory, self->directory, sizeof directory) != 0) return;
    const int always = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    self->fd = open(path, always);
    int is_in_the_way = self->fd == NO_FILE && (errno == ELOOP || errno == ENXIO || errno == ENODEV || errno == EACCES);
    if (self->fd == NO_FILE && errno != ENOENT && !is_in_the_way) return; /* no descriptor is left, say */
    if (self->fd == NO_FILE && !is_in_the_way && !may_create && !is_long_missed(self, now)) return;
    self->nbytes = WIRE_MIRROR_NBYTES; /* a file of another size was written by somebody else */
    if (self->fd != NO_FILE && (fstat(self->fd, info) != 0 || !is_fit(info))) {
        close_file(self);
        is_in_the_way = 1;
    }
    if (self->fd == NO_FILE) {
        if (is_in_the_way) unlink(path);
        self->fd = open(path, always | O_CREAT | O_EXCL, 0600);
        if (self->fd != NO_FILE && fstat(self->fd, info) != 0) close_file(self);
        self->nbytes = 0;
    }
    if (self->fd == NO_FILE) return;
    self->missed_us = 0;
    if ((info->st_mode & 07777) != 0600) (void)!fchmod(self->fd, 0600); /* else it would look like somebody's change */
    self->device = info->st_dev;
    self->inode = info->st_ino;
}

/* Whether the descriptor is still of the file that we opened, and that file has its only name still. */
static int is_file_there(Mirror *self, struct stat *info) {
    if (self->fd == NO_FILE) return 0;
    if (fstat(self->fd, info) != 0 || info->st_dev != self->device || info->st_ino != self->inode) {
        self->fd = NO_FILE; /* the process has closed our descriptor, and the number may be another file's by now */
        return 0;
    }
    return info->st_nlink == 1;
}

/* Have an open file of the mirror's name; 0 if there is none. */
static int find_file(Mirror *self, struct stat *info, int is_thorough, int may_create) {
    double now = now_us();
    int is_due = is_thorough || now - self->checked_us >= CHECK_US;
    if (self->fd == NO_FILE && !is_due) return 0;
    int is_there = is_file_there(self, info);
    if (is_there && is_due) {
        struct stat named;
        is_there = lstat(PyBytes_AS_STRING(self->path), &named) == 0 && is_same(self, &named);
    }
    if (is_due) self->checked_us = now;
    if (is_there) return 1;
    close_file(self);
    open_again(self, info, now, may_create);
    return self->fd != NO_FILE;
}

/* Whether the file's line has the beginning that stays, and the page's line has not. */
static int is_kept(const Mirror *self) {
    char text[sizeof self->head];
    const char *kept = PyBytes_AS_STRING(self->kept);
    size_t nbytes = (size_t)PyBytes_GET_SIZE(self->kept);
    if (nbytes == 0 || nbytes >= sizeof text || memcmp(page_of(self), kept, nbytes) == 0) return 0;
    if (pread(self->fd, text, sizeof text, 0) <= (ssize_t)nbytes || memcmp(text, kept, nbytes) != 0) return 0;
    return text[nbytes] < 'a' || text[nbytes] > 'z'; /* the whole word */
}

/* Whether somebody emptied or wrote the file by hand so recently that more may follow, or the worker not have read it.
 * By the time of change, which nobody can set: a copy or a file that was moved here may have an old time of writing. */
static int is_by_hand(const Mirror *self, const struct stat *info) {
    if (info->st_size == self->nbytes && !is_kept(self)) return 0;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double age_s = (double)(now.tv_sec - info->st_ctim.tv_sec) + (double)(now.tv_nsec - info->st_ctim.tv_nsec) / 1e9;
    double grace_s = info->st_size == 0 ? EMPTY_GRACE_S : GRACE_S;
    return age_s < grace_s && age_s > -grace_s; /* before now, if the clock was set */
}

static void write_line(Mirror *self, const char *line, Py_ssize_t nbytes, const struct stat *info) {
    char small[WIRE_MIRROR_NBYTES];
    int is_small = nbytes < WIRE_MIRROR_NBYTES;
    self->nbytes = is_small ? WIRE_MIRROR_NBYTES : (off_t)nbytes + 1;
    if (is_small) { /* all of it, because somebody may have written behind our line */
        memcpy(small, line, (size_t)nbytes);
        small[nbytes] = '\n';
        memset(small + nbytes + 1, ' ', sizeof small - (size_t)nbytes - 1);
        (void)!pwrite(self->fd, small, sizeof small, 0);
    } else if (pwrite(self->fd, line, (size_t)nbytes, 0) == nbytes) {
        (void)!pwrite(self->fd, "\n", 1, nbytes);
    }
    if (info->st_size > self->nbytes) (void)!ftruncate(self->fd, self->nbytes);
}

static Py_ssize_t length_of_line(const Mirror *self, const char *page) {
    Py_ssize_t nbytes = self->ring != NULL ? WIRE_RING_SLOT_NBYTES : self->page.len;
    const char *end = memchr(page, '\n', (size_t)nbytes);
    return end == NULL ? nbytes : end - page;
}

static void read_head(const Mirror *self, uint64_t head[HEAD_WORDS]) {
    for (int word = 0; word < HEAD_WORDS; word++)
        head[word] = load_acquire((const uint64_t *)(const void *)page_of(self) + word);
}

static void show_page(Mirror *self, int is_thorough, int is_insistent, int may_create) {
    struct stat info;
    if (self->is_closed) return;
    /* A legacy program removes the file when it has read the answer in it. */
    if (!is_insistent && now_us() < self->held_until_us && is_file_there(self, &info)) return;
    self->held_until_us = 0;
    if (!find_file(self, &info, is_thorough, may_create)) return;
    if (!is_insistent && is_by_hand(self, &info)) return;
    uint64_t head[HEAD_WORDS];
    for (int tries = 0; tries < 3; tries++) {
        read_head(self, self->head);
        const char *page = page_of(self);
        write_line(self, page, length_of_line(self, page), &info);
        read_head(self, head);
        if (memcmp(head, self->head, sizeof head) == 0) break;
        /* The other side has replaced the status, and may have written its mirror before ours. */
        info.st_size = self->nbytes;
    }
}

int mirror_is_initialised(PyObject *mirror) {
    if (((const Mirror *)mirror)->path != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "__init__ of a Mirror has not run: there is no page");
    return 0;
}

int mirror_is_stale(PyObject *mirror) {
    const Mirror *self = (const Mirror *)mirror;
    uint64_t head[HEAD_WORDS];
    read_head(self, head);
    return memcmp(head, self->head, sizeof head) != 0 && !self->is_closed;
}

void mirror_update(PyObject *mirror) {
    int code = errno;
    if (mirror_is_stale(mirror)) show_page((Mirror *)mirror, 0, 0, 0);
    errno = code;
}

void mirror_forget(PyObject *mirror) {
    Mirror *self = (Mirror *)mirror;
    memset(self->head, 0, sizeof self->head);
}

int mirror_is_forgotten(PyObject *mirror) {
    const Mirror *self = (const Mirror *)mirror;
    return self->head[0] == 0 && self->head[1] == 0;
}

static int does_page_say(const Mirror *self, const char *word) {
    return memcmp(page_of(self), word, strlen(word)) == 0; /* the page has more bytes than any word */
}

int mirror_page_says(PyObject *mirror, const char *word) {
    return does_page_say((const Mirror *)mirror, word);
}

void mirror_foretell_busy(PyObject *mirror) {
    Mirror *self = (Mirror *)mirror;
    struct stat info;
    int code = errno;
    int is_waiting = does_page_say(self, WIRE_STATUS_OK) || does_page_say(self, WIRE_STATUS_READY) ||
                     does_page_say(self, WIRE_STATUS_ERROR);
    mirror_forget(mirror);
    if (!is_waiting) mirror_update(mirror);
    else if (!self->is_closed && find_file(self, &info, 0, 0) && !is_by_hand(self, &info)) {
        read_head(self, self->head);
        write_line(self, WIRE_STATUS_BUSY, sizeof WIRE_STATUS_BUSY - 1, &info);
    }
    errno = code;
}

PyDoc_STRVAR(update_doc,
             "update()\n--\n\nWrite the page's line if the mirror is stale. A file that somebody wrote by hand a moment "
             "ago\nis left alone.");

static PyObject *py_update(Mirror *self, PyObject *unused) {
    (void)unused;
    if (!mirror_is_initialised((PyObject *)self)) return NULL;
    mirror_update((PyObject *)self);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(show_doc,
             "show()\n--\n\nWrite the page's line. Looks first whether the name leads to another file. A file that "
             "somebody wrote\nby hand a moment ago is left alone.");

static PyObject *py_show(Mirror *self, PyObject *unused) {
    (void)unused;
    if (!mirror_is_initialised((PyObject *)self)) return NULL;
    show_page(self, 1, 0, 0);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(mark_shown_doc, "mark_shown()\n--\n\nTake it that the other side has written the page's line.");

static PyObject *py_mark_shown(Mirror *self, PyObject *unused) {
    (void)unused;
    if (!mirror_is_initialised((PyObject *)self)) return NULL;
    read_head(self, self->head);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(forget_doc, "forget()\n--\n\nLet the mirror be stale, because the other side may write the file.");

static PyObject *py_forget(Mirror *self, PyObject *unused) {
    (void)unused;
    if (!mirror_is_initialised((PyObject *)self)) return NULL;
    mirror_forget((PyObject *)self);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(foretell_busy_doc,
             "foretell_busy()\n--\n\nOf a status page: write that the worker is busy, if the page says that it waits for "
             "requests;\nelse the page's line. The mirror is stale when the page says anything else. A file that somebody "
             "wrote by\nhand a moment ago is left alone.");

static PyObject *py_foretell_busy(Mirror *self, PyObject *unused) {
    (void)unused;
    if (!mirror_is_initialised((PyObject *)self)) return NULL;
    mirror_foretell_busy((PyObject *)self);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(restore_doc, "restore()\n--\n\nWrite the page's line over whatever is there.");

static PyObject *py_restore(Mirror *self, PyObject *unused) {
    (void)unused;
    if (!mirror_is_initialised((PyObject *)self)) return NULL;
    show_page(self, 1, 1, 0);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(create_doc, "create()\n--\n\nWrite the page's line over whatever is there, or into a new file.");

static PyObject *py_create(Mirror *self, PyObject *unused) {
    (void)unused;
    if (!mirror_is_initialised((PyObject *)self)) return NULL;
    show_page(self, 1, 1, 1);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(write_doc,
             "write(line, hold_s)\n--\n\nWrite another line than the page's, over whatever is there; it stays for so "
             "many seconds.");

static PyObject *py_write(Mirror *self, PyObject *const *arguments, Py_ssize_t count) {
    struct stat info;
    if (!mirror_is_initialised((PyObject *)self)) return NULL;
    if (count != 2 || !PyBytes_Check(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "write takes bytes and a time");
        return NULL;
    }
    double hold_s = PyFloat_AsDouble(arguments[1]);
    if (hold_s == -1.0 && PyErr_Occurred()) return NULL;
    if (!self->is_closed && find_file(self, &info, 1, 1)) {
        write_line(self, PyBytes_AS_STRING(arguments[0]), PyBytes_GET_SIZE(arguments[0]), &info);
        memset(self->head, 0, sizeof self->head); /* so the page's own line is written after the hold */
        self->held_until_us = now_us() + hold_s * 1e6;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(close_doc, "close()\n--\n\nWrite no more. Idempotent.");

static PyObject *py_close(Mirror *self, PyObject *unused) {
    (void)unused;
    struct stat info;
    if (!mirror_is_initialised((PyObject *)self)) return NULL;
    self->is_closed = 1;
    is_file_there(self, &info);
    close_file(self);
    Py_RETURN_NONE;
}

static int mirror_traverse(Mirror *self, visitproc visit, void *arg) {
    VISIT_TYPE_AND_MODULE(self);
    Py_VISIT(self->ring);
    return 0;
}

static void mirror_dealloc(Mirror *self) {
    PyObject_GC_UnTrack(self);
    if (self->path != NULL) {
        Py_XDECREF(py_close(self, NULL));
        if (self->ring == NULL) PyBuffer_Release(&self->page);
        Py_CLEAR(self->ring);
        Py_CLEAR(self->path);
        Py_CLEAR(self->kept);
    }
    stateful_free((PyObject *)self);
}

static PyObject *get_is_stale(Mirror *self, void *unused) {
    (void)unused;
    return mirror_is_initialised((PyObject *)self) ? PyBool_FromLong(mirror_is_stale((PyObject *)self)) : NULL;
}

static PyObject *get_is_forgotten(Mirror *self, void *unused) {
    (void)unused;
    return mirror_is_initialised((PyObject *)self) ? PyBool_FromLong(mirror_is_forgotten((PyObject *)self)) : NULL;
}

static PyGetSetDef mirror_properties[] = {
    {"is_forgotten", (getter)get_is_forgotten, NULL, "Whether nothing was written since the mirror was forgotten.", NULL},
    {"is_stale", (getter)get_is_stale, NULL, "Whether the page's first 16 bytes are not those written last.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef mirror_methods[] = {
    {"update", (PyCFunction)py_update, METH_NOARGS, update_doc},
    {"show", (PyCFunction)py_show, METH_NOARGS, show_doc},
    {"mark_shown", (PyCFunction)py_mark_shown, METH_NOARGS, mark_shown_doc},
    {"forget", (PyCFunction)py_forget, METH_NOARGS, forget_doc},
    {"foretell_busy", (PyCFunction)py_foretell_busy, METH_NOARGS, foretell_busy_doc},
    {"restore", (PyCFunction)py_restore, METH_NOARGS, restore_doc},
    {"create", (PyCFunction)py_create, METH_NOARGS, create_doc},
    {"write", (PyCFunction)(void (*)(void))py_write, METH_FASTCALL, write_doc},
    {"close", (PyCFunction)py_close, METH_NOARGS, close_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot mirror_slots[] = {
    {Py_tp_doc, "Mirror(page, path, kept)\n--\n\nA file for people that shows the first line of a mapped page, or the latest line of a Ring. A line "
                "that somebody wrote by\nhand, and whose first word is kept, stays for a moment."},
    {Py_tp_new, stateful_new},
    {Py_tp_init, mirror_init},
    {Py_tp_traverse, mirror_traverse},
    {Py_tp_dealloc, mirror_dealloc},
    {Py_tp_methods, mirror_methods},
    {Py_tp_getset, mirror_properties},
    {0, NULL},
};

PyType_Spec mirror_spec = {
    .name = "tr_mmap.native.Mirror",
    .basicsize = sizeof(Mirror),
    .flags = TYPE_FLAGS | Py_TPFLAGS_HAVE_GC,
    .slots = mirror_slots,
};
