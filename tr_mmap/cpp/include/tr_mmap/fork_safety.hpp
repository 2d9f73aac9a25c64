// Counts forks, for leases: a forked child has all views of its parent, and no process learns when it drops them.
#ifndef TR_MMAP_FORK_SAFETY_HPP
#define TR_MMAP_FORK_SAFETY_HPP

#include "macros_off.hpp"

#include <pthread.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

namespace tr {
namespace detail {

/// Counts this process's forks. (posix_spawn, which starts the workers, does not count: its child execs at once.)
///
/// A reader holds the mutex while it takes or releases a lease, and fork(2) runs with the mutex held. So there was a
/// fork while a view existed exactly if the count has changed between the view's construction and its destruction.
class ForkState {
public:
    static std::mutex& mutex() { return state().mutex; }
    /// Exact while the mutex is held.
    static std::uint64_t fork_count() { return state().fork_count; }
    /// This process's pid; cheaper than getpid.
    static pid_t pid() { return state().pid; }
    /// Descriptors that a child closes at once. Used with the mutex held.
    static std::vector<int>& closed_in_child() { return state().closed_in_child; }

private:
    struct State {
        std::mutex mutex;
        std::atomic<std::uint64_t> fork_count{0};
        std::atomic<pid_t> pid{::getpid()};
        std::vector<int> closed_in_child;
        State() {
            ::pthread_atfork([] { state().mutex.lock(); },
                             [] {
                                 ++state().fork_count;
                                 state().mutex.unlock();
                             },
                             [] {
                                 state().pid = ::getpid();
                                 for (const int fd : state().closed_in_child) ::close(fd);
                                 state().closed_in_child.clear();
                                 state().mutex.unlock();
                             });
        }
    };
    static State& state() {
        static State& only = *new State;  // never destroyed: views may outlive all static objects
        return only;
    }
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_FORK_SAFETY_HPP
