// Requests whose caller waits, and results that wait to be taken by any thread. in_flight.hpp says how threads share this.
#ifndef TR_MMAP_CLAIMS_HPP
#define TR_MMAP_CLAIMS_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "channel.hpp"
#include "clock.hpp"
#include "errors.hpp"
#include "futures.hpp"
#include "pending.hpp"
#include "protocol.hpp"
#include "results.hpp"
#include "waiting.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

class Claims : public Futures {
public:
    using Futures::Futures;

    /// Whether a response waits to be taken.
    bool has_result() {
        Lock lock(mutex_);
        const PendingPtr claim = next_claim();
        if (!claim) return false;
        if (!claim->is_done()) poll(lock);
        return claim->is_done();
    }

    /// Send a request and take its result, which no other thread can take. If a limit prevents receiving its tensors,
    /// the result is kept, and any take() gets it.
    ///
    /// @param tensors published for this request only; their tags follow the command's words.
    /// @param has_tensors whether the result's tensors are wanted.
    Result call(const Command& command, const TensorRefs& tensors, double timeout_ms, bool has_tensors) {
        const Wait wait{checked_deadline_in(timeout_ms), timeout_ms, worker()};
        const PendingPtr pending = std::make_shared<Pending>();
        pending->command = command.command;
        pending->has_tensors = has_tensors;
        Lock lock(mutex_);
        try {
            send(lock, pending, command, tensors, wait);
            await(lock, *pending, wait);
        } catch (...) {
            if (!lock.owns_lock()) lock.lock();
            pending->is_abandoned = true;
            if (pending->is_aside) put_in(*pending);  // its answer has come too late
            throw;
        }
        if (pending->is_aside) {
            pending->asker = mark_of_thread();
            claims_.push_back(pending);
        }
        if (pending->error) std::rethrow_exception(pending->error);
        return std::move(*pending->result);
    }

    /// Send a request whose result any thread may take.
    ///
    /// @param timeout_ms how long to wait until there is room for one more request.
    void send_public(const Command& command, double timeout_ms) {
        const Wait wait{checked_deadline_in(timeout_ms), timeout_ms, worker()};
        const PendingPtr pending = std::make_shared<Pending>();
        pending->command = command.command;
        pending->asker = mark_of_thread();
        Lock lock(mutex_);
        const auto is_replaced = [&](const PendingPtr& each) { return each->is_given_up && each->asker == pending->asker; };
        claims_.erase(std::remove_if(claims_.begin(), claims_.end(), is_replaced), claims_.end());
        send(lock, pending, command, {}, wait);
        claims_.push_back(pending);
        wait.worker->channel->show_sent();
        changed_->raise();
    }

    /// The oldest result of this thread's requests that was not taken; if it has made none, the oldest of any thread's.
    /// If there is no request at all, waits for one that another thread may send.
    Result take(double timeout_ms, bool has_tensors) {
        const Clock::time_point deadline = checked_deadline_in(timeout_ms);
        Lock lock(mutex_);
        // Results that are there, and those that were lost with a worker, can be taken without a worker.
        PendingPtr claim = next_claim();
        const bool needs_worker = is_closed_ || !claim || !claim->is_done();
        Wait wait{deadline, timeout_ms, needs_worker ? worker() : resources_.worker()};
        while (true) {
            const std::uint64_t seen = changed_->count();  // before the look: no request is missed
            claim = next_claim();
            if (claim && claim->is_done()) return take_claim(claim, has_tensors);
            if (!wait.worker) wait.worker = worker();  // another thread has taken what was there
            if (!claim) {
                wait_for_request(lock, seen, wait);
            } else {
                const auto is_to_go_on = [&] { return claim->is_done() || !is_claim(claim); };
                consume_until(lock, is_to_go_on, wait, Waiter::For::ANSWER, claim.get());
                if (is_to_go_on()) continue;
                if (is_closed_) throw_closed();
                if (!wait.worker->is_over()) throw_unanswered(lock, wait, *claim);
                bury(lock, wait.worker);  // after that, the claim has its outcome
                if (!claim->is_done() && is_claim(claim)) throw_worker_died(lock, wait.worker);
            }
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
        const PendingPtr claim = std::make_shared<Pending>();
        claim->command = result.response.command;
        claim->result = std::move(result);
        claim->asker = mark_of_thread();
        const Lock lock(mutex_);
        claims_.push_front(claim);
        changed_->raise();
    }

protected:
    ~Claims() = default;

    std::deque<PendingPtr> claims_;  // requests whose results any thread may take, in the order of sending

private:
    /// What this thread takes next: the first of its own; the first of all if it has made no request.
    PendingPtr next_claim() const {
        const std::uint64_t mark = mark_of_thread();
        for (const PendingPtr& each : claims_) {
            if (each->asker == mark) return each;
        }
        return claims_.empty() ? nullptr : claims_.front();
    }

    bool is_claim(const PendingPtr& claim) const {
        return std::find(claims_.begin(), claims_.end(), claim) != claims_.end();
    }

    Result take_claim(const PendingPtr& claim, bool has_tensors) {
        if (claim->is_aside) {
            std::exception_ptr error;
            try {
                if (has_tensors) claim->result->tensors = claim->worker->receive(claim->result->response.tensors);
            } catch (const SystemError&) {
                throw;  // they still cannot be received
            } catch (const TRException&) {
                error = std::current_exception();
            }
            claim->error = error;
            put_in(*claim);
        }
        claims_.erase(std::find(claims_.begin(), claims_.end(), claim));
        for (Waiter* const each : waiters_) {  // another thread may wait for the same one
            if (each->pending == claim.get()) each->call();
        }
        if (claim->error) std::rethrow_exception(claim->error);
        return std::move(*claim->result);
    }

    void wait_for_request(Lock& lock, std::uint64_t seen, const Wait& wait) {
        if (is_closed_) throw_closed();
        if (wait.worker->is_over()) throw_worker_died(lock, wait.worker);
        if (Clock::now() >= wait.deadline) {
            ResponseTimeout error(wire::no_request + shown_ms(wait.timeout_ms) + " ms; call send_request first",
                                  wait.timeout_ms, "");
            note_state(error, *wait.worker);
            throw error;
        }
        lock.unlock();
        // For one slice only: if the worker has ended its service and its process lives on, nothing raises changed_.
        changed_->wait(seen, std::min(wait.deadline, deadline_in(1000 * wire::wait_slice_s)));
        lock.lock();
    }

    void note_death(const std::exception_ptr& death) override {
        for (const PendingPtr& each : claims_) {
            if (!each->is_aside) continue;
            each->error = death;  // its tensors went with the worker
            each->is_aside = false;
            each->result.reset();
        }
        asides_ = 0;
    }
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_CLAIMS_HPP
