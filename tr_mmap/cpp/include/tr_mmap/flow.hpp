// How a request is sent: when there is room for one more, with the tags and tensors that it needs. in_flight.hpp says how
// threads share this.
#ifndef TR_MMAP_FLOW_HPP
#define TR_MMAP_FLOW_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "answers.hpp"
#include "channel.hpp"
#include "clock.hpp"
#include "errors.hpp"
#include "in_flight.hpp"
#include "named_values.hpp"
#include "options.hpp"
#include "pending.hpp"
#include "pool.hpp"
#include "protocol.hpp"
#include "results.hpp"
#include "tags.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

class Flow : public Answers {
public:
    using Answers::Answers;

protected:
    ~Flow() = default;

    /// Send a request, as soon as there is room for one more.
    ///
    /// @param tensors published for this request only; their tags follow the command's words.
    void send(Lock& lock, const PendingPtr& pending, const Command& command, const TensorRefs& tensors,
              const Wait& wait) {
        const Place place(*this, lock, *pending, wait);
        try {
            store(lock, pending, command, tensors, wait);
            return;
        } catch (const OutOfSpace& error) {
            if (is_closed_) throw_closed();
            if (wait.worker->is_over()) throw_worker_died(lock, wait.worker);  // its end has ended the wait for room
            if (!has_consumed_any(lock) && !ask_for_room(lock, error, wait)) throw;
        }
        store(lock, pending, command, tensors, wait);
    }

    /// Ask the worker to release the memory that it keeps for later results; returns whether it has done so.
    bool ask_for_room(Lock& lock, const OutOfSpace& error, Wait wait) {
        if (error.is_budget || !in_flight_.empty() || resources_.worker() != wait.worker) return false;
        if (!is_waiting(wait.worker->channel->read_status())) return false;  // it has no results yet
        wait.deadline = std::min(wait.deadline, deadline_in(wire::release_timeout_ms));
        const auto pending = std::make_shared<Pending>();
        pending->command = wire::release_command;
        pending->has_tensors = false;
        try {
            store(lock, pending, {pending->command, ""}, {}, wait);
            await(lock, *pending, wait);
            return !pending->error;  // a worker of an earlier version responds with an error
        } catch (const ResponseTimeout&) {
        } catch (const WorkerDied&) {
        }
        if (!lock.owns_lock()) lock.lock();
        pending->is_abandoned = true;
        return false;
    }

    /// Throw unless a request can be sent to that worker now.
    void check_worker(Lock& lock, const Wait& wait) {
        if (is_closed_) throw_closed();
        if (resources_.worker() != wait.worker || wait.worker->is_over()) throw_worker_died(lock, wait.worker);
        if (is_exiting_) {
            throw SessionNotStarted("session '" + resources_.session_id() + "' is about to end: please_exit() runs");
        }
    }

    std::uint32_t next_seq() {
        do seq_ = seq_ % wire::max_message_seq + 1;
        while (in_flight_.count(seq_) != 0);  // one that was sent before the numbers began again
        return seq_;
    }

private:
    /// A place among the requests in flight, from the moment when there is room for one more until it was sent, or was not.
    class Place {
    public:
        Place(Flow& owner, Lock& lock, const Pending& pending, const Wait& wait) : owner_(owner), lock_(lock) {
            const int most = owner.options_.max_in_flight;
            const auto is_room = [&] { return owner.in_flight_.size() + owner.places_ < static_cast<std::size_t>(most); };
            if (!is_room()) owner.poll(lock);
            if (!is_room() && owner.options_.at_limit == AtLimit::FAIL) {
                throw Busy(std::to_string(most) + " requests of session '" + owner.resources_.session_id() +
                               "' are in flight, as many as it may have (SessionOptions::max_in_flight); wait for one of "
                               "them, or let it wait (AtLimit::BLOCK)",
                           most);
            }
            owner.consume_until(lock, is_room, wait, Waiter::For::ROOM);
            if (!is_room()) owner.throw_unanswered(lock, wait, pending);
            ++owner.places_;
        }
        Place(const Place&) = delete;
        Place& operator=(const Place&) = delete;
        ~Place() {
            if (!lock_.owns_lock()) lock_.lock();
            --owner_.places_;
            for (Waiter* const each : owner_.waiters_) {  // if it was not sent, there is room for another one
                if (each->what != Waiter::For::ROOM || each->is_called) continue;
                each->call();
                break;
            }
        }

    private:
        Flow& owner_;
        Lock& lock_;
    };

    void store(Lock& lock, const PendingPtr& pending, const Command& command, const TensorRefs& tensors,
               const Wait& wait) {
        check_worker(lock, wait);
        Request request;
        request.command = command.command;
        request.parameters = command.parameters;
        request.form = command.form;
        request.timestamp = now_ms();
        std::vector<SegmentPool::SegmentPtr> arguments;
        try {
            std::vector<TensorRef> refs;
            for (const Tensor& tensor : tensors) {
                const std::string tag = wire::argument_tag_prefix + std::to_string(arguments.size());
                resources_.pool().set_latest(wait.deadline);
                arguments.push_back(resources_.pool().publish(tensor));
                refs.push_back({tag, arguments.back()->name, arguments.back()->seq});
                if (request.form.empty()) request.parameters += (request.parameters.empty() ? "" : " ") + tag;
            }
            // While publish() waits for room, other threads may send requests and tags, and the worker may end.
            check_worker(lock, wait);
            tags_.announce(request);
            request.tensors.insert(request.tensors.end(), refs.begin(), refs.end());
            request.seq = next_seq();
            in_flight_[request.seq] = pending;
            try {
                wait.worker->channel->send(request);
            } catch (...) {
                in_flight_.erase(request.seq);
                throw;
            }
        } catch (...) {
            if (!lock.owns_lock()) lock.lock();
            for (const auto& segment : arguments) resources_.pool().release(segment);
            throw;
        }
        pending->seq = request.seq;
        pending->order = sent_++;
        pending->worker = wait.worker;
        pending->held = std::move(arguments);
        tags_.announced();
        if (pending->settle) ++futures_;
    }

    /// Called by the pool while it waits for room, with the mutex held: consume answers, because the worker may look at
    /// what they release, and let other threads run for a moment.
    void pause() override {
        mutex_.unlock();
        sleep_s(0.001);
        Lock lock(mutex_);
        try {
            poll(lock);
        } catch (...) {
            if (!lock.owns_lock()) lock.lock();
            lock.release();  // the pool's caller has the mutex, whatever happens
            throw;
        }
        lock.release();
        if (is_closed_) throw_closed();
    }

    std::size_t places_ = 0;  // of requests that are about to be sent
    std::uint32_t seq_ = 0;
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_FLOW_HPP
