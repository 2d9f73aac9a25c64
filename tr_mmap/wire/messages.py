"""Control messages and the status: their files, the bytes of a ring, their words and limits."""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 2  # stated in the manifest; 1 had one message at a time, in the files for people

# For people, and for programs that write them by hand. In the mapped channel they only mirror the rings and the status
# page, and no process maps them: a mapped file that somebody truncates is SIGBUS.
REQUEST_FILE: Final = "request.json"
RESPONSE_FILE: Final = "response.json"
STATUS_FILE: Final = "status.txt"
# The rings and the status page of the mapped channel. Both sides map them; nobody writes them by hand.
REQUEST_RING_FILE: Final = "requests.ring"
RESPONSE_RING_FILE: Final = "responses.ring"
BELL_FILE: Final = "responses.bell"  # a FIFO: wakes a controller whose loop sleeps on descriptors
STATUS_PAGE_FILE: Final = "status.page"

# Size of a mirror: a line, then spaces; more if the line is longer. A file of any other size was written by hand.
MIRROR_NBYTES: Final = 4096
# A side that has waited for so long brings the mirrors up to date, so a burst of requests writes none. A shorter delay
# would make each sleep 2 to 4 us longer: the kernel must program the processor's timer if it ends before the next tick.
MIRROR_DELAY_S: Final = 0.005
# For so long nobody overwrites a mirror that was written by hand: its writer may go on, and the worker must read it.
HAND_GRACE_S: Final = 1.0
EMPTY_GRACE_S: Final = 5.0  # for one that was emptied: a shell does that before it starts the program that writes
HAND_ANSWER_S: Final = 2.0  # the answer to a request by hand stays in its file for so long, whatever is sent meanwhile

# A ring, see tr_mmap.channel.mapped: words, then slots, one for each message. The number of a message is stored last,
# as one aligned 8-byte word.
RING_SLOTS: Final = 64  # most messages that one side may have sent and the other not taken
MOST_IN_FLIGHT: Final = 62  # of a session's requests: those to exit and to release memory have room of their own
RING_WORDS_NBYTES: Final = 4096
RING_SLOT_NBYTES: Final = 4096  # of a slot: a message, its newline, and whatever was there before
RING_NBYTES: Final = RING_WORDS_NBYTES + RING_SLOTS * RING_SLOT_NBYTES
# A word: how many messages its reader is done with. Of responses: their tensors have views, so the worker may fill the
# segments again when these end. Of requests: how many were given to handlers.
RING_DONE_OFFSET: Final = 128
# A word of the responses: the controller stores 1 before it sleeps on the bell. A worker that finds it there after a
# response stores 0, and then writes a byte into the bell.
RING_BELL_OFFSET: Final = 192
# Words of the requests, one for each slot: the position + 1 of a request that the controller has cancelled. It stores
# that, and then looks how many were given to handlers; the worker counts a request first, and then looks here. With the
# bit, the controller has taken the request back: that counts only if the handler was not called.
RING_CANCEL_OFFSET: Final = 512
RING_WITHDRAWN: Final = 1 << 62
MESSAGE_NUMBER_OFFSET: Final = 8
MESSAGE_REST_OFFSET: Final = 16  # where the members after the number begin
NUMBER_DIGITS: Final = 8
MAX_MESSAGE_SEQ: Final = 99_999_999  # 8 digits; then 1 again. Messages in one slot have different numbers
BLANK_NUMBER: Final = "       0"  # a message is being stored, or there is none yet
EMPTY_SLOT: Final = '{"seq":        0}\n'
STATUS_NBYTES: Final = 4096  # one memory page
# The progress page, see tr_mmap.channel.progress.
PROGRESS_FILE: Final = "progress.page"
PROGRESS_SLOT_NBYTES: Final = 256
PROGRESS_NBYTES: Final = RING_SLOTS * PROGRESS_SLOT_NBYTES
# The last word of the status page: when the worker last worked, 8 hex digits of the monotonic clock's milliseconds
# modulo 2**32; spaces before the first time. The status line and its padding end before it.
HEARTBEAT_OFFSET: Final = 4088
HEARTBEAT_DIGITS: Final = 8

# A control message names tensors and carries a text for people; more than this is data, and data goes in a tensor.
MAX_MESSAGE_NBYTES: Final = 16 << 20
MAX_DETAIL_CHARS: Final = 1000  # the status line has 4088 bytes; a character is at most 4 bytes of it
REQUEST_STEM: Final = "request"  # of a spill's name: says which side wrote it, because only the other side reads it
RESPONSE_STEM: Final = "response"
SPILL_SUFFIX: Final = ".spill"  # of a spill's name: the file of a message that is too long for its slot
MAX_SPILL_TOKEN_LENGTH: Final = 64

FORM_NAMED: Final = "named"  # of a message whose text holds values by name, see tr_mmap.protocol.named_values

EXIT_COMMAND: Final = "exit"  # the controller's request that the worker end; no handler sees it
# The controller's request that the worker give up the memory that it keeps for later results; no handler sees it.
RELEASE_COMMAND: Final = "$release"
ARGUMENT_TAG_PREFIX: Final = "$"  # of the tags $0, $1, …, whose tensors belong to one request alone

STATUS_STARTING: Final = "starting"
STATUS_READY: Final = "ready"
STATUS_BUSY: Final = "busy"
STATUS_OK: Final = "ok"
STATUS_ERROR: Final = "error"
BUSY_BY_HAND: Final = "by hand"  # begins the remark of a worker that is busy with a request by hand (mapped channel)
STATUS_EXIT: Final = "exit"  # the controller's request to exit
STATUS_EXITING: Final = "exiting"
STATUS_TERMINATED: Final = "terminated"
STATUS_RUNNING: Final = "running"  # read as busy
STATUS_DONE: Final = "done"  # read as ok

DEFAULT_RESULT: Final = "ok"  # of a handler that gave no text; the slow and the fast path must send the same

FAILURE_UNKNOWN_COMMAND: Final = "unknown_command"
FAILURE_BAD_INPUT: Final = "bad_input"  # missing tag, wrong count: the handler was not to blame
FAILURE_HANDLER: Final = "handler"  # the handler raised
FAILURE_CANCELLED: Final = "cancelled"  # the controller has cancelled the request
WITHDRAWN_TYPE: Final = "RequestWithdrawn"  # the name of the error of a cancelled request that was taken back in time
