// What Python's faulthandler has written at a fatal error, shortened to the lines that tell where the program was.
// Python's side is tr_mmap/processes/fatal_dump.py.
#ifndef TR_MMAP_FATAL_DUMP_HPP
#define TR_MMAP_FATAL_DUMP_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "wire.hpp"

namespace tr {
namespace detail {

inline std::vector<std::string_view> lines_of(std::string_view text) {
    std::vector<std::string_view> lines;
    while (!text.empty()) {
        const std::size_t end = text.find('\n');
        lines.push_back(text.substr(0, end));
        text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    }
    return lines;
}

/// One thread of a dump: the line with which it begins, and its frames.
struct DumpedThread {
    std::string_view head;
    std::vector<std::string_view> frames;

    /// Whether a file's path has one of some parts, between which there are spaces.
    static bool has_part(std::string_view path, std::string_view parts) {
        while (!parts.empty()) {
            const std::size_t end = parts.find(' ');
            if (path.find(parts.substr(0, end)) != std::string_view::npos) return true;
            parts = end == std::string_view::npos ? std::string_view() : parts.substr(end + 1);
        }
        return false;
    }

    /// Whether it waits in the library, or is nowhere but in the standard library.
    bool is_idle() const {
        constexpr std::string_view file = "  File \"";
        for (const std::string_view frame : frames) {
            if (frame.substr(0, file.size()) != file) continue;
            const std::string_view path = frame.substr(file.size(), frame.find('"', file.size()) - file.size());
            if (!has_part(path, wire::dump_of_python)) return has_part(path, wire::dump_of_library);
        }
        return true;
    }

    /// How much it tells, the less the more; 3 for what is not shown.
    int rank() const {
        const bool is_in_error = head.substr(0, 6) != "Thread";
        return is_idle() ? (is_in_error ? 2 : 3) : (is_in_error ? 0 : 1);
    }
};

/// At most so many lines of a dump: what the error was, and of the threads the innermost frames.
///
/// A thread of the library that waits is left out, and so is one of which there are only frames of the standard
/// library. The thread in which the error came is shown first, unless it is such a one: then last.
///
/// @param dump from "Fatal Python error" on.
inline std::vector<std::string_view> shown_dump(std::string_view dump, std::size_t most) {
    constexpr std::string_view head_end = wire::dump_thread;
    std::vector<std::string_view> shown;
    std::vector<DumpedThread> threads;
    for (const std::string_view line : lines_of(dump)) {
        const bool is_head = line.size() >= head_end.size() && line.substr(line.size() - head_end.size()) == head_end;
        if (is_head) threads.push_back({line, {}});
        else if (!threads.empty() && line.substr(0, 2) == "  ") threads.back().frames.push_back(line);
        else if (threads.empty() && !line.empty()) shown.push_back(line);
    }
    for (int rank = 0; rank < 3; ++rank) {
        for (const DumpedThread& thread : threads) {
            if (thread.rank() != rank) continue;
            shown.push_back(thread.head);
            const std::size_t count = std::min<std::size_t>(thread.frames.size(), wire::dump_frames);
            for (std::size_t i = 0; i < count; ++i) shown.push_back(thread.frames[i]);
            if (count < thread.frames.size()) shown.push_back("  ...");
        }
    }
    if (shown.size() > most) shown.resize(most);
    for (std::string_view& line : shown) line = line.substr(0, wire::dump_line_chars);
    return shown;
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_FATAL_DUMP_HPP
