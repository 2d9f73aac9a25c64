// Threads that watch a worker: one notices its death, one copies its output. Know nothing of sessions.
#ifndef TR_MMAP_WATCH_HPP
#define TR_MMAP_WATCH_HPP

#include "macros_off.hpp"

#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "identity.hpp"
#include "system.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

/// Start a thread that gets none of the process's signals, because an application's handler may not expect to run
/// there.
///
/// @throws SystemLimit this user may have no more threads.
template <class Action>
std::thread start_thread(Action action) {
    sigset_t all, previous;
    ::sigfillset(&all);
    for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) ::sigdelset(&all, number);  // the thread's own faults
    ::pthread_sigmask(SIG_SETMASK, &all, &previous);
    try {
        std::thread result(std::move(action));
        ::pthread_sigmask(SIG_SETMASK, &previous, nullptr);
        return result;
    } catch (const std::system_error& error) {
        ::pthread_sigmask(SIG_SETMASK, &previous, nullptr);
        throw SystemLimit("a thread for a session", error.code().value(), "RLIMIT_NPROC",
                          "end threads or processes, or raise the limit (ulimit -u)");
    }
}

/// Calls back once, from a thread of its own, when a process ends. The destructor waits for the callback to return, so
/// the callback must not wait for the thread that runs the destructor.
class PeerWatch {
public:
    PeerWatch(const Identity& identity, std::function<void()> on_death)
        : identity_(identity), on_death_(std::move(on_death)), process_(open_pidfd(identity)) {
        wake_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        if (!wake_) fail_call("eventfd", errno);
        thread_ = start_thread([this] { run(); });
    }
    PeerWatch(const PeerWatch&) = delete;
    PeerWatch& operator=(const PeerWatch&) = delete;
    ~PeerWatch() {
        is_stopped_ = true;
        const std::uint64_t one = 1;
        while (::write(wake_.get(), &one, sizeof one) < 0 && errno == EINTR) continue;
        thread_.join();
    }

    /// Whether the watch has seen that the process ended.
    bool is_dead() const noexcept { return is_dead_; }

private:
    void run() {
        while (!is_stopped_) {
            const bool has_fd = static_cast<bool>(process_.fd);
            if (process_.has_ended || (!has_fd && !identity_.is_alive())) return notice();
            struct pollfd wanted[2] = {{wake_.get(), POLLIN, 0}, {process_.fd.get(), POLLIN, 0}};
            ::poll(wanted, has_fd ? 2 : 1, has_fd ? -1 : static_cast<int>(1000 * wire::poll_s));
            if (has_fd && wanted[1].revents) return notice();
        }
    }
    void notice() {
        is_dead_ = true;
        on_death_();
    }

    Identity identity_;
    std::function<void()> on_death_;
    PidFd process_;
    Fd wake_;
    std::atomic<bool> is_stopped_{false};
    std::atomic<bool> is_dead_{false};
    std::thread thread_;
};

/// Copies what is appended to a log to this process's stderr, in a thread, until it is destroyed. Text that stderr does
/// not take then (it may be a pipe that nobody reads) is dropped.
class LogForwarder {
public:
    LogForwarder(const std::string& path, bool is_from_start) : path_(path), fd_(open_private_file(path)) {
        if (!fd_) throw SystemError(path, ENOENT);
        position_ = is_from_start ? 0 : file_nbytes(fd_, path);
        thread_ = start_thread([this] { run(); });
    }
    LogForwarder(const LogForwarder&) = delete;
    LogForwarder& operator=(const LogForwarder&) = delete;
    ~LogForwarder() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);  // it is never held while stderr is written to
            is_stopped_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }

private:
    void run() {
        try {
            const std::chrono::duration<double> pause(wire::poll_s);
            bool is_last = false;
            while (!is_last) {
                {
                    std::unique_lock<std::mutex> lock(mutex_);
                    is_last = changed_.wait_for(lock, pause, [this] { return is_stopped_.load(); });
                }
                position_ = std::min(position_, file_nbytes(fd_, path_));  // the worker may have cut a long log
                for (std::string data; !(data = read_all(fd_, wire::log_tail_nbytes, position_, path_)).empty();) {
                    position_ += data.size();
                    if (!copy_to_stderr(data)) return;
                }
            }
        } catch (const std::exception&) {
            // Only the copy stops; the log still has all that the worker writes.
        }
    }

    /// Whether stderr has taken it. It has not if it is closed, or takes nothing while the destructor waits.
    bool copy_to_stderr(const std::string& data) const {
        std::size_t written = 0;
        while (written < data.size()) {
            const bool was_stopped = is_stopped_;
            struct pollfd wanted = {STDERR_FILENO, POLLOUT, 0};
            const int found = ::poll(&wanted, 1, static_cast<int>(1000 * wire::poll_s));
            if (found == 0 && was_stopped) return false;
            if (found == 0 || (found < 0 && errno == EINTR)) continue;
            // Not more than PIPE_BUF: a pipe that is writable takes so much at once, so the write does not block.
            const std::size_t nbytes = std::min<std::size_t>(data.size() - written, PIPE_BUF);
            const ssize_t put = ::write(STDERR_FILENO, data.data() + written, nbytes);
            if (put < 0 && errno != EINTR && errno != EAGAIN) return false;
            if (put > 0) written += static_cast<std::size_t>(put);
        }
        return true;
    }

    std::string path_;
    Fd fd_;
    std::uint64_t position_ = 0;
    std::atomic<bool> is_stopped_{false};
    std::mutex mutex_;
    std::condition_variable changed_;
    std::thread thread_;
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_WATCH_HPP
