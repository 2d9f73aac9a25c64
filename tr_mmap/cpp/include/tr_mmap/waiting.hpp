// How threads of a session wait for each other, and what happens to them when the process ends. Knows nothing of
// sessions.
#ifndef TR_MMAP_WAITING_HPP
#define TR_MMAP_WAITING_HPP

#include "macros_off.hpp"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>

#include "clock.hpp"

namespace tr {
namespace detail {

/// Wakes threads that wait for a change. Its mutex is held only for a moment, never while anything else is called; so
/// any thread may raise it at any time.
class Signal {
public:
    std::uint64_t count() const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return count_;
    }
    void raise() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            ++count_;
        }
        changed_.notify_all();
    }
    /// Wait until it is raised once more than ``seen``, or until the deadline.
    void wait(std::uint64_t seen, Clock::time_point deadline) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait_until(lock, deadline, [&] { return count_ != seen; });
    }

private:
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::uint64_t count_ = 0;
};

/// Whether this process is ending, by exit(3) or by a return from main.
class ProcessEnd {
public:
    /// Begin to watch. Static objects that exist already are destroyed after the end is noted.
    static void watch() { state(); }
    /// Whether another thread is destroying the static objects.
    static bool is_elsewhere() { return state().is_near && state().thread != std::this_thread::get_id(); }

private:
    struct State {
        std::atomic<bool> is_near{false};
        std::thread::id thread;
        State() {
            std::atexit([] {
                state().thread = std::this_thread::get_id();
                state().is_near = true;
            });
        }
    };
    static State& state() {
        static State& only = *new State;  // never destroyed: threads may ask until the process is gone
        return only;
    }
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_WAITING_HPP
