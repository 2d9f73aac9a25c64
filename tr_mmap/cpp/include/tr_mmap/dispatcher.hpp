// The controller's requests to its worker: one at a time, and the results that wait to be taken. Not safe for threads
// by itself: its session holds a lock around every call. Never starts processes.
#ifndef TR_MMAP_DISPATCHER_HPP
#define TR_MMAP_DISPATCHER_HPP

#include "macros_off.hpp"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "channel.hpp"
#include "clock.hpp"
#include "protocol.hpp"
#include "session_resources.hpp"
#include "tags.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

using Lock = std::unique_lock<std::mutex>;
using TensorRefs = std::vector<std::reference_wrapper<const Tensor>>;

/// A response, and views of its tensors, which hold the leases.
struct Result {
    Response response;
    std::vector<Tensor> tensors;
};

[[noreturn]] inline void throw_remote_error(const std::string& command, const Failure& failure) {
    if (failure.kind == wire::failure_unknown_command) {
        throw UnknownCommand(failure.message, command, failure.type, failure.traceback);
    }
    std::string message = failure.message;
    if (failure.kind != wire::failure_bad_input) {
        message = "'" + command + "' failed in the worker: " + failure.type + ": " + failure.message;
        if (!failure.traceback.empty()) message += "\n\n" + failure.traceback;
    }
    throw RemoteError(message, command, failure.type, failure.traceback);
}

class Dispatcher {
public:
    Dispatcher(const std::string& session_id, const SessionOptions& options)
        : resources_(session_id, options),
          tags_(resources_.directory(), resources_.pool(), [this](const auto& segment) { release_later(segment); }) {}

    SessionResources& resources() noexcept { return resources_; }
    Tags& tags() noexcept { return tags_; }

    /// @throws SessionNotStarted there is no worker.
    std::shared_ptr<WorkerHandle> worker() const {
        std::shared_ptr<WorkerHandle> result = resources_.worker();
        if (!result) throw SessionNotStarted("session '" + resources_.session_id() + "' has no worker; call start()");
        return result;
    }

    /// Whether a request was sent and not answered.
    bool has_pending() const noexcept { return pending_.has_value(); }

    /// Whether take() would find a result at once.
    bool has_result() const {
        if (!unclaimed_.empty()) return true;
        const std::shared_ptr<WorkerHandle> worker = resources_.worker();
        return worker && has_public_request() && worker->channel->has_message();
    }

    /// Send a request and take its result; no other thread can.
    ///
    /// @param tensors published for this request only; their tags follow the command's words.
    /// @param has_tensors whether the result's tensors are wanted.
    Result call(const Command& command, const TensorRefs& tensors, double timeout_ms, bool has_tensors) {
        send_request(command, tensors, timeout_ms);
        try {
            return to_result(await_response(deadline_in(timeout_ms), timeout_ms), has_tensors);
        } catch (...) {
            is_abandoned_ = true;  // if the request is still pending; the next one resets this
            throw;
        }
    }

    /// Send a request whose result any thread may take. Waits first for the response to an earlier request, whose
    /// result can still be taken.
    void send(const Command& command, double timeout_ms) {
        send_request(command, {}, timeout_ms);
        request_sent_.notify_all();
    }

    /// Request that the worker end, even in the middle of a request; whether it has ended in time.
    bool request_exit(double timeout_ms) {
        const std::shared_ptr<WorkerHandle> worker = this->worker();
        if (!worker->process->is_alive() || worker->is_over()) return true;
        const Clock::time_point deadline = deadline_in(timeout_ms);
        Request request;
        request.seq = next_seq();
        request.command = wire::exit_command;
        request.timestamp = now_ms();
        worker->channel->send(request);  // a worker that has not attached yet finds the request when it does
        return worker->process->wait(deadline);
    }

    /// Wait for the response to the pending request, and keep the result for the thread that takes it.
    void settle(double timeout_ms) {
        if (!pending_) return;
        const bool is_abandoned = is_abandoned_;
        Response response = await_response(deadline_in(timeout_ms), timeout_ms);
        if (is_abandoned) return;
        // Now: at the next request the worker may reuse the memory of a result that has no lease.
        std::vector<Tensor> tensors = receive_all(response);
        unclaimed_.push_back({std::move(response), std::move(tensors)});
    }

    /// The oldest result that was not taken. If there is no request, waits for one that another thread may send.
    Result take(Lock& lock, double timeout_ms, bool has_tensors) {
        worker();
        const Clock::time_point deadline = deadline_in(timeout_ms);
        if (unclaimed_.empty() && !has_public_request()) {
            request_sent_.wait_until(
                lock, deadline, [this] { return !unclaimed_.empty() || has_public_request() || !resources_.worker(); });
            worker();  // the session may have been closed meanwhile
        }
        if (!unclaimed_.empty()) {
            Result result = std::move(unclaimed_.front());
            unclaimed_.pop_front();
            if (result.response.error) throw_remote_error(result.response.command, *result.response.error);
            return result;
        }
        if (!has_public_request()) {
            throw ResponseTimeout("no request was made, so no response came within " + whole(timeout_ms) +
                                      " ms; call send_request first",
                                  timeout_ms, "");
        }
        return to_result(await_response(deadline, timeout_ms), has_tensors);
    }

    /// Put back a result that is not what its taker wanted; the next one takes it.
    void put_back(Result result) { unclaimed_.push_front(std::move(result)); }

    /// Forget the worker, so that start() works again, and throw how it ended.
    [[noreturn]] void throw_worker_died() {
        std::optional<int> code;
        std::string tail;
        {
            const std::shared_ptr<WorkerHandle> worker = this->worker();
            worker->process->wait(deadline_in(1000));  // the watch may be faster than the kernel's bookkeeping
            code = worker->process->exit_code();
            tail = worker->process->log_tail();
        }
        forget_worker();
        const std::string how = !code      ? "with status unknown"
                                : *code < 0 ? "killed by signal " + std::to_string(-*code)
                                            : "status " + std::to_string(*code);
        const std::string output = tail.empty() ? "; it printed nothing" : "; its last output:\n" + tail;
        const bool is_wrong_python = tail.find("No module named") != std::string::npos;
        throw WorkerDied("the worker of session '" + resources_.session_id() + "' ended (" + how + ")" + output +
                             (is_wrong_python
                                  ? "\nTR_PYTHON, or SessionOptions::python, names the Python that runs it"
                                  : ""),
                         code, tail);
    }

    /// Forget a worker that has ended; tags stay, for the next one.
    void forget_worker() {
        resources_.forget_worker();
        forget_requests();
        resources_.pool().reader_died();
        tags_.announce_all_again();
    }

    /// End the worker, remove the session, and wake the threads that wait for a request.
    void close() noexcept {
        forget_requests();
        resources_.release();
        request_sent_.notify_all();
    }

private:
    /// Whether a request was sent whose result any thread may take.
    bool has_public_request() const { return pending_ && !is_abandoned_; }

    std::uint32_t next_seq() { return seq_ = seq_ % wire::max_message_seq + 1; }

    static std::string whole(double ms) { return std::to_string(static_cast<long long>(ms)); }

    void send_request(const Command& command, const TensorRefs& tensors, double timeout_ms) {
        const std::shared_ptr<WorkerHandle> worker = this->worker();
        if (pending_) settle(timeout_ms);
        if (worker->is_over()) throw_worker_died();
        Request request;
        request.command = command.command;
        request.parameters = command.parameters;
        request.timestamp = now_ms();
        tags_.announce(request);
        std::vector<SegmentPool::SegmentPtr> arguments;
        try {
            for (const Tensor& tensor : tensors) {
                const std::string tag = wire::argument_tag_prefix + std::to_string(arguments.size());
                arguments.push_back(resources_.pool().publish(tensor));
                request.tensors.push_back({tag, arguments.back()->name, arguments.back()->seq});
                request.parameters += (request.parameters.empty() ? "" : " ") + tag;
            }
            request.seq = next_seq();
            worker->channel->send(request);
        } catch (...) {
            for (const auto& segment : arguments) resources_.pool().release(segment);
            throw;
        }
        pending_ = std::move(request);
        is_abandoned_ = false;
        in_flight_ = std::move(arguments);
    }

    Response await_response(Clock::time_point deadline, double timeout_ms) {
        const std::shared_ptr<WorkerHandle> worker = this->worker();
        Response response;
        do {
            std::optional<std::string> raw;
            try {
                raw = worker->channel->receive(deadline, [&] { return worker->is_over(); });
                if (raw) response = decode_response(*raw);
            } catch (const BadMessage&) {
                finish_request();  // no other response to it will come
                throw;
            }
            if (!raw) {
                if (worker->is_over()) throw_worker_died();
                throw ResponseTimeout("no response to '" + pending_->command + "' within " + whole(timeout_ms) +
                                          " ms; give it more time, or terminate() and start() the worker",
                                      timeout_ms, pending_->command);
            }
        } while (response.seq != pending_->seq);  // else it is the response to an earlier request
        tags_.acknowledged(*pending_);
        finish_request();
        return response;
    }

    Result to_result(Response response, bool has_tensors) {
        if (response.error) throw_remote_error(response.command, *response.error);
        std::vector<Tensor> tensors;
        if (has_tensors) tensors = receive_all(response);
        return {std::move(response), std::move(tensors)};
    }

    std::vector<Tensor> receive_all(const Response& response) {
        std::vector<Tensor> tensors;
        if (response.tensors.empty()) return tensors;
        const std::shared_ptr<WorkerHandle> worker = this->worker();
        for (const TensorRef& ref : response.tensors) tensors.push_back(worker->reader.receive(ref));
        return tensors;
    }

    /// Release the segments that only the pending request needed, and forget it.
    void finish_request() {
        pending_.reset();
        for (const auto& segment : std::exchange(in_flight_, {})) resources_.pool().release(segment);
    }

    /// A tag releases a segment, which the worker may be about to read for the pending request.
    void release_later(const SegmentPool::SegmentPtr& segment) {
        if (pending_) in_flight_.push_back(segment);
        else resources_.pool().release(segment);
    }

    /// Forget the pending request and all results.
    void forget_requests() {
        finish_request();
        is_abandoned_ = false;
        unclaimed_.clear();
    }

    SessionResources resources_;
    Tags tags_;
    std::condition_variable request_sent_;  // or the session was closed
    std::uint32_t seq_ = 0;
    std::optional<Request> pending_;                  // sent and not answered
    bool is_abandoned_ = false;                       // no thread waits for the pending request's response any more
    std::vector<SegmentPool::SegmentPtr> in_flight_;  // what the worker may still read for the pending request
    std::deque<Result> unclaimed_;                    // results that were not taken
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_DISPATCHER_HPP
