// A file lock that a process holds for life. It tells processes in other PID namespaces, where the pid means nothing,
// whether the process has ended. tr_mmap/processes/life_lock.py is the Python side, and explains it.
#ifndef TR_MMAP_LIFE_LOCK_HPP
#define TR_MMAP_LIFE_LOCK_HPP

#include "macros_off.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "fork_safety.hpp"
#include "identity.hpp"
#include "system.hpp"

namespace tr {
namespace detail {

/// This process's lock, until drop() or the object's end. A forked child closes its copy of the descriptor at once,
/// else it would keep the lock. A program started by posix_spawn gets the descriptor only on purpose.
class LifeLock {
public:
    LifeLock() = default;
    LifeLock(const LifeLock&) = delete;
    LifeLock& operator=(const LifeLock&) = delete;
    ~LifeLock() { drop(); }

    int fd() const noexcept { return fd_.get(); }

    /// Make a new file, and lock it. No other process may use this file yet; it may use an earlier one of that name.
    ///
    /// @param renumber gives the descriptor another number, before anybody sees it.
    void take(const std::string& path, Fd (*renumber)(Fd) = above_standard_streams) {
        drop();
        // With the mutex held no child is forked, until the list says that it must close this descriptor.
        const std::lock_guard<std::mutex> lock(ForkState::mutex());
        unlink_file(path);
        Fd fd = renumber(create_file(path));
        if (!fd || ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
            const int code = errno;
            unlink_file(path);
            fail_call(path, code);
        }
        ForkState::closed_in_child().push_back(fd.get());
        pid_ = ForkState::pid();
        fd_ = std::move(fd);
    }

    /// Whether the locked file still has that name.
    bool is_at(const std::string& path) const noexcept {
        struct stat own, named;
        return fd_ && ::fstat(fd_.get(), &own) == 0 && ::lstat(path.c_str(), &named) == 0 &&
               own.st_dev == named.st_dev && own.st_ino == named.st_ino;
    }

    /// Release the lock. If another process has the descriptor too, that keeps the lock.
    void drop() noexcept {
        if (!fd_) return;
        if (pid_ != ForkState::pid()) {  // closed already; the number may be another file's
            fd_.leave();
            return;
        }
        const std::lock_guard<std::mutex> lock(ForkState::mutex());
        std::vector<int>& all = ForkState::closed_in_child();
        all.erase(std::remove(all.begin(), all.end(), fd_.get()), all.end());
        fd_ = Fd();
    }

private:
    Fd fd_;
    pid_t pid_ = 0;  // that has it
};

/// Whether the process that holds the lock of a file has certainly ended. A file that is missing, or not one of ours,
/// says nothing: the process may be of an older version.
inline bool is_lock_free(const std::string& path) noexcept {
    try {
        const Fd fd = open_private_file(path);
        // Shared, so that any number of processes may look at once.
        if (!fd || ::flock(fd.get(), LOCK_SH | LOCK_NB) != 0) return false;
        ::flock(fd.get(), LOCK_UN);  // a child forked meanwhile has the descriptor too
        return true;
    } catch (const TRException&) {
        return false;
    }
}

/// Whether some process holds the lock of that file, this one too; false if there is no such file of this user's.
inline bool is_lock_held(const std::string& path) {
    try {
        const Fd fd = open_private_file(path);
        if (!fd) return false;
        if (::flock(fd.get(), LOCK_SH | LOCK_NB) != 0) return true;
        ::flock(fd.get(), LOCK_UN);
        return false;
    } catch (const HostilePath&) {
        return false;
    }
}

/// False only if exactly this process has certainly ended: judged by its pid, or by its lock if that says nothing.
///
/// @param process from the session's manifest.
/// @param lock_path of the lock that it holds for life.
inline bool is_alive(const Identity& process, const std::string& lock_path) {
    if (process.is_judgeable() || !process.is_alive()) return process.is_alive();
    return !is_lock_free(lock_path);
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_LIFE_LOCK_HPP
