// The controlling side: start a Python worker, send it tensors, send requests, get tensors back.
#ifndef TR_MMAP_SESSION_HPP
#define TR_MMAP_SESSION_HPP

#include "macros_off.hpp"

#include <unistd.h>

#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dispatcher.hpp"
#include "session_resources.hpp"
#include "tensor.hpp"
#include "wire.hpp"

namespace tr {

inline constexpr double DEFAULT_TIMEOUT_MS = wire::default_timeout_ms;
inline constexpr double EXIT_TIMEOUT_MS = wire::exit_timeout_ms;

/// A worker process and the tensors exchanged with it. Its destructor ends the worker, by force if need be, and leaves
/// no file, semaphore or process behind.
///
/// A message is ``"matmul a b"``, or JSON: ``{"cmd": "matmul", "params": "a,b"}``. Timeouts are milliseconds. Every
/// error is a TRException; what waits for a response may throw
///   ResponseTimeout  none came in time; the worker goes on, and the same wait may be repeated;
///   WorkerDied       the worker ended: log_tail says why, start() starts anew and knows the same tags;
///   RemoteError      the handler failed; UnknownCommand if there is none.
///
/// Threads may share a session, and wait for one another. A child made by fork(2) may use nothing of it.
class PythonSession {
public:
    /// @param script_path a Python script that runs a server, or "default" for the worker that ships with tr_mmap.
    /// @param session_id names the session on this machine; at most 64 of A-Z a-z 0-9 _ . -
    /// @param quiet_mode false also prints the worker's output to this process's stderr.
    explicit PythonSession(std::string script_path = wire::default_worker, std::string session_id = "default",
                           bool quiet_mode = false, SessionOptions options = {})
        : script_path_(std::move(script_path)),
          session_id_(std::move(session_id)),
          options_(std::move(options)),
          is_quiet_(quiet_mode) {
        detail::check_session_id(session_id_);
    }
    PythonSession(const PythonSession&) = delete;
    PythonSession& operator=(const PythonSession&) = delete;
    ~PythonSession() {
        if (dispatcher_ && !dispatcher_->resources().is_of_this_process()) {
            // A fork's child: locks and threads are its parent's, and may be in any state. Never destroy them here.
            static_cast<void>(new std::shared_ptr<detail::Dispatcher>(std::move(dispatcher_)));
            return;
        }
        close();
    }

    // -- process ------------------------------------------------------------------------------------------------------

    /// Start the worker; returns at once. After its death, starts a new one that knows the same tags.
    ///
    /// @throws SessionInUse another process has a session of this id, or this one is started already.
    /// @throws ScriptNotFound there is no such script.
    void start() {
        const detail::Lock lock(mutex_);
        detail::check_script(script_path_);
        if (const auto worker = worker_or_null()) {
            if (worker->process->is_alive()) {
                throw SessionInUse("session '" + session_id_ + "' is started already", session_id_, ::getpid());
            }
            dispatcher_->forget_worker();
        }
        if (!dispatcher_) {
            auto dispatcher = std::make_shared<detail::Dispatcher>(session_id_, options_);
            const std::lock_guard<std::mutex> pointer_lock(pointer_mutex_);
            dispatcher_ = std::move(dispatcher);
        }
        dispatcher_->resources().start(script_path_, is_quiet_);
    }

    /// Whether the worker process lives.
    bool is_alive() const {
        const auto worker = worker_or_null();
        return worker && worker->process->is_alive();
    }

    /// End the worker and every process it started: SIGTERM, a second, SIGKILL. Tags stay; start() starts anew. May be
    /// called while another thread waits, which gets WorkerDied.
    void terminate() {
        if (const auto worker = worker_or_null()) {
            worker->process->terminate_tree();
            worker->channel->wake();
        }
    }

    /// Wait for the worker's end; whether it has ended.
    bool join(double timeout_ms = std::numeric_limits<double>::infinity()) {
        const auto worker = worker_or_null();
        return !worker || worker->process->wait(detail::deadline_in(timeout_ms));
    }

    /// Request that the worker end, wait, and if it has ended clean up: the session is over and its tags are gone.
    ///
    /// @param ensure end it by force if it does not by itself.
    /// @returns whether it ended by itself.
    bool please_exit(double timeout_ms = EXIT_TIMEOUT_MS, bool ensure = true) {
        const detail::Lock lock(mutex_);
        bool has_ended = true;
        if (worker_or_null()) {
            try {
                has_ended = dispatcher_->request_exit(timeout_ms);
            } catch (...) {
                if (ensure) close_now();
                throw;
            }
        }
        if (has_ended || ensure) close_now();
        return has_ended;
    }

    /// End the worker by force if it lives, and remove everything of the session. Idempotent; never throws.
    void close() noexcept {
        const detail::Lock lock(mutex_);
        close_now();
    }

    // -- status -------------------------------------------------------------------------------------------------------

    /// Whether the worker waits for a request.
    bool is_ready() const {
        const auto worker = worker_or_null();
        return worker && !worker->is_over() && detail::is_waiting(worker->channel->read_status());
    }

    /// Whether the worker is busy with a request.
    bool is_busy() const {
        const auto worker = worker_or_null();
        return worker && !worker->is_over() && worker->channel->read_status() == detail::Status::BUSY;
    }

    /// Whether a response waits to be taken.
    bool new_response() const {
        const detail::Lock lock(mutex_, std::try_to_lock);
        return lock && dispatcher_ && dispatcher_->has_result();  // no lock: another thread is about to take it
    }

    /// Wait until the worker waits for a request; false when the time is over.
    bool wait_until_ready(double timeout_ms = DEFAULT_TIMEOUT_MS) {
        const detail::Lock lock(mutex_);
        return wait_status([](detail::Status each) { return detail::is_waiting(each); },
                           detail::deadline_in(timeout_ms))
            .has_value();
    }

    /// Wait until the pending request is done; whether it went well. False also when the time is over.
    bool wait_until_ok(double timeout_ms = DEFAULT_TIMEOUT_MS) {
        const detail::Lock lock(mutex_);
        const auto deadline = detail::deadline_in(timeout_ms);
        if (open().has_pending()) {  // until it is answered the status may be that of the request before it
            try {
                open().settle(timeout_ms);
            } catch (const ResponseTimeout&) {
                return false;
            }
        }
        const auto is_done = [](detail::Status s) { return s == detail::Status::OK || s == detail::Status::ERROR; };
        return wait_status(is_done, deadline) == detail::Status::OK;
    }

    // -- text ---------------------------------------------------------------------------------------------------------

    /// Send a request; its response is taken with a wait_for_… or read_response(). Waits first until an earlier
    /// request is answered; that response can still be taken, unless it is that of a call which timed out.
    ///
    /// @throws BadMessage there is no command in it.
    void send_request(const std::string& message) {
        const detail::Command command = detail::parse_command(message);
        const detail::Lock lock(mutex_);
        open().send(command, DEFAULT_TIMEOUT_MS);
    }

    /// Take the response's text if there is one; "" if not. new_response() tells that from an empty text.
    std::string read_response() {
        detail::Lock lock(mutex_);
        open().worker();
        return open().has_result() ? take(lock, 0, false).response.result : "";
    }

    /// Take the next response's text.
    std::string wait_for_response(double timeout_ms = DEFAULT_TIMEOUT_MS) {
        detail::Lock lock(mutex_);
        return take(lock, timeout_ms, false).response.result;
    }

    /// send_request and wait_for_response of that very request, in one.
    std::string fetch_response(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) {
        const detail::Command command = detail::parse_command(message);
        const detail::Lock lock(mutex_);
        return open().call(command, {}, timeout_ms, false).response.result;
    }

    // -- tensors ------------------------------------------------------------------------------------------------------

    /// Let ``tag`` name a tensor until it is sent again, dropped, or the session ends. Copies the tensor once into
    /// shared memory; a loan not at all, and from then on that is read-only.
    ///
    /// @param tag at most 128 of A-Z a-z 0-9 _ . -
    /// @throws BadTag, OutOfSpace (the tag keeps what it had).
    void send_tensor(const Tensor& tensor, const std::string& tag) {
        detail::check_tag(tag);
        const detail::Lock lock(mutex_);
        open().tags().put(tag, open().resources().pool().publish(tensor));
    }

    /// Forget a tag and give its memory back.
    ///
    /// @throws MissingTag there is no such tag.
    void drop_tensor(const std::string& tag) {
        const detail::Lock lock(mutex_);
        open().tags().drop(tag);
    }

    /// Take the next response's tensor: read-only, a view of shared memory that lives for as long as you keep it.
    ///
    /// @throws UnexpectedResponse the response has no tensor, or several: those can still be taken.
    Tensor wait_for_tensor(double timeout_ms = DEFAULT_TIMEOUT_MS) {
        detail::Lock lock(mutex_);
        return only_tensor_of(take(lock, timeout_ms, true));
    }

    /// Take the next response's tensors, in order.
    std::vector<Tensor> wait_for_tensors(double timeout_ms = DEFAULT_TIMEOUT_MS) {
        detail::Lock lock(mutex_);
        return tensors_of(take(lock, timeout_ms, true));
    }

    /// send_request and wait_for_tensor of that very request, in one.
    Tensor fetch_tensor(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) {
        return calculate(message, timeout_ms);
    }
    std::vector<Tensor> fetch_tensors(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) {
        const detail::Command command = detail::parse_command(message);
        const detail::Lock lock(mutex_);
        return tensors_of(open().call(command, {}, timeout_ms, true));
    }

    /// Send tensors, request a command on them, and get its result, in one call. The tensors get tags of this call's
    /// own, which follow the message's words.
    Tensor calculate(const std::string& message, const std::vector<Tensor>& tensors,
                     double timeout_ms = DEFAULT_TIMEOUT_MS) {
        return calculate_with(message, {tensors.begin(), tensors.end()}, timeout_ms);
    }
    Tensor calculate(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) {
        return calculate_with(message, {}, timeout_ms);
    }
    Tensor calculate(const std::string& message, const Tensor& a, double timeout_ms = DEFAULT_TIMEOUT_MS) {
        return calculate_with(message, {a}, timeout_ms);
    }
    Tensor calculate(const std::string& message, const Tensor& a, const Tensor& b,
                     double timeout_ms = DEFAULT_TIMEOUT_MS) {
        return calculate_with(message, {a, b}, timeout_ms);
    }
    Tensor calculate(const std::string& message, const Tensor& a, const Tensor& b, const Tensor& c,
                     double timeout_ms = DEFAULT_TIMEOUT_MS) {
        return calculate_with(message, {a, b, c}, timeout_ms);
    }

    /// A loan: a tensor of undefined content in shared memory, which is sent without a copy. Fill it and send it; after
    /// that it belongs to its readers, and is read-only here. For the next tensor, take another loan.
    ///
    /// @throws OutOfSpace no room.
    template <class T>
    Tensor empty(const Shape& shape) {
        return empty(shape, dtype_of<T>());
    }
    Tensor empty(const Shape& shape, DType dtype = DType::FP32) {
        const detail::Lock lock(mutex_);
        return open().resources().pool().empty(shape, dtype);
    }

    /// What this side holds in shared memory.
    PoolStats stats() {
        const detail::Lock lock(mutex_);
        return open().resources().pool().stats();
    }

    // -- access -------------------------------------------------------------------------------------------------------

    /// Path of the session's directory; it exists from the first start() to the end of the session.
    std::string session_dir() const {
        const auto dispatcher = dispatcher_or_null();
        return dispatcher ? dispatcher->resources().directory()
                          : detail::Workspace::locate().session_dir(session_id_);
    }
    const std::string& session_id() const noexcept { return session_id_; }

    /// Whether the worker's output from now on stays in its log only.
    void set_quiet_mode(bool quiet_mode) {
        is_quiet_ = quiet_mode;
        if (const auto worker = worker_or_null()) worker->process->forward_log(!quiet_mode);
    }

private:
    std::shared_ptr<detail::Dispatcher> dispatcher_or_null() const {
        const std::lock_guard<std::mutex> lock(pointer_mutex_);
        return dispatcher_;
    }
    std::shared_ptr<detail::WorkerHandle> worker_or_null() const {
        const auto dispatcher = dispatcher_or_null();
        return dispatcher ? dispatcher->resources().worker() : nullptr;
    }

    /// The lock is held.
    detail::Dispatcher& open() const {
        if (!dispatcher_) throw SessionNotStarted("session '" + session_id_ + "' is not started; call start()");
        return *dispatcher_;
    }

    /// The lock is held.
    void close_now() noexcept {
        std::shared_ptr<detail::Dispatcher> last;
        {
            const std::lock_guard<std::mutex> pointer_lock(pointer_mutex_);
            last = std::move(dispatcher_);
        }
        if (last) last->close();
    }

    template <class Until>
    std::optional<detail::Status> wait_status(Until until, detail::Clock::time_point deadline) {
        const auto worker = open().worker();
        const auto status = worker->channel->wait_status(until, deadline, [&] { return worker->is_over(); });
        if (!status && worker->is_over()) open().throw_worker_died();
        return status;
    }

    detail::Result take(detail::Lock& lock, double timeout_ms, bool has_tensors) {
        open();
        const std::shared_ptr<detail::Dispatcher> dispatcher = dispatcher_;  // it releases the lock while it waits
        return dispatcher->take(lock, timeout_ms, has_tensors);
    }

    Tensor calculate_with(const std::string& message, const detail::TensorRefs& tensors, double timeout_ms) {
        const detail::Command command = detail::parse_command(message);
        const detail::Lock lock(mutex_);
        return only_tensor_of(open().call(command, tensors, timeout_ms, true));
    }

    /// The result's tensors, of which there must be one or more.
    std::vector<Tensor> tensors_of(detail::Result result) {
        if (result.tensors.empty()) {
            const detail::Response& response = result.response;
            throw UnexpectedResponse("the response to '" + response.command + "' has no tensor; its text is '" +
                                         response.result.substr(0, 200) + "'" +
                                         (response.message.empty() ? "" : " (" + response.message + ")"),
                                     response.result);
        }
        return std::move(result.tensors);
    }

    Tensor only_tensor_of(detail::Result result) {
        if (result.tensors.size() > 1) {
            const std::string count = std::to_string(result.tensors.size());
            const std::string text = result.response.result;
            open().put_back(std::move(result));
            throw UnexpectedResponse("the response has " + count + " tensors; take them with wait_for_tensors()", text);
        }
        return tensors_of(std::move(result)).front();
    }

    const std::string script_path_;
    const std::string session_id_;
    const SessionOptions options_;
    std::atomic<bool> is_quiet_;
    mutable std::mutex mutex_;          // one call at a time
    mutable std::mutex pointer_mutex_;  // of dispatcher_, for calls that must not wait for another thread's call
    std::shared_ptr<detail::Dispatcher> dispatcher_;
};

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_SESSION_HPP
