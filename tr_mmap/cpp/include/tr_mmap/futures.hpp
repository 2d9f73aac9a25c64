// Requests whose results come as futures, and the thread that consumes answers while nobody waits. It begins with the first
// future, and sleeps while there is none.
#ifndef TR_MMAP_FUTURES_HPP
#define TR_MMAP_FUTURES_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "clock.hpp"
#include "flow.hpp"
#include "pending.hpp"
#include "protocol.hpp"
#include "results.hpp"
#include "watch.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

class Futures : public Flow {
public:
    using Flow::Flow;

    /// Send a request, as soon as there is room for one more. Its outcome is given to ``settle``, once, also if the worker
    /// or the session ends, or the time is over.
    ///
    /// @param has_tensors whether the result's tensors are wanted.
    PendingPtr submit(const Command& command, const TensorRefs& tensors, double timeout_ms, bool has_tensors,
                      Settle settle) {
        const Wait wait{checked_deadline_in(timeout_ms), timeout_ms, worker()};
        Lock lock(mutex_);
        if (is_closed_) throw_closed();
        if (!thread_.joinable()) thread_ = start_thread([this] { run(); });
        const auto pending = std::make_shared<Pending>();
        pending->command = command.command;
        pending->has_tensors = has_tensors;
        pending->settle = std::move(settle);
        pending->deadline = wait.deadline;
        pending->timeout_ms = timeout_ms;
        send(lock, pending, command, tensors, wait);
        if (is_attending_ && pending->deadline < next_look_) {
            is_recalled_ = true;
            wait.worker->channel->wake();
        } else if (!is_consumed_ || pending->deadline < next_look_) {
            unattended_.notify_one();
        }
        return pending;
    }

protected:
    /// Cancel a request. Returns whether its handler was not called, and will not be; its outcome is RequestCancelled then.
    bool cancel(const PendingPtr& pending) {
        Lock lock(mutex_);
        const Handle worker = resources_.worker();
        if (!pending->is_awaited() || !worker || worker != pending->worker) return false;
        if (!worker->channel->cancel(pending->order - worker->sent_before)) return false;
        give_up(lock, pending, cancelled_error(pending->command));
        return true;
    }

    /// Let a request's outcome be RequestCancelled, whatever the worker does. Returns that worker; null if it has an outcome.
    Handle drop(const PendingPtr& pending) {
        Lock lock(mutex_);
        if (!pending->is_awaited()) return nullptr;
        give_up(lock, pending, cancelled_error(pending->command));
        return pending->worker;
    }

    ~Futures() { end_thread(); }

    /// Wait for the end of the thread, when the session is closed. Without the mutex.
    void end_thread() noexcept {
        {
            const Lock lock(mutex_);
            if (!thread_.joinable()) return;
            is_closed_ = true;
            unattended_.notify_all();
        }
        thread_.join();
    }

private:
    void run() {
        Lock lock(mutex_);
        while (!is_closed_) {
            try {
                look(lock);
            } catch (const std::exception&) {  // no descriptor is left to read a long answer, say: try again
                if (!lock.owns_lock()) lock.lock();
                is_attending_ = is_recalled_ = false;
                unattended_.wait_until(lock, deadline_in(1000 * wire::poll_s));
            }
        }
    }

    /// Consume answers, or let another thread do that, until there may be something else to do.
    void look(Lock& lock) {
        next_look_ = Clock::time_point::max();
        if (futures_ == 0) return unattended_.wait(lock);
        receive_again(lock);
        give_up_late_ones(lock);
        const Handle worker = resources_.worker();
        if (futures_ == 0 || !worker || is_closed_) return;
        next_look_ = first_deadline();
        if (is_consumed_) {
            unattended_.wait_until(lock, next_look_);
        } else if (worker->is_over()) {
            bury(lock, worker);
        } else {
            const Role role(*this, lock);
            is_attending_ = true;
            consume(lock, worker, [this] { return futures_ == 0 || is_recalled_; }, next_look_);
            is_attending_ = is_recalled_ = false;
        }
    }

    Clock::time_point first_deadline() const {
        Clock::time_point first = forever();
        for (const auto& each : in_flight_) {
            if (each.second->is_awaited()) first = std::min(first, each.second->deadline);
        }
        if (!aside_futures_.empty()) first = std::min(first, deadline_in(1000 * wire::poll_s));  // the next try
        return first;
    }

    /// Give a future an error though there is no answer. Its request stays in flight until that comes. The mutex is
    /// released meanwhile.
    void give_up(Lock& lock, const PendingPtr& pending, const std::exception_ptr& error) {
        pending->is_abandoned = true;
        --futures_;
        const Settle give = std::exchange(pending->settle, {});  // gone now, and not with an answer that comes later
        lock.unlock();
        give(nullptr, error);
        lock.lock();
    }

    /// Try again to receive the tensors that a limit of the system has kept from being received, until the requests' time is
    /// over. The mutex is released meanwhile.
    void receive_again(Lock& lock) {
        const std::vector<PendingPtr> asides = aside_futures_;
        for (const PendingPtr& each : asides) {
            if (!each->is_aside) continue;  // the worker or the session has ended meanwhile
            const std::vector<TensorRef> refs = each->result->response.tensors;
            std::vector<Tensor> tensors;
            std::exception_ptr error;
            bool is_short = false;
            lock.unlock();
            try {
                tensors = each->worker->receive(refs);
            } catch (const SystemError&) {
                error = std::current_exception();
                is_short = true;
            } catch (const TRException&) {
                error = std::current_exception();
            }
            lock.lock();
            if (!each->is_aside || (is_short && each->deadline > Clock::now())) continue;
            each->error = error;
            each->result->tensors = std::move(tensors);
            aside_futures_.erase(std::find(aside_futures_.begin(), aside_futures_.end(), each));
            put_in(*each);
            --futures_;
            settle(lock, {each});
        }
    }

    /// Settle the requests whose time is over.
    void give_up_late_ones(Lock& lock) {
        const Clock::time_point now = Clock::now();
        std::vector<PendingPtr> late;
        for (const auto& each : in_flight_) {
            if (each.second->is_awaited() && each.second->deadline <= now) late.push_back(each.second);
        }
        for (const PendingPtr& each : late) {
            const std::exception_ptr error = std::make_exception_ptr(late_error(lock, each->worker, *each, each->timeout_ms));
            if (each->is_awaited()) give_up(lock, each, error);  // else it was answered or cancelled meanwhile
        }
    }

    std::thread thread_;
    Clock::time_point next_look_ = Clock::time_point::max();
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_FUTURES_HPP
