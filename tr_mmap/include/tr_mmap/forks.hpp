// What a fork does to shared memory: a child has all views of its parent, and nobody tells when it lets go of them.
#ifndef TR_MMAP_FORKS_HPP
#define TR_MMAP_FORKS_HPP

#include <pthread.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <mutex>

namespace tr {
namespace detail {

/// Counts this process's forks. (posix_spawn, which starts the workers, is none: its child execs at once.)
///
/// Whoever takes or returns a lease holds the lock, and so does fork(2): a view existed at a fork exactly if the count
/// was another when it was made than when it goes.
class Forks {
public:
    static std::mutex& mutex() { return state().mutex; }
    /// The lock is held, or it does not matter that a fork may be under way.
    static std::uint64_t count() { return state().count; }
    /// Which process this is; cheaper than getpid.
    static pid_t process() { return state().process; }

private:
    struct State {
        std::mutex mutex;
        std::atomic<std::uint64_t> count{0};
        std::atomic<pid_t> process{::getpid()};
        State() {
            ::pthread_atfork([] { state().mutex.lock(); },
                             [] {
                                 ++state().count;
                                 state().mutex.unlock();
                             },
                             [] {
                                 state().process = ::getpid();
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

#endif  // TR_MMAP_FORKS_HPP
