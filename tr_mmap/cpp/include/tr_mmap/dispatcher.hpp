// The controller's requests to its worker: one at a time, and the results that wait to be taken. Safe for threads;
// never used in a fork's child.
//
// A thread may hold two things. *The turn*: only the thread that has it sends requests and waits on the channel;
// waiting for the turn ends at the call's deadline. *The mutex* guards all fields, the pool and the tags; no thread
// waits for another process while it holds the mutex. So calls without the turn (a loan, a tag, stats) do not wait for
// another thread's request.
#ifndef TR_MMAP_DISPATCHER_HPP
#define TR_MMAP_DISPATCHER_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <limits>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "channel.hpp"
#include "clock.hpp"
#include "protocol.hpp"
#include "results.hpp"
#include "session_resources.hpp"
#include "tags.hpp"
#include "waiting.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

using Lock = std::unique_lock<std::mutex>;
using TensorRefs = std::vector<std::reference_wrapper<const Tensor>>;

/// A number of this thread that no other thread gets, not even after this one has ended.
inline std::uint64_t mark_of_thread() {
    static std::atomic<std::uint64_t> last{0};
    thread_local const std::uint64_t mark = ++last;
    return mark;
}

class Dispatcher {
public:
    using Handle = std::shared_ptr<WorkerHandle>;

    Dispatcher(const std::string& session_id, const SessionOptions& options, const std::string& place)
        : resources_(session_id, options, place, changed_, [this] { pause(); }),
          tags_(resources_.directory(), resources_.pool(), [this](const auto& segment) { release_later(segment); }) {
        ProcessEnd::watch();
    }

    /// The session's resources; its directory and its worker may be used without the mutex.
    const SessionResources& resources() const noexcept { return resources_; }
    bool is_closed() const noexcept { return is_closed_; }

    /// @throws SessionNotStarted there is no worker.
    Handle worker() const {
        if (is_closed_) throw_closed();
        Handle result = resources_.worker();
        if (!result) throw SessionNotStarted("session '" + resources_.session_id() + "'" + wire::no_worker);
        return result;
    }

    /// Start a worker; false if one lives.
    bool start(const std::string& script_path, bool is_quiet) {
        if (has_living_worker()) return false;
        Lock lock(mutex_);
        const Turn turn(*this, lock, forever());
        if (!turn) throw_closed();
        if (has_living_worker()) return false;
        if (const Handle worker = resources_.worker()) keep_answer(lock, worker);
        if (lock.owns_lock()) lock.unlock();
        if (resources_.worker()) forget_worker(lock);
        lock.lock();
        for (Result& each : unclaimed_) each.is_given_up |= each.is_lost && each.asker == mark_of_thread();
        lock.unlock();
        resources_.start(script_path, is_quiet);
        return true;
    }

    /// Whether a response waits to be taken.
    bool has_result() const {
        const Lock lock(mutex_);
        if (next_kept() < unclaimed_.size()) return true;
        const Handle worker = resources_.worker();
        // With the turn taken, another thread is about to take it.
        return worker && !is_turn_taken_ && has_public_request() && worker->channel->has_message();
    }

    /// Send a request and take its result, which no other thread can take. If a limit prevents receiving its tensors,
    /// the result is kept, and any take() gets it.
    ///
    /// @param tensors published for this request only; their tags follow the command's words.
    /// @param has_tensors whether the result's tensors are wanted.
    Result call(const Command& command, const TensorRefs& tensors, double timeout_ms, bool has_tensors) {
        const Wait wait{checked_deadline_in(timeout_ms), timeout_ms, worker()};
        Lock lock(mutex_);
        const Turn turn(*this, lock, wait.deadline);
        if (!turn) throw_no_turn(lock, wait, command.command);
        check_worker(lock, wait);
        send_request(lock, command, tensors, wait);
        Response response;
        try {
            response = await_own_response(lock, wait);
        } catch (...) {
            if (!lock.owns_lock()) lock.lock();
            is_abandoned_ = true;  // matters only if the request is still pending; the next request resets it
            throw;
        }
        if (response.error) throw_remote_error(response.command, *response.error);
        if (!has_tensors) return Result{std::move(response)};
        try {
            std::vector<Tensor> received = receive_all(response, wait.worker);
            return Result{std::move(response), std::move(received)};
        } catch (const SystemError&) {  // no descriptor is left, say: the result can be taken later
            unclaimed_.push_back({std::move(response), {}, {}, true, mark_of_thread()});
            has_to_receive_ = true;
            throw;
        }
    }

    /// Send a request whose result any thread may take. Waits first for the response to an earlier request, whose
    /// result can still be taken.
    void send(const Command& command, double timeout_ms) {
        const Wait wait{checked_deadline_in(timeout_ms), timeout_ms, worker()};
        Lock lock(mutex_);
        const Turn turn(*this, lock, wait.deadline);
        if (!turn) throw_no_turn(lock, wait, command.command);
        check_worker(lock, wait);
        const auto is_replaced = [mark = mark_of_thread()](const Result& each) {
            return each.is_given_up && each.asker == mark;
        };
        unclaimed_.erase(std::remove_if(unclaimed_.begin(), unclaimed_.end(), is_replaced), unclaimed_.end());
        send_request(lock, command, {}, wait);
        wait.worker->channel->show_sent();
    }

    /// Whether a request was sent and has no response yet; the worker's status may still be that of before.
    bool is_asked() const {
        const Lock lock(mutex_);
        const Handle worker = resources_.worker();
        return worker && pending_ && !worker->channel->has_message();
    }

    /// Request that the worker end; returns whether it has ended in time. A request under way is answered first. If it
    /// is not answered in time, the request to end does not overwrite one that the worker has not taken yet.
    bool request_exit(double timeout_ms) {
        const Clock::time_point deadline = checked_deadline_in(timeout_ms);
        const Handle worker = resources_.worker();
        if (!worker || is_closed_ || !worker->process->is_alive()) return true;
        if (worker->is_over()) return !worker->lives_on() || worker->process->wait(deadline);
        struct Exiting {
            explicit Exiting(std::atomic<int>& which) : count(which) { ++count; }
            ~Exiting() { --count; }
            std::atomic<int>& count;
        } exiting(is_exiting_);  // another thread's next request must not overwrite the request to end
        try {
            const Wait wait{deadline, timeout_ms, worker};
            Lock lock(mutex_);
            const Turn turn(*this, lock, deadline);
            if (turn) settle_before_exit(lock, wait);
            if (is_closed_ || resources_.worker() != worker) {
                // Another thread is ending the worker, and needs the mutex for that.
            } else if (pending_ && !worker->channel->is_taken_up()) {
                worker->channel->write_exit();
            } else {
                Request request;
                request.seq = next_seq();
                request.command = wire::exit_command;
                request.timestamp = now_ms();
                worker->channel->send(request);  // a worker that has not attached yet finds the request when it does
            }
        } catch (const WorkerDied&) {
        } catch (const SessionNotStarted&) {  // another thread closes the session
        }
        return worker->process->wait(deadline);
    }

    /// Wait for a status and for the answer to the request under way; nothing when the time is over.
    template <class Until>
    std::optional<Status> wait_status(Until until, double timeout_ms) {
        const Wait wait{checked_deadline_in(timeout_ms), timeout_ms, worker()};
        Lock lock(mutex_);
        const Turn turn(*this, lock, wait.deadline);
        if (!turn) return leave_quietly(wait);
        check_worker(lock, wait);
        // With the turn held, no other thread takes the pending response. The status may still be that of before the
        // request, so the response must be there too.
        const bool is_pending = pending_.has_value();
        const auto is_so = [&](Status s) { return until(s) && !(is_pending && !wait.worker->channel->has_message()); };
        return wait_status(lock, is_so, wait);
    }

    /// Wait until the pending request is answered, and keep its result. Returns whether it succeeded; false when the
    /// time is over.
    bool wait_until_ok(double timeout_ms) {
        const Wait wait{checked_deadline_in(timeout_ms), timeout_ms, worker()};
        Lock lock(mutex_);
        const Turn turn(*this, lock, wait.deadline);
        if (!turn) return leave_quietly(wait).has_value();
        check_worker(lock, wait);
        try {
            settle(lock, wait);  // before that, the status may still be that of the request before
        } catch (const ResponseTimeout&) {
            return false;
        }
        const auto is_done = [](Status s) { return s == Status::OK || s == Status::ERROR; };
        return wait_status(lock, is_done, wait) == Status::OK;
    }

    /// The oldest result of this thread's requests that was not taken; if it has made none, the oldest of any thread's.
    /// If there is no request at all, waits for one that another thread may send.
    Result take(double timeout_ms, bool has_tensors) {
        const Clock::time_point deadline = checked_deadline_in(timeout_ms);
        Lock lock(mutex_);
        // Results that were kept, and those that were lost with a worker, can be taken without a worker.
        const bool needs_worker = is_closed_ || next_kept() == unclaimed_.size();
        const Wait wait{deadline, timeout_ms, needs_worker ? worker() : resources_.worker()};
        while (true) {
            const std::uint64_t seen = changed_->count();
            if (next_kept() < unclaimed_.size()) return take_kept(next_kept(), has_tensors, wait);
            if (is_closed_) throw_closed();
            const bool is_ours = !is_turn_taken_ && has_public_request();
            if (is_ours || wait.worker->is_over()) {
                const Turn turn(*this, lock, wait.deadline);
                if (!turn) throw_no_turn(lock, wait, "");
                if (next_kept() < unclaimed_.size()) continue;
                check_worker(lock, wait);
                if (!has_public_request()) {
                    if (wait.worker->is_over()) throw_worker_died(lock, wait.worker);
                    continue;
                }
                const std::uint64_t asker = pending_asker_;
                Response response = await_own_response(lock, wait);
                if (response.error) throw_remote_error(response.command, *response.error);
                unclaimed_.push_front({std::move(response), {}, {}, true, asker});
                has_to_receive_ = true;  // in case that take_kept() fails
                return take_kept(0, has_tensors, wait);
            }
            if (Clock::now() >= wait.deadline) {
                if (is_turn_taken_) throw_no_turn(lock, wait, "");
                ResponseTimeout error(wire::no_request + shown_ms(timeout_ms) + " ms; call send_request first",
                                      timeout_ms, "");
                note_state(error, *wait.worker);
                throw error;
            }
            lock.unlock();
            // For one slice only: if the worker has ended its service and its process lives on, nothing raises
            // changed_.
            changed_->wait(seen, std::min(wait.deadline, deadline_in(1000 * wire::wait_slice_s)));
            lock.lock();
        }
    }

    /// The text of the oldest result, if there is one; "" too if another thread takes it at this moment.
    std::string take_text_now() {
        worker();
        try {
            return has_result() ? take(0, false).response.result : "";
        } catch (const ResponseTimeout&) {
            return "";
        }
    }

    /// Put back a result that is not what its taker wanted; the next one takes it.
    void put_back(Result result) {
        const Lock lock(mutex_);
        unclaimed_.push_front(std::move(result));
        changed_->raise();
    }

    // -- tensors ------------------------------------------------------------------------------------------------------

    void send_tensor(const Tensor& tensor, const std::string& tag) {
        with_room([&] {
            const Lock lock = open();
            tags_.put(tag, resources_.pool().publish(tensor));
        });
    }
    void drop_tensor(const std::string& tag) {
        const Lock lock = open();
        tags_.drop(tag);
    }
    Tensor empty(const Shape& shape, DType dtype) {
        return with_room([&] {
            const Lock lock = open();
            return resources_.pool().empty(shape, dtype);
        });
    }
    PoolStats stats() {
        const Lock lock = open();
        return resources_.pool().stats();
    }

    // -- end ----------------------------------------------------------------------------------------------------------

    /// End the worker, remove the session, and end the waits of all threads. Idempotent; returns when it is done, also
    /// if another thread does it.
    void close() noexcept {
        is_closed_ = true;
        changed_->raise();
        if (const Handle last = resources_.worker()) last->channel->wake();
        Lock lock(mutex_);
        while (is_turn_taken_) wait_for_change(lock, forever());
        if (is_gone_) return;
        is_turn_taken_ = true;
        try {
            forget_requests();
        } catch (const std::bad_alloc&) {
            // There was no memory to note that segments are free. The pool is destroyed anyway.
        }
        lock.unlock();
        resources_.release();
        lock.lock();
        is_turn_taken_ = false;
        is_gone_ = true;
        changed_->raise();
    }

    /// Called by a thread whose wait close() has ended, before it throws. If the process is ending, its static objects
    /// are destroyed at this moment, and an error that the thread does not catch would abort the process. So this
    /// returns only if the process still exists a second after the session is gone.
    void outlast_process_end() const {
        if (!ProcessEnd::is_elsewhere()) return;
        const Clock::time_point latest = deadline_in(5000);
        while (!is_gone_ && Clock::now() < latest) sleep_s(0.01);
        sleep_s(1);
    }

private:
    /// A call's deadline, what its caller gave for it, and the worker that it talks to.
    struct Wait {
        Clock::time_point deadline;
        double timeout_ms;
        Handle worker;
    };

    /// Holds the turn for a scope, if it came in time and the session lives. Made and destroyed with the mutex held.
    class Turn {
    public:
        Turn(Dispatcher& owner, Lock& lock, Clock::time_point deadline) : owner_(owner), lock_(lock) {
            while (owner.is_turn_taken_ && !owner.is_closed_ && Clock::now() < deadline) {
                owner.wait_for_change(lock, deadline);
            }
            has_it_ = !owner.is_turn_taken_ && !owner.is_closed_;
            if (has_it_) owner.is_turn_taken_ = true;
        }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;
        ~Turn() {
            if (!has_it_) return;
            if (!lock_.owns_lock()) lock_.lock();
            owner_.is_turn_taken_ = false;
            owner_.changed_->raise();
        }
        explicit operator bool() const noexcept { return has_it_; }

    private:
        Dispatcher& owner_;
        Lock& lock_;
        bool has_it_ = false;
    };

    Lock open() {
        if (is_closed_) throw_closed();
        Lock lock(mutex_);
        if (is_closed_) throw_closed();
        resources_.pool().set_latest(forever());
        return lock;
    }

    /// Do something that needs room. If there is none, ask the worker to release the memory that it keeps for later
    /// results (unless a request is under way), and try again.
    template <class Action>
    auto with_room(Action action) -> decltype(action()) {
        Handle worker = resources_.worker();
        if (worker && worker->is_over()) worker = nullptr;  // a dead worker releases nothing, so do not wait for it
        try {
            try {
                return action();
            } catch (const OutOfSpace& error) {
                if (!make_room(error)) throw;
            }
            return action();
        } catch (const OutOfSpace& error) {
            if (is_closed_) throw_closed();
            // The wait for room was ended by the worker's end.
            if (error.is_budget && worker && worker->is_over()) throw died_error(*worker, resources_.session_id());
            throw;
        }
    }

    bool make_room(const OutOfSpace& error) {
        const Handle worker = resources_.worker();
        Lock lock(mutex_);
        if (!worker || is_turn_taken_ || is_closed_) return false;
        const Wait wait{deadline_in(wire::release_timeout_ms), wire::release_timeout_ms, worker};
        const Turn turn(*this, lock, wait.deadline);
        if (!turn || resources_.worker() != worker) return false;
        try {
            return ask_for_room(lock, error, wait);
        } catch (const WorkerDied&) {
            return false;
        }
    }

    void wait_for_change(Lock& lock, Clock::time_point deadline) {
        const std::uint64_t seen = changed_->count();  // before the mutex is released: no change is missed
        lock.unlock();
        changed_->wait(seen, deadline);
        lock.lock();
    }

    /// Called by the pool while it waits for room, with the mutex held: let other threads run for a moment.
    void pause() {
        mutex_.unlock();
        sleep_s(0.001);
        mutex_.lock();
        if (is_closed_) throw_closed();
    }

    bool has_living_worker() const {
        const Handle worker = resources_.worker();
        return worker && !worker->has_left();
    }

    /// Whether a request was sent whose result any thread may take.
    bool has_public_request() const { return pending_ && !is_abandoned_; }

    std::uint32_t next_seq() { return seq_ = seq_ % wire::max_message_seq + 1; }

    static Clock::time_point forever() { return deadline_in(std::numeric_limits<double>::infinity()); }

    // -- how a wait fails ------------------------------------------------------------------------------------------

    [[noreturn]] void throw_closed() const {
        throw SessionNotStarted("session '" + resources_.session_id() + "'" + wire::closed_meanwhile);
    }

    [[noreturn]] void throw_no_turn(Lock& lock, const Wait& wait, const std::string& command) {
        if (is_closed_) throw_closed();
        const std::string pending = pending_ ? pending_->command : "";
        lock.unlock();
        if (wait.worker->has_left()) throw died_error(*wait.worker, resources_.session_id());
        throw unanswered(*wait.worker, command, wait.timeout_ms, &pending);
    }

    /// What wait_status() returns if it did not get the turn: nothing; throws if the session or the worker has ended.
    std::optional<Status> leave_quietly(const Wait& wait) const {
        if (is_closed_) throw_closed();
        if (wait.worker->is_over()) throw died_error(*wait.worker, resources_.session_id());
        return {};
    }

    /// Forget the worker, so that start() works again, and throw the error that says how it ended. The turn is held. A
    /// worker whose service has ended, and whose process lives on, is kept until start() or close() ends the process.
    [[noreturn]] void throw_worker_died(Lock& lock, const Handle& worker) {
        lock.unlock();
        const WorkerDied error = died_error(*worker, resources_.session_id());
        if (resources_.worker() == worker) {
            if (worker->lives_on()) lose_requests(lock, worker);
            else forget_worker(lock);
        }
        throw error;
    }

    /// Forget a worker that has ended; tags stay, for the next one. The turn is held, the mutex is not.
    void forget_worker(Lock& lock) {
        lose_requests(lock, resources_.worker());
        resources_.forget_worker();
        lock.lock();
        resources_.pool().reader_died();
        tags_.announce_all_again();
        lock.unlock();
    }

    /// Forget the request to a worker that has ended; the thread that takes its result gets the error. The turn is
    /// held, the mutex is not.
    void lose_requests(Lock& lock, const Handle& worker) {
        const std::exception_ptr death = std::make_exception_ptr(died_error(*worker, resources_.session_id()));
        lock.lock();  // first note the errors, then forget the worker: a thread that finds no worker finds the errors
        for (Result& each : unclaimed_) {
            if (!each.is_to_be_received || each.response.error || each.response.tensors.empty()) continue;
            each.fault = death;  // its tensors went with the worker
            each.is_to_be_received = false;
        }
        if (has_public_request() && !is_awaited_) unclaimed_.push_back({{}, {}, death, false, pending_asker_, true});
        has_to_receive_ = false;
        finish_request();
        is_abandoned_ = false;
        changed_->raise();
        lock.unlock();
    }

    /// Throw if the worker has ended and was forgotten while this thread waited for its turn.
    void check_worker(Lock& lock, const Wait& wait) const {
        if (resources_.worker() == wait.worker) return;
        lock.unlock();
        if (is_closed_) throw_closed();
        throw died_error(*wait.worker, resources_.session_id());
    }

    // -- with the turn and the mutex held --------------------------------------------------------------------------

    /// Take the answer that a worker has left before its end, for its taker.
    void keep_answer(Lock& lock, const Handle& worker) {
        try {
            settle(lock, {Clock::now(), 0, worker});
        } catch (const TRException&) {  // there is none
        }
    }

    void settle_before_exit(Lock& lock, const Wait& wait) {
        try {
            settle(lock, wait);
        } catch (const ResponseTimeout&) {
        } catch (const SystemError&) {  // the answer is there, so the worker has taken the request
        }
    }

    template <class Until>
    std::optional<Status> wait_status(Lock& lock, Until until, const Wait& wait) {
        lock.unlock();
        const auto status = wait.worker->channel->wait_status(
            until, wait.deadline, [&] { return is_closed_ || wait.worker->is_over(); });
        lock.lock();
        if (status) return status;
        if (is_closed_) throw_closed();
        if (wait.worker->is_over()) throw_worker_died(lock, wait.worker);
        return {};
    }

    void send_request(Lock& lock, const Command& command, const TensorRefs& tensors, const Wait& wait) {
        try {
            settle(lock, wait);
        } catch (const ResponseTimeout&) {
            throw_no_turn(lock, wait, command.command);
        }
        if (wait.worker->is_over()) throw_worker_died(lock, wait.worker);
        if (is_exiting_) {
            throw SessionNotStarted("session '" + resources_.session_id() + "' is about to end: please_exit() runs");
        }
        try {
            publish_request(command, tensors, wait);
            return;
        } catch (const OutOfSpace& error) {
            if (wait.worker->is_over()) throw_worker_died(lock, wait.worker);  // its end has ended the wait for room
            if (!ask_for_room(lock, error, wait)) throw;
        }
        publish_request(command, tensors, wait);
    }

    /// Ask the worker to release the memory that it keeps for later results; returns whether it has done so.
    bool ask_for_room(Lock& lock, const OutOfSpace& error, Wait wait) {
        if (error.is_budget || pending_ || !is_waiting(wait.worker->channel->read_status())) return false;
        wait.deadline = std::min(wait.deadline, deadline_in(wire::release_timeout_ms));
        Request request;
        request.seq = next_seq();
        request.command = wire::release_command;
        request.timestamp = now_ms();
        wait.worker->channel->send(request);
        pending_ = std::move(request);
        pending_asker_ = mark_of_thread();
        is_abandoned_ = true;  // no take() gets its response
        try {
            return !await_response(lock, wait).error;  // a worker of an earlier version responds with an error
        } catch (const ResponseTimeout&) {
            return false;
        }
    }

    void publish_request(const Command& command, const TensorRefs& tensors, const Wait& wait) {
        Request request;
        request.command = command.command;
        request.parameters = command.parameters;
        request.timestamp = now_ms();
        std::vector<SegmentPool::SegmentPtr> arguments;
        try {
            std::vector<TensorRef> refs;
            for (const Tensor& tensor : tensors) {
                const std::string tag = wire::argument_tag_prefix + std::to_string(arguments.size());
                resources_.pool().set_latest(wait.deadline);
                arguments.push_back(resources_.pool().publish(tensor));
                refs.push_back({tag, arguments.back()->name, arguments.back()->seq});
                request.parameters += (request.parameters.empty() ? "" : " ") + tag;
            }
            // After publish(): while it waits for room, other threads may send tags.
            tags_.announce(request);
            request.tensors.insert(request.tensors.end(), refs.begin(), refs.end());
            request.seq = next_seq();
            wait.worker->channel->send(request);
        } catch (...) {
            for (const auto& segment : arguments) resources_.pool().release(segment);
            throw;
        }
        pending_ = std::move(request);
        pending_asker_ = mark_of_thread();
        is_abandoned_ = false;
        in_flight_ = std::move(arguments);
    }

    /// Wait for the response to the pending request, if there is one. The mutex is released meanwhile.
    Response await_response(Lock& lock, const Wait& wait) {
        Response response;
        do {
            std::optional<std::string> raw;
            lock.unlock();
            try {
                const auto is_in_vain = [&] { return is_closed_ || wait.worker->is_over(); };
                raw = wait.worker->channel->receive(wait.deadline, is_in_vain);
                if (raw) response = decode_response(*raw);
            } catch (const BadMessage&) {
                lock.lock();
                finish_request();  // no other response to it will come
                throw;
            } catch (...) {
                lock.lock();
                throw;
            }
            lock.lock();
            if (!raw) {
                if (is_closed_) throw_closed();
                const std::string command = pending_->command;
                lock.unlock();
                if (wait.worker->has_left()) {
                    lock.lock();
                    throw_worker_died(lock, wait.worker);
                }
                const ResponseTimeout error = unanswered(*wait.worker, command, wait.timeout_ms);
                lock.lock();
                throw error;
            }
        } while (response.seq != pending_->seq);  // else it is the response to an earlier request
        tags_.acknowledged(*pending_);
        finish_request();
        // The worker had no room for a result: release the memory that this side keeps for later tensors.
        if (response.error && response.error->needed_nbytes) resources_.pool().release_free();
        return response;
    }

    /// As await_response(), for the thread that takes the result: if the worker ends, this call throws the error.
    Response await_own_response(Lock& lock, const Wait& wait) {
        struct Awaiting {
            explicit Awaiting(bool& which) : is_so(which) { is_so = true; }
            ~Awaiting() { is_so = false; }
            bool& is_so;
        } awaiting(is_awaited_);
        return await_response(lock, wait);
    }

    /// Receive the response to the pending request, and keep the result for the thread that takes it. If the response
    /// is wrong, that thread gets the error.
    ///
    /// @throws SystemError a limit prevents it: call it again, before the next request.
    void settle(Lock& lock, const Wait& wait) {
        if (pending_) {
            const bool is_abandoned = is_abandoned_;
            Result result;
            result.asker = pending_asker_;
            try {
                result.response = await_response(lock, wait);
                result.is_to_be_received = true;
            } catch (const BadMessage&) {
                result.fault = std::current_exception();
            }
            if (!is_abandoned) unclaimed_.push_back(std::move(result));
            has_to_receive_ = true;
            changed_->raise();  // its taker may wait for the turn
        }
        if (!has_to_receive_) return;
        // Now, because at the next request the worker may reuse the memory of a result without a lease.
        for (Result& each : unclaimed_) receive(each, wait.worker);
        has_to_receive_ = false;
    }

    /// Receive a kept result's tensors, unless that was done.
    void receive(Result& result, const Handle& worker) {
        if (!result.is_to_be_received) return;
        try {
            if (!result.response.error) result.tensors = receive_all(result.response, worker);
        } catch (const SystemError&) {
            throw;  // no descriptor is left, say: the tensors can be received later
        } catch (const TRException&) {
            result.fault = std::current_exception();
        }
        result.is_to_be_received = false;
    }

    /// The index of the kept result that this thread takes next: the first of its own; the first of all if it has made
    /// no request. How many there are if there is none for it.
    std::size_t next_kept() const {
        const std::uint64_t mark = mark_of_thread();
        for (std::size_t i = 0; i < unclaimed_.size(); ++i) {
            if (unclaimed_[i].asker == mark) return i;
        }
        return has_public_request() && pending_asker_ == mark ? unclaimed_.size() : 0;
    }

    Result take_kept(std::size_t index, bool has_tensors, const Wait& wait) {
        Result& kept = unclaimed_[index];
        if (has_tensors) receive(kept, wait.worker);
        Result result = std::move(kept);
        unclaimed_.erase(unclaimed_.begin() + static_cast<std::ptrdiff_t>(index));
        if (result.fault) std::rethrow_exception(result.fault);
        if (result.response.error) throw_remote_error(result.response.command, *result.response.error);
        return result;
    }

    static std::vector<Tensor> receive_all(const Response& response, const Handle& worker) {
        std::vector<Tensor> tensors;
        for (const TensorRef& ref : response.tensors) tensors.push_back(worker->reader.receive(ref));
        return tensors;
    }

    /// Release the segments that only the pending request needed, and forget it.
    void finish_request() {
        pending_.reset();
        for (const auto& segment : std::exchange(in_flight_, {})) resources_.pool().release(segment);
    }

    /// Release a tag's segment; not before the pending request is answered, because the worker may read it until then.
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

    const std::shared_ptr<Signal> changed_ = std::make_shared<Signal>();  // raised for anything that threads wait for
    mutable std::mutex mutex_;
    bool is_turn_taken_ = false;
    std::atomic<bool> is_closed_{false};  // never reset; all waits end
    std::atomic<int> is_exiting_{0};      // threads in request_exit()
    std::atomic<bool> is_gone_{false};    // nothing of the session is left
    SessionResources resources_;
    Tags tags_;
    std::uint32_t seq_ = 0;
    std::optional<Request> pending_;                  // sent and not answered
    std::uint64_t pending_asker_ = 0;                 // marks the thread that has sent it
    bool is_awaited_ = false;                         // the thread that has the turn takes the pending request's response itself
    bool is_abandoned_ = false;                       // no thread waits for the pending request's response any more
    std::vector<SegmentPool::SegmentPtr> in_flight_;  // what the worker may still read for the pending request
    std::deque<Result> unclaimed_;                    // results that were not taken
    bool has_to_receive_ = false;                     // whether tensors of one of them may still have to be received
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_DISPATCHER_HPP
