// The controller's side: start a Python worker, send it tensors and requests, and receive tensors.
#ifndef TR_MMAP_SESSION_HPP
#define TR_MMAP_SESSION_HPP

#include "macros_off.hpp"

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <exception>
#include <future>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "dispatcher.hpp"
#include "fork_safety.hpp"
#include "future.hpp"
#include "launch.hpp"
#include "live_sessions.hpp"
#include "options.hpp"
#include "tensor.hpp"
#include "wire.hpp"

namespace tr {

inline constexpr double DEFAULT_TIMEOUT_MS = wire::default_timeout_ms;
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
class PythonSession {
public:
    /// @param script_path a Python script that runs a server, or "default" for the worker that ships with tr_mmap. A
    ///     relative path is resolved now, and so is that of TR_WORKSPACE.
    /// @param session_id names the session on this machine; at most 64 of A-Z a-z 0-9 _ . -
    /// @param quiet_mode false also prints the worker's output to this process's stderr.
    /// @throws ScriptNotFound a path is relative, and this process has no current directory.
    /// @throws HostilePath the path in TR_WORKSPACE is relative, and this process has no current directory.
    explicit PythonSession(const std::string& script_path = wire::default_worker, std::string session_id = "default",
                           bool quiet_mode = false, SessionOptions options = {})
        : script_path_(detail::resolved_script(script_path)),
          session_id_(std::move(session_id)),
          options_(detail::resolved(std::move(options))),
          place_(detail::Workspace::place()),
          is_quiet_(quiet_mode) {
        detail::check_session_id(session_id_);
    }
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

    // -- text ---------------------------------------------------------------------------------------------------------

    /// Send a request; its response is taken with a wait_for_… or read_response(). As many as
    /// SessionOptions::max_in_flight may be sent before the first is answered; then this waits until one is.
    ///
    /// @throws BadMessage there is no command in it.
    /// @throws ResponseTimeout no earlier request was answered in time; this one is not sent.
    /// @throws Busy as many are in flight, and the session does not wait.
    void send_request(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        const detail::Command command = detail::parse_command(message);
        in([&](detail::Dispatcher& each) { each.send_public(command, timeout_ms); });
    }

    /// Take the response's text if there is one; "" if not. new_response() tells that from an empty text.
    std::string read_response() const {
        return in([](detail::Dispatcher& each) { return each.take_text_now(); });
    }

    /// Take the next response's text.
    std::string wait_for_response(double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return in([&](detail::Dispatcher& each) { return each.take(timeout_ms, false).response.result; });
    }

    /// send_request() and wait_for_response() in one call, for the same request.
    std::string fetch_response(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        const detail::Command command = detail::parse_command(message);
        return in([&](detail::Dispatcher& each) { return each.call(command, {}, timeout_ms, false).response.result; });
    }

    // -- tensors ------------------------------------------------------------------------------------------------------

    /// Send a tensor under a tag, which names it until the tag is sent again or dropped, or the session ends. The
    /// tensor is copied once into shared memory. A loan is not copied, and is read-only from then on.
    ///
    /// @param tag at most 128 of A-Z a-z 0-9 _ . -
    /// @throws BadTag, OutOfSpace (the tag keeps what it had).
    void send_tensor(const Tensor& tensor, const std::string& tag) const {
        detail::check_tag(tag);
        in([&](detail::Dispatcher& each) { each.send_tensor(tensor, tag); });
    }

    /// Forget a tag and give its memory back.
    ///
    /// @throws MissingTag there is no such tag.
    void drop_tensor(const std::string& tag) const {
        in([&](detail::Dispatcher& each) { each.drop_tensor(tag); });
    }

    /// Take the next response's tensor: a read-only view of shared memory, valid for as long as you keep it.
    ///
    /// @throws UnexpectedResponse the response has no tensor, or several: those can still be taken.
    Tensor wait_for_tensor(double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return in([&](detail::Dispatcher& each) { return only_tensor_of(each, each.take(timeout_ms, true)); });
    }

    /// Take the next response's tensors, in order.
    std::vector<Tensor> wait_for_tensors(double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return in([&](detail::Dispatcher& each) { return tensors_of(each.take(timeout_ms, true)); });
    }

    /// send_request() and wait_for_tensor() in one call, for the same request.
    Tensor fetch_tensor(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return calculate(message, timeout_ms);
    }
    std::vector<Tensor> fetch_tensors(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        const detail::Command command = detail::parse_command(message);
        return in([&](detail::Dispatcher& each) { return tensors_of(each.call(command, {}, timeout_ms, true)); });
    }

    /// Send tensors, request a command on them, and take its result, in one call. The tensors get tags that only this
    /// call uses; the tags follow the message's words.
    Tensor calculate(const std::string& message, const std::vector<Tensor>& tensors,
                     double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return calculate_with(message, {tensors.begin(), tensors.end()}, timeout_ms);
    }
    Tensor calculate(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return calculate_with(message, {}, timeout_ms);
    }
    Tensor calculate(const std::string& message, const Tensor& a, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return calculate_with(message, {a}, timeout_ms);
    }
    Tensor calculate(const std::string& message, const Tensor& a, const Tensor& b,
                     double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return calculate_with(message, {a, b}, timeout_ms);
    }
    Tensor calculate(const std::string& message, const Tensor& a, const Tensor& b, const Tensor& c,
                     double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return calculate_with(message, {a, b, c}, timeout_ms);
    }

    // -- many requests at once ----------------------------------------------------------------------------------------

    /// Send tensors and a request on them, as calculate() does, and return at once; the result comes as a future. As
    /// many as SessionOptions::max_in_flight requests may be sent before the first is answered; then this waits until
    /// one is, or throws Busy. The futures become ready in the order in which the worker answers.
    ///
    /// What goes wrong before the request is sent is thrown here; what comes after that is the future's. It gets
    /// ResponseTimeout ``timeout_ms`` after the call, WorkerDied if the worker ends, SessionNotStarted if the session
    /// does; so it always becomes ready. Future::cancel() cancels the request. If the future is destroyed before it is
    /// ready, the request goes on and its result is dropped.
    Future<Tensor> submit(const std::string& message, const std::vector<Tensor>& tensors,
                          double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_with<Tensor>(message, {tensors.begin(), tensors.end()}, timeout_ms, true, future_tensor);
    }
    Future<Tensor> submit(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_with<Tensor>(message, {}, timeout_ms, true, future_tensor);
    }
    Future<Tensor> submit(const std::string& message, const Tensor& a,
                          double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_with<Tensor>(message, {a}, timeout_ms, true, future_tensor);
    }
    Future<Tensor> submit(const std::string& message, const Tensor& a, const Tensor& b,
                          double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_with<Tensor>(message, {a, b}, timeout_ms, true, future_tensor);
    }
    Future<Tensor> submit(const std::string& message, const Tensor& a, const Tensor& b, const Tensor& c,
                          double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_with<Tensor>(message, {a, b, c}, timeout_ms, true, future_tensor);
    }

    /// The same for the response's text.
    Future<std::string> submit_response(const std::string& message, const std::vector<Tensor>& tensors,
                                        double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_with<std::string>(message, {tensors.begin(), tensors.end()}, timeout_ms, false, future_text);
    }
    Future<std::string> submit_response(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_with<std::string>(message, {}, timeout_ms, false, future_text);
    }

    /// The same for a response of several tensors, in order.
    Future<std::vector<Tensor>> submit_tensors(const std::string& message, const std::vector<Tensor>& tensors,
                                               double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        const detail::TensorRefs refs(tensors.begin(), tensors.end());
        return submit_with<std::vector<Tensor>>(message, refs, timeout_ms, true, tensors_of);
    }
    Future<std::vector<Tensor>> submit_tensors(const std::string& message,
                                               double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_with<std::vector<Tensor>>(message, {}, timeout_ms, true, tensors_of);
    }

    /// A loan: a tensor of undefined content in shared memory, which is sent without a copy. Fill it and send it; after
    /// that it is read-only here, because readers use it. Take another loan for the next tensor.
    ///
    /// @throws OutOfSpace no room.
    template <class T>
    Tensor empty(const Shape& shape) const {
        return empty(shape, dtype_of<T>());
    }
    Tensor empty(const Shape& shape, DType dtype = DType::FP32) const {
        return in([&](detail::Dispatcher& each) { return each.empty(shape, dtype); });
    }

    /// What this side holds in shared memory.
    PoolStats stats() const {
        return in([](detail::Dispatcher& each) { return each.stats(); });
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

private:
    /// Whether this process is a forked child of the one that has started the session.
    bool is_of_other_process() const noexcept {
        const pid_t owner = owner_;
        return owner != 0 && owner != detail::ForkState::pid();
    }

    /// Throw in a fork's child, before anything is locked: a thread of its parent may have held the lock.
    void check_process() const {
        if (!is_of_other_process()) return;
        throw SessionNotStarted("session '" + session_id_ + "'" + wire::of_parent);
    }

    /// Null in a fork's child.
    std::shared_ptr<detail::Dispatcher> dispatcher_or_null() const {
        if (is_of_other_process()) return nullptr;
        const std::lock_guard<std::mutex> lock(pointer_mutex_);
        return dispatcher_;
    }
    std::shared_ptr<detail::WorkerHandle> worker_or_null() const {
        const auto dispatcher = dispatcher_or_null();
        return dispatcher ? dispatcher->resources().worker() : nullptr;
    }

    /// Call an action with the open session's dispatcher, which is kept alive meanwhile. Afterwards this object is not
    /// touched: another thread may have destroyed it, at the end of the process say.
    template <class Action>
    auto in(Action action) const -> decltype(action(std::declval<detail::Dispatcher&>())) {
        check_process();
        const auto dispatcher = dispatcher_or_null();
        if (!dispatcher) throw SessionNotStarted("session '" + session_id_ + "'" + wire::not_started);
        try {
            return action(*dispatcher);
        } catch (const SessionNotStarted&) {
            if (dispatcher->is_closed()) dispatcher->outlast_process_end();
            throw;
        }
    }

    Tensor calculate_with(const std::string& message, const detail::TensorRefs& tensors, double timeout_ms) const {
        const detail::Command command = detail::parse_command(message);
        return in([&](detail::Dispatcher& each) {
            return only_tensor_of(each, each.call(command, tensors, timeout_ms, true));
        });
    }

    /// Send a request whose result comes as a future.
    ///
    /// @param shape makes the future's value of the result, or throws.
    template <class T, class Shape>
    Future<T> submit_with(const std::string& message, const detail::TensorRefs& tensors, double timeout_ms,
                          bool has_tensors, Shape shape) const {
        const detail::Command command = detail::parse_command(message);
        const auto promise = std::make_shared<std::promise<T>>();
        const auto settle = [promise, shape](detail::Result* result, const std::exception_ptr& error) noexcept {
            if (error) return promise->set_exception(error);
            try {
                promise->set_value(shape(std::move(*result)));
            } catch (...) {
                promise->set_exception(std::current_exception());
            }
        };
        return in([&](detail::Dispatcher& each) {
            const detail::PendingPtr pending = each.submit(command, tensors, timeout_ms, has_tensors, settle);
            return Future<T>(promise->get_future(), each.shared_from_this(), pending);
        });
    }

    static std::string future_text(detail::Result result) { return std::move(result.response.result); }

    static Tensor future_tensor(detail::Result result) {
        if (result.tensors.size() > 1) {
            throw UnexpectedResponse("the response has " + std::to_string(result.tensors.size()) +
                                         " tensors; request them with submit_tensors()",
                                     result.response.result);
        }
        return tensors_of(std::move(result)).front();
    }

    /// The result's tensors, of which there must be one or more.
    static std::vector<Tensor> tensors_of(detail::Result result) {
        if (result.tensors.empty()) {
            const detail::Response& response = result.response;
            throw UnexpectedResponse("the response to '" + response.command + "' has no tensor; its text is '" +
                                         response.result.substr(0, 200) + "'" +
                                         (response.message.empty() ? "" : " (" + response.message + ")"),
                                     response.result);
        }
        return std::move(result.tensors);
    }

    static Tensor only_tensor_of(detail::Dispatcher& dispatcher, detail::Result result) {
        if (result.tensors.size() > 1) {
            const std::string count = std::to_string(result.tensors.size());
            const std::string text = result.response.result;
            dispatcher.put_back(std::move(result));
            throw UnexpectedResponse("the response has " + count + " tensors; take them with wait_for_tensors()", text);
        }
        return tensors_of(std::move(result)).front();
    }

    const std::string script_path_;
    const std::string session_id_;
    const SessionOptions options_;
    const std::string place_;  // of the workspace
    std::atomic<bool> is_quiet_;
    std::atomic<pid_t> owner_{0};       // the process that has started it; 0 if it is not started
    std::mutex life_mutex_;             // held by start(), and by the end of close()
    mutable std::mutex pointer_mutex_;  // guards dispatcher_; held for a moment
    std::shared_ptr<detail::Dispatcher> dispatcher_;
};

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_SESSION_HPP
