// What a session does beside its requests: its worker's start and end, cancels, statuses, tags. Safe for threads; never
// used in a fork's child. in_flight.hpp says how threads share a session.
#ifndef TR_MMAP_DISPATCHER_HPP
#define TR_MMAP_DISPATCHER_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "claims.hpp"
#include "clock.hpp"
#include "pending.hpp"
#include "protocol.hpp"
#include "results.hpp"
#include "waiting.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

class Dispatcher final : public Claims, public std::enable_shared_from_this<Dispatcher> {
public:
    Dispatcher(const std::string& session_id, const SessionOptions& options, const std::string& place)
        : Claims(session_id, options, place) {
        ProcessEnd::watch();
    }
    ~Dispatcher() { end_thread(); }

    /// Cancel a request whose result comes as a future.
    ///
    /// @param kill_running if its handler was called already, end the worker, and start another one.
    /// @returns whether it is cancelled. Never in a fork's child.
    /// @throws SystemLimit, OutOfSpace, … it is cancelled, and the other worker cannot be started.
    bool cancel(const PendingPtr& pending, bool kill_running) {
        if (!resources_.is_of_this_process()) return false;
        if (Futures::cancel(pending)) return true;
        const Handle worker = kill_running ? drop(pending) : nullptr;
        if (worker) replace(worker);
        return worker != nullptr;
    }

    /// Whether the output of workers that are started by this object stays in their logs.
    void set_quiet(bool is_quiet) noexcept { is_quiet_ = is_quiet; }

    /// Start a worker; false if one lives.
    bool start(const std::string& script_path, bool is_quiet) {
        if (has_living_worker()) return false;
        Lock lock(mutex_);
        wait_for_role(lock);
        const Role role(*this, lock);
        if (is_closed_) throw_closed();
        lock.unlock();
        if (has_living_worker()) return false;
        if (const Handle worker = resources_.worker()) {
            worker->give_up();  // so that no other thread sends it anything
            const WorkerDied error = died_error(*worker, resources_.session_id());
            lock.lock();
            forget_worker(lock, worker, error);
        } else {
            lock.lock();
        }
        for (const PendingPtr& each : claims_) each->is_given_up |= each->is_lost && each->asker == mark_of_thread();
        const std::uint64_t sent = sent_;  // nobody sends before there is a worker
        script_path_ = script_path;
        is_quiet_ = is_quiet;
        lock.unlock();
        resources_.start(script_path, is_quiet, sent);
        return true;
    }

    /// Whether a request was sent and has no response yet; the worker's status may still be that of before.
    bool is_asked() {
        Lock lock(mutex_);
        poll(lock);
        return !in_flight_.empty();
    }

    /// Request that the worker end; returns whether it has ended in time. Requests under way are answered first.
    bool request_exit(double timeout_ms) {
        const Clock::time_point deadline = checked_deadline_in(timeout_ms);
        const Handle worker = resources_.worker();
        if (!worker || is_closed_ || !worker->process->is_alive()) return true;
        if (worker->is_over()) return !worker->lives_on() || worker->process->wait(deadline);
        const Counted exiting(is_exiting_);  // other threads send no more requests
        {
            const Lock lock(mutex_);
            // Once: it stays in the ring until the worker comes to it. A worker that has not attached yet finds it then.
            if (!is_closed_ && resources_.worker() == worker && !std::exchange(worker->is_told_to_exit, true)) {
                Request request;
                request.seq = next_seq();
                request.command = wire::exit_command;
                request.timestamp = now_ms();
                worker->channel->send(request);
            }
        }
        return worker->process->wait(deadline);
    }

    /// Wait for the answers to the requests under way, and for a status; nothing when the time is over.
    template <class Until>
    std::optional<Status> wait_status(Until until, double timeout_ms) {
        const Wait wait{checked_deadline_in(timeout_ms), timeout_ms, worker()};
        Lock lock(mutex_);
        // Before that, the status may still be that of an earlier request.
        consume_until(lock, [this] { return in_flight_.empty(); }, wait, Waiter::For::ALL);
        const bool is_answered = in_flight_.empty();
        if (is_answered && !is_closed_) {
            lock.unlock();
            const auto status = wait.worker->channel->wait_status(
                until, wait.deadline, [&] { return is_closed_ || wait.worker->is_over(); });
            lock.lock();
            if (status && !wait.worker->is_over()) return status;
        }
        if (is_closed_) throw_closed();
        if (wait.worker->is_over()) throw_worker_died(lock, wait.worker);
        return {};
    }

    /// Wait until all requests are answered. Returns whether the last one succeeded; false when the time is over.
    bool wait_until_ok(double timeout_ms) {
        const auto is_outcome = [](Status s) { return s == Status::OK || s == Status::ERROR; };
        return wait_status(is_outcome, timeout_ms) == Status::OK;
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
        PoolStats result = resources_.pool().stats();
        result.in_flight = in_flight_.size();
        result.rejected = resources_.rejected();
        return result;
    }

    // -- end ----------------------------------------------------------------------------------------------------------

    /// End the worker, remove the session, and end the waits of all threads. Idempotent; returns when it is done, also
    /// if another thread does it.
    void close() noexcept {
        is_closed_ = true;
        changed_->raise();
        if (const Handle last = resources_.worker()) last->channel->wake();
        {
            Lock lock(mutex_);
            call_all();
            unattended_.notify_all();
            wait_for_role(lock);
            if (is_gone_) return pass_on();
            const Role role(*this, lock);
            try {
                if (const Handle last = resources_.worker()) take_the_rest(lock, last);
                fail_all(lock, closed_error(), false);
                claims_.clear();
            } catch (const std::bad_alloc&) {
                // There was no memory to note that segments are free. The pool is destroyed anyway.
            }
            lock.unlock();
            resources_.release();
            lock.lock();
            is_gone_ = true;
            call_all();
            changed_->raise();
        }
        end_thread();
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
    /// End a worker, and start another one, unless somebody has done that already.
    void replace(const Handle& worker) {
        worker->process->terminate_tree(0);
        worker->give_up();
        std::string script_path;
        {
            const Lock lock(mutex_);
            const Handle present = resources_.worker();  // null if the thread of the futures has forgotten it
            if (is_closed_ || (present && present != worker)) return;
            script_path = script_path_;
        }
        try {
            start(script_path, is_quiet_);
        } catch (const SessionNotStarted&) {
            if (!is_closed_) throw;  // else another thread has closed the session, which needs no worker
        }
    }

    Lock open() {
        if (is_closed_) throw_closed();
        Lock lock(mutex_);
        if (is_closed_) throw_closed();
        resources_.pool().set_latest(forever());
        return lock;
    }

    /// Do something that needs room. If there is none, consume the answers that are there, or ask the worker to release
    /// the memory that it keeps for later results (unless a request is under way), and try again.
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
        if (!worker || is_closed_) return false;
        if (has_consumed_any(lock)) return true;
        return ask_for_room(lock, error, {deadline_in(wire::release_timeout_ms), wire::release_timeout_ms, worker});
    }

    bool has_living_worker() const {
        const Handle worker = resources_.worker();
        return worker && !worker->has_left();
    }

    std::string script_path_;           // of the last worker
    std::atomic<bool> is_quiet_{false};
    std::atomic<bool> is_gone_{false};  // nothing of the session is left
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_DISPATCHER_HPP
