// The controller's conversation with its worker: one request at a time, and the answers that wait to be taken. Not safe
// for threads by itself: its session holds a lock around every call. Never starts or ends processes.
#ifndef TR_MMAP_EXCHANGE_HPP
#define TR_MMAP_EXCHANGE_HPP

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
#include "place.hpp"
#include "protocol.hpp"
#include "tags.hpp"

namespace tr {
namespace detail {

using Lock = std::unique_lock<std::mutex>;
using TensorRefs = std::vector<std::reference_wrapper<const Tensor>>;

/// A response, and views of its tensors.
struct Answer {
    Response response;
    std::vector<Tensor> tensors;
};

[[noreturn]] inline void throw_remote_error(const std::string& command, const Failure& failure) {
    if (failure.kind == "unknown_command") {
        throw UnknownCommand(failure.message, command, failure.type, failure.traceback);
    }
    std::string message = failure.message;
    if (failure.kind != "bad_input") {
        message = "'" + command + "' failed in the worker: " + failure.type + ": " + failure.message;
        if (!failure.traceback.empty()) message += "\n\n" + failure.traceback;
    }
    throw RemoteError(message, command, failure.type, failure.traceback);
}

class Exchange {
public:
    Exchange(const std::string& session_id, const SessionOptions& options)
        : place_(session_id, options),
          tags_(place_.directory(), place_.pool(), [this](const auto& segment) { release_later(segment); }) {}

    Place& place() noexcept { return place_; }
    Tags& tags() noexcept { return tags_; }

    /// @throws SessionNotStarted there is no worker.
    std::shared_ptr<Run> run() const {
        std::shared_ptr<Run> result = place_.run();
        if (!result) throw SessionNotStarted("session '" + place_.session_id() + "' has no worker; call start()");
        return result;
    }

    bool has_pending() const noexcept { return pending_.has_value(); }

    /// Whether take() would find an answer at once.
    bool has_answer() const {
        if (!answers_.empty()) return true;
        const std::shared_ptr<Run> run = place_.run();
        return run && is_asked() && run->channel->has_message();
    }

    /// Ask, and take the answer to just that; nobody else can.
    Answer call(const Command& command, const TensorRefs& tensors, double timeout_ms, bool has_tensors) {
        ask(command, tensors, timeout_ms);
        try {
            return finish(await(deadline_in(timeout_ms), timeout_ms), has_tensors);
        } catch (...) {
            is_abandoned_ = true;  // if it is still pending; asking for the next one resets this
            throw;
        }
    }

    /// Send a request; waits first for the answer to an earlier one, which can still be taken.
    ///
    /// @param tensors lent for this request only; their tags follow the command's words.
    void ask(const Command& command, const TensorRefs& tensors, double timeout_ms) {
        const std::shared_ptr<Run> run = this->run();
        if (pending_) settle(timeout_ms);
        if (run->is_over()) throw_worker_died();
        Request request;
        request.command = command.command;
        request.parameters = command.parameters;
        request.timestamp = now_ms();
        tags_.tell(request);
        std::vector<SegmentPool::SegmentPtr> lent;
        try {
            for (const Tensor& tensor : tensors) {
                const std::string tag = "$" + std::to_string(lent.size());
                lent.push_back(place_.pool().publish(tensor));
                request.tensors.push_back({tag, lent.back()->name, lent.back()->seq});
                request.parameters += (request.parameters.empty() ? "" : " ") + tag;
            }
            request.seq = next_seq();
            run->channel->send(request);
        } catch (...) {
            for (const auto& segment : lent) place_.pool().release(segment);
            throw;
        }
        pending_ = std::move(request);
        is_abandoned_ = false;
        in_flight_ = std::move(lent);
    }

    /// Tell threads that wait for a request that one is under way.
    void announce() { asked_.notify_all(); }

    /// Ask the worker to end, even in the middle of a request; whether it has ended in time.
    bool ask_to_exit(double timeout_ms) {
        const std::shared_ptr<Run> run = this->run();
        if (!run->process->is_alive() || run->is_over()) return true;
        const Clock::time_point deadline = deadline_in(timeout_ms);
        Request request;
        request.seq = next_seq();
        request.command = exit_command;
        request.timestamp = now_ms();
        run->channel->send(request);  // a worker that is not there yet finds the wish when it is
        return run->process->wait(deadline);
    }

    /// Let the pending request be answered, and keep the answer for whoever asks for it.
    void settle(double timeout_ms) {
        if (!pending_) return;
        const bool is_abandoned = is_abandoned_;
        Response response = await(deadline_in(timeout_ms), timeout_ms);
        if (is_abandoned) return;
        // Now, for with the next request the worker may take a result back that nobody holds.
        std::vector<Tensor> tensors = receive(response);
        answers_.push_back({std::move(response), std::move(tensors)});
    }

    /// The oldest answer that nobody has taken; waits for a request too, which another thread may make.
    Answer take(Lock& lock, double timeout_ms, bool has_tensors) {
        run();
        const Clock::time_point deadline = deadline_in(timeout_ms);
        if (answers_.empty() && !is_asked()) {
            asked_.wait_until(lock, deadline, [this] { return !answers_.empty() || is_asked() || !place_.run(); });
            run();  // it may have been closed meanwhile
        }
        if (!answers_.empty()) {
            Answer answer = std::move(answers_.front());
            answers_.pop_front();
            if (answer.response.error) throw_remote_error(answer.response.command, *answer.response.error);
            return answer;
        }
        if (!is_asked()) {
            throw ResponseTimeout("no request was made, so no response came within " +
                                      std::to_string(static_cast<long long>(timeout_ms)) +
                                      " ms; call send_request first",
                                  timeout_ms, "");
        }
        return finish(await(deadline, timeout_ms), has_tensors);
    }

    /// Put an answer back that was not what its taker wanted.
    void put_back(Answer answer) { answers_.push_front(std::move(answer)); }

    /// Put the session where start() works again, and say how the worker ended.
    [[noreturn]] void throw_worker_died() {
        std::optional<int> code;
        std::string tail;
        {
            const std::shared_ptr<Run> run = this->run();
            run->process->wait(deadline_in(1000));  // the watch may be faster than the kernel's bookkeeping
            code = run->process->exit_code();
            tail = run->process->log_tail();
        }
        end_run();
        const std::string how = !code      ? "with status unknown"
                                : *code < 0 ? "killed by signal " + std::to_string(-*code)
                                            : "status " + std::to_string(*code);
        throw WorkerDied("the worker of session '" + place_.session_id() + "' ended (" + how + ")" +
                             (tail.empty() ? "; it printed nothing" : "; its last output:\n" + tail) +
                             (tail.find("No module named") == std::string::npos
                                  ? ""
                                  : "\nTR_PYTHON, or SessionOptions::python, names the Python that runs it"),
                         code, tail);
    }

    /// Forget a worker that has ended; tags stay, for the next one.
    void end_run() {
        place_.end_run();
        forget();
        place_.pool().reader_died();
        tags_.tell_again();
    }

    /// End the worker, remove the session, and let threads that wait for a request give up.
    void close() noexcept {
        forget();
        place_.release();
        asked_.notify_all();
    }

private:
    bool is_asked() const { return pending_ && !is_abandoned_; }

    std::uint32_t next_seq() { return seq_ = seq_ % max_message_seq + 1; }

    Response await(Clock::time_point deadline, double timeout_ms) {
        const std::shared_ptr<Run> run = this->run();
        Response response;
        do {
            std::optional<std::string> raw;
            try {
                raw = run->channel->receive(deadline, [&] { return run->is_over(); });
                if (raw) response = decode_response(*raw);
            } catch (const BadMessage&) {
                end_request();  // there will be no other answer to it
                throw;
            }
            if (!raw) {
                if (run->is_over()) throw_worker_died();
                throw ResponseTimeout("no response to '" + pending_->command + "' within " +
                                          std::to_string(static_cast<long long>(timeout_ms)) +
                                          " ms; give it more time, or terminate() and start() the worker",
                                      timeout_ms, pending_->command);
            }
        } while (response.seq != pending_->seq);  // else an answer that nobody waits for
        tags_.told(*pending_);
        end_request();
        return response;
    }

    Answer finish(Response response, bool has_tensors) {
        if (response.error) throw_remote_error(response.command, *response.error);
        std::vector<Tensor> tensors;
        if (has_tensors) tensors = receive(response);
        return {std::move(response), std::move(tensors)};
    }

    std::vector<Tensor> receive(const Response& response) {
        std::vector<Tensor> tensors;
        if (response.tensors.empty()) return tensors;
        const std::shared_ptr<Run> run = this->run();
        for (const TensorRef& ref : response.tensors) tensors.push_back(run->receiver.receive(ref));
        return tensors;
    }

    void end_request() {
        pending_.reset();
        for (const auto& segment : std::exchange(in_flight_, {})) place_.pool().release(segment);
    }

    /// A tag lets go of a segment, which the request under way may be about to read.
    void release_later(const SegmentPool::SegmentPtr& segment) {
        if (pending_) in_flight_.push_back(segment);
        else place_.pool().release(segment);
    }

    /// Forget the request under way and all answers.
    void forget() {
        end_request();
        is_abandoned_ = false;
        answers_.clear();
    }

    Place place_;
    Tags tags_;
    std::condition_variable asked_;
    std::uint32_t seq_ = 0;
    std::optional<Request> pending_;  // asked and not answered
    bool is_abandoned_ = false;       // nobody waits for the pending answer any more
    std::vector<SegmentPool::SegmentPtr> in_flight_;  // what the pending request may still read
    std::deque<Answer> answers_;                      // answered and not taken, with views that hold the leases
};

}  // namespace detail
}  // namespace tr

#endif  // TR_MMAP_EXCHANGE_HPP
