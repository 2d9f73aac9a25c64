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
#include "watch.hpp"

namespace tr {
namespace detail {

class Futures : public Flow {
public:
    using Flow::Flow;

    /// Send a request, as soon as there is room for one more. Its outcome is given to ``settle``, once, also if the worker
    /// or the session ends, or the time is over.
    ///
    /// @param has_tensors whether the result's tensors are wanted.
    void submit(const Command& command, const TensorRefs& tensors, double timeout_ms, bool has_tensors, Settle settle) {
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
    }

protected:
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
            if (each.second->settle && !each.second->is_abandoned) first = std::min(first, each.second->deadline);
        }
        return first;
    }

    /// Settle the requests whose time is over. They stay in flight until their answers come.
    void give_up_late_ones(Lock& lock) {
        const Clock::time_point now = Clock::now();
        std::vector<PendingPtr> late;
        for (const auto& each : in_flight_) {
            Pending& pending = *each.second;
            if (pending.settle && !pending.is_abandoned && pending.deadline <= now) late.push_back(each.second);
        }
        for (const PendingPtr& each : late) {
            const std::exception_ptr error = std::make_exception_ptr(late_error(lock, each->worker, *each, each->timeout_ms));
            if (each->is_done()) continue;  // meanwhile
            each->is_abandoned = true;
            --futures_;
            lock.unlock();
            each->settle(nullptr, error);
            lock.lock();
        }
    }

    std::thread thread_;
    bool is_attending_ = false;  // the thread has the role
    Clock::time_point next_look_ = Clock::time_point::max();
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_FUTURES_HPP
