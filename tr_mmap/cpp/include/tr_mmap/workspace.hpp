// Where sessions live: finds the place, gives each name to one owner, removes what dead processes left. Starts no
// process.
//
// <root>/python_session/tr_session_<id>/ is a session. It appears by a rename, with its manifest inside, and disappears
// by a rename to ".gone-…" beside it; so no process ever sees a part of a session. A sweeper holds the flock of the
// directory from judging it until it is renamed, and checks that the name still leads to the directory that it has
// locked. So only one of two sweepers removes a session, and neither removes a new owner's session of the same name.
// Python's side, which keeps the same rules, is tr_mmap/sessions.
#ifndef TR_MMAP_WORKSPACE_HPP
#define TR_MMAP_WORKSPACE_HPP

#include "macros_off.hpp"

#include <semaphore.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "clock.hpp"
#include "identifiers.hpp"
#include "identity.hpp"
#include "life_lock.hpp"
#include "manifest.hpp"
#include "orphans.hpp"
#include "system.hpp"
#include "text.hpp"
#include "wire.hpp"
#include "worker_log.hpp"

namespace tr {
namespace detail {

[[noreturn]] inline void unusable(const std::string& path, const std::string& reason) {
    const std::string rule = std::string("set ") + wire::workspace_variable +
                             " to a directory of your own, in a directory that exists";
    refuse_path(path, reason, rule.c_str());
}

/// Throw HostilePath unless it is a directory of ours that no other user may write; false if it is gone.
inline bool check_private_dir(const std::string& path) {
    struct stat info;
    if (::lstat(path.c_str(), &info) != 0) {
        if (errno == ENOENT) return false;
        fail_call(path, errno);
    }
    if (S_ISLNK(info.st_mode)) unusable(path, "is a symlink");
    if (!S_ISDIR(info.st_mode)) unusable(path, "is not a directory");
    if (info.st_uid != ::geteuid()) unusable(path, "belongs to user " + std::to_string(info.st_uid));
    if (info.st_mode & 022) unusable(path, "may be written by group or others");
    return true;
}

/// Throw HostilePath if another user could rename what we make in a directory that our user chose.
inline void check_shared_dir(const std::string& path) {
    struct stat info;
    if (::stat(path.c_str(), &info) != 0) fail_call(path, errno);
    const bool is_trusted = info.st_uid == 0 || info.st_uid == ::geteuid();
    if (!is_trusted) unusable(path, "belongs to user " + std::to_string(info.st_uid));
    if ((info.st_mode & 022) && !(info.st_mode & S_ISVTX)) {
        unusable(path, "may be written by group or others, and has no sticky bit (chmod go-w, or chmod +t)");
    }
}

inline void remove_tree(const std::string& path) noexcept {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);  // symlinks are removed, never followed
}

/// Whether the process that makes a session certainly lives, by its lock; it may be in another PID namespace.
inline bool is_being_made(const std::string& path) {
    const std::string lock = path + "/" + wire::controller_lock_file;
    struct stat info;
    return !is_lock_free(lock) && ::lstat(lock.c_str(), &info) == 0;
}

/// A remark for an error's text if the pid belongs to another PID namespace; else "".
inline std::string where_of(const Identity& process) {
    return process.is_judgeable() ? "" : " of another container or namespace of pids";
}

/// The process that is making or removing the session in a directory of this name; nothing if the name is another one.
///
/// @param prefix wire::new_prefix, wire::gone_prefix or wire::pool_prefix; <pid>-<start ticks>-<hex> follows.
inline std::optional<Identity> leftover_user(std::string_view name, std::string_view prefix) {
    const std::string_view numbers = between(name, prefix, "");
    const std::size_t first = numbers.find('-');
    const std::size_t second = first == std::string_view::npos ? first : numbers.find('-', first + 1);
    if (second == std::string_view::npos) return {};
    const std::string pid(numbers.substr(0, first)), ticks(numbers.substr(first + 1, second - first - 1));
    const std::string_view token = numbers.substr(second + 1);
    const bool is_ours = is_all_digits(pid) && pid.size() <= 10 && is_all_digits(ticks) && ticks.size() <= 20 &&
                         !token.empty() && token.find_first_not_of("0123456789abcdef") == std::string_view::npos;
    if (!is_ours) return {};
    return Identity::local(std::strtoll(pid.c_str(), nullptr, 10), std::strtoull(ticks.c_str(), nullptr, 10));
}

/// Why a session may not be removed, the pid of its owner (0 if unknown), and whether waiting a little may help.
struct NotReclaimable {
    std::string reason;
    std::int64_t pid = 0;
    bool may_pass = false;
    std::optional<Manifest> orphan = {};  // if the controller has ended, and the worker has not
    bool is_own = false;                  // it is this very process's
};

/// Whether an errno means that a path is another user's, or no session. Any other errno is a failed call.
inline bool is_not_ours(int code) {
    return code == EACCES || code == EPERM || code == EROFS || code == ELOOP || code == ENOTDIR || code == ENXIO ||
           code == EBUSY;
}

class Workspace {
public:
    /// Where sessions are now: $TR_WORKSPACE, else a private directory in shared memory, else one among temporary
    /// files. Absolute, so that a later change of directory changes nothing; need not exist.
    ///
    /// @throws HostilePath it is relative, and this process has no current directory.
    static std::string place() {
        const char* chosen = std::getenv(wire::workspace_variable);
        std::string root;
        try {
            root = absolute_path(chosen && *chosen ? chosen : common_place());
        } catch (const ScriptNotFound& error) {
            unusable(error.path, "is relative, and this process has no current directory");
        }
        while (root.size() > 1 && root.back() == '/') root.pop_back();
        return root;
    }

    /// The workspace at a place(), which is made if it is missing.
    ///
    /// @throws HostilePath the place is not a directory that this user can trust and use.
    static Workspace at(const std::string& root) {
        Workspace workspace(root, root == common_place());
        workspace.make_root();
        return workspace;
    }

    /// The workspace at the present place().
    static Workspace locate() { return at(place()); }

    const std::string& root() const noexcept { return root_; }

    /// Where the session of that name is, if there is one.
    std::string session_dir(const std::string& session_id) const {
        check_session_id(session_id);
        return sessions_ + "/" + wire::session_prefix + session_id;
    }

    /// Throw HostilePath if another user could write to a session of ours, or to what leads to it.
    void check_session(const std::string& session_id) const {
        check_private_dir(sessions_);
        check_private_dir(session_dir(session_id));
    }

    /// Become the owner of a session: its directory, new and with its manifest in it. What a dead owner left under the
    /// name is removed first.
    ///
    /// @param lock takes the lock of the session's controller, which processes in other containers judge it by.
    /// @throws SessionInUse another process has the name, or nothing tells which process has it.
    std::string claim(const Manifest& manifest, LifeLock& lock) {
        const std::string path = session_dir(manifest.session_id);
        Clock::time_point deadline = deadline_in(1000 * wire::claim_wait_s);
        while (true) {
            if (install(path, manifest, lock)) return path;
            bool was_removed = false;
            const NotReclaimable problem =
                reclaim(path, &require_dead, was_removed)
                    .value_or(NotReclaimable{"other processes take the name again and again", 0, true});
            if (Clock::now() >= deadline && problem.orphan) {
                const auto latest = deadline_in(1000 * (wire::orphan_wait_s - wire::claim_wait_s));
                const std::string worker_lock = path + "/" + wire::worker_lock_file;
                if (end_orphan(*problem.orphan->worker, problem.orphan->worker_mark, latest, worker_lock)) {
                    deadline = deadline_in(1000 * wire::claim_wait_s);
                    continue;
                }
            }
            if (problem.is_own) {
                throw SessionInUse("session '" + manifest.session_id +
                                       "' is in use by this very process: another session object has it; close() that "
                                       "one, choose another session id, or set SessionOptions::replace",
                                   manifest.session_id, problem.pid);
            }
            if (!problem.may_pass || Clock::now() >= deadline) {
                throw SessionInUse("session '" + manifest.session_id + "' is in use: " + problem.reason + " (" + path +
                                       "); end that process, choose another session id, or remove the directory if you "
                                       "know that nothing uses it",
                                   manifest.session_id, problem.pid);
            }
            if (!was_removed) sleep_s(wire::claim_retry_s);
        }
    }

    /// Remove a session of this process, or a dead one, and the directories that are empty then.
    void release(const std::string& session_id) {
        const Clock::time_point deadline = deadline_in(1000 * wire::claim_wait_s);
        bool was_removed = false;
        while (const auto problem = reclaim(session_dir(session_id), &require_own, was_removed)) {
            if (!problem->may_pass || Clock::now() >= deadline) return;
            sleep_s(wire::claim_retry_s);
        }
        ::rmdir(sessions_.c_str());
        if (is_default_) ::rmdir(root_.c_str());
    }

    /// Remove the sessions whose controller and worker have both ended, with their semaphores, and half-made ones. What
    /// lives, is another user's or cannot be judged stays. Any number of sweepers may run at once.
    void sweep() {
        if (!check_private_dir(sessions_)) return;
        std::error_code error;
        std::vector<std::string> names;
        for (const auto& entry : std::filesystem::directory_iterator(sessions_, error)) {
            names.push_back(entry.path().filename().string());
        }
        for (const std::string& name : names) {
            const std::string path = sessions_ + "/" + name;
            auto maker = leftover_user(name, wire::new_prefix);
            if (!maker) maker = leftover_user(name, wire::pool_prefix);  // a process's, which holds a lock there too
            const auto remover = leftover_user(name, wire::gone_prefix);
            if (maker || remover) {
                // Also removals by this process itself: one may have failed.
                const bool is_own_removal = remover && *remover == Identity::current();
                const bool is_over = !(maker ? *maker : *remover).is_alive() && !is_being_made(path);
                if (is_own_removal || is_over) remove_tree(path);
            } else if (is_session_id(between(name, wire::session_prefix, ""))) {
                try {
                    bool was_removed = false;
                    reclaim(path, &require_dead, was_removed);
                } catch (const SystemError&) {
                    // It cannot be examined or removed now; the others can.
                }
            }
        }
    }

private:
    using Judge = std::optional<NotReclaimable> (*)(const std::optional<Manifest>&, const std::string&,
                                                    const std::string&);

    static std::string common_place() {
        const char* temporary = std::getenv("TMPDIR");
        const std::string common = is_usable_dir(wire::shm_dir)             ? wire::shm_dir
                                   : temporary && is_usable_dir(temporary) ? temporary
                                                                           : "/tmp";
        return common + "/" + wire::default_root_prefix + std::to_string(::getuid());
    }

    Workspace(std::string root, bool is_default)
        : root_(std::move(root)), is_default_(is_default), sessions_(root_ + "/" + wire::sessions_dir) {}

    /// A judge: NotReclaimable unless the session's processes have certainly ended.
    ///
    /// @param problem why there is no manifest.
    /// @param path of the session's directory.
    static std::optional<NotReclaimable> require_dead(const std::optional<Manifest>& manifest,
                                                      const std::string& problem, const std::string& path) {
        if (!manifest) return NotReclaimable{problem};
        const Identity& controller = manifest->controller;
        if (is_alive(controller, path + "/" + wire::controller_lock_file)) {
            const bool is_own = controller == Identity::current();
            const std::string who = "its controller, process " + std::to_string(controller.pid) + where_of(controller);
            return NotReclaimable{who + ", is alive", controller.pid, false, {}, is_own};
        }
        if (manifest->worker && *manifest->worker != Identity::current() &&
            is_alive(*manifest->worker, path + "/" + wire::worker_lock_file)) {
            // It will soon notice that its controller ended. Until then it could write to its session's directory.
            const std::int64_t pid = manifest->worker->pid;
            const std::string who = "its worker, process " + std::to_string(pid) + where_of(*manifest->worker);
            return NotReclaimable{who + ", is alive, its controller is not", pid, true, manifest};
        }
        return {};
    }

    /// A judge: NotReclaimable if the session belongs to another living process; a forked child must not end its
    /// parent's.
    static std::optional<NotReclaimable> require_own(const std::optional<Manifest>& manifest,
                                                     const std::string& problem, const std::string& path) {
        if (!manifest || manifest->controller == Identity::current()) return {};
        return require_dead(manifest, problem, path);
    }

    /// Put a new session at ``path``; false if something is there.
    ///
    /// @param lock is held exactly if the session is there.
    bool install(const std::string& path, const Manifest& manifest, LifeLock& lock) {
        const Clock::time_point deadline = deadline_in(1000 * wire::claim_wait_s);
        while (true) {
            make_root();
            make_dir(sessions_);
            struct stat info;
            if (check_private_dir(sessions_)) {
                if (::lstat(path.c_str(), &info) == 0) return false;  // rename(2) would replace an empty directory
                const std::string temporary = aside(wire::new_prefix);
                if (make_dir(temporary)) {
                    int code = 0;
                    try {
                        lock.take(temporary + "/" + wire::controller_lock_file);  // before anybody can judge us
                        write_manifest(temporary, manifest);
                        if (::rename(temporary.c_str(), path.c_str()) == 0) return true;
                        code = errno;
                    } catch (const SystemError& error) {
                        code = error.code;
                        abandon(temporary, lock);
                        if (code != ENOENT) throw;
                    } catch (...) {
                        abandon(temporary, lock);
                        throw;
                    }
                    abandon(temporary, lock);
                    if (code == EEXIST || code == ENOTEMPTY || code == ENOTDIR) return false;
                    if (code != ENOENT) throw SystemError(path, code);
                    // A sweeper in another namespace of pids found the directory before the lock was in it.
                }
            }
            // Or another process's release removed the empty parents at this moment.
            if (Clock::now() >= deadline) throw SystemError(sessions_, ENOENT);
            sleep_s(wire::claim_retry_s);
        }
    }

    /// Remove a half-made session, which no other process has seen. If no descriptor is left for that, a later sweep by
    /// this process does it; for that the directory is renamed first.
    void abandon(const std::string& temporary, LifeLock& lock) const noexcept {
        lock.drop();
        try {
            const std::string gone = aside(wire::gone_prefix);
            if (::rename(temporary.c_str(), gone.c_str()) == 0) return remove_tree(gone);
        } catch (...) {
            // The sweep that finds us dead removes it.
        }
        remove_tree(temporary);
    }

    /// Make one directory, 0700; it may be there already. False if its parent is gone.
    static bool make_dir(const std::string& path) {
        if (::mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return true;
        if (errno == ENOENT) return false;
        refuse_name(path, errno);
    }

    void make_root() const {
        while (true) {
            if (::mkdir(root_.c_str(), 0700) != 0 && errno != EEXIST) {
                unusable(root_, std::string("cannot be made (") + std::strerror(errno) + ")");
            }
            if (!is_default_) {
                if (!is_usable_dir(root_)) unusable(root_, "is not a directory that this user may write");
                check_shared_dir(root_);
                return;
            }
            if (check_private_dir(root_)) return;  // else another process's release removed it at this moment
        }
    }

    /// A name beside the sessions that says which process uses it, so that a sweep can find out whether that has ended.
    std::string aside(const char* prefix) const {
        const Identity own = Identity::current();
        return sessions_ + "/" + prefix + std::to_string(own.pid) + "-" + std::to_string(own.start_ticks) + "-" +
               random_hex(8);
    }

    /// Remove a session and its semaphores if the judge does not object.
    ///
    /// @param was_removed set to true if this call removed it.
    /// @returns what the judge objects, or that this user may not remove it; nothing if it is gone.
    std::optional<NotReclaimable> reclaim(const std::string& path, Judge judge, bool& was_removed) const {
        const Fd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
        if (!fd) {
            if (errno == ENOENT) return {};
            if (!is_not_ours(errno)) fail_call(path, errno);
            return NotReclaimable{std::string("it is not a directory of this user's (") + std::strerror(errno) + ")"};
        }
        // Unlocked before the descriptor is closed: a child forked meanwhile has it too, and would keep the lock.
        struct Unlock {
            const Fd& fd;
            ~Unlock() { ::flock(fd.get(), LOCK_UN); }
        };
        if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
            if (errno != EWOULDBLOCK) fail_call(path, errno);
            return NotReclaimable{"another process is examining or removing it", 0, true};
        }
        const Unlock unlock{fd};
        struct stat opened, named;
        if (::fstat(fd.get(), &opened) != 0 || ::lstat(path.c_str(), &named) != 0 || opened.st_dev != named.st_dev ||
            opened.st_ino != named.st_ino) {
            return {};  // removed since it was opened; the name may mean another process's new session by now
        }
        std::string problem;
        const std::optional<Manifest> manifest = examine(path, named, problem);
        if (auto objection = judge(manifest, problem, path)) return objection;
        if (manifest && manifest->worker && manifest->controller != Identity::current()) {
            end_heirs(*manifest->worker, manifest->worker_mark);  // those of our own session end with its worker
        }
        // While the name is still taken: afterwards a new owner may have semaphores of the same names.
        if (manifest) {
            for (const std::string& name : manifest->doorbells) {
                if (is_doorbell_name(name)) ::sem_unlink(name.c_str());
            }
            remove_log(manifest->log);
        }
        const std::string gone = aside(wire::gone_prefix);
        if (::rename(path.c_str(), gone.c_str()) != 0) {
            if (errno == ENOENT) return {};  // a process that takes no lock was faster
            if (!is_not_ours(errno)) fail_call(path, errno);
            return NotReclaimable{std::string("it cannot be removed (") + std::strerror(errno) + ")"};
        }
        remove_tree(gone);
        was_removed = true;
        return {};
    }

    /// The manifest; nothing, and the problem, if there is nothing to judge by.
    static std::optional<Manifest> examine(const std::string& path, const struct stat& info, std::string& problem) {
        if (info.st_uid != ::geteuid()) {
            problem = "it belongs to user " + std::to_string(info.st_uid);
            return {};
        }
        problem = "it has no manifest";
        try {
            return read_manifest(path);
        } catch (const SystemError&) {
            throw;  // a failed call says nothing about the session
        } catch (const TRException& error) {
            problem = error.what();
            return {};
        }
    }

    std::string root_;
    bool is_default_;
    std::string sessions_;
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_WORKSPACE_HPP
