// PyTorchSession: the session's older name, and recv_tensor. Part of tech_renaissance.h.
#ifndef TECH_RENAISSANCE_PYTORCH_SESSION_HPP
#define TECH_RENAISSANCE_PYTORCH_SESSION_HPP

#include "../../tr_mmap/macros_off.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "../../tr_mmap/clock.hpp"
#include "../../tr_mmap/errors.hpp"
#include "../../tr_mmap/fork_safety.hpp"
#include "../../tr_mmap/identifiers.hpp"
#include "../../tr_mmap/session.hpp"
#include "../../tr_mmap/system.hpp"
#include "../../tr_mmap/tensor.hpp"
#include "../../tr_mmap/tsr.hpp"
#include "../../tr_mmap/wire.hpp"
#include "workspace_path.hpp"

namespace tr {
namespace detail {

/// Read and remove the file in which a worker has put a tensor; the result is a copy. Nothing if there is no file, or
/// only a segment, which is a tensor that the controller has sent under that name.
///
/// @throws TSRFormatError the file has a defect; perhaps it is still being written.
inline std::optional<Tensor> take_file(const std::string& path) {
    struct stat named;
    if (::lstat(path.c_str(), &named) != 0) return {};
    const Fd fd = open_private_file(path);
    if (!fd) return {};  // it has gone meanwhile
    std::optional<Header> found;
    try {
        found.emplace(header_of(fd, path));  // checks that the file is as long as it says
    } catch (const InMotion&) {  // a segment that is being published
        return {};
    }
    const Header& header = *found;
    if (header.is_segment) return {};
    Tensor result = Tensor::empty(header.shape, header.dtype);
    auto* bytes = static_cast<std::byte*>(result.data_ptr());
    for (std::size_t done = 0; done < result.nbytes();) {
        const ssize_t count = ::pread(fd.get(), bytes + done, result.nbytes() - done,
                                      static_cast<off_t>(header.payload_offset + done));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail_call(path, errno);
        if (count == 0) throw TSRFormatError(path + " became shorter while it was read", Fault::TRUNCATED, path);
        done += static_cast<std::size_t>(count);
    }
    const std::string taken = temporary_beside(path);
    if (::rename(path.c_str(), taken.c_str()) != 0) return result;
    const struct stat own = status_of(fd, path);
    if (::lstat(taken.c_str(), &named) == 0 && (named.st_ino != own.st_ino || named.st_dev != own.st_dev)) {
        // The worker has replaced it meanwhile. Put the new one back; if there is a newer one yet, that one counts.
        static_cast<void>(::link(taken.c_str(), path.c_str()));
    }
    unlink_file(taken);
    return result;
}

}  // namespace detail

/// A PythonSession with the additional methods of the original's PyTorchSession. The worker's script chooses the
/// framework of its tensors.
class PyTorchSession : public PythonSession {
public:
    using PythonSession::PythonSession;
    ~PyTorchSession() {
        if (pid_ == detail::ForkState::pid()) detail::SessionAliases::instance().remove(this);
    }

    /// As in PythonSession.
    void start(double ready_ms = 0) {
        PythonSession::start();
        pid_ = detail::ForkState::pid();
        detail::SessionAliases::instance().add(this, session_dir());
        if (ready_ms > 0) wait_until_ready(ready_ms);
    }

    void be_quiet() { set_quiet_mode(true); }

    /// As in PythonSession. If recv_tensor has not taken the response to the request before (it took a file, or gave
    /// up), that response is dropped first; else it would be taken for the response to this request.
    void send_request(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        // Not is_busy(): a worker that serves a request which somebody wrote by hand gives this session no response.
        if (*has_left_response_ && (is_asked() || new_response())) {
            try {
                wait_for_response(timeout_ms);
            } catch (const ResponseTimeout&) {
                throw;
            } catch (const TRException&) {  // the error of that request, which nobody waits for any more
            }
        }
        *has_left_response_ = false;
        PythonSession::send_request(message, timeout_ms);
    }

    /// Wait for a tensor that the worker sends under a name. Its script may write the file <tag>.tsr into the session's
    /// directory; the file is removed, so that the next call waits for the next one. Or the tensor may be the response
    /// to this session's request, whatever its name.
    ///
    /// @param tag not the tag of a tensor that was sent, unless the worker replaces its file.
    /// @throws ResponseTimeout there is none in time.
    /// @throws UnexpectedResponse the request was answered with a text, or with several tensors, and there is no file.
    /// @throws TSRFormatError there is a file, and it still has a defect when the time is over.
    Tensor recv_tensor(const std::string& tag, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        const auto deadline = detail::checked_deadline_in(timeout_ms);
        if (!detail::is_plain_name(tag, wire::max_tag_length)) detail::check_tag(tag);  // throws
        const std::string path = session_dir() + "/" + tag + wire::tensor_suffix;
        for (double pause_s = 0.001;; pause_s = std::min(2 * pause_s, 0.016)) {
            const bool is_last = detail::Clock::now() >= deadline;
            const bool is_over = !is_alive();
            const bool is_answered = new_response();
            try {
                // Look for the file after the checks of the worker: what it wrote before its response or its end is
                // there.
                if (auto found = detail::take_file(path)) {
                    *has_left_response_ = true;
                    return *found;
                }
            } catch (const TSRFormatError&) {
                if (is_last || is_over) throw;
            }
            if (is_answered || is_over) return wait_for_tensor(0);
            if (is_last) {
                *has_left_response_ = true;
                throw ResponseTimeout("no tensor '" + tag + "' came in " + detail::shown_ms(timeout_ms) +
                                          " ms: there is no " + path + ", and no response",
                                      timeout_ms, "recv_tensor");
            }
            detail::sleep_s(std::min(pause_s, detail::remaining_ms(deadline) / 1000));
        }
    }

    /// wait_for_response, but "" if none comes in time.
    std::string wait_response(double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        try {
            return wait_for_response(timeout_ms);
        } catch (const ResponseTimeout&) {
            return "";
        }
    }

private:
    pid_t pid_ = 0;  // of the process that has started it
    std::shared_ptr<std::atomic<bool>> has_left_response_ = std::make_shared<std::atomic<bool>>(false);
};

}  // namespace tr

#include "../../tr_mmap/macros_on.hpp"

#endif  // TECH_RENAISSANCE_PYTORCH_SESSION_HPP
