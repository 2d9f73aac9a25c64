// Ends workers that outlive their controller, and processes that outlive their worker. Never ends a process that is not
// proved to be one of these. Python's side is tr_mmap/processes/orphans.py and tree.py.
#ifndef TR_MMAP_ORPHANS_HPP
#define TR_MMAP_ORPHANS_HPP

#include "macros_off.hpp"

#include <signal.h>
#include <sys/types.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "clock.hpp"
#include "identity.hpp"
#include "life_lock.hpp"
#include "system.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

/// Whether a process was started with that mark in its environment.
inline bool has_mark(pid_t pid, const std::string& mark) {
    const std::string path = "/proc/" + std::to_string(pid) + "/environ";
    const std::string variables = '\0' + read_proc(path, wire::max_environ_nbytes);
    return variables.find('\0' + std::string(wire::worker_mark_variable) + "=" + mark + '\0') != std::string::npos;
}

/// Add to some processes all that descends from them.
inline void add_descendants(std::set<pid_t>& members, const std::map<pid_t, Stat>& stats) {
    for (bool is_growing = true; is_growing;) {
        is_growing = false;
        for (const auto& [pid, seen] : stats) {
            if (members.count(seen.parent) && members.insert(pid).second) is_growing = true;
        }
    }
}

/// Whether it is a resource tracker of Python's multiprocessing: tr_mmap/processes/ending.py says what that is.
inline bool is_tracker(const Identity& process) {
    const std::string path = "/proc/" + std::to_string(process.pid) + "/cmdline";
    return read_proc(path, wire::max_environ_nbytes).find(wire::resource_tracker) != std::string::npos;
}

/// Kill processes until there are none; resource trackers once they had time to clean up after the others.
///
/// @param find returns those that still live. Called again and again: a process may fork just before it is killed.
template <typename Action>
void kill_all(Action find, Clock::time_point deadline) {
    bool has_waited = false;
    for (std::vector<Identity> found; !(found = find()).empty() && Clock::now() < deadline;) {
        std::vector<Identity> rest;
        for (const Identity& each : found) {
            if (!is_tracker(each)) rest.push_back(each);
        }
        if (rest.empty()) {
            if (!has_waited) {
                has_waited = true;
                if (wait_for_ends(found, std::min(deadline, deadline_in(1000 * wire::tracker_grace_s)))) continue;
            }
            rest = found;
        }
        for (const Identity& each : rest) send_signal(each, SIGKILL);
        wait_for_ends(rest, deadline);
    }
}

/// Wait for the worker of a dead controller to end, then kill it. Returns whether it has ended.
///
/// @param worker from the session's manifest.
/// @param mark also from the manifest; only this worker has it. A process without it is not killed.
/// @param deadline the moment until which it may end by itself.
/// @param lock_path of the lock that it holds for life. A worker in another PID namespace is only waited for.
inline bool end_orphan(const Identity& worker, const std::string& mark, Clock::time_point deadline,
                       const std::string& lock_path) {
    if (!worker.is_judgeable()) {
        while (is_alive(worker, lock_path) && Clock::now() < deadline) sleep_s(wire::poll_s / 10);
        return !is_alive(worker, lock_path);
    }
    const bool is_proved = !mark.empty() && has_mark(static_cast<pid_t>(worker.pid), mark);
    if (is_proved && !wait_for_ends({worker}, deadline)) {
        send_signal(worker, SIGKILL);
        wait_for_ends({worker}, deadline_in(1000 * wire::kill_wait_s));
    }
    return !worker.is_alive();
}

/// Kill what a dead worker left in its session of processes: those that bear its mark, and their descendants.
inline void end_heirs(const Identity& worker, const std::string& mark) {
    if (mark.empty() || worker.is_alive() || !worker.is_judgeable()) return;
    const pid_t leader = static_cast<pid_t>(worker.pid);
    const auto find = [&] {
        const std::map<pid_t, Stat> stats = all_stats();
        std::set<pid_t> members;
        for (const auto& [pid, seen] : stats) {
            if (seen.session == leader && pid != leader && !seen.is_ended && has_mark(pid, mark)) members.insert(pid);
        }
        add_descendants(members, stats);
        std::vector<Identity> found;
        for (const pid_t pid : members) {
            const Stat& seen = stats.at(pid);
            if (!seen.is_ended && pid != leader) found.push_back(Identity::local(pid, seen.start_ticks));
        }
        return found;
    };
    kill_all(find, deadline_in(1000 * wire::kill_wait_s));
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_ORPHANS_HPP
