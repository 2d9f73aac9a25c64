// The manifest of a session, session.json: what the session is, and which processes have it, so that any process can
// judge it. Does not know where sessions live.
#ifndef TR_MMAP_MANIFEST_HPP
#define TR_MMAP_MANIFEST_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "identity.hpp"
#include "json.hpp"
#include "system.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

struct Manifest {
    std::string session_id;
    Identity controller;
    std::optional<Identity> worker;      // nothing until it is started
    std::string worker_mark;             // tells the present worker from one of an earlier start that lives on
    std::vector<std::string> doorbells;  // semaphores that may still have a name; a sweeper removes them
    std::optional<std::uint64_t> budget_nbytes;  // how both sides keep their tensors: see SessionOptions
    double block_ms = 0;
    bool has_checksum = false;
    std::int64_t created_ms = 0;
    std::string log;  // the worker's, if it is outside the session's directory
};

inline void append_identity(std::string& out, const Identity& identity) {
    out += "{\"pid\":" + std::to_string(identity.pid) + ",\"start_ticks\":" + std::to_string(identity.start_ticks) +
           ",\"boot_id\":";
    json::append_string(out, identity.boot);
    out += ",\"pid_namespace\":" + std::to_string(identity.pid_namespace) + "}";
}

/// Write the manifest into a directory; replaces an earlier one in one step.
inline void write_manifest(const std::string& directory, const Manifest& manifest) {
    std::string text = "{\"protocol\":" + std::to_string(wire::protocol_version) + ",\"session_id\":";
    json::append_string(text, manifest.session_id);
    text += ",\"controller\":";
    append_identity(text, manifest.controller);
    text += ",\"worker\":";
    if (manifest.worker) append_identity(text, *manifest.worker);
    else text += "null";
    text += ",\"worker_mark\":";
    json::append_string(text, manifest.worker_mark);
    text += ",\"channel\":\"mapped\",\"doorbells\":[";
    for (const std::string& name : manifest.doorbells) {
        if (text.back() != '[') text += ',';
        json::append_string(text, name);
    }
    text += "],\"store\":{\"checksum\":";
    text += manifest.has_checksum ? "true" : "false";
    if (manifest.budget_nbytes) text += ",\"budget_nbytes\":" + std::to_string(*manifest.budget_nbytes);
    if (manifest.block_ms > 0) {
        // Whole milliseconds, at most three years: JSON has no infinity, and in some locales printf writes a comma.
        text += ",\"block_ms\":" + std::to_string(std::llround(std::min(manifest.block_ms, 1e11)));
    }
    text += "},\"framework\":\"tr_mmap C++\",\"log\":";
    json::append_string(text, manifest.log);
    text += ",\"created_ms\":" + std::to_string(manifest.created_ms) + "}\n";
    const std::string path = directory + "/" + wire::manifest_file;
    const std::string temporary = temporary_beside(path);
    const Fd fd = create_file(temporary);
    Unlinker unlinker(temporary);
    write_all(fd, text.data(), text.size(), 0, directory);
    rename_file(temporary, path);
    unlinker.keep();
}

[[noreturn]] inline void bad_manifest(const std::string& path, const std::string& what) {
    throw BadMessage(
        path + " is not a session's manifest (" + what + "); remove the session by hand if nothing uses it", what);
}

inline Identity read_identity(const json::Value& value, const std::string& path) {
    const auto whole = [&](const char* key, std::int64_t least, std::int64_t most) {
        const json::Value* member = value.find(key);
        const auto* number = member ? member->get<std::int64_t>() : nullptr;
        if (!number || *number < least || *number > most) bad_manifest(path, std::string(key) + " is not right");
        return *number;
    };
    const json::Value* boot = value.find("boot_id");
    if (!boot || !boot->is<std::string>()) bad_manifest(path, "boot_id is not right");
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    Identity identity;
    identity.pid = whole("pid", 1, std::numeric_limits<pid_t>::max());
    identity.start_ticks = static_cast<std::uint64_t>(whole("start_ticks", 0, most));
    identity.boot = *boot->get<std::string>();
    if (value.find("pid_namespace")) {
        identity.pid_namespace = static_cast<std::uint64_t>(whole("pid_namespace", 0, most));
    }
    return identity;
}

/// Read the members of a manifest that are needed to judge the session; nothing if there is no manifest.
///
/// @throws BadMessage it is garbled, or too large to be one.
/// @throws HostilePath it is not a file of our own.
inline std::optional<Manifest> read_manifest(const std::string& directory) {
    const std::string path = directory + "/" + wire::manifest_file;
    const Fd fd = open_private_file(path);
    if (!fd) return {};
    const std::string text = read_all(fd, wire::max_manifest_nbytes + 1, 0, path);
    if (text.size() > wire::max_manifest_nbytes) bad_manifest(path, "too large");
    json::Value value;
    try {
        value = json::parse(text);
    } catch (const BadMessage& error) {
        bad_manifest(path, error.detail);
    }
    Manifest manifest;
    const json::Value* id = value.find("session_id");
    const json::Value* controller = value.find("controller");
    if (!id || !id->is<std::string>() || !controller) bad_manifest(path, "a member is missing");
    manifest.session_id = *id->get<std::string>();
    manifest.controller = read_identity(*controller, path);
    const json::Value* worker = value.find("worker");
    if (worker && !worker->is_null()) manifest.worker = read_identity(*worker, path);
    const json::Value* mark = value.find("worker_mark");
    if (mark && mark->is<std::string>()) manifest.worker_mark = *mark->get<std::string>();
    const json::Value* log = value.find("log");
    if (log && log->is<std::string>()) manifest.log = *log->get<std::string>();
    if (const json::Value* doorbells = value.find("doorbells")) {
        const auto* names = doorbells->get<json::Array>();
        if (!names) bad_manifest(path, "doorbells is no list");
        for (const json::Value& name : *names) {
            if (!name.is<std::string>()) bad_manifest(path, "a doorbell is no text");
            manifest.doorbells.push_back(*name.get<std::string>());
        }
    }
    return manifest;
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_MANIFEST_HPP
