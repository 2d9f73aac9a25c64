// Where a worker's log lies, so that it takes no shared memory. Knows nothing of sessions. Python's side is
// tr_mmap/processes/worker_log.py; only that bounds the log, because the worker is always Python.
#ifndef TR_MMAP_WORKER_LOG_HPP
#define TR_MMAP_WORKER_LOG_HPP

#include "macros_off.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

#include "errors.hpp"
#include "fatal_dump.hpp"
#include "system.hpp"
#include "text.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

inline constexpr const char* log_prefix = "tr_mmap-log-";

/// The directory for temporary files, as Python finds it; "" if there is none.
inline std::string temporary_dir() {
    for (const char* name : {"TMPDIR", "TEMP", "TMP"}) {
        const char* chosen = std::getenv(name);
        if (chosen && *chosen == '/' && is_usable_dir(chosen)) return chosen;
    }
    for (const char* each : {"/tmp", "/var/tmp", "/usr/tmp"}) {
        if (is_usable_dir(each)) return each;
    }
    return "";
}

/// Where a worker's log should be so that it takes no shared memory; "" if the session's directory is right.
inline std::string new_log_path(const std::string& directory) {
    struct stat ours, theirs;
    const std::string place = temporary_dir();
    if (place.empty() || !is_on_tmpfs(directory) || ::stat(place.c_str(), &theirs) != 0 ||
        ::stat(directory.c_str(), &ours) != 0 || ours.st_dev == theirs.st_dev) {
        return "";
    }
    return place + (place.back() == '/' ? "" : "/") + log_prefix + random_hex(16);
}

/// A new log.
struct WorkerLog {
    Fd fd;  // appends always: the worker may cut a log that grows too long, and what comes then must leave no hole
    std::string path;
};

/// Create a log, 0600, in place of an older one.
///
/// @param path of the file; "" for ``link`` itself.
/// @param link a symlink to the file is made here. If no file can be made at ``path``, the log is here itself.
inline WorkerLog create_log(const std::string& path, const std::string& link) {
    WorkerLog log;
    unlink_file(link);
    if (!path.empty()) {
        try {
            log.fd = create_file(path);
            log.path = path;
        } catch (const TRException&) {
            // That directory is full, say.
        }
    }
    Unlinker unlinker(path);
    if (!log.fd) {
        log.fd = create_file(link);
        log.path = link;
    } else if (::symlink(path.c_str(), link.c_str()) != 0) {
        refuse_name(link, errno);
    }
    log.fd = above_standard_streams(std::move(log.fd));
    if (!log.fd) fail_call(log.path, errno);
    ::fcntl(log.fd.get(), F_SETFL, O_APPEND);
    unlinker.keep();
    return log;
}

/// The last lines of a text, at most so many, without the line break at its end.
inline std::string_view last_lines(std::string_view text, int lines) {
    if (!text.empty() && text.back() == '\n') text.remove_suffix(1);
    std::size_t at = text.size();
    for (int line = 0; line < lines && at != std::string_view::npos && at > 0; ++line) at = text.rfind('\n', at - 1);
    return at == std::string_view::npos || at == 0 ? text : text.substr(at + 1);
}

/// The output of a worker since the last error that it has answered; all of it, if there is none.
///
/// @param text begins with a line break, and does not end with one.
inline std::string after_last_answer(const std::string& text) {
    const std::string line = std::string("\n") + wire::answered_line;
    for (std::size_t at = text.rfind(line); at != std::string::npos; at = at == 0 ? at - 1 : text.rfind(line, at - 1)) {
        const std::size_t end = at + line.size();
        if (end == text.size() || text[end] == '\n') return text.substr(end);
    }
    return text;
}

/// The last lines of a log, from its last 16 KiB; "" if the log is gone.
///
/// What is before an error that a request has got as its answer is left out, and so is that error's traceback: the
/// request's caller has it, and in the error of a worker that dies later it would be taken for the cause.
///
/// If there is a longer dump of Python's at a fatal error, these are the last lines before it and what shown_dump()
/// shows of it.
inline std::string log_tail(const std::string& path, int lines) {
    constexpr std::string_view fatal_line = "\nFatal Python error";
    try {
        const Fd fd = open_private_file(path);
        if (!fd || lines <= 0) return "";
        const std::uint64_t nbytes = file_nbytes(fd, path);
        const std::uint64_t start = nbytes > wire::dump_nbytes ? nbytes - wire::dump_nbytes : 0;
        std::string data = read_all(fd, wire::dump_nbytes, start, path);
        while (!data.empty() && data.back() == '\n') data.pop_back();
        const std::string text = after_last_answer("\n" + data);  // every line begins behind a line break
        if (text.empty()) return "";
        const std::string_view all = text;
        const std::size_t kept = std::min(all.size() - 1, wire::log_tail_nbytes);
        const std::string_view tail = all.substr(all.size() - kept);
        const std::size_t fatal = all.rfind(fatal_line);
        if (lines < wire::dump_least_lines || fatal == std::string_view::npos) return std::string(last_lines(tail, lines));
        const auto breaks = std::count(all.begin() + static_cast<std::ptrdiff_t>(fatal + 1), all.end(), '\n');
        if (breaks < lines - wire::dump_lines_before) return std::string(last_lines(tail, lines));
        const std::string_view before = fatal == 0 ? std::string_view() : all.substr(1, fatal - 1);
        std::string result;
        int left = lines - 1;
        for (const std::string_view line : lines_of(last_lines(before, wire::dump_lines_before))) {
            const std::size_t kept_chars = std::min(line.size(), wire::dump_line_chars);
            result.append(line.substr(line.size() - kept_chars)).append("\n");
            --left;
        }
        for (const std::string_view line : shown_dump(all.substr(fatal + 1), static_cast<std::size_t>(left))) {
            result.append(line).append("\n");
        }
        return result.append("[...]");
    } catch (const TRException&) {
        return "";
    }
}

/// Whether there is anything in a log.
inline bool has_output(const std::string& path) {
    try {
        const Fd fd = open_private_file(path);
        return fd && file_nbytes(fd, path) > 0;
    } catch (const TRException&) {
        return false;
    }
}

/// Remove the log that a manifest names, if it is certainly a log of this user: a process that can write a manifest
/// must not make us remove other files.
inline void remove_log(const std::string& path) noexcept {
    const std::size_t slash = path.rfind('/');
    if (path.empty() || path[0] != '/' || path.find('\0') != std::string::npos) return;
    const std::string_view token = between(std::string_view(path).substr(slash + 1), log_prefix, "");
    if (token.size() != 32 || token.find_first_not_of("0123456789abcdef") != std::string_view::npos) return;
    struct stat info;
    if (::lstat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode) || info.st_uid != ::geteuid()) return;
    unlink_file(path);
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_WORKER_LOG_HPP
