// WORKSPACE_PATH: the directory of all sessions, for programs that build the paths of a session's files from it. Part
// of tech_renaissance.h.
//
// A session of the original's PyTorchSession is WORKSPACE_PATH/pytorch_session/tr_session_<id>; here every session is
// in python_session. So once a program has asked for WORKSPACE_PATH, each PyTorchSession that it has open is there too,
// as a symlink. Other programs have no such link.
#ifndef TECH_RENAISSANCE_WORKSPACE_PATH_HPP
#define TECH_RENAISSANCE_WORKSPACE_PATH_HPP

#include "../../tr_mmap/macros_off.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <system_error>

#include "../../tr_mmap/errors.hpp"
#include "../../tr_mmap/fork_safety.hpp"
#include "../../tr_mmap/system.hpp"
#include "../../tr_mmap/wire.hpp"
#include "../../tr_mmap/workspace.hpp"

namespace tr {
namespace detail {

/// The symlinks of this process's PyTorchSessions. For any thread.
class SessionAliases {
public:
    static SessionAliases& instance() {
        static SessionAliases& only = *new SessionAliases;  // never destroyed: a session may be a static object
        return only;
    }

    /// A session is open.
    ///
    /// @throws SystemError its link is wanted, and cannot be made.
    void add(const void* session, const std::string& directory) {
        const std::lock_guard<std::mutex> lock(mutex_);
        directories_[session] = directory;
        if (is_wanted_) link(directory);
    }

    /// A session is over.
    void remove(const void* session) noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = directories_.find(session);
        if (found == directories_.end()) return;
        const std::string alias = alias_of(found->second);
        struct stat info;
        if (::lstat(alias.c_str(), &info) == 0 && S_ISLNK(info.st_mode)) unlink_file(alias);
        ::rmdir(directory_of(alias).c_str());
        directories_.erase(found);
    }

    /// Make links for all sessions, also for those that are opened later.
    ///
    /// @returns the workspace's path, which is never freed.
    const char* want() {
        const std::string root = Workspace::locate().root();
        const std::lock_guard<std::mutex> lock(mutex_);
        is_wanted_ = true;
        for (const auto& each : directories_) link(each.second);
        return roots_.insert(root).first->c_str();
    }

private:
    /// @param directory <root>/python_session/tr_session_<id>
    static std::string alias_of(const std::string& directory) {
        const std::string name = directory.substr(directory.rfind('/') + 1);
        return directory_of(directory_of(directory)) + "/pytorch_session/" + name;
    }

    static void link(const std::string& directory) {
        const std::string alias = alias_of(directory), folder = directory_of(alias);
        const std::string target = std::string("../") + wire::sessions_dir + alias.substr(alias.rfind('/'));
        for (int i = 0; i < 100; ++i) {
            if (::mkdir(folder.c_str(), 0700) == 0 || errno == EEXIST) {
                remove_stale(folder);
                if (::symlink(target.c_str(), alias.c_str()) == 0 || errno == EEXIST) return;
            }
            if (errno != ENOENT) break;  // else another program has removed the folder, because it was empty
        }
        throw SystemError(alias, errno);
    }

    /// Remove the links of programs that were killed.
    static void remove_stale(const std::string& folder) {
        std::error_code error;
        for (const auto& each : std::filesystem::directory_iterator(folder, error)) {
            struct stat info;
            const std::string path = each.path().string();
            if (::lstat(path.c_str(), &info) == 0 && S_ISLNK(info.st_mode) && ::stat(path.c_str(), &info) != 0) {
                unlink_file(path);
            }
        }
    }

    std::mutex mutex_;
    bool is_wanted_ = false;
    std::map<const void*, std::string> directories_;
    std::set<std::string> roots_;  // what want() has handed out
};

}  // namespace detail
}  // namespace tr

#ifndef WORKSPACE_PATH
#define WORKSPACE_PATH (::tr::detail::SessionAliases::instance().want())
#endif

#include "../../tr_mmap/macros_on.hpp"

#endif  // TECH_RENAISSANCE_WORKSPACE_PATH_HPP
