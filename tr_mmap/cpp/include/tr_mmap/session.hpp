// The controller's side: start a Python worker, send it tensors and requests, and receive tensors.
#ifndef TR_MMAP_SESSION_HPP
#define TR_MMAP_SESSION_HPP

#include "macros_off.hpp"

#include <unistd.h>

#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "clock.hpp"
#include "dispatcher.hpp"
#include "errors.hpp"
#include "fork_safety.hpp"
#include "launch.hpp"
#include "live_sessions.hpp"
#include "options.hpp"
#include "protocol.hpp"
#include "session_futures.hpp"
#include "wire.hpp"

namespace tr {

inline constexpr double EXIT_TIMEOUT_MS = wire::exit_timeout_ms;

/// A worker process and the tensors exchanged with it. Its destructor ends the worker, by force if need be, and leaves
/// no file, semaphore or process behind. It may be a global: it can end after main's other static objects.
///
/// A message is ``"matmul a b"``, or JSON: ``{"cmd": "matmul", "params": "a,b"}``. Timeouts are milliseconds, and bound
/// the whole call, the wait for another thread's request included. Every error is a TRException; what waits for a
/// response may throw
///   ResponseTimeout    none came in time; the worker goes on, and the same wait may be repeated;
///   WorkerDied         the worker ended: log_tail says why; start() starts a new worker, which knows the same tags;
///   RemoteError        the handler failed; UnknownCommand if there is none, RemoteOutOfSpace if it lacked memory;
///   SessionNotStarted  another thread has closed the session.
///
/// Threads may share a session, and up to SessionOptions::max_in_flight requests may be with the worker at once. A child
/// made by fork(2) cannot use it: each call throws SessionNotStarted there, or does nothing.
class PythonSession : public detail::SessionFutures {
public:
    /// @param script_path a Python script that runs a server, or "default" for the worker that ships with tr_mmap. A
    ///     relative path is resolved now, and so is that of TR_WORKSPACE.
    /// @param session_id names the session on this machine; at most 64 of A-Z a-z 0-9 _ . -
    /// @param quiet_mode false also prints the worker's output to this process's stderr.
    /// @throws ScriptNotFound a path is relative, and this process has no current directory.
    /// @throws HostilePath the path in TR_WORKSPACE is relative, and this process has no current directory.
    explicit PythonSession(const std::string& script_path = wire::default_worker, std::string session_id = "default",
                           bool quiet_mode = false, SessionOptions options = {})
        : SessionFutures(script_path, std::move(session_id), quiet_mode, std::move(options)) {}
    PythonSession(const PythonSession&) = delete;
    PythonSession& operator=(const PythonSession&) = delete;
    ~PythonSession() {
        if (is_of_other_process()) {
            // In a forked child, locks and threads belong to the parent, and may be in any state: never destroy them
            // here.
            static_cast<void>(new std::shared_ptr<detail::Dispatcher>(std::move(dispatcher_)));
            return;
        }
        close();
    }

    // -- process ------------------------------------------------------------------------------------------------------

    /// Start the worker; returns at once. After its death, starts a new one that knows the same tags.
    ///
    /// @throws SessionInUse another process has a session of this id, or this one is started already.
    /// @throws ScriptNotFound there is no such script, Python or working directory.
    /// @throws SemaphoresUnavailable this system has none for this user.
    void start() {
        check_process();
        detail::check_script(script_path_);
        owner_ = detail::ForkState::pid();
        const std::lock_guard<std::mutex> lock(life_mutex_);
        auto dispatcher = dispatcher_or_null();
        if (!dispatcher || dispatcher->is_closed()) {
            try {
                dispatcher = detail::open_session(session_id_, options_, place_);
            } catch (...) {
                if (!dispatcher) owner_ = 0;  // nothing was started: a fork's child may start it
                throw;
            }
            const std::lock_guard<std::mutex> pointer_lock(pointer_mutex_);
            dispatcher_ = dispatcher;
        }
        if (!dispatcher->start(script_path_, is_quiet_)) {
            throw SessionInUse("session '" + session_id_ + "' is started already", session_id_, ::getpid());
        }
    }

    /// As start(), and wait up to ``ready_ms`` until the worker is ready. (The first request would wait for it anyway.)
    void start(double ready_ms) {
        detail::checked_deadline_in(ready_ms);  // before anything is started
        start();
        wait_until_ready(ready_ms);
    }

    /// Whether the worker lives: its process does, and has not ended its service, as `sys.exit()` in a handler does.
    bool is_alive() const {
        const auto worker = worker_or_null();
        return worker && worker->process->is_alive() && !worker->is_over();
    }

    /// End the worker and every process that it started: SIGTERM, and SIGKILL a second later. Tags stay; start() starts
    /// a new worker. Another thread that waits gets WorkerDied.
    void terminate() {
        if (const auto worker = worker_or_null()) {
            worker->process->terminate_tree();
            worker->channel->wake();
        }
    }

    /// Wait for the worker's end; returns whether it has ended. Returns false at once in a forked child.
    bool join(double timeout_ms = std::numeric_limits<double>::infinity()) {
        const auto deadline = detail::checked_deadline_in(timeout_ms);
        if (is_of_other_process()) return false;
        const auto worker = worker_or_null();
        return !worker || worker->process->wait(deadline);
    }

    /// Request that the worker end, and wait for that. If it has ended, clean up: the session is over, and its tags are
    /// gone. A request of any thread that is under way is answered first, if there is time for that.
    ///
    /// @param ensure end the worker by force if it does not end by itself in time.
    /// @returns whether it ended by itself; true if there was nothing to end; false if a signal ended it, for example
    ///     that
    /// of terminate(). Returns false at once in a forked child, which ends nothing.
    bool please_exit(double timeout_ms = EXIT_TIMEOUT_MS, bool ensure = true) {
        detail::checked_deadline_in(timeout_ms);  // before anything is ended
        if (is_of_other_process()) return false;
        const auto dispatcher = dispatcher_or_null();
        const auto worker = worker_or_null();
        bool has_ended = true;
        if (dispatcher) {
            try {
                has_ended = dispatcher->request_exit(timeout_ms);
            } catch (...) {
                if (ensure) close();
                throw;
            }
        }
        const bool is_farewell = worker && worker->channel->read_status() == detail::Status::TERMINATED;
        if (has_ended || ensure) close();
        return has_ended && (!worker || worker->process->has_ended_by_itself(is_farewell));
    }

    /// End the worker by force if it lives, and remove everything of the session. Other threads that wait get
    /// SessionNotStarted. Idempotent; never throws.
    void close() noexcept {
        if (is_of_other_process()) return;
        if (const auto last = dispatcher_or_null()) last->close();  // a start() that is under way ends soon
        const std::lock_guard<std::mutex> lock(life_mutex_);
        if (const auto last = dispatcher_or_null()) last->close();
        std::shared_ptr<detail::Dispatcher> gone;
        {
            const std::lock_guard<std::mutex> pointer_lock(pointer_mutex_);
            gone = std::move(dispatcher_);
        }
        owner_ = 0;
    }

    // -- status -------------------------------------------------------------------------------------------------------

    /// Whether the worker waits for a request. False from the moment when a request is sent until its response has
    /// come.
    bool is_ready() const {
        const auto worker = worker_or_null();
        return worker && !worker->is_over() && !is_asked() && detail::is_waiting(worker->channel->read_status());
    }

    /// Whether a request is under way: from the moment when it is sent until its response has come.
    bool is_busy() const {
        const auto worker = worker_or_null();
        if (!worker || worker->is_over()) return false;
        return is_asked() || worker->channel->read_status() == detail::Status::BUSY;
    }

    /// Whether a response waits to be taken.
    bool new_response() const {
        const auto dispatcher = dispatcher_or_null();
        return dispatcher && dispatcher->has_result();
    }

    /// Wait until the worker waits for a request, and has answered the one under way; false when the time is over.
    bool wait_until_ready(double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return in([&](detail::Dispatcher& each) {
            return each.wait_status([](detail::Status s) { return detail::is_waiting(s); }, timeout_ms).has_value();
        });
    }

    /// Wait until the pending request is answered; returns whether it succeeded. False also when the time is over.
    bool wait_until_ok(double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return in([&](detail::Dispatcher& each) { return each.wait_until_ok(timeout_ms); });
    }

    // -- access -------------------------------------------------------------------------------------------------------

    /// Path of the session's directory; it exists from the first start() to the end of the session.
    std::string session_dir() const {
        const auto dispatcher = dispatcher_or_null();
        return dispatcher ? dispatcher->resources().directory()
                          : detail::Workspace::at(place_).session_dir(session_id_);
    }
    const std::string& session_id() const noexcept { return session_id_; }

    /// Whether the worker's output from now on stays in its log only.
    void set_quiet_mode(bool quiet_mode) {
        check_process();
        is_quiet_ = quiet_mode;
        if (const auto dispatcher = dispatcher_or_null()) dispatcher->set_quiet(quiet_mode);
        if (const auto worker = worker_or_null()) worker->process->forward_log(!quiet_mode);
    }

protected:
    /// Whether a request of this session is not answered yet.
    bool is_asked() const {
        const auto dispatcher = dispatcher_or_null();
        return dispatcher && dispatcher->is_asked();
    }

};

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_SESSION_HPP
