// A worker process: start it, see whether it lives, end it with all that it started. Knows nothing of sessions.
#ifndef TR_MMAP_PROCESS_HPP
#define TR_MMAP_PROCESS_HPP

#include "macros_off.hpp"

#include <dirent.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
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
#include "life_lock.hpp"
#include "orphans.hpp"
#include "system.hpp"
#include "watch.hpp"
#include "worker_log.hpp"
#include "wire.hpp"

extern char** environ;

namespace tr {
namespace detail {

inline constexpr double terminate_grace_ms = 1000 * wire::terminate_grace_s;

/// posix_spawn's attributes and file actions, freed with their owner.
///
/// Why posix_spawn and not fork: the child shares our memory until it has called exec. So the page tables of large
/// mappings are not copied, no fork handler runs, and the child of a threaded program uses none of our locks.
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

    /// Start a program, found on PATH if its name has no slash.
    ///
    /// @param log becomes its stdout and stderr.
    /// @param inherited descriptors that it gets, numbered from first_inherited on; it gets no others. Use handed_on()
    ///     to give them numbers here that are not among those.
    /// @param directory its working directory, from which a relative program is found; "" for this process's.
    /// @throws ScriptNotFound there is no such program.
    pid_t spawn(const std::vector<std::string>& argv, const std::vector<std::string>& env, const Fd& log,
                const std::vector<int>& inherited, const std::string& directory) {
        close_others_before();
        check(::posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0));
        check(::posix_spawn_file_actions_adddup2(&actions_, log.get(), STDOUT_FILENO));
        check(::posix_spawn_file_actions_adddup2(&actions_, log.get(), STDERR_FILENO));
        int next = first_inherited;
        for (const int fd : inherited) check(::posix_spawn_file_actions_adddup2(&actions_, fd, next++));
        close_others_after(next);
        sigset_t none, defaults;
        ::sigemptyset(&none);
        ::sigfillset(&defaults);  // the worker must not inherit which signals this program ignores
        ::sigdelset(&defaults, SIGHUP);  // except SIGHUP: nohup(1) is meant for the children too
        ::sigdelset(&defaults, SIGKILL);
        ::sigdelset(&defaults, SIGSTOP);
        check(::posix_spawnattr_setsigmask(&attributes_, &none));
        check(::posix_spawnattr_setsigdefault(&attributes_, &defaults));
        // A session of its own, so that Ctrl-C at the terminal signals the controller only.
        check(::posix_spawnattr_setflags(
            &attributes_, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF));
        if (!directory.empty()) change_directory(directory);
        pid_t pid = 0;
        const int code = ::posix_spawnp(&pid, argv.at(0).c_str(), &actions_, &attributes_, pointers(argv).data(),
                                        pointers(env).data());
        if (code == 0) return pid;
        const std::string what = "the worker cannot be started: '" + argv.at(0) + "'";
        if (code == EAGAIN) {
            throw SystemLimit(what, code, "RLIMIT_NPROC", "end processes, or raise the limit (ulimit -u)");
        }
        if (code == E2BIG) {
            throw SystemLimit(what, code, "ARG_MAX",
                              "SessionOptions::args and env, with what the worker inherits, are longer than the system "
                              "allows; write what is long to a file, and give the worker its path");
        }
        if (code == EMFILE || code == ENFILE || code == ENOMEM) fail_call(what, code);
        throw ScriptNotFound(what + ": " + std::strerror(code) +
                                 "; SessionOptions::python, or the environment variable TR_PYTHON, names the Python "
                                 "that has tr_mmap",
                             argv.at(0));
    }

    static constexpr int first_inherited = STDERR_FILENO + 1;
    static constexpr int most_inherited = 3;

    /// The same file under a number that no inherited descriptor gets, so that none overwrites another in the child.
    static Fd handed_on(Fd fd) { return at_least(first_inherited + most_inherited, std::move(fd)); }

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
#if defined(__GLIBC__) && defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 34)
#define TR_MMAP_HAS_CLOSEFROM 1
#endif
#endif
    // Pass on no other descriptor. Ours are all close-on-exec; the application's may not be.
#ifdef TR_MMAP_HAS_CLOSEFROM
#undef TR_MMAP_HAS_CLOSEFROM
    void close_others_before() {}
    void close_others_after(int first) { check(::posix_spawn_file_actions_addclosefrom_np(&actions_, first)); }
#else
    void close_others_before() {
        DIR* directory = ::opendir("/proc/self/fd");
        if (!directory) return;
        while (const struct dirent* entry = ::readdir(directory)) {
            char* end = nullptr;
            const long fd = std::strtol(entry->d_name, &end, 10);
            if (*end != '\0' || end == entry->d_name || fd <= STDERR_FILENO) continue;
            const int flags = ::fcntl(static_cast<int>(fd), F_GETFD);
            if (flags < 0 || flags & FD_CLOEXEC) continue;
            ::posix_spawn_file_actions_addclose(&actions_, static_cast<int>(fd));
        }
        ::closedir(directory);
    }
    void close_others_after(int) {}
#endif

    void change_directory(const std::string& directory) {
#if defined(__GLIBC__) && defined(__GLIBC_PREREQ)
#if !__GLIBC_PREREQ(2, 29)
#define TR_MMAP_LACKS_CHDIR 1
#endif
#endif
#ifdef TR_MMAP_LACKS_CHDIR
#undef TR_MMAP_LACKS_CHDIR
        throw SystemError("SessionOptions::cwd (" + directory + "), which needs glibc 2.29", ENOSYS);
#else
        check(::posix_spawn_file_actions_addchdir_np(&actions_, directory.c_str()));
#endif
    }

    posix_spawn_file_actions_t actions_;
    posix_spawnattr_t attributes_;
};

/// A process that this one started, in a session of its own, its output in a log.
///
/// It inherits one end of a pipe, the lifeline. When this process ends, for whatever reason, the kernel signals the
/// worker, even while native code keeps Python from running. tr_mmap/processes/lifeline.py explains it.
class WorkerProcess {
public:
    /// Start a program, without a shell.
    ///
    /// @param env its environment, "NAME=value" each; variables are added that mark its tree, and name its lifeline
    ///     and its lock.
    /// @param directory its working directory; "" for this process's.
    /// @param log where stdout and stderr go.
    /// @param lock_path of the worker's lock; a new file, in place of an older one. The worker has the lock from its
    ///     first moment on.
    /// @param mark the unique value of the variable that marks its tree.
    /// @param is_quiet false also copies its output to this process's stderr.
    /// @param secret that it reads from a pipe; "" for none.
    WorkerProcess(const std::vector<std::string>& argv, std::vector<std::string> env, const std::string& directory,
                  WorkerLog log, const std::string& lock_path, const std::string& mark, bool is_quiet, const std::string& secret)
        : program_(argv.at(0)), log_path_(log.path), mark_(mark) {
        {
            const WorkerLog output = std::move(log);  // closed when the worker has it
            const Fd held = make_lifeline();
            LifeLock lock;
            lock.take(lock_path, Spawner::handed_on);
            constexpr int lifeline_fd = Spawner::first_inherited, lock_fd = lifeline_fd + 1, secret_fd = lock_fd + 1;
            const Fd secrets = secret.empty() ? Fd() : make_secret_pipe(secret);
            env.push_back(std::string(wire::worker_mark_variable) + "=" + mark_);
            env.push_back(std::string(wire::lifeline_fd_variable) + "=" + std::to_string(lifeline_fd));
            env.push_back(std::string(wire::lock_fd_variable) + "=" + std::to_string(lock_fd));
            std::vector<int> inherited = {held.get(), lock.fd()};
            if (secrets) {
                env.push_back(std::string(wire::secret_fd_variable) + "=" + std::to_string(secret_fd));
                inherited.push_back(secrets.get());
            }
            pid_ = Spawner().spawn(argv, env, output.fd, inherited, directory);
        }
        try {
            identity_ = Identity::of(pid_);  // a child keeps its pid until it is reaped
        } catch (...) {
            end_child();
            throw;
        }
        if (!is_quiet) {
            try {
                forwarder_ = std::make_unique<LogForwarder>(log_path_, true);
            } catch (...) {
                terminate_tree(0);
                throw;
            }
        }
    }
    WorkerProcess(const WorkerProcess&) = delete;
    WorkerProcess& operator=(const WorkerProcess&) = delete;

    const Identity& identity() const noexcept { return identity_; }

    /// The program that was run.
    const std::string& program() const noexcept { return program_; }

    /// Whether somebody has seen that it ended. Makes no system call.
    bool is_known_to_have_ended() const noexcept { return has_ended_; }

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

    /// Whether it has ended, and neither by a signal nor by terminate_tree().
    ///
    /// @param has_said_farewell whether its last status is "terminated". Used if the application has reaped the
    ///     process, so that its exit status is not known.
    bool has_ended_by_itself(bool has_said_farewell) {
        return !is_alive() && !is_forced_ && exit_code().value_or(has_said_farewell ? 0 : -SIGKILL) >= 0;
    }

    /// Wait for its end; returns whether it has ended.
    bool wait(Clock::time_point deadline) {
        if (is_alive()) wait_for_ends({identity_}, deadline);
        return !is_alive();
    }

    /// The last lines of its output, as log_tail() in worker_log.hpp finds them.
    std::string log_tail(int lines = 20) const { return detail::log_tail(log_path_, lines); }

    /// Whether it has printed anything, also if that is not in log_tail().
    bool has_printed() const { return detail::has_output(log_path_); }

    /// Start or stop copying what the worker writes from now on to this process's stderr.
    void forward_log(bool is_wanted) {
        const std::lock_guard<std::mutex> lock(forward_mutex_);
        if (!is_wanted) forwarder_.reset();
        else if (!forwarder_) forwarder_ = std::make_unique<LogForwarder>(log_path_, false);
    }

    /// End the worker and every process it started: SIGTERM, ``grace_ms`` milliseconds, SIGKILL to what is left. Those
    /// are its descendants and the members of its session. Nothing happens to processes that have ended already. A
    /// resource tracker of multiprocessing gets the time to clean up after the others.
    void terminate_tree(double grace_ms = terminate_grace_ms) {
        if (is_alive()) is_forced_ = true;  // a worker that gets SIGTERM may end with status 0
        std::vector<Identity> tree = this->tree({});
        for (const Identity& each : tree) send_signal(each, SIGTERM);
        wait_for_ends(tree, deadline_in(grace_ms));
        const Clock::time_point deadline = deadline_in(1000 * wire::kill_wait_s);
        kill_all([&] { return tree = this->tree(tree); }, deadline);
        wait(deadline);
    }

private:
    /// Keep one end of a new pipe; returns the other one.
    Fd make_lifeline() {
        int ends[2];
        if (::pipe2(ends, O_CLOEXEC) != 0) fail_call("pipe", errno);
        Fd reading = Spawner::handed_on(Fd(ends[0]));
        lifeline_ = above_standard_streams(Fd(ends[1]));
        if (!reading || !lifeline_) fail_call("pipe", errno);
        return reading;
    }

    /// A pipe that holds the secret, and whose other end is closed: the end to read it from.
    static Fd make_secret_pipe(const std::string& secret) {
        int ends[2];
        if (::pipe2(ends, O_CLOEXEC) != 0) fail_call("pipe", errno);
        Fd reading = Spawner::handed_on(Fd(ends[0]));
        const Fd writing(ends[1]);
        if (!reading) fail_call("pipe", errno);
        // Far less than a pipe holds, so this never blocks, and never writes a part.
        ssize_t written = 0;
        do written = ::write(writing.get(), secret.data(), secret.size());
        while (written < 0 && errno == EINTR);
        if (written != static_cast<ssize_t>(secret.size())) fail_call("the write into a pipe", errno);
        return reading;
    }

    /// Kill the worker alone, which has not started anything yet.
    void end_child() noexcept {
        ::kill(pid_, SIGKILL);
        while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) continue;
    }

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
            if (seen.session == pid_ && !seen.is_ended && (is_own_pid || has_mark(pid, mark_))) members.insert(pid);
        }
        add_descendants(members, stats);
        std::vector<Identity> result;
        for (const pid_t pid : members) {
            const auto seen = stats.find(pid);
            if (seen != stats.end() && !seen->second.is_ended) {
                result.push_back(Identity::local(pid, seen->second.start_ticks));
            } else if (seen == stats.end() && is_own_pid && pid == pid_) {
                result.push_back(identity_);  // no descriptor is left to read /proc
            }
        }
        return result;
    }

    std::string program_;
    std::string log_path_;
    std::string mark_;
    Fd lifeline_;  // nothing is ever written to it
    pid_t pid_ = 0;
    Identity identity_;
    std::mutex mutex_;
    std::atomic<bool> has_ended_{false};
    std::atomic<bool> is_forced_{false};
    std::optional<int> code_;
    std::mutex forward_mutex_;
    std::unique_ptr<LogForwarder> forwarder_;
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_PROCESS_HPP
