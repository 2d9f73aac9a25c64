// A worker process: start it, see whether it lives, end it with all that it started. Knows nothing of sessions.
#ifndef TR_MMAP_PROCESS_HPP
#define TR_MMAP_PROCESS_HPP

#include "macros_off.hpp"

#include <dirent.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "clock.hpp"
#include "identity.hpp"
#include "system.hpp"
#include "watch.hpp"
#include "wire.hpp"

extern char** environ;

namespace tr {
namespace detail {

inline constexpr double terminate_grace_ms = 1000 * wire::terminate_grace_s;

/// posix_spawn's bookkeeping, freed with its owner.
///
/// posix_spawn, not fork: the child shares our memory until it has called exec. So no page table of large mappings is
/// copied, no fork handler runs, and a child of a threaded program touches nothing of ours (locks, malloc).
class Spawner {
public:
    Spawner() {
        check(::posix_spawn_file_actions_init(&actions_));
        check(::posix_spawnattr_init(&attributes_));
    }
    Spawner(const Spawner&) = delete;
    Spawner& operator=(const Spawner&) = delete;
    ~Spawner() {
        ::posix_spawn_file_actions_destroy(&actions_);
        ::posix_spawnattr_destroy(&attributes_);
    }

    pid_t spawn(const std::vector<std::string>& argv, const std::vector<std::string>& env, const Fd& log) {
        check(::posix_spawn_file_actions_addopen(&actions_, 0, "/dev/null", O_RDONLY, 0));
        check(::posix_spawn_file_actions_adddup2(&actions_, log.get(), 1));
        check(::posix_spawn_file_actions_adddup2(&actions_, log.get(), 2));
        close_others();
        sigset_t none, defaults;
        ::sigemptyset(&none);
        ::sigemptyset(&defaults);
        for (const int number : {SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGPIPE, SIGCHLD, SIGXFSZ}) {
            ::sigaddset(&defaults, number);
        }
        check(::posix_spawnattr_setsigmask(&attributes_, &none));
        check(::posix_spawnattr_setsigdefault(&attributes_, &defaults));
        // A session of its own: Ctrl-C at the terminal is the controller's to deal with.
        check(::posix_spawnattr_setflags(
            &attributes_, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF));
        pid_t pid = 0;
        const int code = ::posix_spawnp(&pid, argv.at(0).c_str(), &actions_, &attributes_, pointers(argv).data(),
                                        pointers(env).data());
        if (code != 0) {
            const std::string reason = std::strerror(code);
            throw ScriptNotFound("the worker cannot be started: '" + argv[0] + "': " + reason +
                                     "; set TR_PYTHON to a Python that has tr_mmap",
                                 argv[0]);
        }
        return pid;
    }

private:
    static void check(int code) {
        if (code != 0) throw SystemError("posix_spawn", code);
    }
    static std::vector<char*> pointers(const std::vector<std::string>& strings) {
        std::vector<char*> result;
        for (const std::string& each : strings) result.push_back(const_cast<char*>(each.c_str()));
        result.push_back(nullptr);
        return result;
    }
    /// Pass on no other descriptor. Ours are all close-on-exec; the application's may not be.
    void close_others() {
#if defined(__GLIBC__) && defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 34)
#define TR_MMAP_HAS_CLOSEFROM 1
#endif
#endif
#ifdef TR_MMAP_HAS_CLOSEFROM
#undef TR_MMAP_HAS_CLOSEFROM
        check(::posix_spawn_file_actions_addclosefrom_np(&actions_, 3));
#else
        DIR* directory = ::opendir("/proc/self/fd");
        if (!directory) return;
        while (const struct dirent* entry = ::readdir(directory)) {
            char* end = nullptr;
            const long fd = std::strtol(entry->d_name, &end, 10);
            if (*end != '\0' || end == entry->d_name || fd < 3) continue;
            const int flags = ::fcntl(static_cast<int>(fd), F_GETFD);
            if (flags < 0 || flags & FD_CLOEXEC) continue;
            ::posix_spawn_file_actions_addclose(&actions_, static_cast<int>(fd));
        }
        ::closedir(directory);
#endif
    }

    posix_spawn_file_actions_t actions_;
    posix_spawnattr_t attributes_;
};

/// A process that this one started, in a session of its own, its output in a log.
class WorkerProcess {
public:
    /// Start a program, without a shell.
    ///
    /// @param env its environment, "NAME=value" each; one variable is added that marks its tree.
    /// @param log_path where stdout and stderr go; a new file, 0600, in place of an older one.
    /// @param mark the value of that variable; unlike any other.
    /// @param is_quiet false also copies its output to this process's stderr.
    WorkerProcess(const std::vector<std::string>& argv, std::vector<std::string> env, const std::string& log_path,
                  const std::string& mark, bool is_quiet)
        : log_path_(log_path), mark_(mark) {
        unlink_file(log_path);
        const Fd log = create_file(log_path);
        env.push_back(variable());
        pid_ = Spawner().spawn(argv, env, log);
        identity_ = Identity::of(pid_);  // a child keeps its pid until it is reaped
        if (!is_quiet) {
            try {
                forwarder_ = std::make_unique<LogForwarder>(log_path, true);
            } catch (...) {
                terminate_tree(0);
                throw;
            }
        }
    }
    WorkerProcess(const WorkerProcess&) = delete;
    WorkerProcess& operator=(const WorkerProcess&) = delete;

    const Identity& identity() const noexcept { return identity_; }

    bool is_alive() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return !reap();
    }

    /// Its exit status, negative if a signal killed it; nothing while it lives, or if the application has reaped it.
    std::optional<int> exit_code() {
        const std::lock_guard<std::mutex> lock(mutex_);
        reap();
        return code_;
    }

    /// Wait for its end; whether it has ended.
    bool wait(Clock::time_point deadline) {
        if (is_alive()) wait_for_ends({identity_}, deadline);
        return !is_alive();
    }

    /// The last lines of its output, from its last 16 KiB; "" if the log is gone.
    std::string log_tail(int lines = 20) const {
        try {
            const Fd fd = open_private_file(log_path_);
            if (!fd) return "";
            const std::uint64_t nbytes = file_nbytes(fd, log_path_);
            const std::uint64_t start = nbytes > wire::log_tail_nbytes ? nbytes - wire::log_tail_nbytes : 0;
            std::string text = read_all(fd, wire::log_tail_nbytes, start, log_path_);
            while (!text.empty() && text.back() == '\n') text.pop_back();
            std::size_t at = text.size();
            for (int line = 0; line < lines && at != std::string::npos && at > 0; ++line) at = text.rfind('\n', at - 1);
            return at == std::string::npos || at == 0 ? text : text.substr(at + 1);
        } catch (const TRException&) {
            return "";
        }
    }

    /// Start or stop copying what the worker writes from now on to this process's stderr.
    void forward_log(bool is_wanted) {
        const std::lock_guard<std::mutex> lock(forward_mutex_);
        if (!is_wanted) forwarder_.reset();
        else if (!forwarder_) forwarder_ = std::make_unique<LogForwarder>(log_path_, false);
    }

    /// End the worker and every process it started: SIGTERM, ``grace_ms`` milliseconds, SIGKILL to what is left. Those
    /// are its descendants and the members of its session. Nothing happens to processes that have ended already.
    void terminate_tree(double grace_ms = terminate_grace_ms) {
        std::vector<Identity> tree = this->tree({});
        for (const Identity& each : tree) send_signal(each, SIGTERM);
        wait_for_ends(tree, deadline_in(grace_ms));
        const Clock::time_point deadline = deadline_in(1000 * wire::kill_wait_s);
        // Again and again: a process that is being killed may have just forked.
        while (!(tree = this->tree(tree)).empty() && Clock::now() < deadline) {
            for (const Identity& each : tree) send_signal(each, SIGKILL);
            wait_for_ends(tree, deadline);
        }
        wait(deadline);
    }

private:
    /// Whether it has ended; takes its status if so. The lock is held.
    bool reap() {
        if (has_ended_) return true;
        int status = 0;
        pid_t got = 0;
        do got = ::waitpid(pid_, &status, WNOHANG);
        while (got < 0 && errno == EINTR);
        if (got == 0) return false;
        has_ended_ = true;
        if (got == pid_) code_ = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
        return true;  // on ECHILD too: the application ignores SIGCHLD, or has reaped all its children
    }

    /// The living among ``known``, the worker, its session, and all their descendants.
    std::vector<Identity> tree(const std::vector<Identity>& known) {
        const std::map<pid_t, Stat> stats = all_stats();
        std::set<pid_t> members;
        for (const Identity& each : known) {
            if (each.is_alive()) members.insert(static_cast<pid_t>(each.pid));
        }
        const bool is_own_pid = is_alive();  // until it is reaped no other process can have its pid
        if (is_own_pid) members.insert(pid_);
        for (const auto& [pid, seen] : stats) {
            // Another session's leader may have a dead worker's pid by now: then only the mark tells.
            if (seen.session == pid_ && !seen.is_ended && (is_own_pid || has_mark(pid))) members.insert(pid);
        }
        for (bool is_growing = true; is_growing;) {
            is_growing = false;
            for (const auto& [pid, seen] : stats) {
                if (members.count(seen.parent) && members.insert(pid).second) is_growing = true;
            }
        }
        std::vector<Identity> result;
        for (const pid_t pid : members) {
            const auto seen = stats.find(pid);
            if (seen != stats.end() && !seen->second.is_ended) {
                result.push_back(Identity::local(pid, seen->second.start_ticks));
            }
        }
        return result;
    }

    std::string variable() const { return std::string(wire::worker_mark_variable) + "=" + mark_; }

    bool has_mark(pid_t pid) const {
        const std::string path = "/proc/" + std::to_string(pid) + "/environ";
        const std::string variables = '\0' + read_proc(path, wire::max_environ_nbytes);
        return variables.find('\0' + variable() + '\0') != std::string::npos;
    }

    std::string log_path_;
    std::string mark_;
    pid_t pid_ = 0;
    Identity identity_;
    std::mutex mutex_;
    bool has_ended_ = false;
    std::optional<int> code_;
    std::mutex forward_mutex_;
    std::unique_ptr<LogForwarder> forwarder_;
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_PROCESS_HPP
