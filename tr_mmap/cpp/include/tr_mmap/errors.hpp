// The one family of errors. Every error of the library is a tr::TRException, with fields, and a message that says what
// is wrong and what to do. Never includes another header of the library.
#ifndef TR_MMAP_ERRORS_HPP
#define TR_MMAP_ERRORS_HPP

#if !defined(__cplusplus) || __cplusplus < 201703L
#error "tr_mmap needs C++17 or later: compile with -std=c++17"
#endif
#ifndef __cpp_exceptions
#error "tr_mmap reports every error as an exception: compile without -fno-exceptions"
#endif

#include "macros_off.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace tr {

namespace detail {

/// A text in which each NUL is written "\x00", as in Python, because what() would end at a NUL.
inline std::string with_nuls_shown(std::string text) {
    for (std::size_t at = 0; (at = text.find('\0', at)) != std::string::npos; at += 4) text.replace(at, 1, "\\x00");
    return text;
}

}  // namespace detail

/// Base of every error thrown by tr_mmap.
class TRException : public std::runtime_error {
public:
    explicit TRException(const std::string& message) : std::runtime_error(detail::with_nuls_shown(message)) {}
};

/// What is wrong with a TSR file. Closed: every refusal of the reader is one of these.
enum class Fault {
    TOO_SHORT,  // fewer bytes than the header needs
    BAD_MAGIC,
    BAD_VERSION,
    BAD_HEADER_SIZE,
    BAD_FLAGS,
    BAD_DTYPE,
    BAD_NDIM,
    BAD_DIMS,          // negative, or not what the layout prescribes for unused ones
    BAD_COUNT,         // element count differs from the product of the dims
    BAD_PAYLOAD_SIZE,  // payload bytes differ from count times itemsize
    BAD_OFFSET,
    BAD_RESERVED,  // a field that must be zero is not
    TOO_LARGE,     // beyond what this machine can address
    HEADER_CHECKSUM,
    PAYLOAD_CHECKSUM,
    NO_CHECKSUM,      // the payload was to be verified, and the file has no checksum of it
    UNPUBLISHED,      // seq is 0: still being written
    TORN,             // the two copies of seq differ
    TRUNCATED,        // the file ends before the payload does
    TRAILING_BYTES,   // the file goes on after the payload
    SEALED,           // encrypted; Python reads it with its key, this side cannot
    NOT_SEALED,       // a key was given, and the file is not encrypted (Python only)
    SEAL_BROKEN,      // encrypted under another key, or changed since (Python only)
    UNREPRESENTABLE,  // for the writer: this layout cannot hold that tensor
};

/// The fault's name, as in Python's ``Fault``: "bad_magic" say.
inline const char* fault_name(Fault fault) {
    switch (fault) {
        case Fault::TOO_SHORT: return "too_short";
        case Fault::BAD_MAGIC: return "bad_magic";
        case Fault::BAD_VERSION: return "bad_version";
        case Fault::BAD_HEADER_SIZE: return "bad_header_size";
        case Fault::BAD_FLAGS: return "bad_flags";
        case Fault::BAD_DTYPE: return "bad_dtype";
        case Fault::BAD_NDIM: return "bad_ndim";
        case Fault::BAD_DIMS: return "bad_dims";
        case Fault::BAD_COUNT: return "bad_count";
        case Fault::BAD_PAYLOAD_SIZE: return "bad_payload_size";
        case Fault::BAD_OFFSET: return "bad_offset";
        case Fault::BAD_RESERVED: return "bad_reserved";
        case Fault::TOO_LARGE: return "too_large";
        case Fault::HEADER_CHECKSUM: return "header_checksum";
        case Fault::PAYLOAD_CHECKSUM: return "payload_checksum";
        case Fault::NO_CHECKSUM: return "no_checksum";
        case Fault::UNPUBLISHED: return "unpublished";
        case Fault::TORN: return "torn";
        case Fault::TRUNCATED: return "truncated";
        case Fault::TRAILING_BYTES: return "trailing_bytes";
        case Fault::SEALED: return "sealed";
        case Fault::NOT_SEALED: return "not_sealed";
        case Fault::SEAL_BROKEN: return "seal_broken";
        case Fault::UNREPRESENTABLE: return "unrepresentable";
    }
    return "unknown";
}

/// A TSR file with a defect, or a tensor that a layout cannot hold.
class TSRFormatError : public TRException {
public:
    TSRFormatError(const std::string& message, Fault which, std::string file = {})
        : TRException(message), fault(which), path(std::move(file)) {}
    Fault fault;
    std::string path;  // "" where bytes were given
};

/// A tensor that is not of the wanted kind, or has no TSR form.
class UnsupportedTensor : public TRException {
public:
    using TRException::TRException;
};

/// The tensor may not be written: it belongs to its readers, or to another process.
class ReadOnlyTensor : public TRException {
public:
    using TRException::TRException;
};

/// A tag that may not name a tensor.
class BadTag : public TRException {
public:
    BadTag(const std::string& message, std::string which) : TRException(message), tag(std::move(which)) {}
    std::string tag;
};

/// There is no tensor of that tag.
class MissingTag : public TRException {
public:
    MissingTag(const std::string& message, std::string which) : TRException(message), tag(std::move(which)) {}
    std::string tag;
};

/// The segment that a message named holds another tensor by now, or is gone.
class StaleTensor : public TRException {
public:
    StaleTensor(const std::string& message, std::string segment, std::uint64_t wanted)
        : TRException(message), name(std::move(segment)), seq(wanted) {}
    std::string name;
    std::uint64_t seq;  // that the message named
};

/// A system call failed in a way that no other error describes.
class SystemError : public TRException {
public:
    SystemError(const std::string& what, int error_code)
        : TRException((what.empty() ? "''" : what) + ": " + std::strerror(error_code)), code(error_code) {}
    int code;  // errno

protected:
    SystemError(const std::string& what, int error_code, const std::string& advice)
        : TRException(what + ": " + std::strerror(error_code) + "; " + advice), code(error_code) {}
};

/// A limit of the system or of this process was reached, other than room for a tensor.
class SystemLimit : public SystemError {
public:
    SystemLimit(const std::string& what, int error_code, std::string which, const std::string& advice)
        : SystemError(what, error_code, advice), limit(std::move(which)) {}
    // "vm.max_map_count", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_AS", "RLIMIT_NPROC" or "fs.file-max".
    std::string limit;
};

/// This system has no POSIX semaphores that this process could use, and a session needs two.
class SemaphoresUnavailable : public SystemError {
public:
    SemaphoresUnavailable(const std::string& what, int error_code, const std::string& advice)
        : SystemError(what, error_code, advice), reason(std::strerror(error_code)) {}
    std::string reason;
};

/// There is no room for a tensor, on the file system or in the pool's budget.
class OutOfSpace : public virtual TRException {  // virtual: RemoteOutOfSpace is a RemoteError too
public:
    OutOfSpace(const std::string& message, std::uint64_t needed, std::uint64_t free, bool of_budget = false)
        : TRException(message), needed_nbytes(needed), free_nbytes(free), is_budget(of_budget) {}
    std::uint64_t needed_nbytes;
    std::uint64_t free_nbytes;
    bool is_budget;  // the pool's budget is used up, and not the file system's room
};

/// A path that a session must not trust, or that is no regular file.
class HostilePath : public TRException {
public:
    HostilePath(const std::string& message, std::string where, std::string why)
        : TRException(message), path(std::move(where)), reason(std::move(why)) {}
    std::string path;
    std::string reason;
};

/// The worker's script, or the Python to run it with, is not a file that can be run.
class ScriptNotFound : public TRException {
public:
    ScriptNotFound(const std::string& message, std::string where) : TRException(message), path(std::move(where)) {}
    std::string path;
};

/// Another live process owns the session.
class SessionInUse : public TRException {
public:
    SessionInUse(const std::string& message, std::string id, std::int64_t owner)
        : TRException(message), session_id(std::move(id)), pid(owner) {}
    std::string session_id;
    std::int64_t pid;  // of the owner; 0 if unknown
};

/// The session has no running worker: call start().
class SessionNotStarted : public TRException {
public:
    using TRException::TRException;
};

/// No response came in time; it may still come.
class ResponseTimeout : public TRException {
public:
    ResponseTimeout(const std::string& message, double waited_ms, std::string which_command)
        : TRException(message), timeout_ms(waited_ms), command(std::move(which_command)) {}
    double timeout_ms;    // how long the call was allowed to take; infinity for no limit
    std::string command;  // that was not answered; "" if none was under way
    std::int64_t pid = 0;                 // of the worker; 0 if unknown
    std::string state = "unknown";        // what its process does: running, waiting, stopped, ended or unknown
    std::optional<bool> is_taken_up;      // whether it has taken this request up, and not one by hand; empty if unknown
    std::optional<double> last_moved_ms;  // since it last took a request, used a tensor or answered; empty if unknown
};

/// As many requests are in flight as the session may have, and it was not to wait (AtLimit::FAIL).
class Busy : public TRException {
public:
    Busy(const std::string& message, int most) : TRException(message), limit(most) {}
    int limit;  // how many that are
};

/// The worker ended, maybe before it was ready.
class WorkerDied : public TRException {
public:
    WorkerDied(const std::string& message, std::optional<int> code, std::string tail)
        : TRException(message), exit_code(code), log_tail(std::move(tail)) {}
    std::optional<int> exit_code;  // negative is the signal that killed it; empty if unknown
    // The last lines of its output; "" if it printed nothing. The tracebacks of errors that it has answered, and what
    // it printed before them, are not among these lines.
    std::string log_tail;
};

/// A handler in the worker failed.
class RemoteError : public virtual TRException {
public:
    RemoteError(const std::string& message, std::string which_command, std::string type, std::string traceback)
        : TRException(message),
          command(std::move(which_command)),
          error_type(std::move(type)),
          remote_traceback(std::move(traceback)) {}
    std::string command;
    std::string error_type;        // the name of the exception's class in the worker
    std::string remote_traceback;  // "" where there is none
};

/// The worker has no such command.
class UnknownCommand : public RemoteError {
public:
    UnknownCommand(const std::string& message, std::string which_command, std::string type, std::string traceback)
        : TRException(message),
          RemoteError(message, std::move(which_command), std::move(type), std::move(traceback)) {}
};

/// The handler has given the request up, because the controller no longer wants an answer.
class RequestCancelled : public RemoteError {
public:
    RequestCancelled(const std::string& message, std::string which_command, std::string type, std::string traceback)
        : TRException(message),
          RemoteError(message, std::move(which_command), std::move(type), std::move(traceback)) {}
};

/// There was no room for a tensor in the worker.
class RemoteOutOfSpace : public RemoteError, public OutOfSpace {
public:
    RemoteOutOfSpace(const std::string& message, std::string which_command, std::string type, std::string traceback,
                     std::uint64_t needed, std::uint64_t free)
        : TRException(message),
          RemoteError(message, std::move(which_command), std::move(type), std::move(traceback)),
          OutOfSpace(message, needed, free) {}
};

/// The response has no tensor, or several, and the caller waits for one.
class UnexpectedResponse : public TRException {
public:
    UnexpectedResponse(const std::string& message, std::string text) : TRException(message), result(std::move(text)) {}
    std::string result;  // the response's text
};

/// A control message or a status that cannot be read or written.
class BadMessage : public TRException {
public:
    BadMessage(const std::string& message, std::string what) : TRException(message), detail(std::move(what)) {}
    std::string detail;
};

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_ERRORS_HPP
