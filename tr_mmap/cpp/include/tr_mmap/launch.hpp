// Starting a session's worker: which program, with which environment. Waits for nothing.
#ifndef TR_MMAP_LAUNCH_HPP
#define TR_MMAP_LAUNCH_HPP

#include "macros_off.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "options.hpp"
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
    std::error_code error;
    const std::filesystem::path own = std::filesystem::absolute(__FILE__, error);
    const std::string normal = own.lexically_normal().string();
    const std::string package = directory_of(directory_of(directory_of(directory_of(normal))));
    // After a symlink, ".." may lead elsewhere.
    if (!std::filesystem::equivalent(own, package + "/cpp/include/tr_mmap/launch.hpp", error)) return "";
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
///
/// @param script_path absolute, or wire::default_worker.
inline void check_script(const std::string& script_path) {
    if (script_path == wire::default_worker || is_file(script_path)) return;
    throw ScriptNotFound("the worker's script '" + script_path + "' is no file; give the path of a Python script, or '" +
                             wire::default_worker + "'",
                         script_path);
}

/// A program as posix_spawnp finds it from any directory.
inline std::string resolved_program(const std::string& program) {
    return program.find('/') == std::string::npos ? program : absolute_path(program);
}

/// The options of a session, checked, and with relative paths resolved, so that a later change of directory has no
/// effect.
inline SessionOptions resolved(SessionOptions options) {
    if (!(options.block_ms >= 0)) {
        throw BadMessage("SessionOptions::block_ms is a time in milliseconds, 0 or more", "block_ms");
    }
    if (options.max_in_flight < 1 || options.max_in_flight > wire::most_in_flight) {
        throw BadMessage("SessionOptions::max_in_flight is a number of requests, 1 to " +
                             std::to_string(wire::most_in_flight) + "; it is " + std::to_string(options.max_in_flight),
                         "max_in_flight");
    }
    const auto given = options.env.find("TR_PYTHON");
    if (given != options.env.end() && given->second && !given->second->empty()) {
        given->second = resolved_program(*given->second);
        if (options.python.empty()) options.python = *given->second;
    }
    options.python = resolved_program(options.python);
    if (!options.cwd.empty()) options.cwd = absolute_path(options.cwd);
    return options;
}

/// A session's script with its path resolved.
inline std::string resolved_script(const std::string& script_path) {
    if (script_path == wire::default_worker || script_path.empty()) return script_path;
    const std::string last = script_path.substr(script_path.rfind('/') + 1);
    // "w.py/" names a directory, for open(2) too.
    return absolute_path(script_path) + (last.empty() || last == "." ? "/" : "");
}

/// The worker's environment, "NAME=value" each: this process's, with the changes of the options, and without the
/// variables that only the worker's own controller may set.
///
/// @param is_default whether it is the worker that ships with tr_mmap. Variables that a user sets for other programs
///     must not change what it runs. Variables that name another interpreter's standard library would even end it at
///     once. So it gets such variables only from the options.
inline std::vector<std::string> environment(const SessionOptions& options, bool is_default, const std::string& package,
                                            const std::string& workspace_root) {
    std::map<std::string, std::string> variables;
    for (char** each = environ; each && *each; ++each) {
        const std::string_view text = *each;
        const std::size_t equals = text.find('=');
        if (equals != std::string_view::npos) variables.emplace(text.substr(0, equals), text.substr(equals + 1));
    }
    if (is_default) {
        for (const char* name : {"PYTHONHOME", "PYTHONPLATLIBDIR"}) variables.erase(name);
    }
    for (const auto& [name, value] : options.env) {
        if (name.empty() || name.find_first_of(std::string_view("=\0", 2)) != std::string::npos ||
            (value && value->find('\0') != std::string::npos)) {
            throw BadMessage("SessionOptions::env: '" + name + "' is no name of an environment variable, or its value "
                             "has a zero byte",
                             name);
        }
        if (value) variables[name] = *value;
        else variables.erase(name);
    }
    if (is_default) {
        for (const char* name : {"PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT"}) variables.erase(name);
    }
    std::string paths;
    const auto add = [&](const std::string& path) { paths += (paths.empty() ? "" : ":") + path; };
    if (!package.empty()) {
        add(package + "/compat");  // holds tech_renaissance.py, the old name
        const std::string parent = directory_of(package);
        // Never another Python's site-packages: packages there may not fit the Python that runs the worker.
        if (parent.find("-packages") == std::string::npos) add(parent);
    }
    const std::string& inherited = variables["PYTHONPATH"];  // relative to our directory, even if the worker's differs
    for (std::size_t at = 0; at < inherited.size();) {
        const std::size_t end = std::min(inherited.find(':', at), inherited.size());
        const std::string each = inherited.substr(at, end - at);
        if (!each.empty()) add(options.cwd.empty() ? each : absolute_path(each));
        at = end + 1;
    }
    variables["PYTHONPATH"] = paths;
    if (paths.empty()) variables.erase("PYTHONPATH");
    variables["PYTHONUNBUFFERED"] = "1";    // else a killed worker's last output is lost with its buffers
    variables["PYTHONFAULTHANDLER"] = "1";  // a crash in native code leaves its stack in the log
    variables[wire::workspace_variable] = workspace_root;
    // Remove those that this process has from its own controller, if it is a worker. start() adds the new worker's.
    for (const char* name : {wire::worker_mark_variable, wire::secret_fd_variable, wire::lifeline_fd_variable,
                             wire::lock_fd_variable}) {
        variables.erase(name);
    }
    std::vector<std::string> result;
    for (const auto& [name, value] : variables) result.push_back(name + "=" + value);
    return result;
}

/// Start the worker of a session that is ready for it.
///
/// @param script_path resolved, see resolved_script().
/// @param options resolved, see resolved().
/// @param log_path where its log goes, outside the session's directory, which then has a symlink to it; "" for a log
///     in that directory.
/// @param secret of a session that signs its messages; "" for another.
/// @throws ScriptNotFound there is no such script, interpreter or working directory.
inline std::shared_ptr<WorkerProcess> launch(const std::string& script_path, const std::string& session_id,
                                             const Workspace& workspace, const SessionOptions& options,
                                             const std::string& mark, const std::string& log_path, bool is_quiet,
                                             const std::string& secret) {
    check_script(script_path);
    const bool is_default = script_path == wire::default_worker;
    const std::string package = package_dir();
    const char* chosen = options.env.count("TR_PYTHON") ? nullptr : std::getenv("TR_PYTHON");
    std::string program = options.python;
    if (program.empty() && chosen) program = resolved_program(chosen);
    if (program.empty()) program = python_of(package);
    if (program.empty()) program = "python3";
    std::error_code none;
    if (!options.cwd.empty() && !std::filesystem::is_directory(options.cwd, none)) {
        throw ScriptNotFound("SessionOptions::cwd, '" + options.cwd + "', is no directory", options.cwd);
    }
    std::vector<std::string> argv = {program};
    // -P: what is in the current directory is not part of the worker.
    if (is_default) argv.insert(argv.end(), {"-P", "-m", "tr_mmap.worker"});
    else argv.push_back(script_path);
    argv.push_back(session_id);
    argv.insert(argv.end(), options.args.begin(), options.args.end());
    const std::string directory = workspace.session_dir(session_id) + "/";
    const auto variables = environment(options, is_default, package, workspace.root());
    return std::make_shared<WorkerProcess>(argv, variables, options.cwd,
                                           create_log(log_path, directory + wire::log_file),
                                           directory + wire::worker_lock_file, mark, is_quiet, secret);
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_LAUNCH_HPP
