// How answers are taken from the worker and reach those who wait for them, and what becomes of requests whose worker has
// ended. in_flight.hpp says how threads share this.
#ifndef TR_MMAP_ANSWERS_HPP
#define TR_MMAP_ANSWERS_HPP

#include "macros_off.hpp"

#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "channel.hpp"
#include "clock.hpp"
#include "errors.hpp"
#include "in_flight.hpp"
#include "pending.hpp"
#include "protocol.hpp"
#include "results.hpp"
#include "session_resources.hpp"
#include "waiting.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

class Answers : public InFlight {
public:
    using InFlight::InFlight;

protected:
    ~Answers() = default;

    // -- consuming -------------------------------------------------------------------------------------------------

    /// Wait for the outcome of a request that was sent.
    void await(Lock& lock, const Pending& pending, const Wait& wait) {
        consume_until(lock, [&] { return pending.is_done(); }, wait, Waiter::For::ANSWER, &pending);
        if (!pending.is_done()) throw_unanswered(lock, wait, pending);
    }

    /// Consume answers, or wait while another thread does, until ``until`` says so, or the time is over, or the worker.
    ///
    /// @param what of the events that call a waiter, the one which may let ``until`` be true.
    template <class Until>
    void consume_until(Lock& lock, Until until, const Wait& wait, Waiter::For what, const Pending* pending = nullptr) {
        Waiter waiter{what, pending};
        while (!until()) {
            if (!is_consumed_) {
                waiter.is_called = false;
                const Role role(*this, lock);
                consume(lock, wait.worker, until, wait.deadline);
                break;
            }
            if (is_closed_ || wait.worker->is_over() || Clock::now() >= wait.deadline) break;
            rest(lock, waiter, wait.deadline);
        }
        if (waiter.is_called) pass_on();  // it may have been called to take the role
    }

    /// Consume answers until ``until`` says so, or the time is over, or the worker. With the role.
    template <class Until>
    void consume(Lock& lock, const Handle& worker, Until until, Clock::time_point deadline) {
        while (!until()) {
            // First this, and then the look, so that what came just before the end is not missed.
            const bool is_last = is_closed_ || worker->is_over() || Clock::now() >= deadline;
            if (consume_next(lock, worker)) continue;
            if (is_last) return;
            lock.unlock();
            worker->channel->wait(deadline, [&] { return is_closed_ || worker->is_over() || is_recalled_; });
            lock.lock();
        }
    }

    /// Consume the answers that are there, unless another thread does.
    void poll(Lock& lock) {
        const Handle worker = resources_.worker();
        if (is_consumed_ || !worker || in_flight_.empty()) return;
        const Role role(*this, lock);
        try {
            while (consume_next(lock, worker)) continue;
        } catch (const SystemError&) {  // no descriptor is left, say: the message stays
        }
    }

    /// Consume the answers that are there; returns whether there were any, so that there may be room for tensors now.
    bool has_consumed_any(Lock& lock) {
        const std::size_t before = in_flight_.size();
        poll(lock);
        return in_flight_.size() < before;
    }

    [[noreturn]] void throw_unanswered(Lock& lock, const Wait& wait, const Pending& pending) {
        if (is_closed_) throw_closed();
        lock.unlock();
        const bool has_left = wait.worker->is_over() || wait.worker->has_left();
        lock.lock();
        if (has_left) throw_worker_died(lock, wait.worker);
        throw late_error(lock, wait.worker, pending, wait.timeout_ms);
    }

    // -- the worker's end ------------------------------------------------------------------------------------------

    /// Throw the error that says how the worker has ended. Forget it first, so that start() works again. A worker whose
    /// service has ended, and whose process lives on, is kept until start() or close() ends the process.
    [[noreturn]] void throw_worker_died(Lock& lock, const Handle& worker) {
        if (is_closed_) throw_closed();
        const WorkerDied error = bury(lock, worker);
        if (is_closed_) throw_closed();
        if (is_exiting_) throw SessionNotStarted("session '" + resources_.session_id() + "' was ended meanwhile");
        lock.unlock();
        throw error;
    }

    /// Forget a worker that is over, unless another thread has done so. The caller has not the role.
    WorkerDied bury(Lock& lock, const Handle& worker) {
        lock.unlock();
        const WorkerDied error = died_error(*worker, resources_.session_id());
        lock.lock();
        worker->give_up();  // so that the thread that has the role leaves it
        wait_for_role(lock);
        const Role role(*this, lock);
        if (resources_.worker() != worker || is_closed_) return error;
        if (worker->lives_on()) lose_requests(lock, worker, error);
        else forget_worker(lock, worker, error);
        return error;
    }

    /// Forget a worker that has ended; tags stay, for the next one. With the role.
    void forget_worker(Lock& lock, const Handle& worker, const WorkerDied& error) {
        lose_requests(lock, worker, error);
        lock.unlock();
        resources_.forget_worker();
        lock.lock();
        resources_.pool().reader_died();
        tags_.announce_all_again();
    }

    /// Take what a worker has answered before its end; whoever waits for another answer gets the error. With the role.
    void lose_requests(Lock& lock, const Handle& worker, const WorkerDied& error) {
        take_the_rest(lock, worker);
        const std::exception_ptr death = std::make_exception_ptr(error);
        note_death(death);
        fail_all(lock, death, true);  // before there is no worker: a thread that finds none finds the errors
        changed_->raise();
    }

    /// Consume the answers that a worker has left. With the role.
    void take_the_rest(Lock& lock, const Handle& worker) {
        try {
            while (consume_next(lock, worker)) continue;
        } catch (const TRException&) {  // there are no more
        }
    }

    /// Called with the mutex when a worker has ended, before it is forgotten.
    virtual void note_death(const std::exception_ptr& death) = 0;

private:
    /// Deal with the next answer, and take it; false if there is none. With the role. The mutex is released meanwhile.
    bool consume_next(Lock& lock, const Handle& worker) {
        Channel& channel = *worker->channel;
        if (!channel.has_message()) return false;
        Response response;
        std::exception_ptr fault;
        bool is_there = true;
        lock.unlock();
        try {
            const std::optional<std::string> raw = channel.peek();
            if (raw) response = decode_response(*raw);
            else is_there = false;
        } catch (const BadMessage&) {  // no other answer to that request will come
            fault = std::current_exception();
        } catch (...) {
            lock.lock();
            throw;
        }
        lock.lock();
        if (!is_there) return false;
        const std::uint64_t seq = fault ? channel.next_seq() : response.seq;
        const auto found = seq > wire::max_message_seq ? in_flight_.end() : in_flight_.find(static_cast<std::uint32_t>(seq));
        const PendingPtr pending = found == in_flight_.end() ? nullptr : found->second;
        bool is_to_settle = false;
        if (pending) {
            if (fault) pending->error = fault;
            else take_in(lock, *pending, std::move(response));
            is_to_settle = finish(*pending);
            if (pending->settle && pending->is_aside) {
                aside_futures_.push_back(pending);
                is_recalled_ = is_attending_;
                unattended_.notify_one();
            }
        }
        channel.advance(asides_ == 0);  // after the views have their leases
        if (is_to_settle) settle(lock, {pending});
        return true;
    }

    /// Make the outcome of a request of its response. The mutex is released meanwhile.
    void take_in(Lock& lock, Pending& pending, Response response) {
        if (response.error) {
            // The worker had no room for a result: release the memory that this side keeps for later tensors.
            if (response.error->needed_nbytes) resources_.pool().release_free();
            pending.error = remote_error(response.command, *response.error);
            return;
        }
        Result result{std::move(response)};
        std::exception_ptr error;
        bool may_be_received_later = false;
        if (pending.has_tensors && !pending.is_abandoned && !result.response.tensors.empty()) {
            lock.unlock();
            try {
                result.tensors = pending.worker->receive(result.response.tensors);
            } catch (const SystemError&) {  // no descriptor is left, say
                error = std::current_exception();
                may_be_received_later = true;
            } catch (const TRException&) {
                error = std::current_exception();
            } catch (...) {
                lock.lock();
                throw;
            }
            lock.lock();
        }
        pending.error = error;
        if (error && (!may_be_received_later || pending.is_abandoned)) return;
        if (error) {
            pending.is_aside = true;
            ++asides_;
        }
        pending.result = std::move(result);
    }
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_ANSWERS_HPP
