// The identity of a process, which no other process with its pid has. Knows nothing of workers or sessions.
//
// A pid alone does not identify a process, because the kernel gives it to another one later. Code that judges or
// signals a process uses its Identity, and a pidfd that was checked against it. A process that cannot be judged counts
// as alive.
#ifndef TR_MMAP_IDENTITY_HPP
#define TR_MMAP_IDENTITY_HPP

#include "macros_off.hpp"

#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "clock.hpp"
#include "system.hpp"
#include "text.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

/// The state of a process; all fields are from the same moment.
struct Stat {
    std::uint64_t start_ticks = 0;
    char state = '?';       // proc(5): R runs, S sleeps, D waits for a device, T is stopped
    bool is_ended = false;  // a zombie, or being removed
    pid_t parent = 0;
    pid_t session = 0;
};

/// The state of the process with that pid; nothing if there is none, or none that we may see.
///
/// @param code set to an errno if the system would not tell.
inline std::optional<Stat> stat_of(std::int64_t pid, int* code = nullptr) {
    const std::string text = read_proc("/proc/" + std::to_string(pid) + "/stat", 4096, code);
    // proc(5): the second field is the name in parentheses, and may hold spaces and parentheses itself, so count from
    // the last ")". Field 3 (state) comes next: 4 is the parent, 6 the session, 20 threads, 22 the start in ticks.
    const std::size_t close = text.rfind(')');
    if (close == std::string::npos) return {};
    std::vector<std::string> fields;
    for (std::size_t at = close + 1; at < text.size();) {
        const std::size_t end = std::min(text.find_first_of(" \n", at), text.size());
        if (end > at) fields.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    if (fields.size() < 20) return {};
    const auto number = [&](std::size_t field) { return std::strtoll(fields[field - 3].c_str(), nullptr, 10); };
    const char state = fields[0][0];
    Stat seen;
    seen.state = state;
    seen.start_ticks = static_cast<std::uint64_t>(number(22));
    // A living process whose main thread has ended before the others has the state of a zombie.
    seen.is_ended = (state == 'Z' || state == 'X' || state == 'x') && number(20) <= 1;
    seen.parent = static_cast<pid_t>(number(4));
    seen.session = static_cast<pid_t>(number(6));
    return seen;
}

/// What a process does, in a word: running if one of its threads uses a processor, or is about to; waiting if all
/// sleep; stopped by a signal or a debugger; ended; unknown if there is no descriptor left to look at it.
inline const char* state_of(std::int64_t pid) {
    int code = 0;
    const auto seen = stat_of(pid, &code);
    if (!seen) return code != 0 && code != ENOENT && code != ESRCH ? wire::process_unknown : wire::process_ended;
    if (seen->is_ended) return wire::process_ended;
    const std::string tasks = "/proc/" + std::to_string(pid) + "/task";
    DIR* directory = ::opendir(tasks.c_str());
    if (!directory) return wire::process_unknown;
    bool is_running = false;
    int left = 256;  // threads that are looked at; one that runs is nearly always among them
    while (const struct dirent* entry = is_running || left-- <= 0 ? nullptr : ::readdir(directory)) {
        if (entry->d_name[0] == '.') continue;
        const std::string text = read_proc(tasks + "/" + entry->d_name + "/stat", 4096);
        const std::size_t close = text.rfind(')');  // the name in parentheses may hold parentheses itself
        is_running = close != std::string::npos && close + 2 < text.size() && text[close + 2] == 'R';
    }
    ::closedir(directory);
    if (is_running) return wire::process_running;
    return seen->state == 'T' || seen->state == 't' ? wire::process_stopped : wire::process_waiting;
}

/// Every process that we may see, by pid.
inline std::map<pid_t, Stat> all_stats() {
    std::map<pid_t, Stat> result;
    DIR* directory = ::opendir("/proc");
    if (!directory) return result;
    while (const struct dirent* entry = ::readdir(directory)) {
        char* end = nullptr;
        const long pid = std::strtol(entry->d_name, &end, 10);
        if (pid <= 0 || *end != '\0') continue;
        if (const auto seen = stat_of(pid)) result[static_cast<pid_t>(pid)] = *seen;
    }
    ::closedir(directory);
    return result;
}

/// The boot that start ticks count from; "" where that cannot be read.
///
/// @param code set to an errno if it cannot be read now. If no descriptor was left, the next call tries again.
inline const std::string& boot_id(int* code = nullptr) {
    static const std::string& none = *new std::string;
    static std::atomic<const std::string*> known{nullptr};
    if (const std::string* found = known) return *found;
    int refusal = 0;
    const std::string text(strip(read_proc("/proc/sys/kernel/random/boot_id", 64, &refusal)));
    if (is_out_of_descriptors(refusal)) {
        if (code) *code = refusal;
        return none;
    }
    // Never destroyed: a session may be a global, and is then destroyed after all younger static objects.
    const std::string* made = new std::string(text);
    const std::string* first = nullptr;
    if (known.compare_exchange_strong(first, made)) return *made;
    delete made;  // another thread was faster
    return *first;
}

/// The namespace that this process's pids belong to; 0 if unknown.
inline std::uint64_t pid_namespace() {
    char text[64];
    const ssize_t length = ::readlink("/proc/self/ns/pid", text, sizeof text - 1);
    if (length <= 5) return 0;
    text[length] = '\0';
    return std::strtoull(text + 5, nullptr, 10);  // "pid:[4026531836]"
}

/// One process, told from all others that had or will have its pid.
struct Identity {
    std::int64_t pid = 0;
    std::uint64_t start_ticks = 0;    // after boot
    std::string boot;                 // the boot that the ticks count from; "" where unknown
    std::uint64_t pid_namespace = 0;  // that the pid belongs to: containers may share a directory, not their pids

    /// A process of this boot and this namespace of pids.
    static Identity local(std::int64_t pid, std::uint64_t start_ticks) {
        return {pid, start_ticks, boot_id(), detail::pid_namespace()};
    }
    /// The process that has the pid now; it may be a zombie.
    ///
    /// @throws SystemLimit no descriptor is left to read when it started; with a wrong start it would count as ended.
    static Identity of(std::int64_t pid) {
        int code = 0;
        const auto seen = stat_of(pid, &code);
        boot_id(&code);
        if (is_out_of_descriptors(code)) fail_call("the identity of process " + std::to_string(pid), code);
        return local(pid, seen ? seen->start_ticks : 0);
    }
    /// This process. It is read once, so that later no descriptor is needed to recognise a session as our own.
    ///
    /// @throws SystemLimit as of() does, if it was not read before.
    static Identity current() {
        static std::atomic<const Identity*> known{nullptr};
        static const int forgotten_in_child = ::pthread_atfork(nullptr, nullptr, [] { known = nullptr; });
        static_cast<void>(forgotten_in_child);
        const Identity* found = known;
        if (found && found->pid == ::getpid()) return *found;  // else this is the child of a fork without handlers
        const Identity own = of(::getpid());
        const auto* made = new Identity(own);  // never destroyed: another thread may be reading it
        if (!known.compare_exchange_strong(found, made)) delete made;  // another thread was faster
        return own;
    }

    /// Whether its pid means anything here.
    bool is_judgeable() const {
        const std::uint64_t own = detail::pid_namespace();
        return pid > 0 && pid <= std::numeric_limits<pid_t>::max() &&
               (own == 0 || pid_namespace == 0 || own == pid_namespace);
    }

    /// False only if this very process has certainly ended; a zombie has.
    bool is_alive() const {
        if (!boot.empty() && !boot_id().empty() && boot != boot_id()) return false;
        if (!is_judgeable()) return true;
        if (const auto seen = stat_of(pid)) return !seen->is_ended && seen->start_ticks == start_ticks;
        // Its /proc entry may be hidden from us, or we have no descriptor to read it.
        if (::kill(static_cast<pid_t>(pid), 0) != 0) return errno != ESRCH;
        siginfo_t ended = {};  // of a child that nobody has waited for yet
        const int found = ::waitid(P_PID, static_cast<id_t>(pid), &ended, WEXITED | WNOHANG | WNOWAIT);
        return found != 0 || ended.si_pid != static_cast<pid_t>(pid);
    }

    friend bool operator==(const Identity& a, const Identity& b) {
        return a.pid == b.pid && a.start_ticks == b.start_ticks && a.boot == b.boot &&
               a.pid_namespace == b.pid_namespace;
    }
    friend bool operator!=(const Identity& a, const Identity& b) { return !(a == b); }
};

#if defined(SYS_pidfd_open) && defined(SYS_pidfd_send_signal)
inline constexpr long pidfd_open_number = SYS_pidfd_open;
inline constexpr long pidfd_send_signal_number = SYS_pidfd_send_signal;
#else
inline constexpr long pidfd_open_number = 434;  // Linux 5.3, the same on every architecture
inline constexpr long pidfd_send_signal_number = 424;
#endif

struct PidFd {
    Fd fd;                   // empty where there are no pidfds, or the process has ended
    bool has_ended = false;  // the process
};

/// A descriptor of exactly that process.
inline PidFd open_pidfd(const Identity& identity) {
    if (!identity.is_judgeable()) return {};
    Fd fd(static_cast<int>(::syscall(pidfd_open_number, static_cast<pid_t>(identity.pid), 0)));
    if (!fd && errno == ESRCH) return {Fd(), true};
    // After opening, not before: if the process lives now, its pid was not given to another one before we opened it.
    if (!identity.is_alive()) return {Fd(), true};
    return {std::move(fd), false};
}

/// Wait until all processes have ended, or until the deadline; returns whether all have ended.
inline bool wait_for_ends(const std::vector<Identity>& identities, Clock::time_point deadline) {
    for (const Identity& identity : identities) {
        const PidFd process = open_pidfd(identity);
        if (process.has_ended) continue;
        while (true) {
            if (process.fd) {
                struct pollfd wanted = {process.fd.get(), POLLIN, 0};
                const double left = remaining_ms(deadline);
                if (::poll(&wanted, 1, left > 1e9 ? 1000000000 : static_cast<int>(left + 0.999)) > 0) break;
            } else {
                if (!identity.is_alive()) break;
                sleep_s(wire::poll_s / 10);
            }
            if (Clock::now() >= deadline) return false;
        }
    }
    return true;
}

/// Signal exactly that process; nothing happens if it is gone or not ours to signal.
inline void send_signal(const Identity& identity, int number) {
    const PidFd process = open_pidfd(identity);
    if (process.has_ended) return;
    if (process.fd) {
        ::syscall(pidfd_send_signal_number, process.fd.get(), number, nullptr, 0);
    } else if (identity.is_judgeable() && identity.is_alive()) {
        ::kill(static_cast<pid_t>(identity.pid), number);
    }
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_IDENTITY_HPP
