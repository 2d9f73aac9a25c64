// Where sessions live: places them, gives each name to one owner, removes what the dead left. Starts no process.
//
// <root>/python_session/tr_session_<id>/ is a session. It appears with its manifest already inside, by rename, and
// goes by rename too, to ".gone-…" beside it; nobody ever sees half of one. Who takes a directory away holds its
// flock from judging it until it is renamed, and makes sure that the name still means the directory that is locked.
// Python's side, which keeps the same rules, is tr_mmap/workspace.py.
#ifndef TR_MMAP_WORKSPACE_HPP
#define TR_MMAP_WORKSPACE_HPP

#include <semaphore.h>

#include <cctype>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "identity.hpp"
#include "manifest.hpp"
#include "system.hpp"

namespace tr {
namespace detail {

inline constexpr double claim_wait_ms = 2000;  // for another's sweep, and for a dead owner's worker to follow it

/// Refuse what may not name a tensor: other characters, or the library's own names.
inline void check_tag(const std::string& tag) {
    if (!is_plain_name(tag, 128)) {
        const std::string shown = tag.substr(0, 128);
        throw BadTag("'" + shown + "' is no tag: 1 to 128 characters, letters, digits, '_', '-' and '.', not beginning "
                     "with a dot", shown);
    }
    for (const std::string_view own : {"result_", "segment_"}) {
        if (starts_with(tag, own) && is_all_digits(std::string_view(tag).substr(own.size()))) {
            throw BadTag("the tag '" + tag + "' is one of the library's own names; choose another", tag);
        }
    }
}

inline void check_session_id(const std::string& session_id) {
    if (!is_plain_name(session_id, 64)) {
        const std::string shown = session_id.substr(0, 64);
        throw BadMessage("'" + shown + "' is no session id: 1 to 64 characters, letters, digits, '_', '-' and '.', not "
                         "beginning with a dot", shown);
    }
}

[[noreturn]] inline void unusable(const std::string& path, const std::string& reason) {
    refuse_path(path, reason, "set TR_WORKSPACE to a directory of your own, in a directory that exists");
}

/// Throw HostilePath unless it is a directory of ours that nobody else may write; false if it is gone.
inline bool check_private_dir(const std::string& path) {
    struct stat info;
    if (::lstat(path.c_str(), &info) != 0) {
        if (errno == ENOENT) return false;
        throw SystemError(path, errno);
    }
    if (S_ISLNK(info.st_mode)) unusable(path, "is a symlink");
    if (!S_ISDIR(info.st_mode)) unusable(path, "is not a directory");
    if (info.st_uid != ::geteuid()) unusable(path, "belongs to user " + std::to_string(info.st_uid));
    if (info.st_mode & 022) unusable(path, "may be written by group or others");
    return true;
}

inline bool is_usable_dir(const std::string& path) {
    struct stat info;
    return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode) && ::access(path.c_str(), W_OK | X_OK) == 0;
}

/// Throw HostilePath if another user could rename what we make in a directory that our user chose.
inline void check_shared_dir(const std::string& path) {
    struct stat info;
    if (::stat(path.c_str(), &info) != 0) throw SystemError(path, errno);
    if (info.st_uid != 0 && info.st_uid != ::geteuid()) unusable(path, "belongs to user " + std::to_string(info.st_uid));
    if ((info.st_mode & 022) && !(info.st_mode & S_ISVTX)) {
        unusable(path, "may be written by group or others, and has no sticky bit (chmod go-w, or chmod +t)");
    }
}

inline void remove_tree(const std::string& path) noexcept {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);  // symlinks are removed, never followed
}

/// Why a session may not be taken away, whose it is (0 if unknown), and whether waiting a little may help.
struct Kept {
    std::string reason;
    std::int64_t pid = 0;
    bool may_pass = false;
};

class Workspace {
public:
    /// TR_WORKSPACE, else a private directory in shared memory, else one among temporary files; made if missing.
    static Workspace locate() {
        const char* chosen = std::getenv("TR_WORKSPACE");
        const char* temporary = std::getenv("TMPDIR");
        const std::string other = temporary && is_usable_dir(temporary) ? temporary : "/tmp";
        const std::string common =
            (is_usable_dir("/dev/shm") ? "/dev/shm" : other) + "/tr_mmap-" + std::to_string(::getuid());
        std::string root = std::filesystem::absolute(chosen && *chosen ? chosen : common).lexically_normal().string();
        while (root.size() > 1 && root.back() == '/') root.pop_back();
        Workspace workspace(root, root == common);
        workspace.make_root();
        return workspace;
    }

    const std::string& root() const noexcept { return root_; }
    std::string session_dir(const std::string& session_id) const {
        check_session_id(session_id);
        return sessions_ + "/tr_session_" + session_id;
    }

    /// Throw HostilePath if another could write to a session of ours, or to what leads to it.
    void check_session(const std::string& session_id) const {
        check_private_dir(sessions_);
        check_private_dir(session_dir(session_id));
    }

    /// Become the owner of a session: its directory, new and with its manifest in it. What a dead owner left under the
    /// name is removed first.
    ///
    /// @throws SessionInUse somebody else has the name, or nobody can say who.
    std::string claim(const Manifest& manifest) {
        const std::string path = session_dir(manifest.session_id);
        const Clock::time_point deadline = deadline_in(claim_wait_ms);
        while (true) {
            if (place(path, manifest)) return path;
            bool is_free = false;
            const std::optional<Kept> found = take_away(path, &judge_dead, is_free);
            const Kept kept = found.value_or(Kept{"it changes hands all the time", 0, true});
            if (!kept.may_pass || Clock::now() >= deadline) {
                throw SessionInUse("session '" + manifest.session_id + "' is in use: " + kept.reason + " (" + path +
                                       "); end that process, choose another session id, or remove the directory if you "
                                       "know that nothing uses it",
                                   manifest.session_id, kept.pid);
            }
            if (!is_free) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
    }

    /// Remove a session of this process, or a dead one, and the directories that are empty then.
    void release(const std::string& session_id) {
        const Clock::time_point deadline = deadline_in(claim_wait_ms);
        bool ignored = false;
        while (const auto kept = take_away(session_dir(session_id), &judge_own, ignored)) {
            if (!kept->may_pass || Clock::now() >= deadline) return;
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        ::rmdir(sessions_.c_str());
        if (is_default_) ::rmdir(root_.c_str());
    }

    /// Remove the sessions whose processes have all ended, and half-made ones. Whatever cannot be judged stays.
    void sweep() {
        if (!check_private_dir(sessions_)) return;
        std::error_code error;
        std::vector<std::string> names;
        for (const auto& entry : std::filesystem::directory_iterator(sessions_, error)) {
            names.push_back(entry.path().filename().string());
        }
        for (const std::string& name : names) {
            if (starts_with(name, ".new-") || starts_with(name, ".gone-")) {
                long long pid = 0;
                unsigned long long ticks = 0;
                const char* numbers = name.c_str() + name.find('-') + 1;
                if (std::sscanf(numbers, "%10lld-%20llu-", &pid, &ticks) != 2) continue;
                const Identity user = Identity::local(pid, ticks);
                // Our own removals too: one may have failed.
                const bool is_own = name[1] == 'g' && user == Identity::current();
                if (is_own || !user.is_alive()) remove_tree(sessions_ + "/" + name);
            } else if (starts_with(name, "tr_session_") && is_plain_name(name.substr(11), 64)) {
                bool ignored = false;
                take_away(sessions_ + "/" + name, &judge_dead, ignored);
            }
        }
    }

private:
    using Judge = std::optional<Kept> (*)(const std::optional<Manifest>&, const std::string&);

    Workspace(std::string root, bool is_default)
        : root_(std::move(root)), is_default_(is_default), sessions_(root_ + "/python_session") {}

    static std::optional<Kept> judge_dead(const std::optional<Manifest>& manifest, const std::string& problem) {
        if (!manifest) return Kept{problem};
        if (manifest->controller.is_alive()) {
            const std::int64_t pid = manifest->controller.pid;
            return Kept{"its controller, process " + std::to_string(pid) + ", is alive", pid};
        }
        if (manifest->worker && manifest->worker->is_alive()) {
            // It is about to notice, and until then could write to the directory that it takes for its own.
            const std::int64_t pid = manifest->worker->pid;
            return Kept{"its worker, process " + std::to_string(pid) + ", is alive, its controller is not", pid, true};
        }
        return {};
    }
    static std::optional<Kept> judge_own(const std::optional<Manifest>& manifest, const std::string& problem) {
        if (!manifest || manifest->controller == Identity::current()) return {};
        return judge_dead(manifest, problem);
    }

    /// Put a new session at ``path``; false if something is there.
    bool place(const std::string& path, const Manifest& manifest) {
        for (int attempt = 0;; ++attempt) {
            make_root();
            if (::mkdir(sessions_.c_str(), 0700) != 0 && errno != EEXIST && errno != ENOENT) {
                throw SystemError(sessions_, errno);
            }
            struct stat info;
            if (check_private_dir(sessions_)) {
                if (::lstat(path.c_str(), &info) == 0) return false;  // rename(2) would replace an empty directory
                const std::string temporary = aside("new");
                if (::mkdir(temporary.c_str(), 0700) == 0) {
                    try {
                        write_manifest(temporary, manifest);
                    } catch (...) {
                        remove_tree(temporary);
                        throw;
                    }
                    if (::rename(temporary.c_str(), path.c_str()) == 0) return true;
                    const int code = errno;
                    remove_tree(temporary);
                    if (code == EEXIST || code == ENOTEMPTY || code == ENOTDIR) return false;
                    throw SystemError(path, code);
                }
                if (errno != ENOENT) throw SystemError(temporary, errno);
            }
            // Another's release removed the empty parents at this moment.
            if (attempt == 100) throw SystemError(sessions_, ENOENT);
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
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
            if (check_private_dir(root_)) return;  // else another's release removed it at this moment
        }
    }

    /// A name beside the sessions that says who uses it, so that a sweep can tell when nobody does any more.
    std::string aside(const char* kind) const {
        const Identity own = Identity::current();
        return sessions_ + "/." + kind + "-" + std::to_string(own.pid) + "-" + std::to_string(own.start_ticks) + "-" +
               random_hex(8);
    }

    /// Remove a session and its semaphores if the judge does not object.
    std::optional<Kept> take_away(const std::string& path, Judge judge, bool& is_done) const {
        const Fd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
        if (!fd) {
            if (errno == ENOENT) return {};
            return Kept{std::string("it is not a directory of this user's (") + std::strerror(errno) + ")"};
        }
        struct Unlock {  // first, before the descriptor is closed: a child forked meanwhile has it too
            const Fd& fd;
            ~Unlock() { ::flock(fd.get(), LOCK_UN); }
        };
        if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
            return Kept{"another process is examining or removing it", 0, true};
        }
        const Unlock unlock{fd};
        struct stat opened, named;
        if (::fstat(fd.get(), &opened) != 0 || ::lstat(path.c_str(), &named) != 0 || opened.st_dev != named.st_dev ||
            opened.st_ino != named.st_ino) {
            return {};  // taken away since it was opened; what has the name now is somebody's new session
        }
        std::optional<Manifest> manifest;
        std::string problem = "it has no manifest";
        if (named.st_uid != ::geteuid()) {
            problem = "it belongs to user " + std::to_string(named.st_uid);
        } else {
            try {
                manifest = read_manifest(path);
            } catch (const TRException& error) {
                problem = error.what();
            }
        }
        if (const auto kept = judge(manifest, problem)) return kept;
        // While the name is still taken: afterwards a new owner may have semaphores of the same names.
        if (manifest) {
            for (const std::string& name : manifest->doorbells) {
                // A manifest may not make us remove another program's semaphores.
                if (starts_with(name, "/tr_") && name.size() > 4 && name.find('/', 1) == std::string::npos) {
                    ::sem_unlink(name.c_str());
                }
            }
        }
        const std::string gone = aside("gone");
        if (::rename(path.c_str(), gone.c_str()) != 0) {
            return Kept{std::string("it cannot be removed (") + std::strerror(errno) + ")"};
        }
        remove_tree(gone);
        is_done = true;
        return {};
    }

    std::string root_;
    bool is_default_;
    std::string sessions_;
};

}  // namespace detail
}  // namespace tr

#endif  // TR_MMAP_WORKSPACE_HPP
