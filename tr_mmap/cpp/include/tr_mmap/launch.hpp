// Starting a session's worker: which program, with which environment. Waits for nothing.
#ifndef TR_MMAP_LAUNCH_HPP
#define TR_MMAP_LAUNCH_HPP

#include "macros_off.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "process.hpp"
#include "wire.hpp"
#include "workspace.hpp"

namespace tr {
namespace detail {

inline bool is_file(const std::string& path) {
    struct stat info;
    return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

/// The Python package that these headers are part of: this one is <package>/cpp/include/tr_mmap/launch.hpp. "" if they
/// were copied away from it, or were included by a relative path and the program runs in another directory.
inline std::string package_dir() {
#ifdef TR_MMAP_PACKAGE_DIR
    const std::string package = TR_MMAP_PACKAGE_DIR;
#else
    const std::string own = std::filesystem::absolute(__FILE__).lexically_normal().string();
    const std::string package = directory_of(directory_of(directory_of(directory_of(own))));
#endif
    return is_file(package + "/worker/__main__.py") ? package : "";  // what ``-m tr_mmap.worker`` runs
}

/// The Python that the package is installed in; "" if it is not in a site-packages.
inline std::string python_of(const std::string& package) {
    const std::size_t at = package.rfind("/lib/python");
    if (at == std::string::npos || package.find("-packages/", at) == std::string::npos) return "";
    const std::string python = package.substr(0, at) + "/bin/python3";
    return ::access(python.c_str(), X_OK) == 0 ? python : "";
}

/// Throw ScriptNotFound unless a worker can be started from it.
inline void check_script(const std::string& script_path) {
    if (script_path == wire::default_worker || is_file(script_path)) return;
    throw ScriptNotFound("the worker's script '" + script_path + "' is no file (seen from " +
                             std::filesystem::current_path().string() + "); give the path of a Python script, or \"" +
                             wire::default_worker + "\"",
                         script_path);
}

/// The worker's environment, "NAME=value" each: this process's, but for what only the worker's own controller may set.
inline std::vector<std::string> environment(const std::string& package, const std::string& workspace_root) {
    constexpr const char* replaced[] = {"PYTHONPATH",
                                        "PYTHONUNBUFFERED",
                                        "PYTHONFAULTHANDLER",
                                        wire::workspace_variable,
                                        wire::worker_mark_variable,
                                        wire::secret_fd_variable,
                                        wire::lifeline_fd_variable};
    std::vector<std::string> result;
    for (char** each = environ; each && *each; ++each) {
        const std::string_view name = std::string_view(*each).substr(0, std::string_view(*each).find('='));
        if (std::find(std::begin(replaced), std::end(replaced), name) == std::end(replaced)) result.emplace_back(*each);
    }
    std::string paths;
    const auto add = [&](const std::string& path) { paths += (paths.empty() ? "" : ":") + path; };
    if (!package.empty()) {
        add(package + "/compat");  // holds tech_renaissance.py, the old name
        const std::string parent = directory_of(package);
        // Never another Python's site-packages: packages there may not fit the Python that runs the worker.
        if (parent.find("-packages") == std::string::npos) add(parent);
    }
    const char* inherited = std::getenv("PYTHONPATH");
    if (inherited && *inherited) add(inherited);
    if (!paths.empty()) result.push_back("PYTHONPATH=" + paths);
    result.push_back("PYTHONUNBUFFERED=1");    // else a killed worker's last output is lost with its buffers
    result.push_back("PYTHONFAULTHANDLER=1");  // a crash in native code leaves its stack in the log
    result.push_back(std::string(wire::workspace_variable) + "=" + workspace_root);
    return result;
}

/// Start the worker of a session that is ready for it.
///
/// @param python the interpreter; if "", $TR_PYTHON, else the one that the package is installed in, else python3.
/// @throws ScriptNotFound there is no such script or interpreter.
inline std::shared_ptr<WorkerProcess> launch(const std::string& script_path, const std::string& session_id,
                                             const Workspace& workspace, const std::string& python,
                                             const std::string& mark, bool is_quiet) {
    check_script(script_path);
    const std::string package = package_dir();
    const char* chosen = std::getenv("TR_PYTHON");
    std::string program = python;
    if (program.empty() && chosen) program = chosen;
    if (program.empty()) program = python_of(package);
    if (program.empty()) program = "python3";
    std::vector<std::string> argv = {program};
    if (script_path == wire::default_worker) {
        argv.insert(argv.end(), {"-m", "tr_mmap.worker"});
    } else {
        argv.push_back(std::filesystem::absolute(script_path).string());
    }
    argv.push_back(session_id);
    return std::make_shared<WorkerProcess>(argv, environment(package, workspace.root()),
                                           workspace.session_dir(session_id) + "/" + wire::log_file, mark, is_quiet);
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_LAUNCH_HPP
